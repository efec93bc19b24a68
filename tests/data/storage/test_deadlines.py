"""A connection that is used for too long is shut down, whatever its reader is doing, and the reader hears of it."""

import random
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dist_ssl.data.storage import transports
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.deadlines import Until
from dist_ssl.data.storage.fetch import Fetcher, Patience
from dist_ssl.errors import ServerAwayError
from tests.fuzzing import tried

Pair = tuple[socket.socket, socket.socket]
LONG = 3600.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends of a connection that has no timeout."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def wait_for_ever(sock: socket.socket, seconds: float) -> None:
    with Until(sock, time.monotonic() + seconds):
        sock.recv(1)


def send_for_ever(sock: socket.socket) -> None:
    """Send bytes and read none, until the connection is shut down."""
    sock.setblocking(False)
    while True:
        with suppress(BlockingIOError):
            sock.send(b"x")


def divide(by: int) -> float:
    return 1 / by


def test_a_wait_without_a_timeout_is_ended(pair: Pair) -> None:
    with pytest.raises(TimeoutError, match="comes to no end"):
        wait_for_ever(pair[0], 0.01)


def test_an_earlier_deadline_is_kept_while_a_later_one_is_waited_for(pair: Pair) -> None:
    with Until(pair[1], time.monotonic() + LONG), pytest.raises(TimeoutError):
        wait_for_ever(pair[0], 0.01)


def test_the_error_of_a_connection_that_was_shut_down_is_that_it_was_late(pair: Pair) -> None:
    with pytest.raises(TimeoutError, match="comes to no end") as caught, Until(pair[0], time.monotonic()):
        send_for_ever(pair[0])
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_are_left_as_they_are(pair: Pair) -> None:
    with pytest.raises(ZeroDivisionError), Until(pair[0], time.monotonic()):
        divide(len(pair[0].recv(1)))


@pytest.mark.parametrize("seconds", [LONG, float("inf")])
def test_a_connection_that_is_in_time_stays_open(pair: Pair, seconds: float) -> None:
    for _ in range(3):
        with Until(pair[0], time.monotonic() + seconds):
            pair[1].sendall(b"x")
            assert pair[0].recv(1) == b"x"


def test_a_forked_process_has_a_thread_of_its_own(pair: Pair) -> None:
    def work(chance: random.Random) -> bool:
        with pytest.raises(TimeoutError):
            wait_for_ever(pair[0], 0.01)
        return True

    one, other = socket.socketpair()
    with one, other, pytest.raises(TimeoutError):
        wait_for_ever(one, 0.01)
    assert tried(range(1), work) == 1


def test_a_handshake_that_looks_at_no_timeout_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL passes over some messages, and goes on for as long as there are more: for ever, with a fast server."""

    def like_openssl(context: ssl.SSLContext, sock: socket.socket, **options: object) -> None:
        with socket.socket(fileno=sock.detach()) as own:
            own.settimeout(None)
            while own.recv(1 << 16):
                pass
        raise ssl.SSLEOFError("EOF occurred in violation of protocol")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", like_openssl)
    monkeypatch.setattr(transports, "CONNECT_SECONDS", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = Address.parse(f"https://127.0.0.1:{server.getsockname()[1]}/x.tar")
        with pytest.raises(ServerAwayError, match="could not be fetched in 2 tries"):
            Fetcher(Patience(tries=2, first_seconds=0.001)).read(place, 100)
