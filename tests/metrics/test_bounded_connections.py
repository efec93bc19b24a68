"""Strangers who open connections and stay silent neither exhaust the rank nor keep Prometheus out."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from dist_ssl.metrics import bounded_connections
from dist_ssl.metrics.bounded_connections import MOST_CONNECTIONS
from dist_ssl.metrics.endpoint import MetricsServer

MOST = 100


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("dist_ssl_step", "A step.", registry=registry).set(7)
    made = MetricsServer("127.0.0.1", 0, registry)
    yield made
    made.shutdown()
    made.server_close()


def page(server: MetricsServer, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=60) as response:
        return str(response.read().decode())


def silent(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=60)


def test_it_serves_metrics_and_health_and_nothing_else(server: MetricsServer) -> None:
    assert "dist_ssl_step 7.0" in page(server)
    assert page(server, "/health") == "ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page(server, "/debug")


def test_silent_connections_are_bounded_and_give_way(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    opened = [silent(server) for _ in range(MOST)]
    closed = 0
    for connection in opened[MOST_CONNECTIONS:]:  # the server has looked at all of them when the last is closed
        closed += connection.recv(1) == b""
    assert closed == MOST - MOST_CONNECTIONS
    assert threading.active_count() <= before + MOST_CONNECTIONS
    monkeypatch.setattr(bounded_connections, "CONNECTION_SECONDS", 0.0)  # now the oldest has had its time
    assert "dist_ssl_step 7.0" in page(server)
    assert opened[0].recv(1) == b""
    for connection in opened:
        connection.close()


def test_a_client_that_leaves_in_the_middle_is_no_trouble(server: MetricsServer) -> None:
    for text in (b"", b"GET /metrics HTTP/1.1\r\n", b"\0\xff" * 100 + b"\r\n\r\n"):
        connection = silent(server)
        connection.sendall(text)
        connection.close()
    assert "dist_ssl_step 7.0" in page(server)
