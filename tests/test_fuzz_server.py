"""Servers of strangers: whatever one answers, a read brings bytes within its bound or one clear error, and it ends.

A share is part of the suite; `make chaos` asks 20,000 times.
"""

import random
import socket
import socketserver
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

import pytest

from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher, Patience
from dist_ssl.data.storage.transports import NoRangesError
from dist_ssl.errors import UserError
from tests.fuzzing import bounded_memory, mutated, tried
from tests.web import HEADS

MOST = 1 << 14
"""Bytes that the reader accepts."""
BODY = bytes(range(256)) * 8
IMPATIENT = Patience(tries=2, first_seconds=0.001, most_seconds=0.002, stall_seconds=0.1)
LENGTHS = ("0", "7", "-1", "1" * 30, "\u00b2", "1e3", "0x10", "", " 2048 ", "2048, 2048", "2048\r\nContent-Length: 9")
PAUSES = ("0", "-5", "\u00b2", "1e999", "9" * 40, "soon", "", "Fri, 31 Dec 9999 23:59:59 GMT", "0\r\nRetry-After: 1")
PLACES = (
    *("/x", "x", "http://127.0.0.1:1/x", "https://127.0.0.1:1/x", "file:///etc/passwd", "ftp://127.0.0.1/x"),
    *("", "http://", "http://[::1/x", "http://127.0.0.1:99999999/", "http://a b/", "?" * 5000, "\x1b[2J", "/\u00b2"),
)
RANGES = (
    *("bytes 0-2047/2048", "bytes 5-2047/2048", "bytes */2048", "bytes a-b/c", "\u00b2"),
    "bytes 0-" + "9" * 40 + "/1",
)
CODINGS = ("gzip", "deflate", "chunked", "identity", "br", "gzip, gzip", "\u00b2", "x" * 10_000)


STATUSES = ("200 OK",) * 4 + ("206 Partial", "302 Found", "301", "503 Busy", "429", "404 \x1b[31m", "999", "-1")


def answer(chance: random.Random) -> bytes:
    """An answer of HTTP, more or less."""
    status = chance.choice(STATUSES)
    headers = [("Content-Length", str(len(BODY)) if chance.random() < 0.5 else chance.choice(LENGTHS))]
    headers += [("Retry-After", chance.choice(PAUSES))] if status[0] in "45" else []
    headers += [("Location", chance.choice(PLACES))] if status[0] == "3" else []
    headers += [("Content-Range", chance.choice(RANGES))] if chance.random() < 0.2 else []
    headers += [("Content-Encoding", chance.choice(CODINGS))] if chance.random() < 0.1 else []
    headers += [("Transfer-Encoding", chance.choice(CODINGS))] if chance.random() < 0.1 else []
    headers += [("X-" + "y" * chance.choice([1, 70_000]), "z")] * chance.choice([0, 0, 0, 0, 0, 1, 300])
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    body = BODY if chance.random() < 0.7 else mutated(BODY, chance)
    whole = f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
    return mutated(whole, chance) if chance.random() < 0.4 else whole


def drip(connection: socket.socket, chance: random.Random) -> NoReturn:
    """Send a head, or a trailer, that never comes to its end. Raises OSError once the reader has gone."""
    start, piece, pause = HEADS[chance.choice(sorted(HEADS))]
    connection.sendall(start)
    while True:
        connection.sendall(piece)
        time.sleep(pause)


class Stranger(socketserver.ThreadingTCPServer):
    """A server whose next answers are those of `seed`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Rude)
        self.seed = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that clients give up are expected here."""


class Rude(socketserver.BaseRequestHandler):
    """A connection that is answered without regard to what was asked."""

    server: Stranger

    def handle(self) -> None:
        chance = random.Random(self.server.seed)
        with suppress(OSError):
            self.request.settimeout(5)
            while self.request.recv(1 << 16):
                kind = chance.random()
                if kind < 0.02:  # without end; the reader has to go
                    self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    while True:
                        self.request.sendall(bytes(1 << 16))
                if kind < 0.04:
                    drip(self.request, chance)
                if kind < 0.05:  # in silence
                    self.request.recv(1)
                    return
                self.request.sendall(answer(chance))
                if chance.random() < 0.7:
                    return


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    with Stranger() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("count", [100, pytest.param(20_000, marks=pytest.mark.chaos)])
@pytest.mark.filterwarnings("ignore")
def test_any_answer_is_bytes_within_the_bound_or_one_clear_error(count: int, stranger: Stranger) -> None:
    place = Address.parse(f"http://127.0.0.1:{stranger.server_address[1]}")

    def work(chance: random.Random) -> bool:
        stranger.seed = chance.getrandbits(32)
        get = Fetcher(IMPATIENT)
        try:
            if chance.random() < 0.5:
                assert len(get.read(place / "manifest.json", MOST)) <= MOST
            else:
                start, stop = sorted(chance.sample(range(3000), 2))
                assert sum(map(len, get.stream(place / "a.tar", start, stop, ranged=True))) <= stop - start
        except NoRangesError:  # the caller reads the whole file then
            return False
        except UserError as error:
            text = str(error)
            assert len(text) < 2000
            assert "Cc" not in {unicodedata.category(character) for character in text.replace("\n", "")}, text
            return False
        return True

    with bounded_memory():
        accepted = tried(count, work)
    assert count // 20 < accepted < count - count // 20
