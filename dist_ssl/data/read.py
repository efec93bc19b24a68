"""The bytes of a sample, by its number: one positioned read of the shard that holds it."""

import os
import threading
from types import TracebackType

import numpy as np

from dist_ssl.data.manifest import Split
from dist_ssl.errors import DataError


class Reader:
    """Reads samples of one split from local tars; safe for threads. Files stay open until `close`."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.ends = np.cumsum(split.shard_sizes)
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, number: int) -> bytes:
        """The encoded image of a sample. Raises DataError where the shard ends too early or is gone."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        offset, size = int(self.split.samples.offsets[number]), int(self.split.samples.sizes[number])
        data = os.pread(self._file(shard), size, offset)
        if len(data) != size:
            raise DataError(
                f"Shard {self.split.path(shard)} ends within sample {number}.",
                "The tar has changed since it was indexed: put the old one back, or make the shards again.",
            )
        return data

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self.split.path(shard), os.O_RDONLY)
            return self._files[shard]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
