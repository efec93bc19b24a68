"""A scrape endpoint over HTTP, and the target file with which a Prometheus discovers it (file_sd).

It serves `/metrics` and `/health`, and nothing else. This module does not import torch, so that an agent can use it.
"""

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dist_ssl.errors import ConfigError
from dist_ssl.metrics.bounded_connections import CONNECTION_SECONDS, BoundedConnections
from dist_ssl.metrics.table_row import Metric
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import read_regular

log = logging.getLogger(__name__)
Family = CounterMetricFamily | GaugeMetricFamily
EVERYWHERE = "0.0.0.0"
"""The address that stands for all addresses of a machine."""
PORTS = 10
"""Number of ports that are tried, from the configured one on."""
WAKE_SECONDS = 5.0
"""Longest wait for a server to end."""
MOST_TARGET = 1 << 16
"""Bytes of a target file, at most: it has some hundred."""


def read_target(path: Path) -> bytes:
    """Return the content of a target file, which may be another user's. Raises OSError; ValueError if it is large."""
    return read_regular(path, MOST_TARGET)


class Exported(Collector):
    """The metrics of a table with their values, as prometheus_client collects them.

    `labels`: of every series. `values`: by key and value of the metric's own label, "" without one. A gauge without a
    value has no series; a counter without a label starts from 0. Values of a label that are exported together are the
    sum of counters, and the largest of gauges, so that a metric never has more series than its row says.
    """

    def __init__(self, table: Sequence[Metric], labels: Mapping[str, str] | None = None) -> None:
        self.table, self.labels = [metric for metric in table if not metric.instead], dict(labels or {})
        self.values = {(m.key, ""): 0.0 for m in self.table if m.counter and not m.label}

    def current(self) -> Mapping[tuple[str, str], float]:
        """Return the values as they are at a scrape."""
        return self.values

    def collect(self) -> Iterator[Family]:
        """Yield every metric of the table with its series, as they are now."""
        known: dict[str, list[tuple[str, float]]] = {}
        for (key, label), value in self.current().items():
            known.setdefault(key, []).append((label, value))
        for metric in self.table:
            kind: type[Family] = CounterMetricFamily if metric.counter else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=[*self.labels, *([metric.label] if metric.label else [])])
            together: dict[str, list[float]] = {}
            for label, value in known.get(metric.key, ()):
                together.setdefault(metric.exported(label), []).append(value)
            for label, values in together.items():
                family.add_metric(
                    [*self.labels.values(), *([label] if metric.label else [])],
                    sum(values) if metric.counter else max(values),
                )
            yield family


class MetricsServer(BoundedConnections, HTTPServer):
    """An HTTP server that answers with the metrics of a registry, in threads of its own.

    It sleeps until somebody connects, and ends at once: `serve_forever` would look twice a second whether it is to end.
    """

    def __init__(self, bind: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family, *_ = socket.getaddrinfo(bind, None, type=socket.SOCK_STREAM)[0]
        self.registry = registry
        self.ended = False
        super().__init__((bind, port), Answer)
        self.thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while not self.ended:
            self.handle_request()

    def shutdown(self) -> None:
        """End the thread that waits for connections."""
        self.ended = True
        with contextlib.suppress(OSError):  # a connection wakes it
            socket.create_connection((self.server_name, self.server_port), timeout=WAKE_SECONDS).close()
        self.thread.join(WAKE_SECONDS)

    def server_bind(self) -> None:
        """Listen, without the look-up of the machine's name that the base class makes: it may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class Answer(BaseHTTPRequestHandler):
    """The answer to one request."""

    server: MetricsServer
    timeout = CONNECTION_SECONDS  # without a byte

    def do_GET(self) -> None:
        """Send the metrics, or that the server is alive; there are no other pages."""
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._send(kind, encode(self.server.registry))
            case "/health":
                self._send("text/plain; charset=utf-8", b"ok\n")
            case _:
                self.send_error(404, "Only /metrics and /health are served.")

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Return the name of this server, without the versions of what it is made of."""
        return "dist_ssl"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Write no line per scrape."""


class Endpoint:
    """A server of the metrics of a collector, and the file that names it.

    `labels`: of the target. `bind`: the address to listen on, by which a Prometheus finds it; None for all of the
    machine, of which `address` is then the one for Prometheus. `port`: 0 takes a free one; one that is taken is passed
    over for one of the next. `target`: the file that names the endpoint; `stop` removes it, a lost node leaves it, so
    that an alert fires.
    """

    def __init__(
        self, collector: Collector, labels: Mapping[str, str], address: str, port: int, target: Path, bind: str | None
    ) -> None:
        self.labels, self.port, self.target = dict(labels), port, target
        self.bind = bind or EVERYWHERE
        self.address = address if self.bind == EVERYWHERE else self.bind
        self.registry = CollectorRegistry()
        self.registry.register(collector)
        self.server: MetricsServer | None = None
        self.announcement = ""

    def start(self) -> None:
        """Start to listen and write the target file. Raises ConfigError where the port cannot be used; OSError."""
        self.server = self._listening()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        host = f"[{self.address}]" if ":" in self.address else self.address
        place = f"{host}:{self.server.server_port}"
        self.announcement = json.dumps([{"targets": [place], "labels": self.labels}])
        write_atomically(self.target, self.announcement)

    def _listening(self) -> MetricsServer:
        problem = ""
        for port in range(self.port, self.port + PORTS) if self.port else (0,):
            try:
                return MetricsServer(self.bind, port, self.registry)
            except (OSError, OverflowError, ValueError) as error:  # taken, not allowed, no address here, no port
                problem = problem or str(error)
        raise ConfigError(
            f"metrics.port={self.port} on metrics.bind={self.bind} cannot be listened on: {problem}.",
            "metrics.port=0 takes a free one; metrics.bind=0.0.0.0 takes all addresses of the machine.",
        )

    def stop(self) -> None:
        """Remove the target file, unless it is a newer attempt's, and stop listening.

        A file that cannot be removed is a warning: an alert fires for a run that has ended, which loses nothing.
        """
        if self.server:
            try:
                if read_target(self.target) == self.announcement.encode():
                    self.target.unlink()
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                log.warning("%s cannot be removed: %s", self.target, error)
            self.server.shutdown()
            self.server.server_close()
