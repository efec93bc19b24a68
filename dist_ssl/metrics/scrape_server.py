"""A web server for `/metrics` and `/health` that nobody can exhaust: few connections, each for a bounded time.

Anyone who reaches the port may open connections and stay silent. There are at most MOST_CONNECTIONS at a time, one
thread each; where all are in use, the oldest gives way to a new one once it has had its time.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

MOST_CONNECTIONS = 16
CONNECTION_SECONDS = 10.0
"""Time without a byte after which a connection ends, and age at which it gives way to a new one."""
Answer = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], Answer], Iterable[bytes]]


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """The server; `server_port` is its port. `close` ends it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connections: dict[socket.socket, float] = {}
        """Connections with the time at which each was opened."""
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close it at once where there are too many."""
        if self._admit(request):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; the thread that served it calls this at its end."""
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: clients may leave at any time."""

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()

    def _admit(self, request: socket.socket) -> bool:
        """Count a connection; return False where there is no room. One that is too old is ended to make room."""
        now = time.monotonic()
        with self._lock:
            if len(self._connections) >= MOST_CONNECTIONS:
                oldest = min(self._connections, key=self._connections.__getitem__)
                if now - self._connections[oldest] < CONNECTION_SECONDS:
                    return False
                del self._connections[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes up and ends
            self._connections[request] = now
        return True


class _Handler(WSGIRequestHandler):
    """One connection."""

    timeout = CONNECTION_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log nothing: scrapes come every few seconds."""


def application(registry: CollectorRegistry) -> Wsgi:
    """Return the application: the metrics of a registry at `/metrics`, `ok` at `/health`, nothing else."""
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: Answer) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        known = environ["PATH_INFO"] == "/health"
        start("200 OK" if known else "404 Not Found", [("Content-Type", "text/plain")])
        return [b"ok\n" if known else b"There is /metrics, and /health.\n"]

    return answer


def serve(registry: CollectorRegistry, bind: str, port: int) -> ScrapeServer:
    """Return a server of these metrics that listens. `port`: 0 takes a free one. Raises OSError, OverflowError."""
    made = make_server(bind, port, application(registry), server_class=ScrapeServer, handler_class=_Handler)
    threading.Thread(target=made.serve_forever, name="metrics", daemon=True).start()
    return made
