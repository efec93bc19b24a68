"""An attempt on this machine ends soon after one of its agents is killed: the others need not wait for its report."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dist_ssl.runtime.end_names import FAILED, NODE_LOST, STOPPED
from launch import local
from launch.ending import LOST_CODE, Ending, of_ranks
from launch.local import LocalAttempt
from launch.run_dir import RunDir

KILLED = "kill -KILL $$"
WAITS = "until [ -e {report} ]; do sleep 0.05; done; exit 1"
"""What an agent does whose ranks have lost their peers: it waits for the report of the other node."""


FOREVER = "while :; do sleep 0.05; done"


def test_an_agent_that_was_killed_is_reported_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = RunDir(tmp_path / "runs" / "one").new_attempt({"metrics": {"textfile": None}})
    target = tmp_path / "runs" / "targets" / "one.json"
    target.parent.mkdir()
    target.write_text('[{"targets": [], "labels": {"run": "one"}}]')
    lines = [KILLED, WAITS.format(report=attempt.node(0))]
    of_ranks(attempt, {1: LOST_CODE}, 1, 5.0).write(attempt.node(1))

    def start(self: LocalAttempt, node: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sh", "-c", lines[node]], start_new_session=True)

    monkeypatch.setattr(LocalAttempt, "_start", start)
    monkeypatch.setattr(
        local, "Signals", lambda: SimpleNamespace(listen=lambda: SimpleNamespace(count=0, received=None, hung_up=False))
    )
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 30.0)  # after which the waiting agent would be killed
    started = LocalAttempt(attempt, 2, 1)
    ending = started.run(Console(file=io.StringIO()))
    assert [agent.returncode for agent in started.agents] == [-9, 1]
    assert (ending.outcome, ending.cause, ending.lost) == (FAILED, NODE_LOST, True)
    assert Ending.read(attempt.folder / "outcome.json") == ending
    assert json.loads(target.read_text())[0]["labels"] == {"run": "one", "end": NODE_LOST}, "an alert says what it was"
    found = Ending.read(attempt.node(0))
    assert found is not None
    assert found.reason == f"The agent of node 0 was ended by SIGKILL; its log: {attempt.log('node_0000')}"


@pytest.mark.parametrize("ends", [os.pipe, os.openpty])
def test_a_run_whose_output_nobody_reads_any_more_saves_when_it_is_asked_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[[], tuple[int, int]]
) -> None:
    """Ctrl-C ends `| tee` too, and a terminal may go without a signal."""
    attempt = RunDir(tmp_path / "runs" / "one").new_attempt({"metrics": {"textfile": None}})
    report = Ending(STOPPED, signal="SIGINT")
    waits = f"trap 'cp {tmp_path}/saved {attempt.node(0)}; exit 0' TERM; touch {tmp_path}/ready; {FOREVER}"
    report.write(tmp_path / "saved")

    def start(self: LocalAttempt, node: int) -> "subprocess.Popen[bytes]":
        agent = subprocess.Popen(["sh", "-c", waits], start_new_session=True)
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        return agent

    asked = SimpleNamespace(count=1, received=signal.SIGINT, hung_up=False)
    monkeypatch.setattr(LocalAttempt, "_start", start)
    monkeypatch.setattr(local, "Signals", lambda: SimpleNamespace(listen=lambda: asked))
    reader, writer = ends()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        started = LocalAttempt(attempt, 1, 1)
        ending = started.run(Console(file=nobody, force_terminal=True))
    assert [agent.returncode for agent in started.agents] == [0], "it has saved"
    assert ending == report == Ending.read(attempt.folder / "outcome.json")
