"""Which processes still live: each holds a lock on its own byte of a shared file, which the kernel drops at its end.

Unlike process ids, such locks hold across containers, and no new process is taken for an old one.
"""

import fcntl
import os
import struct
import sys
from typing import BinaryIO

LOCK = struct.Struct("hhqqi0q")
"""Linux's `struct flock` of 64 bits: type, whence, start, length, process."""
SUPPORTED = sys.platform == "linux" and sys.maxsize > 2**32 and hasattr(fcntl, "F_OFD_SETLK")


class Liveness:
    """Shows through `file`, for as long as that or a mapping of it is open, that `rank` lives; tells who else does."""

    def __init__(self, file: BinaryIO, rank: int) -> None:
        self.file = file
        self.shown = SUPPORTED and self._show(rank)
        """Whether the others can see it; only where all are shown is to be unseen to be gone."""

    def _show(self, rank: int) -> bool:
        try:
            fcntl.fcntl(self.file, fcntl.F_OFD_SETLK, self._byte(fcntl.F_WRLCK, rank))
        except OSError:  # a file system, or a sandbox's kernel, without such locks
            return False
        return True

    def gone(self, rank: int) -> bool:
        """Whether another rank's process has ended."""
        found = fcntl.fcntl(self.file, fcntl.F_OFD_GETLK, self._byte(fcntl.F_WRLCK, rank))
        return bool(LOCK.unpack(found)[0] == fcntl.F_UNLCK)

    @staticmethod
    def _byte(kind: int, rank: int) -> bytes:
        return LOCK.pack(kind, os.SEEK_SET, rank, 1, 0)
