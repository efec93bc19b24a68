"""An attempt on this machine: every "node" is a local process with an agent of its own, as on a cluster."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console

from dist_ssl.runtime.end_names import FAILED, STOPPED
from dist_ssl.runtime.signals import Signals
from launch.end_notice import announce
from launch.ending import Ending, of_attempt, without_report
from launch.progress_bar import RunView
from launch.run_dir import AttemptDir
from launch.variables import PARENT
from launch.visible_gpus import visible_gpus

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 4.0
"""Time for the other nodes to notice a lost one by themselves: an attempt ends within 10 s of a worker's death."""


class LocalAttempt:
    """One attempt whose agents all run on this machine."""

    STOP = signal.SIGTERM
    """Signal that asks an agent to stop its ranks."""

    def __init__(self, attempt: AttemptDir, nodes: int, ranks_per_node: int) -> None:
        self.attempt, self.nodes, self.ranks_per_node = attempt, nodes, ranks_per_node
        self.agents: list[subprocess.Popen[bytes]] = []

    def run(self, console: Console) -> Ending:
        """Start the agents, show the run until all of them have ended, and return how it ended."""
        signals = Signals().listen()
        console.file = cast(IO[str], Unread(console.file))
        self.agents = self._start_all()
        try:
            with RunView(self.attempt.run.folder, console) as view:
                self._watch(signals, view)
        finally:
            self._kill()
        codes = self._codes()
        ending = of_attempt(self.attempt, self.nodes, self.ranks_per_node, codes, self._log)
        if ending.outcome == FAILED and self._was_asked_for(signals):
            ending = Ending(STOPPED, "Killed on request: a resume continues from the last checkpoint.")
        with contextlib.suppress(OSError):  # on a full disk the screen is the only report
            ending.write(self.attempt.outcome_file)
        announce(self.attempt, ending)
        return ending

    def _start_all(self) -> "list[subprocess.Popen[bytes]]":
        return [self._start(node) for node in range(self.nodes)]

    def _codes(self) -> list[int | None]:
        """Return the exit code of each node's agent, once it has ended."""
        return [agent.returncode for agent in self.agents]

    def _start(self, node: int) -> "subprocess.Popen[bytes]":
        run = self.attempt.run
        arguments = map(str, (run.folder, self.attempt.number, node, self.nodes, self.ranks_per_node))
        command = [sys.executable, "-P", "-m", "launch.agent", *arguments]  # -P: never the current folder's code
        own = {"PYTHONPATH": run.python_path(), PARENT: str(os.getpid()), **self._devices(node)}
        with self._log(node).open("ab") as log:
            return subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True)

    def _log(self, node: int) -> Path:
        return self.attempt.log(f"node_{node:04d}")

    def _devices(self, node: int) -> dict[str, str]:
        """Return the variables that give this "node" its share of the visible GPUs, or none if there are too few."""
        gpus = visible_gpus()
        own = gpus[node * self.ranks_per_node : (node + 1) * self.ranks_per_node]
        enough = len(gpus) >= self.nodes * self.ranks_per_node
        return {"CUDA_VISIBLE_DEVICES": ",".join(own) if enough else ""} if gpus else {}

    def _watch(self, signals: Signals, view: RunView) -> None:
        """Refresh the view until all agents have ended; forward stop requests, and kill what outlives a failure."""
        asked = 0
        deadline = float("inf")
        while any(agent.poll() is None for agent in self.agents):
            time.sleep(POLL_SECONDS)
            if signals.hung_up:
                fall_silent(1, 2)
            view.refresh()
            if signals.count > asked:
                asked = signals.count
                self._ask_to_stop(asked, view)
            for node, agent in enumerate(self.agents):
                if (agent.poll() or 0) < 0:
                    self._report_for(node, agent.returncode)
            if any(agent.poll() not in (None, 0) for agent in self.agents):
                deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
            if time.monotonic() > deadline:
                self._kill()

    def _report_for(self, node: int, code: int) -> None:
        """Write the report of a node whose agent was killed before it could: the other agents wait for it."""
        path = self.attempt.node(node)
        with contextlib.suppress(OSError):
            if not path.exists():
                without_report(node, code, self._log(node)).write(path)

    def _ask_to_stop(self, asked: int, view: RunView) -> None:
        if asked > 1:
            view.say("Killing all ranks: a resume continues from the last checkpoint.")
            self._kill()
            return
        view.say("Stopping: all ranks save at the same step. Press Ctrl-C again to kill them.")
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(self.STOP)

    def _was_asked_for(self, signals: Signals) -> bool:
        """Return whether what the user sent has ended an agent: SIGTERM at the first Ctrl-C, SIGKILL at the second."""
        sent = [-signal.SIGTERM, -signal.SIGKILL][: signals.count]
        return any(agent.returncode in sent for agent in self.agents)

    def _kill(self) -> None:
        """Kill the remaining processes of every node: an agent and its workers are one process group."""
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
        for agent in self.agents:
            agent.wait()


class Unread:
    """A stream to which a run can print even if nobody reads it any more: `| head` has ended, or the terminal is gone.

    A console over any other stream would raise an error then, and the ranks would be killed before they could save.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it; return its length."""
        with self._unread():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with self._unread():
            self.stream.flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # also a full disk: no reason to end the run
            if error.errno in (errno.EPIPE, errno.EIO):
                fall_silent(self.stream.fileno())


def fall_silent(*descriptors: int) -> None:
    """Let everything that is printed from now on vanish, as the terminal has."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
