"""Whatever a web server does to a transfer, the bytes are right or the error helps; no credentials are shown."""

import base64
import logging
import random
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from urllib3.util import parse_url

from dist_ssl.data.storage import connections, fetch, redirects, transports
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher, Patience
from dist_ssl.data.storage.redirects import check_redirect, redirected
from dist_ssl.data.storage.transports import NoRangesError, Web
from dist_ssl.errors import ConfigError, DataError, ServerAwayError
from tests.web import FAULTS, HEADS, Server, serving

DATA = random.Random(7).randbytes(100_000)
MOST = 1 << 30
QUICK = Patience(tries=4, first_seconds=0.001, stall_seconds=0.15)
NO_TRIES = Patience(tries=1, stall_seconds=0.15)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with one file."""
    (tmp_path / "a b.tar").write_bytes(DATA)
    with serving(tmp_path) as server:
        yield server


def file(server: Server) -> Address:
    """The address of the server's file."""
    return Address.parse(server.url) / "a b.tar"


def fetched(fetcher: Fetcher, address: Address, start: int = 0, stop: int | None = len(DATA), **options: bool) -> bytes:
    """All that is fetched, joined."""
    return b"".join(fetcher.stream(address, start, stop, **options))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_costs_one_retry_and_no_byte(server: Server, fault: str, ranges: bool) -> None:
    server.faults.append(fault)
    server.ranges = ranges
    fetcher = Fetcher(QUICK)
    assert fetched(fetcher, file(server)) == DATA
    assert fetcher.counts.take() == {
        "fetched_bytes": len(DATA),
        "fetch_retries": 1,
        "cache_hits": 0,
        "cache_misses": 0,
    }


@pytest.mark.parametrize("fault", ["stall", "reset", "short", "cut"])
def test_what_breaks_off_goes_on_at_the_byte_that_it_had_come_to(server: Server, fault: str) -> None:
    server.faults.append(fault)
    got = []
    for chunk in Fetcher(QUICK).stream(file(server), 0, len(DATA)):
        got.append(len(chunk))
        if len(server.requests) == 2:
            break
    before = sum(got[:-1])
    assert 0 < before <= len(DATA) // 2
    assert [asked for _, asked in server.requests] == ["", f"bytes={before}-{len(DATA) - 1}"]


@given(
    faults=st.lists(st.sampled_from([f for f in FAULTS if f != "stall"]), max_size=8),
    ranges=st.booleans(),
    bounds=st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA))),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_faults_and_any_part_of_a_file(
    server: Server, faults: list[str], ranges: bool, bounds: tuple[int, int]
) -> None:
    start, stop = min(bounds), max(bounds) if ranges else len(DATA)
    part = stop < len(DATA)
    server.faults.clear()
    server.faults.extend(faults)
    server.ranges = ranges
    assert fetched(Fetcher(Patience(20, 0.0)), file(server), start, stop, ranged=part) == DATA[start:stop]


def test_a_file_of_unknown_size_is_read_to_its_end(server: Server) -> None:
    server.faults.extend(["short", "503"])
    assert Fetcher(QUICK).read(file(server), MOST) == DATA
    assert Fetcher(QUICK).size(file(server)) == len(DATA)
    server.ranges = False
    assert Fetcher(QUICK).size(file(server)) == len(DATA)


def test_a_part_is_not_taken_from_a_server_that_only_sends_all(server: Server) -> None:
    assert fetched(Fetcher(QUICK), file(server), 5, 9, ranged=True) == DATA[5:9]
    server.ranges = False
    with pytest.raises(NoRangesError):
        fetched(Fetcher(QUICK), file(server), 5, 9, ranged=True)


@pytest.mark.parametrize(
    ("status", "what"), [("404", "does not exist"), ("403", "may not be read"), ("401", "asks for credentials")]
)
def test_what_will_not_get_better_is_said_at_once(server: Server, status: str, what: str) -> None:
    server.fault = lambda path: status
    with pytest.raises(DataError) as caught:
        fetched(Fetcher(QUICK), file(server))
    assert caught.value.problem == f"{server.url}/a%20b.tar {what} (status {status})."
    assert "data.path" in caught.value.remedy or "Check the credentials" in caught.value.remedy
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["500", "429", "reset", "short"])
def test_a_fault_that_stays_ends_with_an_error_that_names_it(server: Server, fault: str) -> None:
    server.faults.append("cut")
    server.fault = lambda path: fault
    server.ranges = False  # so nothing new ever arrives
    with pytest.raises(DataError, match=r"a%20b\.tar could not be fetched in 4 tries: ") as caught:
        fetched(Fetcher(QUICK), file(server))
    assert "resume the run" in caught.value.remedy
    assert len(server.requests) == 4


def test_a_server_that_does_not_run_is_an_error_that_names_the_address() -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x could not be fetched in 1 tries: .*refused"):
        Fetcher(NO_TRIES).read(Address.parse("http://127.0.0.1:9/x"), MOST)


def test_a_server_that_ends_a_handshake_is_away_and_not_untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy does that is started anew: the next try may succeed."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                connection.recv(1 << 16)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        address = Address.parse(f"https://127.0.0.1:{server.getsockname()[1]}/x.tar")
        with pytest.raises(ServerAwayError, match="could not be fetched in 2 tries"):
            fetched(Fetcher(Patience(tries=2, first_seconds=0.001, stall_seconds=30)), address)
        thread.join()


def test_a_certificate_that_is_not_trusted_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(urllib3.PoolManager, "request", refuse)
    with pytest.raises(DataError, match="self-signed certificate") as caught:
        fetched(Fetcher(QUICK), Address.parse("https://127.0.0.1/x.tar"))
    assert caught.value.remedy == "The server's certificate is not trusted here."


def test_a_file_of_another_size_is_refused(server: Server) -> None:
    with pytest.raises(DataError, match="has more than the 99999 bytes"):
        fetched(Fetcher(QUICK), file(server), 0, 99_999)
    with pytest.raises(DataError, match=r"is shorter than its manifest says \(status 416\)"):
        fetched(Fetcher(QUICK), file(server), 0, 100_001)


def test_pauses_double_up_to_a_bound_and_heed_what_the_server_asks_for() -> None:
    patience = Patience(first_seconds=1.0, most_seconds=10.0)
    for failures, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (60, 10)):
        assert 0.75 * longest <= patience.pause(failures) <= longest
    assert patience.pause(1, asked=7.0) == 7.0
    assert patience.pause(1, asked=3600.0) == 10.0


def test_user_password_and_signature_are_sent_and_never_shown(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.login = "Basic " + base64.b64encode(b"g4711:opensesame").decode()
    server.signature = "sig=abc123&exp=9"
    host = server.url.removeprefix("http://")
    folder = Address.parse(f"http://g4711:opensesame@{host}/?sig=abc123&exp=9")
    server.faults.extend(["500", "reset"])
    assert fetched(Fetcher(QUICK), folder / "a b.tar") == DATA
    told = [str(folder), repr(folder), caplog.text]
    for spoiled in (
        f"http://g4711:wrong@{host}/?sig=abc123&exp=9",
        f"http://g4711:opensesame@{host}/?sig=old99",
    ):
        with pytest.raises(DataError) as caught:
            fetched(Fetcher(QUICK), Address.parse(spoiled) / "a b.tar")
        told.append(str(caught.value))
    with pytest.raises(DataError) as caught:
        Fetcher(NO_TRIES).read(Address.parse("http://g4711:opensesame@127.0.0.1:9/x?sig=abc123"), MOST)
    told += [str(caught.value), caplog.text]
    assert not [text for text in told for word in ("opensesame", "wrong", "abc123", "old99", "g4711") if word in text]


QUERIES = ("sig=open%2fsesame4711", "sig=open%2Fsesame4711", "sig=open%20sesame4711", "sig=opens\u00e9same4711")
QUERIES += ("a=1&sig=opensesame4711==", 'sig=open"sesame4711')


@pytest.mark.parametrize("query", QUERIES)
def test_what_a_library_makes_of_a_signature_is_not_shown_either(query: str) -> None:
    """It may quote the address as it would send it, decode it, or quote one value of it."""
    address = Address.parse(f"https://u4711:pass%2fword4711@host/x?{query}")
    url = parse_url(f"https://u4711:pass%2fword4711@host/x?{query}")
    value = query.rpartition("sig=")[2]
    for text in (
        url.url,
        str(url.query),
        str(url.auth),
        unquote(url.url),
        value,
        unquote(value),
        parse_url(address.url).url,
    ):
        assert "4711" not in address.scrub(f"cannot open {text}: no route"), text
        assert address.scrub(f"cannot open {text}: no route").endswith(": no route")


def test_a_redirect_that_makes_no_sense_is_not_quoted_with_the_signature(server: Server) -> None:
    server.moved = {"/x": "http://[bad/?sig=opensesame4711"}
    with pytest.raises(DataError, match="makes no sense") as caught:
        Fetcher(QUICK).read(Address.parse(f"{server.url}/x?sig=opensesame4711"), MOST)
    assert "opensesame4711" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy",
    [
        "http://g4711:opensesame/1@proxy:3128",
        "http://g4711:opensesame@proxy:31x28",
        "g4711:opensesame@proxy:3128",
        "socks5://g4711:opensesame@proxy:1",
        "opensesame://g4711@proxy:1",
        "http://g4711:12/opensesame@proxy:1",
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_not_quoted(
    proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(DataError, match="The proxy in http_proxy cannot be used") as caught:
        Fetcher(NO_TRIES).read(Address.parse("http://data.example.org/x"), MOST)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "opensesame" not in shown
    assert "g4711" not in shown


@pytest.mark.parametrize("fault", ["", "endless"])
def test_a_file_that_is_too_large_is_refused_before_it_fills_the_memory(server: Server, fault: str) -> None:
    server.fault = lambda path: fault
    with pytest.raises(DataError, match="is larger than the 99999 bytes that such a file has at most"):
        Fetcher(QUICK).read(file(server), 99_999)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux has files whose sizes are unknown")
def test_a_local_file_that_turns_out_larger_than_its_size_is_refused() -> None:
    with pytest.raises(DataError, match="is larger than the 99 bytes that such a file has at most"):
        Fetcher().read(Address("/proc/self/maps"), 99)


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_like_a_silent_one(server: Server) -> None:
    server.fault = lambda path: "drip"
    with pytest.raises(DataError, match=r"could not be fetched in 4 tries: .* sent only \d+ bytes in \d+ s"):
        Fetcher(QUICK).read(file(server), MOST)


@pytest.mark.parametrize("fault", HEADS)
@pytest.mark.parametrize("how", ["read", "stream", "size"])
def test_an_answer_that_does_not_end_outside_of_its_body_is_given_up(server: Server, fault: str, how: str) -> None:
    server.fault = lambda path: fault
    fetcher = Fetcher(QUICK)
    work = {
        "read": lambda: fetcher.read(file(server), MOST),
        "stream": lambda: fetched(fetcher, file(server)),
        "size": lambda: fetcher.size(file(server)),
    }
    if how == "size" and fault in ("dripped chunk size", "endless trailer"):
        assert work[how]() is None  # nothing but the head is read
        return
    with pytest.raises(ServerAwayError, match="could not be fetched in 4 tries"):
        work[how]()


@pytest.mark.parametrize("how", ["read", "stream"])
def test_a_byte_for_each_connection_is_no_progress(server: Server, how: str) -> None:
    server.fault = lambda path: "trickle"
    fetcher = Fetcher(QUICK)
    with pytest.raises(ServerAwayError, match="could not be fetched in 4 tries"):
        fetcher.read(file(server), MOST) if how == "read" else fetched(fetcher, file(server))
    assert len(server.requests) <= 5


def test_a_slow_consumer_is_not_taken_for_a_slow_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "CHUNK_BYTES", 4096)  # several chunks before a useful number of bytes
    monkeypatch.setattr(fetch, "SLOWEST_BYTES", len(DATA))
    fetcher = Fetcher(Patience(tries=1, stall_seconds=30))
    clock = iter(range(0, 10**9, 10**6))
    paused = False

    def now() -> float:
        return float(next(clock)) if paused else 0.0

    monkeypatch.setattr(fetch.time, "monotonic", now)
    got = b""
    for chunk in fetcher.stream(file(server), 0, len(DATA)):
        got += chunk
        paused = True
        fetch.time.monotonic()  # a long time passes in which nothing is asked for
        paused = False
    assert got == DATA


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("http://10.0.0.7/a", "a host of your own network"),
        ("http://169.254.169.254/latest", "a host of your own network"),
        ("ftp://example.org/a", "which is not https"),
    ],
)
def test_a_redirect_does_not_lead_into_the_network(names: None, place: str, problem: str) -> None:
    address = Address.parse("http://data.example.org/a")
    with pytest.raises(DataError, match=problem):
        check_redirect(address, "http://data.example.org/a", place)


@pytest.mark.parametrize(
    "place",
    [
        r"http://10.0.0.7\@93.184.216.34/a",
        r"//10.0.0.7\@93.184.216.34/a",
        "http://10.0.0.7\t/a",
        "http://user:word@cdn.example.org/a",
        "http://[fe80::1%25eth0]/a",
        "https:10.0.0.7/a",
        "http://[10.0.0.7/a",
    ],
)
def test_a_redirect_whose_host_can_be_read_in_two_ways_is_not_followed(names: None, place: str) -> None:
    address = Address.parse("http://data.example.org/a")
    with pytest.raises(DataError, match="leads to an address that makes no sense"):
        redirected(address, "http://data.example.org/a", place, None)


def test_a_redirect_is_spelt_out_for_a_proxy(names: None) -> None:
    address = Address.parse("http://data.example.org/a")
    for place in ("HTTP://CDN.example.org/a b?x=%2f", "//cdn.example.org/a%20b?x=%2F"):
        found = redirected(address, "http://data.example.org/a", place, True)
        assert found == ("http://cdn.example.org/a%20b?x=%2F", True)


NAMES = {
    "data.example.org": ["93.184.216.34"],
    "cdn.example.org": ["93.184.216.35", "2606:2800:220:1::1"],
    "evil.example.org": ["93.184.216.36", "10.0.0.7"],
    "mapped.example.org": ["::ffff:10.0.0.7"],
    "node7": ["10.0.0.7"],
    "store.cluster": ["10.0.0.8"],
    "metadata.google.internal": ["169.254.169.254"],
    "localhost": ["127.0.0.1", "::1"],
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose names are NAMES; numbers in any spelling are looked up as always."""
    own = socket.getaddrinfo

    def look_up(host: str, *arguments: object, **options: object) -> list[tuple[object, ...]]:
        if host in NAMES:
            return [(0, 0, 0, "", (address, 0)) for address in NAMES[host]]
        if host.rpartition(".")[2].isalpha():
            raise socket.gaierror("unknown")
        return own(host, *arguments, **options)  # type: ignore[arg-type, call-overload, return-value]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    redirects._looked_up.cache_clear()


TRANSLATED = ["[64:ff9b::a00:1]", "[2002:7f00:1::]", "[::7f00:1]", "224.0.0.1"]
INSIDE = ["127.1", "2130706433", "0x7f000001", "0", "localhost.", "localhost", "node7", "metadata.google.internal"]


@pytest.mark.parametrize(
    "host", [*INSIDE, "evil.example.org", "mapped.example.org", "[::1]", "[::ffff:127.0.0.1]", *TRANSLATED]
)
def test_a_redirect_does_not_lead_to_a_name_of_an_inner_address(names: None, host: str) -> None:
    address = Address.parse("http://data.example.org/a")
    with pytest.raises(DataError, match="a host of your own network"):
        check_redirect(address, "http://data.example.org/a", f"http://{host}/a")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("data.example.org", "cdn.example.org"),
        ("store.cluster", "node7"),
        ("store.cluster", "10.0.0.9"),
        ("store.cluster", "cdn.example.org"),
        ("10.0.0.9", "store.cluster"),
        ("data.example.org", "only-the-proxy-knows.example"),
    ],
)
def test_a_redirect_to_the_public_or_within_the_network_is_followed(names: None, before: str, after: str) -> None:
    check_redirect(Address.parse(f"http://{before}/a"), f"http://{before}/a", f"http://{after}/a")


def test_a_host_with_an_inner_address_among_public_ones_does_not_open_the_network(names: None) -> None:
    address = Address.parse("http://evil.example.org/a")
    with pytest.raises(DataError, match="a host of your own network"):
        check_redirect(address, "http://evil.example.org/a", "http://node7/a")


def test_where_a_redirect_came_from_counts_and_not_where_its_name_leads_by_now(names: None) -> None:
    address = Address.parse("http://store.cluster/a")
    with pytest.raises(DataError, match="a host of your own network"):
        check_redirect(address, "http://store.cluster/a", "http://node7/a", from_public=True)
    assert not check_redirect(address, "http://store.cluster/a", "http://node7/a", from_public=False)
    for outside, public in ((True, True), (False, False), (None, False)):
        assert check_redirect(address, "http://store.cluster/a", "http://store.cluster:8500/a", outside) is public


@pytest.mark.parametrize("at_the_check", [[], ["93.184.216.34"]])
def test_a_name_that_leads_into_the_network_only_when_it_is_connected_to_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, at_the_check: list[str]
) -> None:
    own = socket.getaddrinfo

    def look_up(host: str, port: int | None, *arguments: object, **options: object) -> list[tuple[object, ...]]:
        if port:
            return own("127.0.0.1", port, *arguments, **options)  # type: ignore[arg-type, call-overload, return-value]
        found = ["93.184.216.33"] if host == "data.example.org" else at_the_check
        if not found:
            raise socket.gaierror("unknown")
        return [(0, 0, 0, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    redirects._looked_up.cache_clear()
    port = server.server_address[1]
    server.moved = {"/x": f"http://late.example.org:{port}/a%20b.tar"}
    with pytest.raises(DataError, match=r"leads to late\.example\.org, a host of your own network"):
        Fetcher(QUICK).read(Address.parse(f"http://data.example.org:{port}/x"), MOST)
    assert [path for path, _ in server.requests] == ["/x"]


@pytest.mark.parametrize("close", [False, True])
def test_a_host_whose_name_leads_into_the_network_by_now_does_not_open_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, close: bool
) -> None:
    own, port = socket.getaddrinfo, server.server_address[1]
    # all is on loopback here: the numbers below 127.0.0.2 count as public, and the server listens at both
    for module in (redirects, connections):
        monkeypatch.setattr(module, "is_public", lambda text: text == "127.0.0.1")

    def look_up(host: str, asked: int | None, *arguments: object, **options: object) -> list[tuple[object, ...]]:
        number = {"evil.example.org": "127.0.0.1" if asked else "127.0.0.2"}.get(host, host)
        return own(number, asked, *arguments, **options)  # type: ignore[arg-type, call-overload, return-value]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    redirects._looked_up.cache_clear()
    server.moved = {"/x": f"http://127.0.0.2:{port}/a%20b.tar"}
    server.close_moved = close
    with pytest.raises(DataError, match="a host of your own network"):
        Fetcher(QUICK).read(Address.parse(f"http://evil.example.org:{port}/x"), MOST)
    assert [path for path, _ in server.requests] == ["/x"]


def test_a_redirect_does_not_leave_https(names: None) -> None:
    address = Address.parse("https://data.example.org/a")
    with pytest.raises(DataError, match=r"leads to http://cdn\.example\.org, which is not https"):
        check_redirect(address, "https://data.example.org/a", "http://cdn.example.org/a")
    check_redirect(address, "https://data.example.org/a", "https://cdn.example.org/a")


def test_a_redirect_is_followed_and_another_host_gets_no_credentials(server: Server, tmp_path: Path) -> None:
    server.moved = {"/x": "/a%20b.tar"}
    server.login = "Basic " + base64.b64encode(b"g4711:opensesame").decode()
    host = server.url.removeprefix("http://")
    assert Fetcher(QUICK).read(Address.parse(f"http://g4711:opensesame@{host}/x"), MOST) == DATA
    with serving(tmp_path) as other:
        other.login = server.login
        server.moved = {"/x": f"{other.url}/a%20b.tar"}
        with pytest.raises(DataError, match="asks for credentials"):
            Fetcher(QUICK).read(Address.parse(f"http://g4711:opensesame@{host}/x"), MOST)
    server.moved = {"/x": "/y", "/y": "/x"}
    with pytest.raises(DataError, match="without end"):
        Fetcher(QUICK).read(Address.parse(f"http://g4711:opensesame@{host}/x"), MOST)


def test_addresses_are_read_as_they_are_written(tmp_path: Path) -> None:
    assert Address.parse("data/demo").path == Path("data/demo")
    assert Address.parse(f"file://{tmp_path}/a%20b").path == tmp_path / "a b"
    assert str(Address.parse("https://host:8443/a/b/") / "ä.tar") == "https://host:8443/a/b/%C3%A4.tar"
    assert (Address.parse("https://host/a?sv=1") / "x.tar").url == "https://host/a/x.tar?sv=1"
    assert str(Address.parse("s3://bucket/a") / "x.tar") == "s3://bucket/a/x.tar"
    assert str(Address.parse("pipe:cat 'a b'/%s") / "level-160/x-1.tar") == "pipe:cat 'a b'/level-160/x-1.tar"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ftp://host/a", "ftp:// addresses are not supported"),
        ("https:///a", "names no host"),
        ("s3://", "names no bucket"),
        ("file://other/a", "names the host other"),
        ("s3://key:word@bucket/a", "s3://bucket/a was given with credentials"),
        ("pipe:cat a", "does not say where the file's name goes"),
    ],
)
def test_addresses_that_cannot_be_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(text)
    assert problem in caught.value.problem
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("name", ["pipe:rm -rf x", "http://elsewhere/x.tar"])
def test_a_manifest_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(DataError, match="that is an address, not a file name"):
        Address.parse("data") / name


@pytest.mark.parametrize("name", ["x; rm y.tar", "$(touch {}).tar", "`touch {}`.tar", "a b.tar", "-rf", "'", "", "ä"])
def test_a_name_is_no_part_of_a_pipes_command(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(DataError, match="cannot be read through pipe:"):
        Fetcher(QUICK, allow_pipe=True).read(Address.parse('pipe:cat "folder/%s"') / name.format(canary), MOST)
    assert not canary.exists()


def test_a_command_is_run_only_if_that_was_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    address = Address.parse(f"pipe:cat {tmp_path}/%s") / "a.tar"
    with pytest.raises(ConfigError, match="runs a shell command on every node") as caught:
        Fetcher(QUICK).read(address, MOST)
    assert "data.allow_pipe=true" in caught.value.remedy
    fetcher = Fetcher(QUICK, allow_pipe=True)
    assert fetcher.read(address, MOST) == fetched(fetcher, address) == DATA
    assert fetched(fetcher, address, 70_000) == DATA[70_000:]
    with pytest.raises(DataError, match="could not be fetched in 4 tries"):
        fetcher.read(Address.parse(f"pipe:cat {tmp_path}/%s 2>&-") / "b.tar", MOST)


def test_the_addresses_of_a_name_are_tried_for_a_bounded_time_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits in vain for as long as it may, on a clock that only waiting moves."""
    clock, waited = [0.0], list[tuple[str, float]]()

    class Silent(socket.socket):
        def connect(self, address: Any) -> None:
            seconds = self.gettimeout()
            assert seconds is not None
            waited.append((address[0], seconds))
            clock[0] += seconds
            raise TimeoutError

    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.{n // 256}.{n % 256}", 80)) for n in range(3000)]
    found = lambda host, *_: rows if host == "many.example" else [row for row in rows if row[4][0] == host]  # noqa: E731
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(socket, "socket", Silent)
    monkeypatch.setattr("dist_ssl.data.storage.connections.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with pytest.raises(OSError, match="ConnectTimeoutError"):
        Web().size(Address("http://many.example/x"))
    assert waited[:2] == [("10.0.0.0", 10.0), ("10.0.0.1", 10.0)]
    assert clock[0] <= 30


def test_a_long_answer_is_not_quoted_whole() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(b"HTT" + b"[" * 5000 + b"\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = Address.parse(f"http://127.0.0.1:{listening.getsockname()[1]}/a.tar")
        with pytest.raises(DataError, match=r"BadStatusLine\(.HTT\[\[\[") as caught:
            Fetcher(Patience(tries=2, first_seconds=0.001)).read(address, MOST)
        thread.join()
    assert len(str(caught.value)) < 700


def test_a_name_that_is_found_slowly_is_tried_all_the_same(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    clock, own = [0.0], socket.getaddrinfo

    def slow(*given: Any, **options: Any) -> Any:
        clock[0] += 100
        return own(*given, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr("dist_ssl.data.storage.connections.time", SimpleNamespace(monotonic=lambda: clock[0]))
    assert Web().size(file(server)) == len(DATA)


def test_a_name_that_is_not_found_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def nobody(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(OSError, match="NameResolutionError"):
        Web().size(Address("http://nowhere.example/x"))
    assert asked == ["nowhere.example"]
