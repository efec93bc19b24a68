"""The bytes of a sample, by its number: one positioned read of the shard that holds it."""

import os
import threading
from collections import OrderedDict
from io import FileIO
from types import TracebackType

import numpy as np

from dist_ssl.data.manifest import Split
from dist_ssl.errors import DataError

MOST_OPEN = 32


class Reader:
    """Reads samples of one split from local tars; safe for threads. The last `MOST_OPEN` files stay open."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.ends = np.cumsum(split.shard_sizes)
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, number: int) -> bytes:
        """The encoded image of a sample. Raises DataError where the shard ends too early or is gone."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        offset, size = int(self.split.samples.offsets[number]), int(self.split.samples.sizes[number])
        file = self._file(shard)
        data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise DataError(
                f"Shard {self.split.path(shard)} ends within sample {number}.",
                "The tar has changed since it was indexed: put the old one back, or make the shards again.",
            )
        return data

    def _file(self, shard: int) -> FileIO:
        """The open shard. One that is let go is closed once the last thread that reads it is done."""
        with self._lock:
            file = self._files.pop(shard, None) or FileIO(self.split.path(shard))
            self._files[shard] = file
            if len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
            return file

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._files.clear()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
