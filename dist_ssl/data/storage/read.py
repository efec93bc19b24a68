"""The bytes of a sample, by its number.

A shard on this machine: one positioned read. With a cache: the same, of a verified copy. Elsewhere without a cache: one
range request per sample. Only the shards of the samples that are asked for are opened. A pyramid's levels have the
shards of the originals again; the place of shard s of level l is l * (number of shards) + s, the originals' l being 0.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from io import FileIO
from types import TracebackType

from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import USED_SECONDS, Cache, use
from dist_ssl.data.storage.manifest import Shard, Split
from dist_ssl.data.storage.prefetch import Prefetcher
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.data.storage.transports import NoRangesError
from dist_ssl.errors import DataError

MOST_OPEN = 32
READ_TRIES = 4
FIRST_PAUSE_SECONDS = 0.2
PREFETCH_SHARE = 8
"""Of the cache, the part that one rank fills ahead of need is 1 / (this * ranks of the node)."""


class Reader:
    """Reads samples of one split; safe for threads. The last `MOST_OPEN` files stay open.

    `scattered`: few samples of many shards are wanted, so a shard that is not in the cache is not fetched whole.
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
        self._lock = threading.Lock()
        cache = self.access.cache
        self._in_place = split.folder.local and (cache is None or scattered)
        self._prefetcher: Prefetcher | None = None
        if cache and not scattered:
            most = cache.size // (PREFETCH_SHARE * self.access.sharers)
            self._prefetcher = Prefetcher(self._fetch, self._sizes(), most)

    def __reduce__(self) -> tuple[type["Reader"], tuple[Split, Access, bool]]:
        """In another process it is one that has nothing open."""
        return type(self), (self.split, self.access, self.scattered)

    def read(self, number: int, level: int = 0) -> bytes:
        """The encoded image of a sample, at a level of the pyramid (0: the original).

        Raises DataError where it cannot be had: its shard is gone or cut short, say.
        An I/O error of this machine is tried again a few times: it is no fact about the sample.
        """
        for pause in range(READ_TRIES):
            try:
                return self._read(number, level)
            except OSError as error:
                if pause == READ_TRIES - 1:
                    raise DataError(
                        f"Sample {number} could not be read in {READ_TRIES} tries: {error}.",
                        "This is the file system's fault, not the sample's: resume the run once it answers again.",
                    ) from error
            time.sleep(FIRST_PAUSE_SECONDS * 2**pause)
        raise AssertionError("unreachable")

    def expect(self, shards: Iterable[int], levels: Iterable[int] | None = None) -> None:
        """Shards that will be read from now on, in this order: they are fetched ahead of need.

        `levels`: those of a pyramid at which more than a few samples will be read; by default all. Shards of another
        level are not fetched whole.
        """
        self._expected = set(range(len(self.levels)) if levels is None else levels)
        if self._prefetcher:
            self._prefetcher.expect((int(shard) for shard in shards), self._sizes())

    def _sizes(self) -> list[int]:
        """Bytes of every shard, at all levels that are expected together."""
        parts = [self.levels[level].shards for level in self._expected]
        return [sum(shard.bytes for shard in same) for same in zip(*parts, strict=True)]

    def costs(self) -> dict[str, float]:
        """What was fetched, and of a pyramid read, since the last time, by the keys of the metric table."""
        return self.access.fetcher.counts.take()

    def _read(self, number: int, level: int) -> bytes:
        """One try. Raises OSError too."""
        samples = self.levels[level].samples
        place = level * len(self.split.shards) + self.split.shard_of(number)
        offset, size = int(samples.offsets[number]), int(samples.sizes[number])
        file = self._file(place)
        data = os.pread(file.fileno(), size, offset) if file else self._range(place, offset, size)
        if len(data) != size:
            raise DataError(
                f"Shard {self._shard(place)[1]} ends within sample {number}.",
                "The tar has changed since it was indexed: put the old one back, or make the shards again.",
            )
        if self._counted:
            self.access.fetcher.counts.add(self._counted[level])
        return data

    def _shard(self, place: int) -> tuple[Shard, Address]:
        """The shard of a place, and where it lies."""
        level, number = divmod(place, len(self.split.shards))
        return self.levels[level].shards[number], self.levels[level].address(number)

    def _range(self, place: int, offset: int, size: int) -> bytes:
        """Part of a shard elsewhere."""
        address, fetcher = self._shard(place)[1], self.access.fetcher
        try:
            return b"".join(fetcher.stream(address, offset, offset + size, ranged=True))
        except NoRangesError:
            if self.access.cache is None:
                raise DataError(
                    f"{address} is only to be had whole, and there is no cache to keep it in.", "Set data.cache=auto."
                ) from None
        file = self._keep(place, self._obtain(self.access.cache, place))
        return os.pread(file.fileno(), size, offset)

    def _file(self, place: int) -> FileIO | None:
        """The open shard, None where it is not to be fetched whole.

        One that is let go is closed once the last thread that reads it is done.
        """
        with self._lock:
            file = self._files.get(place)
            if file:
                self._files.move_to_end(place)
                self._note_use(place, file)
                return file
        shard, address = self._shard(place)
        if self._in_place:
            return self._keep(place, FileIO(address.path))
        cache = self.access.cache
        found = cache and cache.find(shard.sha256, shard.bytes)
        if cache:
            self.access.fetcher.counts.add("cache_hits" if found else "cache_misses")
        few = self.scattered or (place // len(self.split.shards) not in self._expected and not address.local)
        if cache and not found and not few:
            found = self._obtain(cache, place)
        return self._keep(place, found) if found else None

    def _note_use(self, place: int, file: FileIO) -> None:
        """Now and then, tell the cache's other processes that this shard is being read."""
        if not self._in_place and time.monotonic() - self._used.get(place, 0.0) > USED_SECONDS:
            self._used[place] = time.monotonic()
            use(file)

    def _keep(self, place: int, file: FileIO) -> FileIO:
        """Keep a file open; those that the cache has given up are let go, so that their space is free."""
        with self._lock:
            if not self._in_place:
                for other in [s for s, f in self._files.items() if not os.fstat(f.fileno()).st_nlink]:
                    del self._files[other]
            self._files[place] = file
            if len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
        if self._prefetcher:
            self._prefetcher.begin(place % len(self.split.shards))
        return file

    def _fetch(self, shard: int) -> None:
        """Have the shard in the cache, at the levels that are expected."""
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
        """Close all files; nothing more is fetched ahead."""
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
