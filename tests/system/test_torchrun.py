"""Ranks that torchrun starts by the printed command: killed ones are started again, and the same command resumes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dist_ssl.runtime.end_names import FAILED, STOPPED
from launch import worker
from launch.ending import Ending
from launch.run_dir import AttemptDir, RunDir
from tests.monitoring.prometheus import free_port
from tests.system.launching import (
    ENDLESS,
    WAIT_SECONDS,
    Launch,
    assert_same_training,
    await_that,
    nothing_left,
    saved,
    train_undisturbed,
    words,
)

LONG = (*ENDLESS, "save_every=3 steps")
PLACE = ("nodes=1", "ranks_per_node=2", "threads=1")


class Torchrun:
    """The printed command as a process group of its own, on another port."""

    def __init__(self, printed: str, *more: str) -> None:
        own = f"exec {sys.executable} -m torch.distributed.run --master-port={free_port()} "
        line = " ".join([re.sub(r"\btorchrun ", lambda _: own, printed, count=1), *more])
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            ["bash", "-c", line],
            env=environment,
            cwd="/",
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def workers(self) -> list[psutil.Process]:
        """The ranks that are alive."""
        return [p for p in psutil.Process(self.process.pid).children() if "launch.worker" in p.cmdline()]

    def finish(self) -> str:
        """All that was printed, once every process has ended."""
        text, _ = self.process.communicate(timeout=WAIT_SECONDS)
        return text


def made(data: Path, run: Path, *more: str) -> str:
    """The command that the launcher prints for a new run."""
    given = words(data, run.parent, "cluster=torchrun", *PLACE, f"name={run.name}", *more)
    code, text = Launch(*given, forked=True).finish()
    assert code == 0, text
    assert f"Run folder: {run}" in text
    return next(line.strip() for line in text.splitlines() if "torchrun " in line and "launch.worker" in line)


def test_a_killed_rank_comes_back_and_the_same_command_resumes_a_stopped_run_bit_for_bit(
    demo_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "pod"
    printed = made(demo_shards, run, *LONG)
    started = Torchrun(printed)
    await_that(lambda: saved(run), "a checkpoint")
    killed_at = max(saved(run))
    started.workers()[-1].kill()
    await_that(lambda: max(saved(run)) > killed_at + 6, "it goes on by itself")
    started.process.terminate()
    text = started.finish()
    assert "launch/worker.py" not in text, text
    attempts = RunDir(run).attempts()
    endings = [Ending.read(AttemptDir(RunDir(run), number).outcome_file) for number in attempts]
    assert [ending and (ending.outcome, ending.lost) for ending in endings] == [(FAILED, True), (STOPPED, False)]
    stopped_at = max(saved(run))
    again = Torchrun(printed)
    await_that(lambda: max(saved(run)) > stopped_at + 6, "it has gone on")
    os.killpg(again.process.pid, signal.SIGKILL)
    again.finish()
    await_that(lambda: nothing_left(run), "no process left behind")
    train_undisturbed(demo_shards, tmp_path / "undisturbed", max(saved(run)), *LONG, *PLACE)
    assert_same_training(run, tmp_path / "undisturbed", stopped_at)


def test_ranks_that_torchrun_did_not_start_or_that_run_other_code_are_told_the_command(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "pod"
    printed = made(demo_shards, run, "epochs=2")
    for name in ("die_with_parent", "open_journal", "use_private_cache"):
        monkeypatch.setattr(worker, name, lambda: None)
    monkeypatch.setattr(worker, "Signals", lambda: type("Deaf", (), {"listen": lambda self: self})())
    monkeypatch.setenv("DIST_SSL_PARENT", "")
    assert worker.main([f"run={run}"]) == 2
    assert f"was not started by torchrun.\n  Write: {printed}" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert worker.main([f"run={run}"]) == 2
    assert f"and not that of the run.\n  Write: {printed}" in capsys.readouterr().err
