"""Opening of files in folders that somebody else may have written: a pipe there would block, a device has no end."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path


def open_regular(path: Path) -> FileIO:
    """Return a file that is open to be read, unbuffered. Raises OSError, also where it is no regular file."""
    file = FileIO(path, opener=_open_at_once)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    os.set_blocking(file.fileno(), True)  # file systems that keep files on tape fail reads that may not wait
    return file


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting, as a pipe would for a process that writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)
