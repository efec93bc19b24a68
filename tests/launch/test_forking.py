"""A fork is a run of its own: it begins where the other was, may have another schedule, and passes the audit."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dist_ssl.build import Place, build
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.signals import Signals
from launch import audit, forking, preparation
from launch.ending import FINISHED, Ending
from launch.run_dir import RunDir, read_yaml
from tests.jobs import SMALL, finished, same_bits

HELD = ("schedule=trapezoid", "schedule.anneal=1 epoch", "schedule.warmup=2 steps", "probe.every=9 epochs")


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def trained(run: RunDir) -> dict[str, torch.Tensor]:
    """The state after an attempt of the run on this process."""
    attempt = run.new_attempt(run.config)
    config = {key: value for key, value in run.config.items() if key != "format"}
    job = build(config, World(), Signals(), Place(run.folder, attempt.number, lambda: True))
    assert finished(job)
    Ending(FINISHED).write(attempt.folder / "outcome.json")
    found = {name: value for name, value in job.engine.state().items() if isinstance(value, torch.Tensor)}
    return {name: value.clone() for name, value in found.items()}


def forked(source: RunDir, step: str, *words: str) -> RunDir:
    run, checkpoint = forking.source_of(f"{source.folder}@{step}")
    config, overrides, progress = forking.forked_config(run, checkpoint, list(words), console())
    return forking.begin(config, overrides, run, checkpoint, progress)


@pytest.fixture(scope="module")
def source(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A held run of four epochs of five steps, of which it keeps every third."""
    words = [*SMALL, *HELD, "epochs=4", "nodes=1", "cluster=local", "keep_every=3 steps", "name=held"]
    words += [f"data.path={demo_shards}", "data.source=null", f"runs={tmp_path_factory.mktemp('runs')}"]
    run = preparation.begin(words, preparation.new_config(words, console()))
    trained(run)
    return run


def test_a_fork_of_a_held_run_equals_a_shorter_run_from_the_start(source: RunDir, tmp_path: Path) -> None:
    words = [word for word in source.overrides if not word.startswith(("name=", "runs="))]
    words += ["epochs=3", f"runs={tmp_path}", "name=short"]
    expected = trained(preparation.begin(words, preparation.new_config(words, console())))
    run = forked(source, "9", "epochs=3", f"runs={tmp_path}", "name=fork")
    assert same_bits(trained(run), expected)
    losses = [
        [row["loss"] for row in jsonl.read(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("short", "fork")
    ]
    assert losses[0] == losses[1]
    assert audit.report(run, audit.open_split(run, None), console()) == 0
    assert [row["epoch"] for row in jsonl.read(run.folder / "plan.jsonl")] == [0, 1, 2]
    assert read_yaml(run.folder / "forked.yaml") == {"run": str(source.folder), "step": 9}
    _, config = preparation.resume([], run.folder, console())
    assert config["epochs"] == 3


def test_a_fork_may_have_another_schedule_and_leaves_its_source_alone(source: RunDir, tmp_path: Path) -> None:
    before = sorted(str(path) for path in source.folder.rglob("*") if "code" not in path.parts)
    run = forked(source, "12", "schedule=one_cycle", "epochs=5", f"runs={tmp_path}", "name=longer")
    assert (run.config["epochs"], run.config["schedule"]["warm"], run.config["schedule"]["image_size"]) == (5, 0.3, 16)
    assert before == sorted(str(path) for path in source.folder.rglob("*") if "code" not in path.parts)


@pytest.mark.parametrize(
    ("step", "words", "problem"),
    [
        ("12", ["epochs=2"], "Step 12 is after 2 epochs: nothing is left of the fork's 2"),
        ("12", ["optim.base_lr=1"], r"optim\.base_lr=1 is not what the run has"),
        ("12", ["batch_size=24"], r"batch_size=24 is not what the run has \(12\)"),
        ("13", [], "has no checkpoint 13"),
    ],
)
def test_what_cannot_be_forked_is_refused(
    source: RunDir, tmp_path: Path, step: str, words: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        forked(source, step, *words, f"runs={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_a_fork_without_a_step_is_refused(source: RunDir) -> None:
    with pytest.raises(ConfigError, match="names no step"):
        forking.source_of(str(source.folder))
