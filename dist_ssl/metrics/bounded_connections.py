"""A server with a bounded number of connections, so that nobody who reaches its port can exhaust the process.

Anyone may open connections and stay silent. There are at most MOST_CONNECTIONS at a time, one thread each; where all
are in use, the oldest gives way to a new one once it has had its time. This module does not import torch.
"""

import contextlib
import socket
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any

MOST_CONNECTIONS = 16
CONNECTION_SECONDS = 10.0
"""Age at which a connection gives way to a new one."""


class BoundedConnections(ThreadingMixIn):
    """A mixin that bounds the connections of a server of `socketserver`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._connections: dict[socket.socket, float] = {}
        """Connections with the time at which each was opened."""
        self._lock = threading.Lock()
        super().__init__(*arguments, **options)

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
        super().shutdown_request(request)  # type: ignore[misc]  # of the server that this is added to

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: clients may leave at any time."""

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
