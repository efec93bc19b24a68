"""How an attempt ended: the exit codes of ranks, the report of each node, and what they come to together."""

import json
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_ssl.errors import EXIT_CODE
from launch.run_dir import AttemptDir

FINISHED, STOPPED, REFUSED, FAILED = "finished", "stopped", "refused", "failed"
STOPPED_CODE = 75
OUTCOME_OF_CODE = {0: FINISHED, STOPPED_CODE: STOPPED, EXIT_CODE: REFUSED}
AGENT_CODE = {FINISHED: 0, STOPPED: 0, REFUSED: EXIT_CODE, FAILED: 1}


@dataclass(frozen=True)
class Ending:
    """How a node or a whole attempt ended. `refused`: by something that a person can mend."""

    outcome: str
    reason: str = ""
    time: float = 0.0
    """When it was noticed, seconds since the epoch: the first failure brings down the others."""
    signal: str = ""
    """The signal by which its ranks were asked to stop."""
    again: str = ""
    """Why the job was queued again by its own epilogue; empty where it was not."""

    def write(self, path: Path) -> None:
        """Write it in one move."""
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(asdict(self)) + "\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Ending | None":
        """What was written there, or None."""
        return cls(**json.loads(path.read_text())) if path.is_file() else None


def worst(endings: list[Ending]) -> Ending:
    """What several endings come to: a mendable reason before a failure, a failure before a stop."""
    for outcome in (REFUSED, FAILED, STOPPED):
        found = [e for e in endings if e.outcome == outcome]
        if found:
            return min(found, key=lambda e: (not e.reason, e.time, not e.signal))
    return Ending(FINISHED)


def of_ranks(attempt: AttemptDir, codes: dict[int, int], first: int | None, noticed: float = 0.0) -> Ending:
    """How a node ended, by its ranks' exit codes; `first`: the rank that failed before the others, and when."""
    endings = []
    for rank, code in codes.items():
        outcome = OUTCOME_OF_CODE.get(code, FAILED)
        reason = ""
        if outcome == REFUSED:
            reason = attempt.reason(rank)
        elif outcome == FAILED and rank == first:
            log = attempt.log(f"rank_{rank:05d}")
            reason = f"Rank {rank} {describe(code)}{last_words(log, code)}\n  Its log: {log}"
        endings.append(Ending(outcome, reason, noticed))
    return worst(endings)


def describe(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        known = {s.value: s.name for s in signal.Signals}
        return f"was ended by {known.get(-code, f'signal {-code}')}"
    return f"ended with exit code {code}"


def last_words(log: Path, code: int) -> str:
    """What a rank that ended by itself said last: the line below its stack trace."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() and code > 0 else []
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1]}" if said else ""


def of_attempt(
    attempt: AttemptDir, nodes: int, ranks_per_node: int, codes: list[int | None], log_of: Callable[[int], Path]
) -> Ending:
    """How the attempt ended: the nodes' reports, and for an agent that could leave none, its exit code and log."""
    endings = []
    for node in range(nodes):
        found = Ending.read(attempt.node(node))
        code = codes[node]
        if found is None and code == EXIT_CODE:
            ranks = range(node * ranks_per_node, (node + 1) * ranks_per_node)
            found = Ending(REFUSED, next((r for r in map(attempt.reason, ranks) if r), ""))
        if found is None:
            how = describe(code) if code else "left no report"
            reason = f"The agent of node {node} {how}; its log: {log_of(node)}"
            killed = code is None or code == -signal.SIGKILL  # by the failure of another, which says more
            found = Ending(FAILED, reason, float("inf") if killed else 0.0)
        endings.append(found)
    return worst(endings)
