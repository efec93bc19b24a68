"""Why attempts of a run were followed by another one, from the outcomes in their folders."""

from collections import Counter

from dist_ssl.runtime.end_names import (
    FAILED,
    FINISHED,
    LOST,
    NODE_LOST,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    PREEMPTED,
    REFUSED,
    WORKER_DIED,
)
from launch.ending import Ending
from launch.run_dir import AttemptDir

STOPPED_BY_REQUEST, USER_ERROR = "stopped by request", "error of the user"
CAUSES = (PREEMPTED, OUT_OF_TIME, STOPPED_BY_REQUEST, USER_ERROR, WORKER_DIED, OUT_OF_MEMORY, NODE_LOST)
"""The causes of restarts; a finished run that is trained further is none."""


def restarts_before(attempt: AttemptDir) -> dict[str, int]:
    """Return the number of earlier attempts of a run by the cause of their restart, for all CAUSES."""
    earlier = (AttemptDir(attempt.run, number) for number in attempt.run.attempts() if number < attempt.number)
    counts = Counter(cause_of(Ending.read(each.outcome_file)) for each in earlier)
    return {cause: counts[cause] for cause in CAUSES}


def cause_of(ending: Ending | None) -> str:
    """Return why an attempt that ended so was followed by another one; empty for a finished one.

    An attempt without an outcome was lost with the node of the process that writes it, or was killed with that process.
    """
    if ending is None:
        return NODE_LOST
    if ending.outcome == FINISHED:
        return ""
    if ending.again and ending.again != LOST:
        return ending.again
    if ending.outcome == REFUSED:
        return USER_ERROR
    if ending.outcome == FAILED:
        return ending.cause or WORKER_DIED
    return STOPPED_BY_REQUEST
