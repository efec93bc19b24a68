"""A run is trained by one launcher of a machine at a time: a second one is refused, by the name of the first.

The lock ends with the process that holds it, however that ends. On a shared file system another machine may hold it,
one that has died perhaps: that is no reason to refuse, since a new attempt takes the run over from an older one anyway.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dist_ssl.errors import ConfigError

NAME = "launcher.lock"


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run's folder. Raises ConfigError where another launcher of this machine trains it.

    Where the file system has no locks, or the folder cannot be written, nothing is held: what follows says more.
    """
    try:
        descriptor = os.open(run / NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        _take(descriptor, run)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, run: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        host, _, process = os.read(descriptor, 1000).decode(errors="replace").strip().rpartition(" ")
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
