"""The command of torchrun that the launcher prints, and what its ranks do before they train."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.runtime.signals import Signals
from launch import cluster_options, preparation, run_lock, torchrun, worker
from launch.run_dir import PROJECT, RunDir


@pytest.mark.parametrize(("nodes", "restarts"), [(1, 3), (2, 0)])
def test_ranks_of_several_nodes_are_not_restarted_by_torchruns_that_count_apart(
    tmp_path: Path, nodes: int, restarts: int
) -> None:
    printed = torchrun.command(RunDir(tmp_path / "run"), {"nodes": nodes, "ranks_per_node": 4}, [])
    assert f"--max-restarts={restarts} " in printed
    assert ("--node-rank=NODE" in printed) == (nodes > 1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that this process can train as the only rank, and whose attempts have 3 threads."""
    found = RunDir(tmp_path / "run")
    found.folder.mkdir()
    monkeypatch.setattr(RunDir, "open", lambda folder: found)
    monkeypatch.setattr(RunDir, "last_config", lambda self: {"timeout": "5 minutes", "threads": 1})
    monkeypatch.setattr(torchrun, "check_place", lambda run: None)
    monkeypatch.setattr(torchrun, "_new_attempt", lambda run, *_: run.new_attempt({"threads": 3}).number)
    monkeypatch.setattr(worker, "joined_ranks", lambda *_: contextlib.nullcontext(World()))
    return found


def test_ranks_of_a_second_command_are_refused_before_they_make_an_attempt_that_would_end_the_first(
    run: RunDir,
) -> None:
    with run_lock.held(run.folder), pytest.raises(ConfigError, match="is being trained already"):
        worker.train_under_torchrun(run, [], Signals())
    assert run.attempts() == []


def test_a_refusal_of_rank_0_reaches_the_other_ranks(run: RunDir) -> None:
    other: Any = SimpleNamespace(rank=1, share=lambda value: {"problem": "It is trained.", "remedy": "Stop it."})
    with pytest.raises(ConfigError, match="It is trained"), torchrun.shared_lock(run, other):
        pass


def test_threads_and_timeout_of_the_command_act_in_its_first_attempt(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(worker, "train_on", lambda *_: used.append(torch.get_num_threads()) or 0)
    try:
        assert worker.train_under_torchrun(run, ["threads=3"], Signals()) == 0
    finally:
        torch.set_num_threads(before)
    assert used == [3]


def test_timeout_and_cluster_of_the_command_hold_while_ranks_meet(run: RunDir) -> None:
    run.code.mkdir(exist_ok=True)
    (run.code / "configs").symlink_to(PROJECT / "configs")
    (run.folder / "overrides.yaml").write_text("[cluster=torchrun, cluster.gpus_per_node=4]\n")
    assert torchrun.config_to_meet(run, ["threads=3"])["timeout"] == "5 minutes"
    assert torchrun.config_to_meet(run, ["threads=3", "timeout=7 minutes"])["timeout"] == "7 minutes"
    assert torchrun.config_to_meet(run, ["start_timeout=9 minutes"])["start_timeout"] == "9 minutes"
    assert cluster_options.gpus(torchrun.config_to_meet(run, ["cluster.gpus_per_node=8"])["cluster"]) == 8
    found = torchrun.config_to_meet(run, ["cluster=torchrun"])["cluster"]
    assert (found["kind"], cluster_options.gpus(found)) == ("torchrun", 4), "a run that began elsewhere"


@pytest.mark.parametrize(("restarts", "finished", "appended"), [("0", True, 1), ("1", True, 1), ("1", False, 0)])
def test_a_cycle_is_appended_once_however_often_torchrun_starts_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, finished: bool, appended: int
) -> None:
    """torchrun repeats the command: what a start has appended is no mistake of the next one."""
    run, words = RunDir(tmp_path), list[str]()
    run.begin({"cluster": {"kind": "torchrun"}}, [])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    monkeypatch.setattr(preparation, "trained", lambda *_: finished)

    def resume(overrides: list[str], *_: Any) -> None:
        words.extend(overrides)
        raise ConfigError("a", "b")

    monkeypatch.setattr(preparation, "resume", resume)
    with pytest.raises(ConfigError):
        torchrun._new_attempt(run, ["extend=24 epochs", "threads=3"], World())
    assert words == ["extend=24 epochs"] * appended + ["threads=3", "nodes=1", "ranks_per_node=1"]


def test_the_check_of_rank_0_leaves_it_the_accelerator_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_ssl.build.check", lambda *_: "identity")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    for rank, found in (("0", "cuda"), (None, "cpu")):
        monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK")
        preparation.check({"nodes": 1, "ranks_per_node": 1, "data": {"path": "a"}}, Console(quiet=True))
        assert os.environ["DS_ACCELERATOR"] == found
