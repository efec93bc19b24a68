"""Reads that are tried again after an error of the file system, since such an error often goes away by itself."""

import errno
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

TRANSIENT = frozenset(
    {
        *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY),
        *(errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ESHUTDOWN),
    }
)
"""Errors of a file system that may go away."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that say that there is not enough disk space."""
T = TypeVar("T")
Verdict = Callable[[OSError, float], bool]
"""Whether to try again after this error, given the seconds of the pause before."""


def always(_error: OSError, _pause: float) -> bool:
    """Return True: every error of the file system may go away."""
    return True


def may_go_away(error: OSError, _pause: float = 0.0) -> bool:
    """Return whether the file system may answer again."""
    return error.errno in TRANSIENT


def tried_again(read: Callable[[], T], pauses: Sequence[float], again: Verdict = always) -> T:
    """Return what `read` returns, called once more after each of the `pauses`, in seconds, as long as it fails.

    Raises the OSError of the last call, the first one after which `again` says no, and every other error at once.
    """
    for pause in pauses:
        try:
            return read()
        except OSError as error:
            if not again(error, pause):
                raise
        time.sleep(pause)
    return read()
