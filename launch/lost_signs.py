"""Messages that say that something is gone which a rank needs: another rank, its network, or the GPU."""

import re

LOST_RANK = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|timeout caused pair closure|Socket Timeout"
    r"|ncclRemoteError|NCCL communicator was aborted|remote process exited"
)
"""Messages of gloo and NCCL that say that another process or its network is gone."""
LOST_GPU = re.compile(r"uncorrectable ECC|fallen off the bus|GPU is lost")
"""Messages of CUDA that say that the GPU is gone."""
GONE = "Something else is gone: "
"""Words of a rank's log before an error that is neither this code's nor one that a user can correct."""
SAID_OF_GPU = re.compile(
    rf"(Rank \d+ (ended with exit code \d+|was aborted, as))?:? ?(?i:{GONE}).*({LOST_GPU.pattern})"
)
ABORTED = "terminate called after throwing"
"""Beginning of what a C++ library says as it aborts the process."""
BY_WATCHDOG = "watchdog thread terminated with exception"
OVERDUE = re.compile(r"Watchdog caught collective operation timeout")
"""Message of torch's watchdog over NCCL: an exchange with the other ranks has not ended within the run's `timeout`."""


def gpu_is_lost(reason: str) -> bool:
    """Return whether the last words of a rank, or the reason of an ending, are those of a rank without its GPU.

    An error that is explained may quote what a server of data says, or the name of a file: that is no sign.
    """
    return bool(SAID_OF_GPU.match(reason))


def said_by_watchdog(log: str) -> str:
    """Return the line with which NCCL's watchdog aborted a rank because something is gone; empty for any other end.

    `log`: the end of the rank's log. A rank may wait for its GPU, which waits for a rank that is gone: no error of
    Python is raised then, and a thread of torch aborts the process.
    """
    _, aborted, said = log.rpartition(ABORTED)
    if not aborted or BY_WATCHDOG not in said:
        return ""
    signs = (OVERDUE, LOST_RANK, LOST_GPU)
    return next((line.strip() for line in said.split("\n") if any(sign.search(line) for sign in signs)), "")
