"""Servers of strangers: whatever one answers, a read brings bytes within its bound or one clear error, and it ends.

A share is part of the suite; `make chaos` asks 20,000 times.
"""

import mmap
import random
import socket
import socketserver
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dist_ssl.data.storage import transports
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher, Patience
from dist_ssl.data.storage.transports import NoRangesError
from dist_ssl.errors import UserError
from tests import bad_tls
from tests.bad_tls import Kind
from tests.fuzzing import mutated, shares, some, tried
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
    length, count = chance.choice([(0, 0)] * 5 + [(1, 300), (70_000, 1)])
    headers += [("X-" + "y" * length, "z")] * count
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    body = BODY if chance.random() < 0.7 else mutated(BODY, chance)
    whole = f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
    return mutated(whole, chance) if chance.random() < 0.4 else whole


def answering(connection: socket.socket, chance: random.Random) -> None:
    """Answer each request without regard to what was asked."""
    while connection.recv(1 << 16):
        connection.sendall(answer(chance))
        if chance.random() < 0.7:
            return


def endless(connection: socket.socket, chance: random.Random) -> None:
    """Send a body, or a header, without end; the reader has to go."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + chance.choice([b"\r\n", b"A: "]))
    while True:
        connection.sendall(bytes(1 << 16))


def drip(connection: socket.socket, chance: random.Random) -> None:
    """Send a head, or a trailer, that never comes to its end, or a body that comes byte by byte."""
    heads = {**HEADS, "dripped body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.02)}
    start, piece, pause = heads[chance.choice(sorted(heads))]
    connection.recv(1 << 16)
    connection.sendall(start)
    while True:
        connection.sendall(piece)
        time.sleep(pause)


def silence(connection: socket.socket, chance: random.Random) -> None:
    """Send nothing."""
    connection.recv(1 << 16)
    connection.recv(1)


PLAIN: dict[str, Kind] = {"answers": answering, "endless": endless, "dripped": drip, "silent": silence}
OF_TLS = tuple(bad_tls.kinds(dict.fromkeys(bad_tls.CERTIFICATES), answering))
NAMES = (*PLAIN, *OF_TLS)
WEIGHTS = (60, *[3] * (len(NAMES) - 1))


def kind_of(chance: random.Random) -> int:
    """Return the place in NAMES of what the server does."""
    return chance.choices(range(len(NAMES)), WEIGHTS)[0]


class Stranger(socketserver.ThreadingTCPServer):
    """A server whose next connections are of the kind and the seed that its readers, in another process, write."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Rude)
        self.kinds = PLAIN | bad_tls.kinds(bad_tls.write_certificates(folder), answering)
        self.next = memoryview(mmap.mmap(-1, 16)).cast("q")

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that clients give up are expected here."""


class Rude(socketserver.BaseRequestHandler):
    """A connection."""

    server: Stranger

    def handle(self) -> None:
        kind, seed = self.server.next
        with suppress(OSError):
            self.request.settimeout(5)
            self.server.kinds[NAMES[kind]](self.request, random.Random(seed))


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    """The server; its readers trust some of its certificates."""
    monkeypatch.setattr(transports, "CONNECT_SECONDS", IMPATIENT.stall_seconds)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / bad_tls.TRUSTED))
    with Stranger(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def read(get: Fetcher, place: Address, chance: random.Random) -> None:
    """Read a small file, or a part of a large one, within a bound."""
    if chance.random() < 0.5:
        assert len(get.read(place / "manifest.json", MOST)) <= MOST
    else:
        start, stop = sorted(chance.sample(range(3000), 2))
        assert sum(map(len, get.stream(place / "a.tar", start, stop, ranged=True))) <= stop - start


@pytest.mark.parametrize("inputs", shares(100))
@pytest.mark.filterwarnings("ignore")
def test_any_answer_is_bytes_within_the_bound_or_one_clear_error(inputs: range, stranger: Stranger) -> None:
    port = stranger.server_address[1]

    def work(chance: random.Random) -> bool:
        kind = kind_of(chance)
        stranger.next[0], stranger.next[1] = kind, chance.getrandbits(32)
        place = Address.parse(f"{'https' if NAMES[kind] in OF_TLS else 'http'}://127.0.0.1:{port}")
        try:
            read(Fetcher(IMPATIENT), place, chance)
        except NoRangesError:  # the caller reads the whole file then
            return False
        except UserError as error:
            text = str(error)
            assert len(text) < 2000
            assert "Cc" not in {unicodedata.category(character) for character in text.replace("\n", "")}, text
            return False
        return True

    assert some(tried(inputs, work), inputs)


def test_the_share_of_the_suite_has_every_kind_of_server() -> None:
    assert {NAMES[kind_of(random.Random(number))] for number in range(100)} == set(NAMES)


def test_every_odd_number_place_and_coding_is_sent() -> None:
    sent = b"".join(answer(random.Random(number)) for number in range(600))
    for value in (*LENGTHS, *PAUSES, *PLACES, *RANGES, *CODINGS, *STATUSES):
        assert value.encode() in sent, value


@pytest.mark.parametrize("certificate", bad_tls.CERTIFICATES)
def test_data_comes_only_from_a_server_whose_certificate_is_trusted_and_of_its_name(
    certificate: str, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    monkeypatch.setitem(globals(), "answer", lambda chance: whole)
    monkeypatch.setattr(transports, "CONNECT_SECONDS", 30.0)
    stranger.next[0] = NAMES.index(f"TLS, {certificate} certificate")
    place = Address.parse(f"https://127.0.0.1:{stranger.server_address[1]}") / "manifest.json"
    get = Fetcher(Patience(tries=3, first_seconds=0.001, stall_seconds=30))
    if certificate == "trusted":
        assert get.read(place, MOST) == BODY
    else:
        with pytest.raises(UserError, match="certificate") as caught:
            get.read(place, MOST)
        assert caught.value.remedy == "The server's certificate is not trusted here."
