"""Transports: one attempt to get bytes from a web server, an object store, a command or a file; fetch.py retries.

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

from dist_ssl.data.storage.address import WEB, Address
from dist_ssl.data.storage.connections import InnerAddressError, from_public, pools
from dist_ssl.data.storage.redirects import inner_host, redirected
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.runtime.strange_files import open_regular

CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0
"""Time without a byte after which a connection is given up."""
CHUNK_BYTES = 1 << 18
PIECE_BYTES = 1 << 23
"""Bytes per request to an object store."""
REDIRECTS = 5
"""Redirects that are followed for one request."""
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
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
    return f"{address}: {type(reason).__name__}: {address.scrub(str(reason))}"


class Store:
    """The transport for object stores, through fsspec. Raises ConfigError where s3fs or gcsfs is not installed."""

    def __init__(self, scheme: str, stall_seconds: float = STALL_SECONDS) -> None:
        package = PACKAGES[scheme]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{scheme}:// needs the package {package}, which is not installed.",
                f"pip install 'dist_ssl[{scheme}]', or pip install {package}.",
            ) from error
        import fsspec

        options: dict[str, Any] = {}
        if scheme == "s3":
            limits = {"read_timeout": stall_seconds, "connect_timeout": CONNECT_SECONDS}
            options = {"config_kwargs": {**limits, "retries": {"max_attempts": 1}}}
        self.files = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """See `Transport`."""
        end = self.size(address) if stop is None else stop
        assert end is not None
        for at in range(start, end, PIECE_BYTES):
            until = min(at + PIECE_BYTES, end)
            piece = self._ask(address, self.files.cat_file, start=at, end=until)
            if piece:  # an empty chunk would reset the caller's count of failures
                yield piece
            if len(piece) < until - at:
                raise OSError(f"{address} was cut short after {at + len(piece)} bytes")

    def size(self, address: Address) -> int | None:
        """See `Transport`."""
        return int(self._ask(address, self.files.info)["size"])

    def _ask(self, address: Address, ask: Any, **options: Any) -> Any:
        try:
            return ask(_unquoted(address), **options)
        except (FileNotFoundError, PermissionError) as error:
            what, remedy = REFUSED[404 if isinstance(error, FileNotFoundError) else 403]
            raise DataError(f"{address} {what}: {error}.", remedy) from error
        except Exception as error:  # the store clients raise dozens of error classes, few of them OSErrors
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise DataError(
                    f"{address}: {str(error).rstrip('.')}.",
                    "Give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or set FSSPEC_S3_ANON=true.",
                ) from error
            raise OSError(f"{address}: {type(error).__name__}: {error}") from error


def _unquoted(address: Address) -> str:
    """Return an object's name in its store: unlike a URL it is not percent-encoded."""
    return unquote(address.shown)


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


def source(address: Address, allow_pipe: bool, stall_seconds: float) -> Transport:
    """Return the transport for an address. Raises ConfigError where it is not allowed or its package is missing."""
    if address.local:
        return Files()
    if address.scheme in WEB:
        return Web(stall_seconds)
    if address.scheme != "pipe":
        return Store(address.scheme, stall_seconds)
    if not allow_pipe:
        raise ConfigError(
            f"data.path={address} runs a shell command on every node, with all your rights, for every shard.",
            "If you wrote the command yourself, allow it: data.allow_pipe=true.",
        )
    return Pipe()
