"""Detection of ended processes: each locks its own byte of a shared file, and the kernel drops the lock at its end.

Unlike process ids, such locks work across containers, and a new process is never mistaken for an old one.
"""

import fcntl
import os
import struct
import sys
from typing import BinaryIO

LOCK = struct.Struct("hhqqi0q")
"""Linux's 64-bit `struct flock`: type, whence, start, length, process."""
SUPPORTED = sys.platform == "linux" and sys.maxsize > 2**32 and hasattr(fcntl, "F_OFD_SETLK")


class Liveness:
    """The lock of `rank` in `file`, held while the file or a mapping of it is open, and a view of the others' locks."""

    def __init__(self, file: BinaryIO, rank: int) -> None:
        self.file = file
        self.locked = SUPPORTED and self._lock(rank)
        """True if this rank holds its lock; a missing lock means an ended process only if all ranks took theirs."""

    def _lock(self, rank: int) -> bool:
        try:
            fcntl.fcntl(self.file, fcntl.F_OFD_SETLK, self._byte(fcntl.F_WRLCK, rank))
        except OSError:  # a file system, or a sandbox's kernel, without such locks
            return False
        return True

    def gone(self, rank: int) -> bool:
        """Return whether another rank's process has ended. Needs every rank to have `locked` its byte."""
        found = fcntl.fcntl(self.file, fcntl.F_OFD_GETLK, self._byte(fcntl.F_WRLCK, rank))
        return bool(LOCK.unpack(found)[0] == fcntl.F_UNLCK)

    @staticmethod
    def _byte(kind: int, rank: int) -> bytes:
        return LOCK.pack(kind, os.SEEK_SET, rank, 1, 0)
