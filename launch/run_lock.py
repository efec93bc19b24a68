"""A run is trained by one launcher of a machine at a time: a second one is refused, by the name of the first.

The lock ends with the process that holds it, however that ends. On a shared file system another machine may hold it,
one that has died perhaps: that is no reason to refuse, since a new attempt takes the run over from an older one anyway.
"""

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.strange_files import read_regular

NAME = "launcher.lock"
MOST_BYTES = 1000
"""Longest content of that file."""
HOLDER = re.compile(r"(\S+) ([0-9]+)\s*")
"""Its content: the machine and the process that hold it."""
LOCKS = Path("/proc/locks")
"""Where Linux lists the locks of this machine: taking the lock to see whether it is free might refuse a launcher."""


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run's folder. Raises ConfigError where another launcher of this machine trains it.

    A link in the place of the file is not followed: what it leads to would be emptied. Where the file is one, or the
    file system has no locks, or the folder cannot be written, nothing is held: what follows says more.
    """
    try:
        descriptor = os.open(run / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        _take(descriptor, run)
        yield
    finally:
        os.close(descriptor)


def is_held(run: Path) -> bool | None:
    """Return whether a launcher of this machine trains the run; None if that is not known: another machine's may."""
    try:
        state = (run / NAME).stat()
        locks = [line.split() for line in LOCKS.read_text().splitlines()]
        own = [words for words in locks if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(state.st_ino)]
        device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}"
        if any(words[5].rpartition(":")[0] == device for words in own):
            return True
        host, process = _holder(read_regular(run / NAME, MOST_BYTES))
    except (OSError, ValueError, IndexError):
        return None
    if host != socket.gethostname():
        return None
    return any(words[4] == process for words in own)  # some file systems have another device in that list


def _holder(content: bytes) -> tuple[str, str]:
    """Return the machine and the process that the content names; empty where it names none."""
    found = HOLDER.fullmatch(content.decode(errors="replace"))
    return (found[1], found[2]) if found else ("", "")


def _take(descriptor: int, run: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        host, process = _holder(os.read(descriptor, MOST_BYTES))
        if host == socket.gethostname():
            raise ConfigError(
                f"{run} is being trained already, by process {process} of this machine.",
                f"Stop that one first, by Ctrl-C in its terminal or with: kill -TERM {process}",
            ) from None
        return
    except OSError:  # a file system without locks
        return
    with contextlib.suppress(OSError):  # a full disk: the next write of the attempt says so
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
