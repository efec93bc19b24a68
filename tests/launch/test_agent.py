"""An agent ends with its attempt, whatever its workers and the file system do."""

import errno
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dist_ssl.runtime.end_names import FAILED, FINISHED, REFUSED, STOPPED
from dist_ssl.runtime.open_files import MOST_FILES
from dist_ssl.runtime.signals import Signals
from launch import agent
from launch.agent import Agent
from launch.ending import CODE_OF_OUTCOME, LOST_CODE, Ending
from launch.run_dir import PROJECT, RunDir


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


class Deaf(Worker):
    """A worker that does not stop when it is asked to, and can be killed."""

    def send_signal(self, number: signal.Signals) -> None:
        super().send_signal(number)
        if number == signal.SIGKILL:
            self.code = -signal.SIGKILL


def test_workers_that_overrun_the_time_limit_are_ended_before_it(found: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(found.attempt), "config", {"threads": 1, "cluster": {"stop_ahead": "3 minutes"}})
    workers = [Deaf(None), Deaf(None)]
    left = list(workers)
    monkeypatch.setattr(agent.subprocess, "Popen", lambda *_, **__: left.pop(0))
    signals = Signals(signal.SIGUSR2, 1)
    assert found.run(signals) == 0
    assert agent.time.monotonic() == pytest.approx(150, abs=1)
    assert all(worker.sent[0] == signal.SIGUSR2 and signal.SIGKILL in worker.sent for worker in workers)
    ending = Ending.read(found.attempt.node(0))
    assert ending
    assert (ending.outcome, ending.signal) == (STOPPED, "SIGUSR2")
    assert "Raise cluster.stop_ahead" in ending.reason


def test_ranks_that_wait_for_one_that_was_stopped_before_it_listened_are_ended_as_stopped(
    found: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, waits = Worker(None), Deaf(None)
    monkeypatch.setattr(early, "send_signal", lambda number: setattr(early, "code", -number))
    left: list[Worker] = [early, waits]
    monkeypatch.setattr(agent.subprocess, "Popen", lambda *_, **__: left.pop(0))
    assert found.run(Signals(signal.SIGTERM, 1)) == 0
    assert waits.sent[:2] == [signal.SIGTERM, signal.SIGKILL]
    ending = Ending.read(found.attempt.node(0))
    assert ending
    assert (ending.outcome, ending.signal) == (STOPPED, "SIGTERM")
    assert other_node(found, monkeypatch) == STOPPED


def other_node(found: Agent, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a second node ends, whose ranks are deaf, after what the first one has left in the attempt's folder."""
    left = [Deaf(None), Deaf(None)]
    monkeypatch.setattr(agent.subprocess, "Popen", lambda *_, **__: left.pop(0))
    Agent(found.attempt, 1, 2, 2).run(Signals(signal.SIGTERM, 1))
    ending = Ending.read(found.attempt.node(1))
    assert ending
    return ending.outcome


def test_a_node_that_failed_is_no_early_stop_for_the_others(found: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    found.attempt.failure.touch()
    assert other_node(found, monkeypatch) == FAILED


def test_a_preempted_worker_has_all_the_time_that_it_is_given(found: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found._seconds_left(Signals(signal.SIGTERM, 1)) == float("inf")


@pytest.mark.parametrize(
    ("codes", "lost", "reason"),
    [
        ((LOST_CODE, LOST_CODE), True, "Rank 0 ended with exit code 76"),
        ((LOST_CODE, 1), False, "Rank 1 ended with exit code 1"),
        ((1, LOST_CODE), False, "Rank 0 ended with exit code 1"),
        ((LOST_CODE, -9), False, "Rank 1 was ended by SIGKILL"),
        ((LOST_CODE, None), True, "Rank 0 ended with exit code 76"),  # the agent kills what hangs
    ],
)
def test_a_rank_that_failed_by_itself_is_named_before_those_that_lost_it(
    found: Agent, monkeypatch: pytest.MonkeyPatch, codes: tuple[int | None, int | None], lost: bool, reason: str
) -> None:
    assert run(found, monkeypatch, *map(Deaf, codes)) == CODE_OF_OUTCOME[FAILED]
    ending = Ending.read(found.attempt.node(0))
    assert ending
    assert ending.lost is lost
    assert ending.reason.startswith(reason)


TIMEOUT = """[rank1]:[E1129 ProcessGroupNCCL.cpp:683] Observed flight recorder dump signal from another rank.
terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [PG ID 0 PG GUID 0 Rank 1] Process group watchdog thread terminated with exception: [Rank 1] Watchdog \
caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=300000) ran for 300042 \
milliseconds before timing out.
Exception raised from checkTimeout at ProcessGroupNCCL.cpp:688 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation) + 0x80 (0x7f in libc10.so)
"""
REMOTE = TIMEOUT.replace(
    TIMEOUT[TIMEOUT.index("[Rank 1]") : TIMEOUT.index("Exception")],
    """NCCL error: \
remote process exited or there was a network error, NCCL version 2.28.9
""",
)
BUG = REMOTE.replace("NCCL error: remote process exited", "CUDA error: an illegal memory access was encountered")
ELSEWHERE = "Connection reset by peer; trying again in 1.0 s\nterminate called after throwing an instance of 'X'\n"


@pytest.mark.parametrize(
    ("log", "lost"),
    [
        (TIMEOUT, "Watchdog caught collective operation timeout"),
        (REMOTE, "remote process exited"),
        (BUG.replace("or there was a network error", ""), ""),
        (ELSEWHERE, ""),
        ("", ""),
    ],
)
def test_a_rank_that_nccl_aborted_as_a_node_is_gone_has_not_failed_by_itself(
    found: Agent, monkeypatch: pytest.MonkeyPatch, log: str, lost: str
) -> None:
    """On GPUs a rank waits for its GPU, which waits for a rank that is gone: no error of Python says so."""
    found.attempt.log("rank_00001").write_text(log)
    assert run(found, monkeypatch, Deaf(None), Worker(-signal.SIGABRT)) == CODE_OF_OUTCOME[FAILED]
    ending = Ending.read(found.attempt.node(0))
    assert ending
    assert ending.lost is bool(lost)
    said = "Rank 1 was aborted, as something else is gone" if lost else "Rank 1 was ended by SIGABRT"
    assert ending.reason.startswith(said)
    assert lost in ending.reason


def test_an_agent_allows_its_workers_as_many_open_files(found: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert run(found, monkeypatch, Worker(0), Worker(0)) == 0
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(MOST_FILES, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_run_that_was_damaged_meanwhile_is_reported_without_a_stack_trace(found: Agent) -> None:
    folder = found.attempt.run.folder
    (folder / "config.yaml").write_text("[")
    command = [sys.executable, "-m", "launch.agent", str(folder), "1", "0", "1", "1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    ending = Ending.read(found.attempt.node(0))
    assert ending
    assert ending.outcome == REFUSED
    assert "config.yaml is damaged" in ending.reason
