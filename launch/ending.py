"""How an attempt ended: derived from the exit codes of the ranks and the reports of the nodes."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from dist_ssl.errors import EXIT_CODE
from dist_ssl.runtime.end_names import (
    FAILED,
    FINISHED,
    LOST,
    NODE_LOST,
    NOT_FINITE,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    PLANS_DIFFER,
    PREEMPTED,
    REFUSED,
    STOPPED,
    WORKER_DIED,
)
from dist_ssl.runtime.files import write_atomically
from launch.lost_signs import gpu_is_lost
from launch.run_dir import AttemptDir
from launch.run_files import read_report

AGAIN = ("", PREEMPTED, OUT_OF_TIME, LOST)
"""Why the epilogue requeued a job; empty if it did not."""
STOPPED_CODE, LOST_CODE, DIVERGED_CODE, DISAGREED_CODE, UNREADABLE_CODE = 75, 76, 77, 78, 79
"""Exit codes of ranks: stopped as it was asked to; ended because of another rank, a node or a server that is gone;
ended because the training diverged, as it would again after a resume; ended because ranks would not train the same;
ended because too many samples cannot be read, as would be found again after a resume."""
CAUSE_OF_CODE = {DIVERGED_CODE: NOT_FINITE, DISAGREED_CODE: PLANS_DIFFER}
REFUSALS = (EXIT_CODE, UNREADABLE_CODE, *CAUSE_OF_CODE)
OUTCOME_OF_CODE = {0: FINISHED, STOPPED_CODE: STOPPED, **dict.fromkeys(REFUSALS, REFUSED)}
CODE_OF_OUTCOME = {FINISHED: 0, STOPPED: 0, REFUSED: EXIT_CODE, FAILED: 1}

TAIL_BYTES = 1 << 16
"""Bytes at the end of a log in which its last line is looked for."""


@dataclass(frozen=True)
class Ending:
    """How a node or a whole attempt ended."""

    outcome: str
    """FINISHED, STOPPED, REFUSED (because of an error that the user can fix) or FAILED."""
    reason: str = ""
    time: float = 0.0
    """When a failure was noticed, seconds since 1970: the first failure is the cause of the others."""
    signal: str = ""
    """Name of the signal that asked the ranks to stop; empty without one."""
    again: str = ""
    """Why the epilogue requeued the job, PREEMPTED, OUT_OF_TIME or LOST; empty if it did not."""
    lost: bool = False
    """True if it failed only because something else is gone: another rank or node, or a server."""
    saved: bool = False
    """True if the attempt has saved a checkpoint; filled in by the epilogue."""
    diverged: bool = False
    """True if the training diverged: a resume would fail in the same way."""
    unreadable: bool = False
    """True if too many samples cannot be read: a resume would find the same."""
    cause: str = ""
    """Cause of a failure: WORKER_DIED, OUT_OF_MEMORY or NODE_LOST; of a refusal: NOT_FINITE or PLANS_DIFFER; empty for
    any other."""
    left_out: str = ""
    """Names of the nodes, with commas, that the epilogue keeps from the job when it starts again."""

    def write(self, path: Path) -> None:
        """Write this ending to a file, atomically; it is on disk then."""
        write_atomically(path, json.dumps(asdict(self)) + "\n", sync=True)

    @classmethod
    def read(cls, path: Path) -> "Ending | None":
        """Return the ending in a file, or None without a whole one whose values can be those of the fields."""
        report = read_report(path) or {}
        types = {field.name: type(field.default) for field in fields(cls)} | {"outcome": str}
        typed = all(type(value) is types.get(key) for key, value in report.items())
        known = typed and report.get("outcome") in CODE_OF_OUTCOME and report.get("again", "") in AGAIN
        return cls(**report) if known else None


def worst(endings: list[Ending]) -> Ending:
    """Return the ending that stands for several: a refusal before a failure, a failure before a stop.

    Among several with the same outcome: one that failed by itself, then one with a reason, then the earliest, then one
    with a signal.
    """
    for outcome in (REFUSED, FAILED, STOPPED):
        found = [e for e in endings if e.outcome == outcome]
        if found:
            return min(found, key=lambda e: (e.lost, not e.reason, e.time, not e.signal))
    return Ending(FINISHED)


def of_ranks(
    attempt: AttemptDir, codes: dict[int, int], first: int | None, noticed: float = 0.0, *, memory_kills: int = 0
) -> Ending:
    """Return how a node ended, from the exit codes of its ranks.

    `first`: the rank that failed before the others, if any, and `noticed` when, in seconds since 1970. `memory_kills`:
    number of processes of the node that the kernel has killed in this attempt because memory was short.
    """
    first = rank_without_gpu(attempt, codes, first)
    endings = []
    for rank, code in codes.items():
        outcome, lost = OUTCOME_OF_CODE.get(code, FAILED), code == LOST_CODE
        reason = attempt.reason(rank) if outcome == REFUSED or (lost and rank == first) else ""
        cause = CAUSE_OF_CODE.get(code, "")
        if outcome == FAILED and rank == first:
            log = attempt.log(f"rank_{rank:05d}")
            said = last_words(log, code)
            short = ("OutOfMemoryError" in said or "MemoryError" in said) if code > 0 else memory_kills > 0
            reason = reason or f"Rank {rank} {describe(code)}{said}\n  Its log: {log}"
            cause = NODE_LOST if lost else OUT_OF_MEMORY if short else WORKER_DIED
        found = Ending(outcome, reason, noticed, lost=lost, cause=cause)
        endings.append(replace(found, diverged=code == DIVERGED_CODE, unreadable=code == UNREADABLE_CODE))
    return worst(endings)


def rank_without_gpu(attempt: AttemptDir, codes: dict[int, int], first: int | None) -> int | None:
    """Return the rank that says that its GPU is gone, else `first`: other ranks may notice its end before it ends."""
    lost = [rank for rank, code in codes.items() if code == LOST_CODE]
    words = {rank: attempt.reason(rank) or last_words(attempt.log(f"rank_{rank:05d}"), LOST_CODE) for rank in lost}
    return next((rank for rank in lost if gpu_is_lost(words[rank])), first)


def describe(code: int) -> str:
    """Return a phrase for an exit code; negative codes are signals."""
    if code < 0:
        known = {s.value: s.name for s in signal.Signals}
        return f"was ended by {known.get(-code, f'signal {-code}')}"
    return f"ended with exit code {code}"


def last_words(log: Path, code: int) -> str:
    """Return the last line of a rank's log, which follows its stack trace; empty for a rank ended by a signal."""
    return last_line(log) if code > 0 else ""


def tail(log: Path) -> str:
    """Return the last TAIL_BYTES bytes of a log; empty where there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode(errors="replace")


def last_line(log: Path) -> str:
    """Return `: ` and the last line of a log that is not blank; empty if its last TAIL_BYTES bytes have none."""
    printed = [line.strip() for line in tail(log).split("\n") if line.strip()]
    return f": {printed[-1]}" if printed else ""


def of_attempt(
    attempt: AttemptDir, nodes: int, ranks_per_node: int, codes: list[int | None], log_of: Callable[[int], Path]
) -> Ending:
    """Return how an attempt ended, from the reports of its nodes.

    For an agent without a report, its exit code (`codes`, one per node) and the path of its log (`log_of`) are used.
    """
    endings = []
    for node in range(nodes):
        found = Ending.read(attempt.node(node))
        code = codes[node]
        if found is None and code == EXIT_CODE:
            ranks = range(node * ranks_per_node, (node + 1) * ranks_per_node)
            found = Ending(REFUSED, next((r for r in map(attempt.reason, ranks) if r), ""))
        if found is None:
            found = without_report(node, code, log_of(node))
        endings.append(found)
    asked = next((ending.signal for ending in endings if ending.signal), "")
    ending = worst(endings)
    return replace(ending, signal=ending.signal or asked)


def without_report(node: int, code: int | None, log: Path) -> Ending:
    """Return how a node ended whose agent has left no report; `code`: the agent's exit code, None if not known."""
    how = describe(code) if code else "left no report"
    killed = code is None or code == -signal.SIGKILL  # because another node failed, whose report says more
    reason = f"The agent of node {node} {how}; its log: {log}"
    return Ending(FAILED, reason, float("inf") if killed else 0.0, lost=killed, cause=NODE_LOST)
