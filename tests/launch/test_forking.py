"""A fork is a run of its own: it begins where the other was, may have another schedule, and passes the audit."""

import io
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from dist_ssl.build import Place, build
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, ConfigError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.end_names import FINISHED
from dist_ssl.runtime.signals import Signals
from launch import audit, forking, preparation, settings, slurm
from launch.ending import Ending
from launch.run_dir import PROJECT, RunDir
from launch.run_files import read_yaml
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
    assert {row["lost_steps"] for row in jsonl.read(run.folder / "metrics.jsonl") if "lost_steps" in row} == {0}
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
        ("12", ["optim.eps=0.1"], r"optim\.eps=0.1 is not what the run has"),
        ("12", ["batch_size=24"], r"batch_size=24 is not what the run has \(12\)"),
        ("13", [], "has no checkpoint 13"),
        ("\u00b2", [], "has no checkpoint \u00b2"),
    ],
)
def test_what_cannot_be_forked_is_refused(
    source: RunDir, tmp_path: Path, step: str, words: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        forked(source, step, *words, f"runs={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_batches_of_the_epoch_that_the_step_lies_in_stay(source: RunDir, tmp_path: Path) -> None:
    """Step 9 lies in the second epoch, of 12 samples per step: a plan with more would move all later epochs."""
    words = ["schedule=progressive", "schedule.start_batch=24", "schedule.warmup=null", f"runs={tmp_path}"]
    with pytest.raises(ConfigError, match="This schedule has other batches than the run had before step 9"):
        forked(source, "9", *words)


def test_keys_of_an_engine_that_is_left_are_left_out(source: RunDir, tmp_path: Path) -> None:
    bitwise = RunDir(tmp_path / "bitwise")
    shutil.copytree(source.folder, bitwise.folder)
    fewer = settings.of_another_choice(["engine.bitwise=false"], ["engine=fsdp"], "engine", PROJECT / "configs")
    assert fewer == [], "otherwise this test would show nothing"
    (bitwise.folder / "overrides.yaml").write_text(yaml.safe_dump([*source.overrides, "engine.bitwise=false"]))
    run = forked(bitwise, "12", "engine=fsdp", "epochs=5", f"runs={tmp_path}", "name=fork")
    assert run.config["engine"]["_target_"].endswith("FSDP")


def test_forks_of_forks_keep_their_cycles(source: RunDir, tmp_path: Path) -> None:
    first = forked(source, "12", "extend=[2 epochs]", f"runs={tmp_path}", "name=first")
    second = forked(first, "latest", "nodes=2", "name=second")
    assert (second.config["extend"], second.config["nodes"]) == (["2 epochs"], 2)
    with pytest.raises(ConfigError, match="has appended cycles, 2 epochs: epochs alone does not say"):
        forked(second, "latest", "epochs=5", "name=third")
    third = forked(second, "latest", "extend=[2 epochs,3 epochs]", "name=third")
    assert third.config["extend"] == ["2 epochs", "3 epochs"]
    assert preparation.resume([], third.folder, console())[1]["extend"] == ["2 epochs", "3 epochs"]


@pytest.mark.parametrize("missing", ["ledger", "checkpoints/step_00000012/rank_00000.safetensors"])
def test_what_cannot_be_taken_over_leaves_no_folder(source: RunDir, tmp_path: Path, missing: str) -> None:
    other = RunDir(tmp_path / "other")
    shutil.copytree(source.folder, other.folder)
    run, checkpoint = forking.source_of(f"{other.folder}@12")
    config, overrides, progress = forking.forked_config(run, checkpoint, [f"runs={tmp_path / 'runs'}"], console())
    place = other.folder / missing
    shutil.rmtree(place) if place.is_dir() else (place.unlink(), place.symlink_to(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="cannot be taken over"):
        forking.begin(config, overrides, run, checkpoint, progress)
    assert not list((tmp_path / "runs").iterdir())


def test_a_damaged_checkpoint_is_refused_and_leaves_no_folder(source: RunDir, tmp_path: Path) -> None:
    """Bits of tensors, which `state.json` does not show: an attempt would fail, and the name would be taken."""
    other = RunDir(tmp_path / "other")
    shutil.copytree(source.folder, other.folder)
    place = other.folder / "checkpoints/step_00000012/rank_00000.safetensors"
    data = bytearray(place.read_bytes())
    data[-100] ^= 1
    place.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step_00000012 is damaged: .* is not what was written") as caught:
        forked(other, "12", f"runs={tmp_path / 'runs'}", "name=fork")
    assert caught.value.remedy == "Fork the run at another checkpoint."
    assert not list((tmp_path / "runs").iterdir())
    assert forked(other, "9", f"runs={tmp_path / 'runs'}", "name=fork").config["epochs"] == 4


def test_a_fork_may_choose_hard_views_and_keep_an_average(source: RunDir, tmp_path: Path) -> None:
    words = ("schedule.candidates=2", "difficulty=model", "difficulty.temperature=0", "ema=0.9")
    run = forked(source, "12", *words, f"runs={tmp_path}", "name=hard")
    found = trained(run)
    assert "model/ema.student.encoder.stem.0.weight" in found
    rows = list(jsonl.read(run.folder / "metrics.jsonl"))
    assert [row["step"] for row in rows if "difficulty/chosen" in row][-1] == 20
    again = forked(run, "latest", "extend=[2 epochs]", "difficulty=parameters", "ema=null", "name=plain")
    assert (again.config["ema"], again.config["difficulty"]["overlap"]) == (None, 1.0)
    assert "model/ema.student.encoder.stem.0.weight" not in trained(again)


def test_keys_of_a_tracker_that_is_left_are_left_out(source: RunDir, tmp_path: Path) -> None:
    tracked = RunDir(tmp_path / "tracked")
    shutil.copytree(source.folder, tracked.folder)
    words = [*source.overrides, "tracker=mlflow", "tracker.mlflow.experiment=theirs"]
    (tracked.folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    run = forked(tracked, "12", "tracker=none", f"runs={tmp_path}", "name=fork")
    assert run.config["tracker"] == {}


def test_a_fork_that_is_not_submitted_leaves_its_name(
    source: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise ConfigError("sbatch refused the job.", "Correct it.")

    monkeypatch.setattr(slurm, "go", refuse)
    assert slurm.main([f"fork={source.folder}@12", f"runs={tmp_path}", "name=fork"]) == 2
    assert "sbatch refused the job" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_fork_without_a_step_is_refused(source: RunDir) -> None:
    for name in (str(source.folder), f"{source.folder}@", "@5"):
        with pytest.raises(ConfigError, match="does not name a run and a step"):
            forking.source_of(name)
