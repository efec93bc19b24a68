"""A real web server over a folder, with range requests, that breaks what it is told to break."""

import contextlib
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FAULTS = ("stall", "reset", "500", "503", "429", "short", "cut", "superscript")
"""A body that stops coming; a connection reset in its middle; statuses; a body shorter than announced; one that is
announced shorter than the file is; a pause asked for in a digit that is no number."""

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HEADS = {
    "dripped status": (b"HTTP/1.1 200 ", b"x", 0.02),
    "dripped header": (b"HTTP/1.1 200 OK\r\nA: ", b"x", 0.02),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "dripped chunk size": (CHUNKED, b"0", 0.02),
    "endless trailer": (CHUNKED + b"0\r\n", b"a: b\r\n", 0.001),
}
"""Answers without end outside of the body: how they begin, what is then sent again and again, the seconds between."""


class Server(ThreadingHTTPServer):
    """Serves `folder`. `faults`: what to do to the coming requests, one each; then `fault`, a choice per path."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: deque[str] = deque()
        self.fault: Callable[[str], str] = lambda path: ""
        self.ranges = True
        self.login = ""
        self.signature = ""
        self.close_moved = False
        """Close the connection after a redirect."""
        self.moved: dict[str, str] = {}
        """Address that a path redirects to."""
        self.requests: list[tuple[str, str]] = []
        """Path and range of every request."""
        self.released = threading.Event()
        """Lets stalled and held answers go on."""
        self.hold_after: int | None = None
        """So many requests for training samples are answered; the others wait until `released`."""

    @property
    def url(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, name: str) -> int:
        """Requests for a file."""
        return sum(path == f"/{name}" for path, _ in self.requests)

    def gate(self) -> None:
        """Hold a request for a training sample that is one too many."""
        if self.hold_after is not None and sum("train" in path for path, _ in self.requests) > self.hold_after:
            self.released.wait()

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that clients give up are expected here."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = self.headers.get("Range", "")
        self.server.requests.append((parts.path, asked))
        if "train" in parts.path:
            self.server.gate()
        fault = self.server.faults.popleft() if self.server.faults else self.server.fault(parts.path)
        path = self.server.folder / unquote(parts.path).lstrip("/")
        if self.server.login and self.headers.get("Authorization") != self.server.login:
            self._say(401)
        elif self.server.signature and parts.query != self.server.signature:
            self._say(403)
        elif fault == "superscript":
            self._say(503, {"Retry-After": "\u00b2"})
        elif parts.path in self.server.moved:
            closing = {"Connection": "close"} if self.server.close_moved else {}
            self._say(302, {"Location": self.server.moved[parts.path], **closing})
        elif fault == "drip":
            self._drip(path.read_bytes())
        elif fault in HEADS:
            self._drip_a_head(*HEADS[fault])
        elif fault == "endless":
            self._send_without_end()
        elif fault.isdigit():
            self._say(int(fault), {"Retry-After": "0"} if fault == "503" else {})
        elif not path.is_file():
            self._say(404)
        else:
            self._send(path.read_bytes(), asked if self.server.ranges else "", fault)

    def _send(self, data: bytes, asked: str, fault: str) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        start, stop = (int(found[1]), int(found[2]) + 1 if found[2] else len(data)) if found else (0, len(data))
        if start >= len(data):
            self._say(416)
            return
        body = data[start:stop]
        half = body[: len(body) // 2]
        headers = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(data)}"} if found else {}
        if fault == "trickle":  # a byte for each connection
            half, fault = body[:1], "short"
        if fault == "cut":
            body = half
        self._say(206 if found else 200, headers, len(body))
        self.wfile.write(half if fault in ("stall", "reset", "short") else body)
        self.wfile.flush()
        if fault == "stall":
            self.server.released.wait(60)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = self.close_connection or fault in ("stall", "reset", "short")

    def _send_without_end(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 16))

    def _drip(self, data: bytes) -> None:
        """Send a byte every now and then, for ever."""
        self._say(200, {}, len(data))
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.server.released.wait(0.02):
                self.wfile.write(data[:1])

    def _drip_a_head(self, start: bytes, piece: bytes, pause: float) -> None:
        """Send an answer whose head, or whose end, never comes to its end."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(start)
            while not self.server.released.wait(pause):
                self.wfile.write(piece)

    def _say(self, status: int, headers: dict[str, str] | None = None, length: int = 0) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server in a thread for as long as the block runs."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
