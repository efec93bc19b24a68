"""A dead node does not keep the batch script: srun is ended, after a failure and no sooner."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import srun_guard
from launch.srun_guard import guard


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A time that passes as fast as the guard looks."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(srun_guard.time, "sleep", sleep)
    monkeypatch.setattr(srun_guard.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


def test_srun_that_outlives_a_failure_is_ended(
    tmp_path: Path, clock: list[float], process: "subprocess.Popen[bytes]"
) -> None:
    marker = tmp_path / "failed"
    marker.touch()
    assert guard(marker, process.pid)
    assert process.wait() == -signal.SIGTERM
    assert clock[0] >= srun_guard.PATIENCE_SECONDS


def test_srun_has_all_its_time_while_nothing_has_failed(
    tmp_path: Path, clock: list[float], process: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([*[True] * 100_000, False])
    monkeypatch.setattr(srun_guard, "runs", lambda pid: next(looks))
    assert not guard(tmp_path / "failed", process.pid)
    assert clock[0] >= 100_000
    assert process.poll() is None


def test_it_ends_with_srun(tmp_path: Path, clock: list[float], process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    (tmp_path / "failed").touch()
    assert not guard(tmp_path / "failed", process.pid)
