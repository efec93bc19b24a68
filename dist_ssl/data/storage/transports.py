"""Transports: one attempt to get bytes from a web server, a command or a file; fetch.py retries.

A failure that may go away is an OSError (a stall, a reset, a busy server, a body cut short); a permanent one is a
DataError with its remedy (missing, not allowed). No error quotes the credentials in an address.
"""

import base64
import importlib
import logging
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import unquote

import urllib3
from urllib3.util import parse_url

from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.connections import InnerAddressError, from_public, pools
from dist_ssl.data.storage.redirects import inner_host, redirected
from dist_ssl.errors import DataError
from dist_ssl.runtime.strange_files import open_regular

CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0
"""Time without a byte after which a connection is given up."""
CHUNK_BYTES = 1 << 18
MOST_SAID = 300
"""Characters of an error that are shown: it may quote what a server has answered."""
REDIRECTS = 5
"""Redirects that are followed for one request."""
BUSY = (408, 425, 429)
REFUSED = {
    401: ("asks for credentials", "Give them with the address: data.path=https://USER:PASSWORD@host/folder."),
    403: ("may not be read", "Check the credentials, or whether a signed address has expired, and give it again."),
    404: ("does not exist", "Check data.path: manifest.json and the shards lie side by side in that folder."),
    410: ("is gone", "Put it back, or set data.path to where the data lies now."),
    416: ("is shorter than its manifest says", "It has changed since it was indexed: put the old one back."),
}
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs addresses with their queries


class NoRangesError(Exception):
    """A range was requested, but the server only sends whole files."""


class BusyError(OSError):
    """The server is busy and asks for a pause. `seconds`: its length, 0 if the server does not specify one."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


class Transport(Protocol):
    """A way to get bytes from an address; thread-safe."""

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """Yield the bytes [start, stop) of a file in chunks; `stop` None: to its end.

        `ranged`: the server must not send more than these. Raises OSError, DataError, and NoRangesError where `ranged`
        is set and ranges are not supported.
        """
        ...

    def size(self, address: Address) -> int | None:
        """Return the size of a file in bytes, None if the server does not report it. Raises like `stream`."""
        ...


class Web:
    """The transport for web servers (http, https)."""

    def __init__(self, stall_seconds: float = STALL_SECONDS) -> None:
        self.timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=stall_seconds)
        self._pools: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """See `Transport`."""
        end = "" if stop is None else stop - 1
        response = self._ask(address, {"Range": f"bytes={start}-{end}"} if start or ranged else {})
        skip = start
        try:
            if response.status == 206:
                _check_range(address, response, start)
                skip = 0
            elif ranged:
                raise NoRangesError
            while chunk := response.read1(CHUNK_BYTES, decode_content=False):
                if len(chunk) > skip:
                    yield chunk[skip:]
                skip = max(0, skip - len(chunk))
        except (urllib3.exceptions.HTTPError, ssl.SSLError) as error:
            raise OSError(_describe(address, error)) from None
        finally:
            response.close()  # drops a connection with unread bytes; one read to its end stays in the pool

    def size(self, address: Address) -> int | None:
        """See `Transport`."""
        response = self._ask(address, {"Range": "bytes=0-0"})
        response.close()
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status == 200:
            total = response.headers.get("Content-Length", "")
        return int(total) if _is_count(total) else None

    def _ask(self, address: Address, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Return the server's response with its body not yet read. Raises OSError, DataError."""
        headers = {**headers, "Accept-Encoding": "identity", "User-Agent": "dist_ssl"}
        if address.login:
            headers["Authorization"] = "Basic " + base64.b64encode(unquote(address.login).encode()).decode()
        response = self._follow(address, headers)
        if response.status not in (200, 206):
            response.close()
            raise _refusal(address, response)
        return response

    def _follow(self, address: Address, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Return the response after its redirects; another host is not sent the credentials."""
        url, led = address.url, False
        for _ in range(REDIRECTS + 1):
            response = self._get(address, url, headers, led)
            place = response.get_redirect_location()
            if not place:
                return response
            before, outside = url, from_public(response)
            response.close()
            url, public = redirected(address, url, place, outside)
            led = led or public
            if parse_url(before).netloc != parse_url(url).netloc:
                headers = {key: value for key, value in headers.items() if key != "Authorization"}
        raise DataError(f"{address} leads from one address to the next without end.", "Check data.path.")

    def _get(self, address: Address, url: str, headers: dict[str, str], led: bool) -> urllib3.BaseHTTPResponse:
        """Return the response to one request. Raises OSError, DataError."""
        options: dict[str, Any] = {"redirect": False, "retries": False, "preload_content": False}
        try:
            return self._pool(address, led).request("GET", url, headers=headers, timeout=self.timeout, **options)
        except InnerAddressError as error:
            raise inner_host(address, error.host) from None
        except urllib3.exceptions.HTTPError as error:
            if any(isinstance(reason, ssl.SSLCertVerificationError) for reason in error.args):
                raise DataError(_describe(address, error), "The server's certificate is not trusted here.") from None
            raise OSError(_describe(address, error)) from None

    def _pool(self, address: Address, led: bool) -> urllib3.PoolManager:
        """Return the connection pool for an address, through the proxy that the environment sets for its host.

        `led`: a public host has led away from it.
        """
        host = address.shown.partition("://")[2].partition("/")[0]
        proxy = urllib.request.getproxies().get(address.scheme, "")
        proxy = "" if urllib.request.proxy_bypass(host) else proxy
        with self._lock:
            if (proxy, led) not in self._pools:
                self._pools[proxy, led] = pools(proxy, f"{address.scheme}_proxy", led)
            return self._pools[proxy, led]


def _is_count(text: str) -> bool:
    """Return whether a server's text is a number of bytes or seconds; `isdigit` alone takes a superscript for one."""
    return text.isascii() and text.isdigit() and len(text) < 19


def _check_range(address: Address, response: urllib3.BaseHTTPResponse, start: int) -> None:
    got = response.headers.get("Content-Range", "")
    if not got.startswith(f"bytes {start}-"):
        raise OSError(f"{address} answered with the range '{got}', not with one from {start} on")


def _refusal(address: Address, response: urllib3.BaseHTTPResponse) -> OSError | DataError:
    """Return the error that an HTTP status stands for: OSError if it may go away, otherwise DataError."""
    status = response.status
    if status >= 500 or status in BUSY:
        after = response.headers.get("Retry-After", "")
        return BusyError(f"{address} answered with status {status}", float(after) if _is_count(after) else 0.0)
    what, remedy = REFUSED.get(status, ("cannot be fetched", "Check data.path."))
    return DataError(f"{address} {what} (status {status}).", remedy)


def _describe(address: Address, error: Exception) -> str:
    """Return a message for an error of urllib3, which may quote the address, without credentials."""
    reason = getattr(error, "reason", None) or error
    said = address.scrub(str(reason))
    said = said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}..."
    return f"{address}: {type(reason).__name__}: {said}"


class Pipe:
    """The transport for the output of shell commands, through webdataset's opener."""

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """See `Transport`."""
        if ranged:
            raise NoRangesError
        gopen = importlib.import_module("webdataset.gopen")
        skip = start
        with gopen.gopen(address.shown) as pipe:
            while chunk := pipe.read(CHUNK_BYTES):
                if len(chunk) > skip:
                    yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    def size(self, address: Address) -> int | None:
        """See `Transport`."""
        return None


class Files:
    """The transport for files on this machine's file systems, for a cache that is faster than they are."""

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """See `Transport`."""
        with open_regular(address.path) as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def size(self, address: Address) -> int | None:
        """See `Transport`."""
        return address.path.stat().st_size
