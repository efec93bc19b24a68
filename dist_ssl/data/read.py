"""The bytes of a sample, by its number.

A shard on this machine: one positioned read. With a cache: the same, of a verified copy. Elsewhere without a cache: one
range request per sample. Only the shards of the samples that are asked for are opened.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from io import FileIO
from types import TracebackType

import numpy as np

from dist_ssl.data.access import Access
from dist_ssl.data.ahead import Ahead
from dist_ssl.data.cache import USED_SECONDS, Cache, use
from dist_ssl.data.manifest import Split
from dist_ssl.data.sources import NoRangesError
from dist_ssl.errors import DataError

MOST_OPEN = 32
READ_TRIES = 4
FIRST_PAUSE_SECONDS = 0.2
AHEAD_SHARE = 8
"""Of the cache, the part that one rank fills ahead of need is 1 / (this * ranks of the node)."""


class Reader:
    """Reads samples of one split; safe for threads. The last `MOST_OPEN` files stay open.

    `scattered`: few samples of many shards are wanted, so a shard that is not in the cache is not fetched whole.
    """

    def __init__(self, split: Split, access: Access | None = None, scattered: bool = False) -> None:
        self.split, self.access, self.scattered = split, access or Access(), scattered
        self.ends = np.cumsum(split.shard_sizes)
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._used: dict[int, float] = {}
        self._lock = threading.Lock()
        cache = self.access.cache
        self._in_place = split.folder.local and (cache is None or scattered)
        self._ahead: Ahead | None = None
        if cache and not scattered:
            most = cache.size // (AHEAD_SHARE * self.access.sharers)
            self._ahead = Ahead(self._fetch, [shard.bytes for shard in split.shards], most)

    def read(self, number: int) -> bytes:
        """The encoded image of a sample. Raises DataError where it cannot be had: its shard is gone or cut short, say.

        An I/O error of this machine is tried again a few times: it is no fact about the sample.
        """
        for pause in range(READ_TRIES):
            try:
                return self._read(number)
            except OSError as error:
                if pause == READ_TRIES - 1:
                    raise DataError(
                        f"Sample {number} could not be read in {READ_TRIES} tries: {error}.",
                        "This is the file system's fault, not the sample's: resume the run once it answers again.",
                    ) from error
            time.sleep(FIRST_PAUSE_SECONDS * 2**pause)
        raise AssertionError("unreachable")

    def expect(self, shards: Iterable[int]) -> None:
        """Shards that will be read from now on, in this order: they are fetched ahead of need."""
        if self._ahead:
            self._ahead.expect(int(shard) for shard in shards)

    def costs(self) -> dict[str, float]:
        """What was fetched since the last time, by the keys of the metric table."""
        return self.access.fetcher.counts.take()

    def _read(self, number: int) -> bytes:
        """One try. Raises OSError too."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        offset, size = int(self.split.samples.offsets[number]), int(self.split.samples.sizes[number])
        file = self._file(shard)
        data = os.pread(file.fileno(), size, offset) if file else self._range(shard, offset, size)
        if len(data) != size:
            raise DataError(
                f"Shard {self.split.address(shard)} ends within sample {number}.",
                "The tar has changed since it was indexed: put the old one back, or make the shards again.",
            )
        return data

    def _range(self, shard: int, offset: int, size: int) -> bytes:
        """Part of a shard elsewhere."""
        address, fetcher = self.split.address(shard), self.access.fetcher
        try:
            return b"".join(fetcher.stream(address, offset, offset + size, ranged=True))
        except NoRangesError:
            if self.access.cache is None:
                raise DataError(
                    f"{address} is only to be had whole, and there is no cache to keep it in.", "Set data.cache=auto."
                ) from None
        file = self._keep(shard, self._obtain(self.access.cache, shard))
        return os.pread(file.fileno(), size, offset)

    def _file(self, shard: int) -> FileIO | None:
        """The open shard, None where it is not to be fetched whole.

        One that is let go is closed once the last thread that reads it is done.
        """
        with self._lock:
            file = self._files.get(shard)
            if file:
                self._files.move_to_end(shard)
                self._note_use(shard, file)
                return file
        if self._in_place:
            return self._keep(shard, FileIO(self.split.path(shard)))
        cache = self.access.cache
        found = cache and cache.find(self.split.shards[shard].sha256, self.split.shards[shard].bytes)
        if cache:
            self.access.fetcher.counts.add("cache_hits" if found else "cache_misses")
        if cache and not found and not self.scattered:
            found = self._obtain(cache, shard)
        return self._keep(shard, found) if found else None

    def _note_use(self, shard: int, file: FileIO) -> None:
        """Now and then, tell the cache's other processes that this shard is being read."""
        if not self._in_place and time.monotonic() - self._used.get(shard, 0.0) > USED_SECONDS:
            self._used[shard] = time.monotonic()
            use(file)

    def _keep(self, shard: int, file: FileIO) -> FileIO:
        """Keep a file open; those that the cache has given up are let go, so that their space is free."""
        with self._lock:
            if not self._in_place:
                for other in [s for s, f in self._files.items() if not os.fstat(f.fileno()).st_nlink]:
                    del self._files[other]
            self._files[shard] = file
            if len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
        if self._ahead:
            self._ahead.begin(shard)
        return file

    def _fetch(self, shard: int) -> None:
        """Have the shard in the cache."""
        assert self.access.cache
        self._obtain(self.access.cache, shard).close()

    def _obtain(self, cache: Cache, shard: int) -> FileIO:
        entry, address = self.split.shards[shard], self.split.address(shard)
        fetch = partial(self._stream, shard)
        return cache.obtain(f"Shard {address}", entry.sha256, entry.bytes, fetch)

    def _stream(self, shard: int) -> Iterator[bytes]:
        return self.access.fetcher.stream(self.split.address(shard), 0, self.split.shards[shard].bytes)

    def close(self) -> None:
        """Close all files; nothing more is fetched ahead."""
        if self._ahead:
            self._ahead.close()
        with self._lock:
            self._files.clear()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
