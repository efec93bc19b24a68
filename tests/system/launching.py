"""Runs of the real command line, in processes that a test may kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from dist_ssl.checkpoint.index import read
from dist_ssl.data.order import ledger_reader
from launch.ending import STOPPED_CODE
from launch.run_dir import PROJECT
from tests import forks
from tests.chaos.forked import run_command
from tests.jobs import SMALL

WAIT_SECONDS = 600
"""A bound that only a hung run reaches: no test rests on how fast or slow the machine is."""
ENDLESS = ("epochs=20000", "probe.every=20000 epochs", "keep_last=100000")
"""A run that cannot end before it is disturbed: a test ends it by command, and compares it at a step that it saved."""

PRINTED = "printed.txt"
"""File beside the run that tests share (`followed`): what its command printed."""


class Forked:
    """A launcher whose process, agents and ranks are forked from one that has imported everything.

    So far as `Launch` uses it, it is what `subprocess.Popen` would be.
    """

    def __init__(self, words: tuple[str, ...]) -> None:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self.log = Path(name)
        self.process = forks.start(run_command, "slurm", list(words), self.log)
        assert self.process.pid
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that it printed, once it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("launch.slurm", timeout or 0)
        text = self.log.read_text(errors="replace")
        self.log.unlink()
        return text, None


class Launch:
    """`python launch/slurm.py WORDS` as a process group of its own; `within`: the command that starts it, if any.

    `forked`: it costs a tenth, and proves nothing about how a process starts: for what a run does afterwards.
    """

    def __init__(
        self,
        *words: str,
        environment: dict[str, str] | None = None,
        within: tuple[str, ...] = (),
        forked: bool = False,
    ) -> None:
        self.process: subprocess.Popen[str] | Forked
        if forked:
            self.process = Forked(words)
            return
        command = [*within, sys.executable, str(PROJECT / "launch" / "slurm.py"), *words]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where tests run below nohup
            umask=0,  # as careless as a user can be: no file of a run may then be changed by others
        )

    def finish(self, seconds: float = WAIT_SECONDS) -> tuple[int, str]:
        """Its exit code and all that it printed."""
        try:
            text, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise
        assert self.process.returncode is not None
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
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.communicate()

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)


def words(data: Path, runs: Path, *more: str) -> list[str]:
    """The literal command with small settings; `more` comes last and wins."""
    base = ["method=mocov3", "cluster=local", *SMALL, f"data.path={data}", "data.source=null", f"runs={runs}"]
    return [*base, "decode_threads=1", "timeout=1 minute", *more]


def await_that(holds: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until something holds; to look takes at most a tenth of a core, which what is waited for needs."""
    end = time.monotonic() + seconds
    while True:
        before = time.monotonic()
        if holds():
            return
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(max(0.02, 9 * (time.monotonic() - before)))


def status(run: Path) -> dict[str, float]:
    """The run's newest numbers."""
    path = run / "status.json"
    values: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {"step": -1}
    return values


def targets(run: Path) -> dict[int | None, str]:
    """The addresses of the metrics of a run's nodes by their numbers, and of the run itself under None."""
    files: dict[int | None, Path] = {
        None: run.parent / "targets" / f"{run.name}.json",
        **{node: run.parent / "targets" / f"{run.name}.node_{node:04d}.json" for node in range(9)},
    }
    found = {}
    for node, file in files.items():
        with contextlib.suppress(FileNotFoundError):
            found[node] = json.loads(file.read_text())[0]["targets"][0]
    return found


def serving(run: Path, names: dict[int | None, str]) -> bool:
    """Whether each target of a run answers and has a metric of this name, and there are no others."""
    found, direct = targets(run), urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError):
        for node, address in found.items():
            with direct.open(f"http://{address}/metrics", timeout=WAIT_SECONDS) as answer:
                if f"\n{names.get(node)} " not in answer.read().decode():
                    return False
        return found.keys() == names.keys()
    return False


def losses(run: Path) -> dict[int, float]:
    """The logged loss of every step; a step that is logged twice fails."""
    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    pairs = [(int(report["step"]), report["loss"]) for report in reports if "loss" in report]
    assert len(dict(pairs)) == len(pairs), "a step was reported twice"
    return dict(pairs)


def delivered(run: Path) -> dict[int, int]:
    """Per step the hash of its samples, summed over the ranks of the newest attempt that made the step."""
    steps: dict[int, tuple[int, int]] = {}
    found = ledger_reader.read(run / "ledger")
    for attempt in sorted(found.restored()):
        for row in found.between(attempt, 0, 1 << 40):
            newest, total = steps.get(int(row["step"]), (attempt, 0))
            total = int(row["hash"]) + (total if newest == attempt else 0)
            steps[int(row["step"])] = (attempt, total % 2**64)
    return {step: total for step, (_, total) in sorted(steps.items())}


def saved(run: Path) -> set[int]:
    """The steps of the run's checkpoints."""
    return {int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")}


def weights(run: Path, step: int | None = None) -> dict[str, Any]:
    """All tensors of the checkpoint of a step, by default of the last one."""
    name = (run / "checkpoints" / "LATEST").read_text().strip() if step is None else f"step_{step:08d}"
    return read(run / "checkpoints" / name)[1]


def stop_by_ctrl_c(launch: Launch, run: Path, after: int = 5) -> str:
    """Ctrl-C once the run is past a step: it saves its last step, says how to go on, and leaves no process."""
    await_that(lambda: status(run)["step"] > after, f"step {after}")
    launch.interrupt()
    code, text = launch.finish()
    assert code == STOPPED_CODE, text
    assert f"Resume with: python launch/slurm.py resume={run}" in text
    assert max(saved(run)) == status(run)["step"], "the last step made is the step saved"
    await_that(lambda: nothing_left(run), "no process left behind")
    assert not changeable_by_others(run)
    return text


def changeable_by_others(run: Path) -> list[str]:
    """The files and folders of a run that another user could change."""
    found = [path for path in [run, *run.rglob("*")] if not path.is_symlink()]
    return [str(path.relative_to(run)) for path in found if path.stat().st_mode & 0o022]


def train_undisturbed(data: Path, run: Path, until: int, *more: str) -> None:
    """Train without a break until a step has been saved, and no less."""
    launch = Launch(*words(data, run.parent, f"name={run.name}", *more), forked=True)
    await_that(lambda: max(saved(run), default=0) >= until, f"the checkpoint of step {until}")
    stop_by_ctrl_c(launch, run)


def compared_at(run: Path, other: Path, after: int) -> int:
    """The last step that both runs have saved; it must lie after the step of the last disturbance."""
    step = max(saved(run) & saved(other))
    assert step > after, f"both have saved step {step}, which is not after {after}"
    return step


def until(step: int, values: dict[int, Any]) -> dict[int, Any]:
    """The values of the steps up to one; all of them must be there."""
    found = {number: value for number, value in values.items() if number <= step}
    assert len(found) >= step, f"{len(found)} of {step} steps"
    return found


def assert_same_training(run: Path, other: Path, after: int) -> None:
    """Both runs have equal samples, losses and bits up to a step past `after`."""
    step = compared_at(run, other, after)
    assert until(step, losses(run)) == until(step, losses(other))
    assert until(step - 1, delivered(run)) == until(step - 1, delivered(other))
    mine, theirs = weights(run, step), weights(other, step)
    assert mine.keys() == theirs.keys()
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]


def nothing_left(run: Path) -> bool:
    """No process works on this run any more."""
    return not any(str(run) in " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
