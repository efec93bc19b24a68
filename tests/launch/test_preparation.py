"""Where a run runs, what it is given there, and which words belong to it."""

import io
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ssl.build import memory_estimate
from dist_ssl.data.storage import manifest
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.parts import parts
from dist_ssl.runtime import jsonl
from launch import cluster_options, preparation, settings
from launch.run_dir import PROJECT, RunDir
from shards import make
from shards.image_source import ImageSource
from shards.sources import garments
from tests.jobs import SMALL
from tests.shards.wardrobe import wardrobe


def config(*words: str) -> dict[str, Any]:
    return settings.compose(list(words), PROJECT / "configs")


def chosen(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str | None, *words: str) -> tuple[str, str]:
    """The kind of cluster and what is said, where the programs of Slurm do what `script` says."""
    if script is not None:
        for name in ("sbatch", "scontrol"):
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin" if script is not None else str(folder))
    console = Console(file=io.StringIO(), width=200)
    found = config(*words)
    preparation.choose_cluster(found, console)
    assert isinstance(console.file, io.StringIO)
    return found["cluster"]["kind"], console.file.getvalue()


NONE = "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1"
DOWN = "echo 'Slurmctld(primary) at host is DOWN'; exit 1"


def test_without_slurm_the_nodes_are_local_and_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind, text = chosen(monkeypatch, tmp_path, None)
    assert (kind, text) == ("local", "No sbatch on the PATH: the 4 nodes run as local processes.\n")


def test_programs_without_a_cluster_are_no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind, text = chosen(monkeypatch, tmp_path, NONE, "nodes=1")
    why = "sbatch is installed, but no cluster is configured"
    assert (kind, text) == ("local", f"{why}: the node runs as a local process.\n")


@pytest.mark.parametrize("script", ["exit 0", DOWN])
def test_a_cluster_is_used_even_if_it_does_not_answer_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    assert chosen(monkeypatch, tmp_path, script) == ("slurm", "")


def test_a_cluster_may_be_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert chosen(monkeypatch, tmp_path, "exit 0", "cluster=local") == ("local", "")


def test_a_cluster_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cluster=slurm is not possible: No sbatch on the PATH"):
        chosen(monkeypatch, tmp_path, None, "cluster=slurm")
    assert chosen(monkeypatch, tmp_path, None, "cluster=slurm", "dry_run=true") == ("slurm", "")


@pytest.mark.parametrize(
    ("words", "ranks", "threads"),
    [
        ((), 1, 8),
        (("cluster.gpus_per_node=4", "cluster.cpus_per_task=32"), 4, 8),
        (("cluster.gpus_per_node=4", "cluster.cpus_per_task=2"), 4, 1),
        (("ranks_per_node=2",), 2, 4),
        (("cluster.cpus_per_task=null",), 1, 1),
        (("threads=3", "cluster.gpus_per_node=2"), 2, 3),
    ],
)
def test_the_ranks_of_a_job_share_what_its_nodes_were_asked_for(words: tuple[str], ranks: int, threads: int) -> None:
    found = config("cluster=slurm", *words)
    preparation.fill_in(found)
    assert (found["ranks_per_node"], found["threads"], found["decode_threads"]) == (ranks, threads, threads)


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("cluster.gpus_per_node=a100", "cluster.gpus_per_node=a100 has no number of GPUs"),
        ("cluster.cpus_per_task=0", "cluster.cpus_per_task=0 is not possible"),
        ("cluster.setup=module", "cluster.setup=module is not a list of shell commands"),
        ("cluster.time=3 minutes", "cluster.time=3 minutes leaves no time to train"),
        ("cluster.time=3 epochs", "cluster.time=3 epochs is not a time"),
        ("cluster.stop_ahead=soon", "'soon' is not a duration"),
    ],
)
def test_options_that_cannot_be_are_named(word: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        preparation.choose_cluster(config("cluster=slurm", "dry_run=true", word), Console(quiet=True))


def test_an_endpoint_of_local_nodes_is_for_this_machine_unless_it_is_bound_elsewhere() -> None:
    for words, bind in (
        (("cluster=local",), "127.0.0.1"),
        (("cluster=local", "metrics.bind=0.0.0.0"), "0.0.0.0"),
        (("cluster=slurm",), None),
    ):
        found = config(*words)
        preparation.fill_in(found)
        assert found["metrics"]["bind"] == bind


def test_gpus_may_be_named_by_their_kind() -> None:
    found = config("cluster=slurm", "cluster.gpus_per_node=a100:4", "cluster.cpus_per_task=8")
    preparation.fill_in(found)
    assert (found["ranks_per_node"], found["threads"]) == (4, 2)


def test_a_run_of_a_cluster_may_go_on_as_local_processes() -> None:
    assert config("cluster.partition=gpu", "cluster=local")["cluster"]["kind"] == "local"


def test_words_of_one_command_are_not_repeated_by_a_resume() -> None:
    words = ["seed=1", "wait=true", "dry_run=false", "cluster=slurm", "waiter=1"]
    assert preparation.of_the_run(words) == ["seed=1", "cluster=slurm", "waiter=1"]


def drawing(monkeypatch: pytest.MonkeyPatch, wardrobe_folder: Path) -> list[str]:
    """Let `source=garments` draw few images from this folder, and note every drawing."""
    options = partial(garments.GarmentOptions, wardrobe_folder, train=6, val=4, size=32)
    drawn: list[str] = []

    def write(out: Path, given: garments.GarmentOptions, console: Console) -> None:
        drawn.append(out.name)
        garments.write(out, given, console)

    monkeypatch.setitem(make.SOURCES, "garments", ImageSource(options, write, drawn=True))  # type: ignore[arg-type]
    return drawn


def test_what_our_code_draws_is_drawn_on_first_use_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = drawing(monkeypatch, wardrobe(tmp_path / "in"))
    found = config("data=garments", f"data.path={tmp_path / 'set'}")
    console = Console(file=io.StringIO(), width=500)
    for _ in range(2):
        preparation.make_data(found, console)
    assert drawn == ["set"]
    assert len(manifest.read(tmp_path / "set").split("train").samples) == 6
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == f"Drawing the data of source=garments into {tmp_path / 'set'} (once).\n"


def test_a_run_on_garments_that_are_missing_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawing(monkeypatch, tmp_path / "none")
    with pytest.raises(DataError, match=re.escape("Install Debian's package dataset-fashion-mnist")):
        preparation.make_data(config("data=garments", f"data.path={tmp_path / 'set'}"), Console(quiet=True))


@pytest.mark.parametrize(("source", "path"), [("null", "set"), ("cifar10", "set"), ("demo", "https://host/set")])
def test_nothing_else_is_drawn(source: str, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    preparation.make_data(config(f"data.source={source}", f"data.path={path}"), Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'demo'"):
        preparation.make_data(config("data.source=dmeo", f"data.path={tmp_path / 'set'}"), Console(quiet=True))


def test_a_run_that_cannot_be_written_leaves_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise shutil.Error([("configs", "there", "[Errno 28] No space left on device")])

    words = [f"runs={tmp_path}", "name=mine"]
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", full)
        with pytest.raises(ConfigError, match=r"mine cannot be written: .*No space left on device"):
            preparation.begin(words, config(*words))
    assert not list(tmp_path.iterdir())
    assert preparation.begin(words, config(*words)).config["name"] == "mine"


MEMORY: dict[str, tuple[tuple[str, ...], int | None]] = {
    "a share of a node": (("cluster.mem=64G", "ranks_per_node=4"), 16 << 30),
    "megabytes without a unit": (("cluster.mem=3", "ranks_per_node=2"), 3 << 19),
    "all of a node, of unknown size": (("cluster.mem=0",), None),
    "nothing said": ((), None),
    "not the host's on GPUs": (("cluster.mem=64G", "cluster.gpus_per_node=4"), None),
    "a GPU's": (("cluster.gpu_memory=80g", "cluster.gpus_per_node=4"), 80 << 30),
    "not a GPU's on CPUs": (("cluster.gpu_memory=80G",), None),
    "not for local nodes": (("cluster=local", "cluster.mem=64G"), None),
}


@pytest.mark.parametrize("case", MEMORY)
def test_the_memory_of_a_rank_is_known_at_submission_where_the_config_says_it(case: str) -> None:
    words, expected = MEMORY[case]
    found = config("cluster=slurm", *words)
    found["ranks_per_node"] = found["ranks_per_node"] or 1
    assert cluster_options.memory_of_rank(found) == expected


def test_a_gpu_without_a_size_is_refused() -> None:
    found = config("cluster=slurm", "cluster.gpus_per_node=4", "cluster.gpu_memory=large")
    with pytest.raises(ConfigError, match=r"cluster\.gpu_memory=large is not a size"):
        cluster_options.memory_of_rank(found)


def test_an_epoch_that_outgrows_the_memory_is_refused_at_submission(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "_what_is_missing", lambda: "")
    held = [*SMALL, f"data.path={demo_shards}", "data.source=null", "cluster=slurm", "nodes=2", "epochs=8"]
    growing = [*held, "schedule=progressive", "schedule.start_scale=0.5"]
    console = Console(quiet=True)
    free = preparation.new_config(growing, console)
    found = parts(free, World(), 2)
    estimate = memory_estimate(free, found, 2)
    needs = [estimate(plan).total for plan in found.schedule.plans(8)]
    largest = needs.index(max(needs)) + 1
    assert largest > 1, "the first epochs fit"
    with pytest.raises(ConfigError, match=f"Epoch {largest} does not fit into memory: its 2 views of 16 px, batch 12"):
        preparation.new_config([*growing, f"cluster.mem={(max(needs) - 1) // 1024}K"], console)
    assert preparation.new_config([*growing, f"cluster.mem={max(needs) // 1024 + 1}K"], console)["data"]["identity"]


@pytest.mark.parametrize(
    ("words", "changed", "checked"),
    [
        ([], {}, False),
        (["save_every=2 minutes"], {}, True),
        (["nodes=3"], {}, True),
        (["dry_run=true"], {}, True),
        ([], {"threads": 99}, True),
        (["cluster=slurm"], {}, True),
    ],
)
def test_the_config_of_the_last_attempt_is_not_checked_again_where_ranks_start_at_once(
    words: list[str], changed: dict[str, Any], checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[dict[str, Any]] = []
    monkeypatch.setattr(preparation, "check", lambda config, console: checks.append(config))
    monkeypatch.setattr(preparation, "_what_is_missing", lambda: "")
    run, screen = RunDir(tmp_path / "run"), Console(quiet=True)
    run.folder.mkdir()
    start = ["cluster=local", "nodes=2"]
    run.begin(config(*start), start)
    _, first = preparation.resume([], run.folder, screen)
    assert len(checks) == 1, "no attempt was checked yet"
    run.new_attempt({**first, **changed})
    preparation.resume(words, run.folder, screen)
    assert len(checks) == 1 + checked


def test_threads_are_kept_past_an_attempt_that_a_kill_has_left_without_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How threads split a sum changes its bits."""
    monkeypatch.setattr(preparation, "check", lambda config, console: None)
    run, screen = RunDir(tmp_path / "run"), Console(quiet=True)
    run.folder.mkdir()
    start = ["cluster=local", "nodes=2"]
    run.begin(config(*start), start)
    run.new_attempt({**preparation.resume([], run.folder, screen)[1], "threads": 97})
    (run.folder / "attempts" / "0002").mkdir()
    assert preparation.resume([], run.folder, screen)[1]["threads"] == 97


@pytest.mark.parametrize("left", ["nothing", "a folder", "a person's copy"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_not_begun_again(left: str, tmp_path: Path) -> None:
    run, start = RunDir(tmp_path / "run"), ["cluster=local", "nodes=2"]
    run.folder.mkdir()
    run.begin(config(*start), start)
    folder = run.folder / "checkpoints"
    if left != "nothing":
        (folder / ("step_00000012_good" if left == "a person's copy" else "")).mkdir(parents=True)
    preparation.refuse_lost_checkpoints(run)  # it was killed before its first save
    rows = [{"step": 7}, {"step": 13, "saved_step": 12}, {"step": 2, "saved_step": 0}]
    jsonl.append(run.folder / "metrics.jsonl", rows)
    with pytest.raises(ConfigError, match="has saved one of step 12") as caught:
        preparation.resume([], run.folder, Console(quiet=True))
    assert "is its disk mounted?" in caught.value.remedy
    (folder / "step_00000012").mkdir(parents=True)
    preparation.refuse_lost_checkpoints(run)
