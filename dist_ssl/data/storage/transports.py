"""Bytes from elsewhere, asked for once: web servers, object stores, commands. Whoever wants more tries is fetch.py.

What may go better the next time is an OSError (a stall, a reset, a busy server, a body cut short), what will not is a
DataError with its remedy (not there, not allowed). No error quotes what is secret in an address.
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

from dist_ssl.data.storage.address import WEB, Address
from dist_ssl.errors import ConfigError, DataError

CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0
"""A connection on which nothing arrives for so long is given up."""
CHUNK_BYTES = 1 << 18
PIECE_BYTES = 1 << 23
"""Of an object store, per request."""
CONNECTIONS = 32
"""Kept open per host."""
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
    """Only the whole file is to be had there."""


class BusyError(OSError):
    """The server asks to be left alone. `seconds`: for how long, 0 where it does not say."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


class Transport(Protocol):
    """One way to get bytes; safe for threads."""

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """Bytes [start, stop) of a file, or to its end; `ranged`: never more than these are sent.

        Raises OSError, DataError, and NoRangesError where a range is asked for and not to be had.
        """
        ...

    def size(self, address: Address) -> int | None:
        """Bytes of a file, None where nobody says. Raises like `stream`."""
        ...


class Web:
    """Web servers."""

    def __init__(self, stall_seconds: float = STALL_SECONDS) -> None:
        self.timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=stall_seconds)
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """See `Source`."""
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
            raise OSError(_words(address, error)) from None
        finally:
            response.close()  # what was not read is not worth the wait; a connection read to its end is kept

    def size(self, address: Address) -> int | None:
        """See `Source`."""
        response = self._ask(address, {"Range": "bytes=0-0"})
        response.close()
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status == 200:
            total = response.headers.get("Content-Length", "")
        return int(total) if total.isdigit() else None

    def _ask(self, address: Address, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """The answer of the server, its body not yet read."""
        headers = {**headers, "Accept-Encoding": "identity", "User-Agent": "dist_ssl"}
        if address.login:
            headers["Authorization"] = "Basic " + base64.b64encode(address.login.encode()).decode()
        tries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5)
        pool = self._pool(address)
        try:
            response = pool.request(
                "GET", address.url, headers=headers, retries=tries, timeout=self.timeout, preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            if isinstance(getattr(error, "reason", None), urllib3.exceptions.SSLError):
                raise DataError(_words(address, error), "The server's certificate is not trusted here.") from None
            raise OSError(_words(address, error)) from None
        if response.status not in (200, 206):
            response.close()
            raise _refusal(address, response)
        return response

    def _pool(self, address: Address) -> urllib3.PoolManager:
        """Kept connections, through the proxy that the environment names for this host, if any."""
        host = address.shown.partition("://")[2].partition("/")[0]
        proxy = urllib.request.getproxies().get(address.scheme, "")
        proxy = "" if urllib.request.proxy_bypass(host) else proxy
        with self._lock:
            if proxy not in self._pools:
                make = urllib3.PoolManager if not proxy else lambda **options: urllib3.ProxyManager(proxy, **options)
                self._pools[proxy] = make(num_pools=8, maxsize=CONNECTIONS)
            return self._pools[proxy]


def _check_range(address: Address, response: urllib3.BaseHTTPResponse, start: int) -> None:
    got = response.headers.get("Content-Range", "")
    if not got.startswith(f"bytes {start}-"):
        raise OSError(f"{address} answered with the range '{got}', not with one from {start} on")


def _refusal(address: Address, response: urllib3.BaseHTTPResponse) -> OSError | DataError:
    """What a status means."""
    status = response.status
    if status >= 500 or status in BUSY:
        after = response.headers.get("Retry-After", "")
        return BusyError(f"{address} answered with status {status}", float(after) if after.isdigit() else 0.0)
    what, remedy = REFUSED.get(status, ("cannot be had", "Check data.path."))
    return DataError(f"{address} {what} (status {status}).", remedy)


def _words(address: Address, error: Exception) -> str:
    """What went wrong; an error of the library may quote the address."""
    reason = getattr(error, "reason", None) or error
    return f"{address}: {type(reason).__name__}: {address.scrub(str(reason))}"


class Store:
    """Object stores, through fsspec: s3fs and gcsfs are asked for when they are needed."""

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
        """See `Source`."""
        end = self.size(address) if stop is None else stop
        assert end is not None
        for at in range(start, end, PIECE_BYTES):
            until = min(at + PIECE_BYTES, end)
            piece = self._ask(address, self.files.cat_file, start=at, end=until)
            if piece:  # nothing at all is no progress
                yield piece
            if len(piece) < until - at:
                raise OSError(f"{address} was cut short after {at + len(piece)} bytes")

    def size(self, address: Address) -> int | None:
        """See `Source`."""
        return int(self._ask(address, self.files.info)["size"])

    def _ask(self, address: Address, ask: Any, **options: Any) -> Any:
        try:
            return ask(_unquoted(address), **options)
        except (FileNotFoundError, PermissionError) as error:
            what, remedy = REFUSED[404 if isinstance(error, FileNotFoundError) else 403]
            raise DataError(f"{address} {what}: {error}.", remedy) from error
        except Exception as error:  # the clients below have dozens of kinds, few of them OSErrors
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise DataError(
                    f"{address}: {str(error).rstrip('.')}.",
                    "Give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or set FSSPEC_S3_ANON=true.",
                ) from error
            raise OSError(f"{address}: {type(error).__name__}: {error}") from error


def _unquoted(address: Address) -> str:
    """An object's name: it is no URL, whatever it looks like."""
    return unquote(address.shown)


class Pipe:
    """What shell commands print, through webdataset's opener."""

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """See `Source`."""
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
        """See `Source`."""
        return None


class Files:
    """Files on file systems of this machine, for a cache that is faster than they are."""

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool) -> Iterator[bytes]:
        """See `Source`."""
        with address.path.open("rb", buffering=0) as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def size(self, address: Address) -> int | None:
        """See `Source`."""
        return address.path.stat().st_size


def source(address: Address, allow_pipe: bool, stall_seconds: float) -> Transport:
    """What gets bytes from such an address. Raises ConfigError."""
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
