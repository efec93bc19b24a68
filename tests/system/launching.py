"""Runs of the real command line, in processes that a test may kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from dist_ssl import lines
from dist_ssl.checkpoint_files import read
from launch.run_dir import PROJECT
from tests.jobs import SMALL

WAIT_SECONDS = 240
END_SECONDS = 10
"""An attempt ends on all ranks within so many seconds of a dead worker."""


class Launch:
    """`python launch/slurm.py WORDS` as a process group of its own."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, str(PROJECT / "launch" / "slurm.py"), *words]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )

    def finish(self, seconds: float = WAIT_SECONDS) -> tuple[int, str]:
        """Its exit code and all that it printed."""
        try:
            text, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise
        return self.process.returncode, text

    def processes(self, module: str) -> list[psutil.Process]:
        """Its agents (`launch.agent`) or workers (`launch.worker`) that are alive."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
            return [p for p in family if module in p.cmdline()]
        except psutil.NoSuchProcess:
            return []

    def kill_all(self) -> None:
        """`kill -9` of the launcher, every agent and every worker."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        for process in [psutil.Process(self.process.pid), *family]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.communicate()

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)


def words(data: Path, runs: Path, *more: str) -> list[str]:
    """The literal command with small settings; `more` comes last and wins."""
    base = ["method=mocov3", "cluster=local", *SMALL, f"data.path={data}", "data.source=null", f"runs={runs}"]
    return [*base, "decode_threads=1", "timeout=1 minute", *more]


def await_that(holds: Callable[[], Any], what: str, seconds: float = 120) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.02)


def status(run: Path) -> dict[str, float]:
    """The run's newest numbers."""
    path = run / "status.json"
    values: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {"step": -1}
    return values


def losses(run: Path) -> dict[int, float]:
    """The logged loss of every step; a step that is logged twice fails."""
    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    pairs = [(int(report["step"]), report["loss"]) for report in reports if "loss" in report]
    assert len(dict(pairs)) == len(pairs), "a step was reported twice"
    return dict(pairs)


def delivered(run: Path) -> dict[int, int]:
    """Per step the hash of its samples, summed over the ranks of the newest attempt that made the step."""
    steps: dict[int, tuple[int, int]] = {}
    for path in sorted((run / "ledger").glob("*.jsonl")):
        attempt = int(path.name.split("_")[1])
        for entry in lines.read(path):
            if "step" not in entry:
                continue  # a save
            newest, total = steps.get(entry["step"], (attempt, 0))
            total = entry["hash"] + (total if newest == attempt else 0)
            steps[entry["step"]] = (attempt, total % 2**64)
    return {step: total for step, (_, total) in sorted(steps.items())}


def weights(run: Path) -> dict[str, Any]:
    """All tensors of the last checkpoint."""
    latest = (run / "checkpoints" / "LATEST").read_text().strip()
    return read(run / "checkpoints" / latest)[1]


def nothing_left(run: Path) -> bool:
    """No process works on this run any more."""
    return not any(str(run) in " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
