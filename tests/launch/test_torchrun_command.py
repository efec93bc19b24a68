"""The command of torchrun that the launcher prints, and what its ranks do before they train."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.runtime.signals import Signals
from launch import run_lock, torchrun, worker
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
    run.code.mkdir(exist_ok=True)
    (run.code / "configs").symlink_to(PROJECT / "configs")
    assert torchrun.config_to_meet(run, ["threads=3"])["timeout"] == "5 minutes"
    assert torchrun.config_to_meet(run, ["threads=3", "timeout=7 minutes"])["timeout"] == "7 minutes"
