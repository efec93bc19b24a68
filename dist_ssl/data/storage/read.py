"""The reader: returns the encoded bytes of a sample, given its number.

A local shard takes one positioned read per sample; with a cache, the same from a verified copy; a remote shard without
a cache takes one range request. Only shards of requested samples are opened. The levels of a pyramid repeat the shards
of the originals: shard s of level l has the place l * (number of shards) + s, where l = 0 is the originals.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import FileIO
from types import TracebackType
from typing import TypeVar

import numpy as np

from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import USED_SECONDS, Cache
from dist_ssl.data.storage.fields import CHANGED
from dist_ssl.data.storage.manifest import Shard, Split
from dist_ssl.data.storage.node_folder import use
from dist_ssl.data.storage.prefetch import Prefetcher
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.data.storage.transports import NoRangesError
from dist_ssl.errors import DataError, ServerAwayError
from dist_ssl.runtime.strange_files import open_regular
from dist_ssl.runtime.tries import TRANSIENT, tried_again

MOST_OPEN = 32
READ_TRIES = 4
FIRST_PAUSE_SECONDS = 0.2
PREFETCH_SHARE = 8
"""Divisor that bounds prefetching: a rank prefetches up to 1 / (this * ranks of the node) of the cache."""

T = TypeVar("T")


def in_several_tries(read: Callable[[], T], what: str) -> T:
    """Return what `read` returns, tried again where the file system fails.

    Raises DataError that says of what; ServerAwayError where the file system may answer again.
    """
    pauses = [FIRST_PAUSE_SECONDS * 2**number for number in range(READ_TRIES - 1)]
    try:
        return tried_again(read, pauses)
    except OSError as error:
        raise (ServerAwayError if error.errno in TRANSIENT else DataError)(
            f"{what} could not be read in {READ_TRIES} tries: {error}.",
            "This is the file system's fault, not the data's: resume the run once it answers again.",
        ) from error


class Reader:
    """A reader for the samples of one split; thread-safe. The `MOST_OPEN` most recently used files stay open.

    `scattered`: few samples of many shards will be read, so a shard that is not in the cache is not fetched whole.
    """

    def __init__(self, split: Split, access: Access | None = None, scattered: bool = False) -> None:
        self.split, self.access, self.scattered = split, access or Access(), scattered
        self.levels = (split, *split.levels)
        self._counted = [f"read_images/{part.side or 'original'}" for part in self.levels] if split.levels else []
        for key in self._counted:
            self.access.fetcher.counts.add(key, 0)
        self._expected = set(range(len(self.levels)))
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._used: dict[int, float] = {}
        self._opened: set[int] = set()
        self._news: list[int] = []
        self._lock = threading.Lock()
        cache = self.access.cache
        whole = [
            (self.access.in_place(folder) or (scattered and folder.local), shards) for folder, shards in split.runs
        ]
        self._in_place = np.repeat([here for here, _ in whole], [len(shards) for _, shards in whole])
        """Whether each shard is read where it is, [shards]."""
        self._prefetcher: Prefetcher | None = None
        if cache and not scattered:
            most = cache.size // (PREFETCH_SHARE * self.access.sharers)
            self._prefetcher = Prefetcher(self._fetch, self._sizes(), most)

    def __reduce__(self) -> tuple[type["Reader"], tuple[Split, Access, bool]]:
        """Pickle the arguments only: in another process it starts without open files."""
        return type(self), (self.split, self.access, self.scattered)

    def read(self, number: int, level: int = 0) -> bytes:
        """Return the encoded image of a sample at a level of the pyramid (0: the original).

        Raises DataError where it cannot be read, for example because its shard is missing or cut short. A local I/O
        error is retried a few times first: it says nothing about the sample.
        """
        return in_several_tries(lambda: self._read(number, level), f"Sample {number}")

    def expect(self, shards: Iterable[int], levels: Iterable[int] | None = None) -> None:
        """Prefetch these shards, which will be read in this order.

        `levels`: levels of the pyramid at which more than a few samples will be read; by default all. Shards of other
        levels are not fetched whole.
        """
        self._expected = set(range(len(self.levels)) if levels is None else levels)
        if self._prefetcher:
            self._prefetcher.expect((int(shard) for shard in shards if not self._in_place[shard]), self._sizes())

    def _sizes(self) -> list[int]:
        """Return the bytes of every shard, summed over the expected levels."""
        parts = [self.levels[level].shards for level in self._expected]
        return [sum(shard.bytes for shard in same) for same in zip(*parts, strict=True)]

    def costs(self) -> dict[str, float]:
        """Return the counts of fetches, and of reads per pyramid level, since the last call, by metric key."""
        return self.access.fetcher.counts.take()

    def opened(self) -> tuple[int, ...]:
        """Return the places of local shards that were opened in place for the first time since the last call."""
        with self._lock:
            news, self._news = tuple(self._news), []
        return news

    def _read(self, number: int, level: int) -> bytes:
        """Make one attempt to read a sample. Raises OSError too."""
        samples = self.levels[level].samples
        place = level * len(self.split.shards) + self.split.shard_of(number)
        offset, size = int(samples.offsets[number]), int(samples.sizes[number])
        file = self._file(place)
        data = os.pread(file.fileno(), size, offset) if file else self._range(place, offset, size)
        if len(data) != size:
            raise DataError(
                f"Shard {self._shard(place)[1]} ends within sample {number}.",
                CHANGED,
            )
        if self._counted:
            self.access.fetcher.counts.add(self._counted[level])
        return data

    def _shard(self, place: int) -> tuple[Shard, Address]:
        """Return the shard of a place, and its address."""
        level, number = divmod(place, len(self.split.shards))
        return self.levels[level].shards[number], self.levels[level].address(number)

    def _range(self, place: int, offset: int, size: int) -> bytes:
        """Return part of a remote shard, by a range request or, where the server has none, from the cached shard."""
        address, fetcher = self._shard(place)[1], self.access.fetcher
        try:
            return b"".join(fetcher.stream(address, offset, offset + size, ranged=True))
        except NoRangesError:
            if self.access.cache is None:
                raise DataError(
                    f"{address} can only be fetched whole, and there is no cache to keep it in.", "Set data.cache=auto."
                ) from None
        file = self._keep(place, self._obtain(self.access.cache, place))
        return os.pread(file.fileno(), size, offset)

    def _file(self, place: int) -> FileIO | None:
        """Return the open shard; None where it is not cached and should not be fetched whole.

        A file that is dropped from the open ones is closed once the last thread that reads it has finished.
        """
        with self._lock:
            file = self._files.get(place)
            if file:
                self._files.move_to_end(place)
                self._note_use(place, file)
                return file
        shard, address = self._shard(place)
        if self._in_place[place % len(self.split.shards)]:
            self._note_opened(place)
            return self._keep(place, open_regular(address.path))
        cache = self.access.cache
        found = cache and cache.find(shard.sha256, shard.bytes)
        if cache:
            self.access.fetcher.counts.add("cache_hits" if found else "cache_misses")
        few = self.scattered or (place // len(self.split.shards) not in self._expected and not address.local)
        if cache and not found and not few:
            found = self._obtain(cache, place)
        return self._keep(place, found) if found else None

    def _note_opened(self, place: int) -> None:
        with self._lock:
            if place not in self._opened:
                self._opened.add(place)
                self._news.append(place)

    def _note_use(self, place: int, file: FileIO) -> None:
        """Update the shard's last-use time in the cache, at most every `USED_SECONDS`."""
        here = self._in_place[place % len(self.split.shards)]
        if not here and time.monotonic() - self._used.get(place, 0.0) > USED_SECONDS:
            self._used[place] = time.monotonic()
            use(file)

    def _keep(self, place: int, file: FileIO) -> FileIO:
        """Keep a file open; drop files that the cache has evicted, so that their disk space is freed."""
        with self._lock:
            if not self._in_place.all():
                for other in [s for s, f in self._files.items() if not os.fstat(f.fileno()).st_nlink]:
                    del self._files[other]
            self._files[place] = file
            if len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
        if self._prefetcher:
            self._prefetcher.begin(place % len(self.split.shards))
        return file

    def _fetch(self, shard: int) -> None:
        """Fetch the shard into the cache, at every expected level."""
        assert self.access.cache
        for level in sorted(self._expected):
            self._obtain(self.access.cache, level * len(self.split.shards) + shard).close()

    def _obtain(self, cache: Cache, place: int) -> FileIO:
        shard, address = self._shard(place)
        return cache.obtain(f"Shard {address}", shard.sha256, shard.bytes, partial(self._stream, place))

    def _stream(self, place: int) -> Iterator[bytes]:
        shard, address = self._shard(place)
        return self.access.fetcher.stream(address, 0, shard.bytes)

    def close(self) -> None:
        """Close all files and stop prefetching."""
        if self._prefetcher:
            self._prefetcher.close()
        with self._lock:
            self._files.clear()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
