"""How shards are accessed: retry policy and node cache."""

import itertools
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from dist_ssl.config.byte_sizes import show_bytes
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Split, size_differs
from dist_ssl.errors import ConfigError

AUTO = "auto"


@dataclass(frozen=True)
class Access:
    """Access to shards. `cache`: None to read them in place; `sharers`: number of the node's ranks that share it."""

    fetcher: Fetcher = field(default_factory=Fetcher)
    cache: Cache | None = None
    sharers: int = 1

    @classmethod
    def to(cls, address: Address, cache: str | None, size: int, allow_pipe: bool = False, sharers: int = 1) -> "Access":
        """Build the access from config keys. `cache`: a folder, `auto` or None; `size`: its bound in bytes.

        `auto` caches remote shards in the node's temporary folder and does not cache local ones. Raises ConfigError.
        """
        folder: Path | None = Path(cache) if cache else None
        if cache == AUTO:
            folder = None if address.local else Path(tempfile.gettempdir()) / f"dist_ssl-{os.geteuid()}"
        fetcher = Fetcher(allow_pipe=allow_pipe)
        if not address.local:
            fetcher.source(address)  # raises ConfigError here rather than at the first read
        return cls(fetcher, Cache(folder, size) if folder else None, sharers)

    def check(self, split: Split, lanes: int, window: int) -> None:
        """Raise DataError where a split's shards are missing, ConfigError where the cache is too small for the lanes.

        All shards of a local folder are checked; of a remote one only the first and the last, as each check costs a
        request. Every lane of the node reads another shard, so a cache that cannot hold one per lane would fetch them
        again and again. With a pyramid each of them counts at every level and as the original. `lanes`: number of
        lanes that the node reads; `window`: number of samples shuffled together within a lane.
        """
        if split.folder.local:
            split.check()
        else:
            ends = {0, len(split.shards) - 1}
            for part, number in itertools.product((split, *split.levels), ends):
                shard, address = part.shards[number], part.address(number)
                size = self.fetcher.size(address)
                if size not in (None, shard.bytes):
                    raise size_differs(address, size, shard)
        if self.cache is None:
            return
        sizes = [
            sum(part.shards[number].bytes for part in (split, *split.levels)) for number in range(len(split.shards))
        ]
        total, largest = sum(sizes), max(sizes)
        least = min(total, lanes * (largest + window * total // len(split.samples)))
        if self.cache.size < least:
            raise ConfigError(
                f"data.cache_bytes={show_bytes(self.cache.size)} is too little: {lanes} lanes of a node read as many"
                f" shards at once, of up to {show_bytes(largest)}.",
                f"Set data.cache_bytes={show_bytes(least)} at least, make smaller shards, or set data.cache=null.",
            )
