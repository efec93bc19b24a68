"""The transport for object stores (s3://, gs://), through fsspec; see `transports` for what its errors mean."""

import importlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.transports import CONNECT_SECONDS, REFUSED, STALL_SECONDS
from dist_ssl.errors import ConfigError, DataError

PIECE_BYTES = 1 << 23
"""Bytes per request."""
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""Packages that fsspec needs, by scheme."""


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

    def names(self, address: Address) -> list[str]:
        """Return the names of the files in a folder, sorted; not those in its sub-folders. Raises like `stream`."""
        rows = self._ask(address, self.files.ls, detail=True)
        return sorted(str(row["name"]).rpartition("/")[2] for row in rows if row["type"] == "file")

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
