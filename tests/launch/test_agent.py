"""An agent ends with its attempt, whatever its workers and the file system do."""

import errno
import signal
from pathlib import Path

import pytest

from dist_ssl.runtime.signals import Signals
from launch import agent
from launch.agent import Agent
from launch.ending import CODE_OF_OUTCOME, FAILED, FINISHED, Ending
from launch.run_dir import RunDir


class Worker:
    """A worker that ends with a code, or never."""

    def __init__(self, code: int | None) -> None:
        self.code, self.pid, self.sent = code, 4711, []  # type: ignore[var-annotated]

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: signal.Signals) -> None:
        self.sent.append(number)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """The agent of a node with two ranks, whose time passes as fast as it looks."""
    run = RunDir(tmp_path / "run")
    run.begin({"threads": 1}, [])
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(agent.time, "sleep", sleep)
    monkeypatch.setattr(agent.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(agent, "alone", lambda: False)
    return Agent(run.new_attempt(run.config), 0, 1, 2)


def run(found: Agent, monkeypatch: pytest.MonkeyPatch, *workers: Worker) -> int:
    left = list(workers)
    monkeypatch.setattr(agent.subprocess, "Popen", lambda *_, **__: left.pop(0))
    return found.run(Signals())


def test_a_worker_that_cannot_be_killed_does_not_keep_the_agent(
    found: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck = Worker(None)
    assert run(found, monkeypatch, Worker(1), stuck) == CODE_OF_OUTCOME[FAILED] == 1
    assert signal.SIGKILL in stuck.sent
    assert "Rank 1 (process 4711) cannot be killed: it waits in the kernel." in capsys.readouterr().out
    ending = Ending.read(found.attempt.node(0))
    assert ending
    assert ending.reason.startswith("Rank 0 ended with exit code 1")


def test_a_file_system_that_does_not_answer_fails_nothing(
    found: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker, looks = Worker(None), []

    def stale(path: Path) -> bool:
        looks.append(path)
        if len(looks) > 70:
            worker.code = 0
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(agent.Path, "exists", stale)
    assert run(found, monkeypatch, Worker(0), worker) == CODE_OF_OUTCOME[FINISHED] == 0
    assert "could not be looked at 60 times: [Errno 116] Stale file handle" in capsys.readouterr().out
    assert not worker.sent
