"""Bytes from elsewhere, with patience: what breaks off goes on at the byte that it had come to.

Tries are counted since something last arrived, with pauses that double. Nothing of this reaches the order of the
samples: it decides when bytes arrive, never which.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.transports import STALL_SECONDS, BusyError, Transport, source
from dist_ssl.errors import DataError

log = logging.getLogger(__name__)
COSTS = ("fetched_bytes", "fetch_retries", "cache_hits", "cache_misses")
"""Keys of the metric table that are always told."""


@dataclass(frozen=True)
class Patience:
    """How often to try for the next byte, and how long to wait in between."""

    tries: int = 8
    first_seconds: float = 0.25
    most_seconds: float = 30.0
    stall_seconds: float = STALL_SECONDS

    def pause(self, failures: int, asked: float = 0.0) -> float:
        """Seconds before the next try; by chance a little shorter, so that the ranks do not come all at once."""
        wanted = self.first_seconds * 2.0 ** (failures - 1) * random.uniform(0.75, 1.0)
        return min(max(wanted, asked), self.most_seconds)


@dataclass
class Counts:
    """What reading took, by the keys of the metric table; safe for threads."""

    values: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, key: str, amount: float = 1.0) -> None:
        """Count; by 0, for a key that is to be told of from now on."""
        with self.lock:
            self.values[key] = self.values.get(key, 0.0) + amount

    def take(self) -> dict[str, float]:
        """What was counted since the last time."""
        with self.lock:
            taken, self.values = self.values, dict.fromkeys(self.values, 0.0)
        return taken


class Fetcher:
    """Fetches files and parts of files; safe for threads."""

    def __init__(self, patience: Patience | None = None, allow_pipe: bool = False) -> None:
        self.patience, self.allow_pipe = patience or Patience(), allow_pipe
        self.counts = Counts()
        self._sources: dict[str, Transport] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Fetcher"], tuple[Patience, bool]]:
        """In another process it is one that has fetched nothing yet."""
        return Fetcher, (self.patience, self.allow_pipe)

    def source(self, address: Address) -> Transport:
        """What gets bytes from there, made on first use. Raises ConfigError."""
        with self._lock:
            if address.scheme not in self._sources:
                self._sources[address.scheme] = source(address, self.allow_pipe, self.patience.stall_seconds)
            return self._sources[address.scheme]

    def stream(self, address: Address, start: int, stop: int | None, ranged: bool = False) -> Iterator[bytes]:
        """Bytes [start, stop) of a file, or to its end, each once. `ranged`: never more than these are sent.

        Raises DataError; NoRangesError where a range is asked for and only the whole file is to be had.
        """
        asked, at, failures = self.source(address), start, 0
        while stop is None or at < stop:
            try:
                for chunk in asked.stream(address, at, stop, ranged):
                    failures, at = 0, at + len(chunk)
                    if stop is not None and at > stop:
                        raise _too_long(address, stop)
                    self.counts.add("fetched_bytes", len(chunk))
                    yield chunk
                if stop is None or at == stop:
                    return
                raise OSError(f"{address} ended after {at} of {stop} bytes")
            except OSError as error:
                failures += 1
                self._wait(address, error, failures)

    def read(self, address: Address) -> bytes:
        """All of a file, wherever it lies. Raises FileNotFoundError where this machine has none, else DataError."""
        if address.local:
            try:
                return address.path.read_bytes()
            except FileNotFoundError:
                raise
            except OSError as error:
                raise unreadable(address, error) from error
        size = self.size(address)  # asked for before, or the end of a body that was cut off would look like its own
        return b"".join(self.stream(address, 0, size))

    def size(self, address: Address) -> int | None:
        """Bytes of a file, None where nobody says. Raises DataError."""
        failures = 0
        while True:
            try:
                return self.source(address).size(address)
            except OSError as error:
                failures += 1
                self._wait(address, error, failures)

    def _wait(self, address: Address, error: OSError, failures: int) -> None:
        """Pause before the next try. Raises DataError where there is none."""
        if failures >= self.patience.tries:
            raise DataError(
                f"{address} could not be fetched in {failures} tries: {error}.",
                "This is the server's or the network's fault: resume the run once it answers again.",
            ) from error
        seconds = self.patience.pause(failures, error.seconds if isinstance(error, BusyError) else 0.0)
        self.counts.add("fetch_retries")
        log.warning("%s; trying again in %.1f s", error, seconds)
        time.sleep(seconds)


def unreadable(where: object, error: OSError) -> DataError:
    """For a file of this machine that is there and cannot be read."""
    return DataError(f"{where} cannot be read: {error.strerror}.", "Make it readable for the user who runs this.")


def _too_long(address: Address, size: int) -> DataError:
    return DataError(
        f"{address} has more than the {size} bytes that its manifest says.",
        "It has changed since it was indexed: put the old one back, or make the shards again.",
    )
