"""Fetching with retries: a transfer that breaks off is continued at the byte that it had reached.

Attempts are counted since a byte last arrived, with pauses that double; a server that sends bytes too slowly to be of
use is given up like one that sends none. Retries change when bytes arrive, never which bytes: they have no influence on
the order of the samples.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dist_ssl.data.storage.address import WEB, Address
from dist_ssl.data.storage.fields import CHANGED
from dist_ssl.data.storage.object_store import Store
from dist_ssl.data.storage.transports import STALL_SECONDS, BusyError, Files, Pipe, Transport, Web
from dist_ssl.errors import ConfigError, DataError, ServerAwayError, reason_of
from dist_ssl.runtime.strange_files import read_regular

log = logging.getLogger(__name__)
SLOWEST_BYTES = 1 << 14
"""Bytes that must arrive within `stall_seconds`: less is as good as silence."""
COSTS = ("fetched_bytes", "fetch_retries", "cache_hits", "cache_misses")
"""Keys of the metric table that are always reported, also at 0."""


@dataclass(frozen=True)
class Patience:
    """Retry policy: number of attempts and pauses between them."""

    tries: int = 8
    """Number of attempts in a row that bring no byte, or bytes too slowly, after which a fetch fails."""
    first_seconds: float = 0.25
    """Longest pause after the first failure; it doubles with each further one."""
    most_seconds: float = 30.0
    """Upper bound of a pause."""
    stall_seconds: float = STALL_SECONDS
    """Time without SLOWEST_BYTES bytes after which an attempt has failed."""

    def pause(self, failures: int, asked: float = 0.0) -> float:
        """Return the seconds to wait before the next attempt, at least the `asked` ones of the server.

        A random factor of 0.75 to 1 keeps the ranks from repeating their requests all at once.
        """
        backoff = self.first_seconds * 2.0 ** (failures - 1) * random.uniform(0.75, 1.0)
        return min(max(backoff, asked), self.most_seconds)


@dataclass
class Counts:
    """Counters of reads and fetches, by the keys of the metric table; thread-safe."""

    values: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, key: str, amount: float = 1.0) -> None:
        """Add to a counter; adding 0 makes its key reported from now on."""
        with self.lock:
            self.values[key] = self.values.get(key, 0.0) + amount

    def take(self) -> dict[str, float]:
        """Return what was counted since the last call, and start again at 0."""
        with self.lock:
            taken, self.values = self.values, dict.fromkeys(self.values, 0.0)
        return taken


class Fetcher:
    """A client that fetches files and parts of files from any address, with retries; thread-safe.

    `allow_pipe`: permits addresses that run a shell command.
    """

    def __init__(self, patience: Patience | None = None, allow_pipe: bool = False) -> None:
        self.patience, self.allow_pipe = patience or Patience(), allow_pipe
        self.counts = Counts()
        self._sources: dict[str, Transport] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Fetcher"], tuple[Patience, bool]]:
        """Pickle the arguments only: in another process it starts with empty counters and no connections."""
        return Fetcher, (self.patience, self.allow_pipe)

    def source(self, address: Address) -> Transport:
        """Return the transport for an address, created on first use of its scheme. Raises ConfigError."""
        with self._lock:
            if address.scheme not in self._sources:
                self._sources[address.scheme] = transport_of(address, self.allow_pipe, self.patience.stall_seconds)
            return self._sources[address.scheme]

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool = False) -> Iterator[bytes]:
        """Yield the bytes [start, stop) of a file in chunks, each byte once; `stop` None: to its end.

        `ranged`: the server must not send more than these. Raises DataError; NoRangesError where `ranged` is set and
        only the whole file is available.
        """
        asked, at, failures, gained = self.source(address), start, 0, 0
        rate = _Rate(self.patience.stall_seconds)
        while stop is None or at < stop:
            try:
                for chunk in rate.checked(asked.stream(address, at, stop, ranged), address):
                    at, gained = at + len(chunk), gained + len(chunk)
                    if gained >= SLOWEST_BYTES:  # fewer, again and again, are no progress
                        failures = gained = 0
                    if stop is not None and at > stop:
                        raise _too_long(address, stop)
                    self.counts.add("fetched_bytes", len(chunk))
                    yield chunk
                if stop is None or at == stop:
                    return
                raise OSError(f"{address} ended after {at} of {stop} bytes")
            except OSError as error:
                failures = max(failures + 1, rate.failures)
                self._wait(address, error, failures)

    def read(self, address: Address, most: int) -> bytes:
        """Return the content of a local or remote file, which may have at most `most` bytes.

        Raises FileNotFoundError where a local file does not exist, otherwise DataError.
        """
        if address.local:
            try:
                return read_regular(address.path, most)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise unreadable(address, error) from error
            except ValueError as error:
                raise _too_large(address, most) from error
        size = self.size(address)  # requested first: without it a body that is cut off would look complete
        content = bytearray()
        for chunk in self.stream(address, 0, size):
            content += chunk
            if max(len(content), size or 0) > most:
                raise _too_large(address, most)
        return bytes(content)

    def size(self, address: Address) -> int | None:
        """Return the size of a remote file in bytes, None if the server does not report it. Raises DataError."""
        failures = 0
        while True:
            try:
                return self.source(address).size(address)
            except OSError as error:
                failures += 1
                self._wait(address, error, failures)

    def _wait(self, address: Address, error: OSError, failures: int) -> None:
        """Sleep before the next attempt. Raises DataError after the last one."""
        if failures >= self.patience.tries:
            raise ServerAwayError(
                f"{address} could not be fetched in {failures} tries: {error}.",
                "This is the server's or the network's fault: resume the run once it answers again.",
            ) from error
        seconds = self.patience.pause(failures, error.seconds if isinstance(error, BusyError) else 0.0)
        self.counts.add("fetch_retries")
        log.warning("%s; retrying in %.1f s", error, seconds)
        time.sleep(seconds)


class _Rate:
    """Gives up attempts that bring fewer than SLOWEST_BYTES bytes in `seconds`. `failures`: their number in a row."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.failures = seconds, 0

    def checked(self, chunks: Iterator[bytes], address: Address) -> Iterator[bytes]:
        """Yield the chunks of an attempt. Raises OSError once it is too slow; time of the consumer does not count."""
        count, waited, since = 0, 0.0, time.monotonic()
        for chunk in chunks:
            count, waited = count + len(chunk), waited + time.monotonic() - since
            if count >= SLOWEST_BYTES:
                self.failures, count, waited = 0, 0, 0.0
            elif waited > self.seconds:
                self.failures += 1
                raise OSError(f"{address} sent only {count} bytes in {waited:.0f} s")
            yield chunk
            since = time.monotonic()


def unreadable(where: object, error: OSError) -> DataError:
    """Return the error for a local file that exists and cannot be read."""
    return DataError(f"{where} cannot be read: {reason_of(error)}.", "Make it readable for the user who runs this.")


def _too_large(address: Address, most: int) -> DataError:
    return DataError(
        f"{address} is larger than the {most} bytes that such a file has at most.",
        "Check that data.path leads to a folder of shards that you trust.",
    )


def _too_long(address: Address, size: int) -> DataError:
    return DataError(
        f"{address} has more than the {size} bytes that its manifest lists.",
        CHANGED,
    )


def transport_of(address: Address, allow_pipe: bool, stall_seconds: float) -> Transport:
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
