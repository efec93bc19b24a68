"""Answers of web servers, read with a bound on the time that their head, or any next part of their body, takes.

A timeout of a socket starts anew with every byte, so a server that sends one now and then, or one interim answer after
the other, would be waited for without end. What OpenSSL does with messages of TLS that hold no byte of the body is
ended by `deadlines`.
"""

import http.client
import io
import socket
import ssl
import time
from typing import Any, cast

from dist_ssl.data.storage.deadlines import Until


class _Within(io.RawIOBase):
    """The bytes of a connection until `ends`, in seconds of the monotonic clock; then a TimeoutError.

    `sock`: that of the connection; `seconds`: the time that one wait for bytes may take.
    """

    def __init__(self, connection: io.RawIOBase, sock: socket.socket, seconds: float) -> None:
        self.connection, self.sock, self.seconds, self.ends = connection, sock, seconds, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        if time.monotonic() > self.ends:
            raise TimeoutError("the answer does not end")
        last = self.ends + self.seconds if isinstance(self.sock, ssl.SSLSocket) else float("inf")
        with Until(self.sock, last):
            return cast("Any", self.connection).readinto(buffer)  # type: ignore[no-any-return]

    def close(self) -> None:
        self.connection.close()
        super().close()


class BoundedResponse(http.client.HTTPResponse):
    """An answer whose head, and each next part of whose body, must arrive within the timeout of the connection.

    The time may be exceeded by one wait for a byte, which is as long at most.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._seconds = sock.gettimeout() or float("inf")
        self._within = _Within(self.fp.detach(), sock, self._seconds)
        self.fp = io.BufferedReader(self._within)
        self._start()

    def _start(self) -> None:
        self._within.ends = time.monotonic() + self._seconds

    def read1(self, n: int = -1) -> bytes:
        """Return the next part of the body, at most `n` bytes; empty at its end. Raises TimeoutError."""
        self._start()
        return super().read1(n)
