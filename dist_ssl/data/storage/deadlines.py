"""Ends what waits for a server beyond its time where no timeout of a socket does: inside of OpenSSL.

Timeouts are looked at when no bytes have arrived. A handshake, and a read of TLS, goes on without looking for as long
as a server sends messages that hold nothing for the reader. So a thread shuts connections down that are late.
"""

import contextlib
import os
import socket
import threading
import time
from types import TracebackType

ENDLESS = "the server goes on talking and comes to no end"


class Until:
    """A context in which a connection is used until `ends`, in seconds of the monotonic clock: then it is shut down.

    Raises TimeoutError at its end if it was; infinite `ends` are no deadline.
    """

    def __init__(self, sock: socket.socket, ends: float) -> None:
        self.sock, self.ends, self.late = sock, ends, False

    def __enter__(self) -> None:
        if self.ends != float("inf"):
            _watch().add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ends != float("inf"):
            _watch().remove(self)
        if self.late and (error is None or isinstance(error, OSError)):
            raise TimeoutError(ENDLESS) from error

    def shut_down(self) -> None:
        """Let whatever reads from the connection find its end."""
        self.late = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # that of an SSLSocket would free what is in use


class _Watch:
    """The uses of connections in this process, and the thread that ends those that are late."""

    def __init__(self) -> None:
        self.process, self.next = os.getpid(), float("inf")
        self._uses: set[Until] = set()
        self._changed = threading.Condition()
        threading.Thread(target=self._end_late_ones, name="deadlines", daemon=True).start()

    def add(self, use: Until) -> None:
        with self._changed:
            self._uses.add(use)
            if use.ends < self.next:
                self._changed.notify()

    def remove(self, use: Until) -> None:
        with self._changed:
            self._uses.discard(use)

    def _end_late_ones(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                late = {use for use in self._uses if use.ends <= now}
                self._uses -= late
                for use in late:
                    use.shut_down()
                self.next = min((use.ends for use in self._uses), default=float("inf"))
                self._changed.wait(min(self.next - now, threading.TIMEOUT_MAX))


_watches: list[_Watch] = []
_starting = threading.Lock()


def _watch() -> _Watch:
    """Return that of this process: a fork has none of its parent's threads."""
    if not _watches or _watches[-1].process != os.getpid():
        with _starting:
            if not _watches or _watches[-1].process != os.getpid():
                _watches[:] = [_Watch()]
    return _watches[-1]
