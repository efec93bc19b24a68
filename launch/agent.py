"""The agent of a node: starts a worker per rank, forwards signals, and reports how the workers ended.

    python -m launch.agent RUN_FOLDER ATTEMPT NODE NODES RANKS_PER_NODE     # NODE=allocation: as srun has numbered it

A worker that fails ends the attempt: its agent creates a marker file in the attempt's folder, and on every node the
other workers get a few seconds to notice the failure by themselves before they are killed. An agent whose parent
process is gone sends SIGTERM to its workers, so that they save and stop. Workers that have not stopped shortly before
the job's time limit are killed, so that the batch script still has time to requeue the job. The agent does not import
torch. The numbers of its node are served beside it (`node_monitor`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from dist_ssl.distributed.place_variables import LOCAL_RANK, LOCAL_SIZE, RANK, SIZE
from dist_ssl.errors import EXIT_CODE, UserError, explained, printable
from dist_ssl.runtime.end_names import REFUSED
from dist_ssl.runtime.files import write_for_owner_alone
from dist_ssl.runtime.open_files import allow_open_files
from dist_ssl.runtime.signals import STOPPING, TIME_LIMIT, Signals
from launch.cluster_options import seconds
from launch.ending import CODE_OF_OUTCOME, LOST_CODE, OUTCOME_OF_CODE, STOPPED_CODE, Ending, of_ranks, tail
from launch.environment_record import changes, write_record
from launch.lost_signs import said_by_watchdog
from launch.memory_kills import memory_kills
from launch.node_monitor import monitored
from launch.parent import alone
from launch.run_dir import AttemptDir, RunDir
from launch.variables import ATTEMPT, PARENT

IN_ALLOCATION = "allocation"
"""In place of a node's number: srun gives it."""
STOP_IN_ALLOCATION = TIME_LIMIT
"""Signal that srun passes on to agents and ranks, and an agent takes for SIGTERM: at that one srun would kill them."""
POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0
"""Seconds between checks for the failure of another node."""
REPORTED = 30
"""Number of checks without an answer after which the agent's log says so."""
PATIENCE_SECONDS = 3.0
"""Time for the other workers to end by themselves after a failure, before they are killed."""
CAUSE_SECONDS = 3 * PATIENCE_SECONDS
"""Time that an agent whose ranks only lost their peers waits for the other nodes' reports."""
KILL_SECONDS = 20.0
"""Time that a killed worker has to end; one that waits in the kernel, for a driver or a file system, may never."""
OVERRUN = (
    "The ranks had not saved and stopped shortly before the time limit: they were ended, and the steps since the last "
    "checkpoint are made again. Raise cluster.stop_ahead."
)
ENDED_BY_STOP_SIGNAL = tuple(-number for number in STOPPING)
"""Exit codes of workers that were asked to stop before they had installed their signal handlers."""
STOPPED_EARLY = "A rank was stopped before it listened.\n"
"""Content of the attempt's marker file where a rank has ended so, for which others wait; empty for a failure."""
LAST_SECONDS = 30.0
"""Time before the job's limit that the batch script needs to requeue it: by then the workers must have ended."""
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
"""glibc settings that keep freed memory in the process.

The activations of the next step need it again; returning it to the system would cost a page fault per page. The loader
process of a rank inherits them: it decodes a third faster, and keeps no more than its threads once needed at a time.
"""


class Agent:
    """The ranks of one node of an attempt."""

    def __init__(self, attempt: AttemptDir, node: int, nodes: int, ranks: int) -> None:
        self.attempt, self.node, self.nodes, self.ranks = attempt, node, nodes, ranks
        self.first_rank = node * ranks
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.codes: dict[int, int] = {}
        self.first_failed: int | None = None
        self.failed_at = 0.0
        self.asked_to_stop = False
        self.look_at = 0.0
        self.unanswered = 0
        self.killed: set[int] = set()
        """Ranks that this agent killed: because of another rank, or because the time was over."""
        self.out_of_time = False
        self.stopped_early = False
        """True if a rank, of any node, was stopped before it listened to signals: no rank can train then."""

    def run(self, signals: Signals) -> int:
        """Start the workers, wait for all of them, write the node's report and return the agent's exit code."""
        allow_open_files()
        before = memory_kills()
        for local_rank in range(self.ranks):
            self._start(local_rank)
        with contextlib.suppress(OSError):  # a full disk: the ranks say so
            write_record(self.attempt, self.node)
        deadline, limit = float("inf"), float("inf")
        while len(self.codes) < self.ranks:
            time.sleep(POLL_SECONDS)
            if not self.asked_to_stop and (signals.received or alone()):
                self._send(signals.received or signal.SIGTERM)
                self.asked_to_stop = True
                limit = time.monotonic() + self._seconds_left(signals)
            if self._collect() or self._others_failed():
                deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
            self.out_of_time = self.out_of_time or time.monotonic() > limit
            deadline = min(deadline, limit)
            if time.monotonic() > deadline:
                self._kill()
            if time.monotonic() > deadline + KILL_SECONDS:
                self._give_up()
        killed = memory_kills() - before
        ending = of_ranks(self.attempt, self.codes, self.first_failed, self.failed_at, memory_kills=killed)
        ending = replace(ending, signal=signals.received.name if signals.received else "")
        if self.out_of_time and not ending.reason:
            ending = replace(ending, reason=OVERRUN)
        with contextlib.suppress(OSError):  # on a full disk the exit code is the only report
            ending.write(self.attempt.node(self.node))
        if ending.lost and not self.asked_to_stop:
            self._await_cause()
        return CODE_OF_OUTCOME[ending.outcome]

    def _await_cause(self) -> None:
        """Give the node whose rank failed by itself time to say so: the end of this agent ends all others."""
        deadline = time.monotonic() + CAUSE_SECONDS
        others = [self.attempt.node(node) for node in range(self.nodes) if node != self.node]
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if all(path.exists() for path in others):
                    return
            time.sleep(POLL_SECONDS)

    def _seconds_left(self, signals: Signals) -> float:
        """Return the time that workers have to stop; without end where no time limit of the job is near."""
        if signals.received != TIME_LIMIT:
            return float("inf")
        ahead = seconds(self.attempt.config["cluster"], "stop_ahead")
        return max(ahead - LAST_SECONDS, ahead / 2)

    def _start(self, local_rank: int) -> None:
        rank = self.first_rank + local_rank
        self.attempt.reserve_reason(rank)
        config = self.attempt.config
        variables = {
            RANK: rank,
            SIZE: self.nodes * self.ranks,
            LOCAL_RANK: local_rank,
            LOCAL_SIZE: self.ranks,
            "OMP_NUM_THREADS": config["threads"],
            "GLIBC_TUNABLES": ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), MALLOC])),
            PARENT: os.getpid(),
            "PYTHONUNBUFFERED": 1,
        }
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, "-P", "-m", "launch.worker", str(self.attempt.run.folder), str(self.attempt.number)]
        with self.attempt.log(f"rank_{rank:05d}").open("ab") as log:
            self.workers[rank] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _others_failed(self) -> bool:
        """Return whether a node has reported a failure; checked once per LOOK_SECONDS."""
        if time.monotonic() < self.look_at:
            return False
        self.look_at = time.monotonic() + LOOK_SECONDS
        try:
            if not self.attempt.failure.exists():
                return False
            self.stopped_early = self.stopped_early or self.attempt.failure.stat().st_size > 0
            return True
        except OSError as error:  # a file system that does not answer says nothing about the other nodes
            self.unanswered += 1
            if self.unanswered % REPORTED == 0:
                print(f"{self.attempt.failure} could not be looked at {self.unanswered} times: {error}", flush=True)
            return False

    def _give_up(self) -> None:
        """Count the workers that do not end although they were killed as ended, so that the attempt does."""
        for rank, worker in self.workers.items():
            if rank not in self.codes:
                print(f"Rank {rank} (process {worker.pid}) cannot be killed: it waits in the kernel.", flush=True)
                self.codes[rank] = self._code_of_killed()

    def _kill(self) -> None:
        """Kill the workers that still run."""
        self.killed |= self.workers.keys() - self.codes.keys()
        self._send(signal.SIGKILL)

    def _code_of_killed(self) -> int:
        """Return the exit code of a worker that this agent killed: because of another one, or as it had to stop."""
        stopped = self.out_of_time or self.stopped_early
        return STOPPED_CODE if stopped and self.first_failed is None else LOST_CODE

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to every worker that still runs."""
        for rank, worker in self.workers.items():
            if rank not in self.codes:
                worker.send_signal(number)

    def _collect(self) -> bool:
        """Record the exit codes of workers that have ended; return whether the others cannot go on without one."""
        missed = False
        for rank, worker in self.workers.items():
            code = worker.poll()
            if code is None or rank in self.codes:
                continue
            if rank in self.killed and code == -signal.SIGKILL:
                self.codes[rank] = self._code_of_killed()
                continue
            code = self._lost_code(rank) if code == -signal.SIGABRT else code
            early = self.asked_to_stop and code in ENDED_BY_STOP_SIGNAL
            self.codes[rank] = STOPPED_CODE if early else code
            if early:
                missed = True
                self._tell_of_early_stop()
            elif OUTCOME_OF_CODE.get(code, REFUSED) == REFUSED:
                missed = True
                self._blame(rank)
        return missed

    def _lost_code(self, rank: int) -> int:
        """Return the exit code of a rank that was aborted: LOST_CODE where NCCL did so because something is gone."""
        with contextlib.suppress(OSError):  # a file system that does not answer says nothing
            log = self.attempt.log(f"rank_{rank:05d}")
            if said := said_by_watchdog(tail(log)):
                self.attempt.give_reason(
                    rank, f"Rank {rank} was aborted, as something else is gone: {said}\n  Its log: {log}"
                )
                return LOST_CODE
        return -signal.SIGABRT

    def _tell_of_early_stop(self) -> None:
        """Let the agents of all nodes end their ranks, which would wait for the one that has ended."""
        self.stopped_early = True
        # on a full disk, or where a failure has been noted before
        with contextlib.suppress(OSError), self.attempt.failure.open("x") as file:
            file.write(STOPPED_EARLY)

    def _blame(self, rank: int) -> None:
        """Record which rank failed first; one that only noticed that something is gone gives way to a later one."""
        if self.first_failed is not None and self.codes[self.first_failed] != LOST_CODE:
            return
        if self.first_failed is None:
            self.failed_at = time.time()
            with contextlib.suppress(OSError):  # on a full disk the other nodes notice by themselves
                self.attempt.failure.touch()
        if self.first_failed is None or self.codes[rank] != LOST_CODE:
            self.first_failed = rank


def on_slurm(folder: str) -> None:
    """Run the agent of one node in a Slurm job; `folder` is the run folder.

    An exit code other than 0 ends the process.
    """
    signals = Signals().listen()  # first of all: submitit's own handlers would requeue the job
    write_for_owner_alone()
    attempt = AttemptDir(RunDir.open(Path(folder)), int(os.environ[ATTEMPT]))
    node, nodes = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    if node == 0 and (note := changes(attempt.run, attempt.number - 1)):
        print(printable(note), flush=True)
    with monitored(attempt, node, nodes):
        code = Agent(attempt, node, nodes, attempt.config["ranks_per_node"]).run(signals)
    if code:
        sys.exit(code)


def main(arguments: list[str]) -> int:
    """Run the agent that the command line describes; return its exit code."""
    signals = Signals().listen()
    write_for_owner_alone()
    if arguments[2] == IN_ALLOCATION:
        arguments = [*arguments[:2], os.environ["SLURM_NODEID"], *arguments[3:]]
        signal.signal(STOP_IN_ALLOCATION, lambda *_: signal.raise_signal(signal.SIGTERM))
    folder, attempt, node, nodes, ranks = Path(arguments[0]), *map(int, arguments[1:5])
    found = AttemptDir(RunDir(folder), attempt)
    try:
        RunDir.open(folder)
        with monitored(found, node, nodes):
            return Agent(found, node, nodes, ranks).run(signals)
    except (UserError, OSError) as error:
        if (known := explained(error)) is None:
            raise
        print(known, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # on a full disk the exit code is the only report
            Ending(REFUSED, str(known), time.time()).write(found.node(node))
        return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
