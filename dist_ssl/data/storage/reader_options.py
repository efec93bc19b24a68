"""How shards are accessed: retry policy and node cache."""

import itertools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_ssl.config.byte_sizes import show_bytes
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Split, size_differs
from dist_ssl.data.storage.node_columns import NodeColumns
from dist_ssl.errors import ConfigError

AUTO = "auto"
CACHE_BYTES = "50GB"
"""Default size of the node cache."""


@dataclass(frozen=True)
class Access:
    """Access to shards. `cache`: None to read them in place; `sharers`: number of the node's ranks that share it.

    `only_remote`: shards on this machine's file systems are read in place whether or not there is a cache. `columns`:
    where the columns of large splits are kept; None: in the memory of every process.
    """

    fetcher: Fetcher = field(default_factory=Fetcher)
    cache: Cache | None = None
    sharers: int = 1
    only_remote: bool = False
    columns: NodeColumns | None = None

    @classmethod
    def to(
        cls,
        address: Address,
        cache: str | None,
        size: int,
        allow_pipe: bool = False,
        sharers: int = 1,
        more: Sequence[Address] = (),
    ) -> "Access":
        """Build the access from config keys. `cache`: a folder, `auto` or None; `size`: its bound in bytes.

        `auto` caches remote shards in the node's temporary folder and does not cache local ones. `more`: addresses that
        are read too. Raises ConfigError.
        """
        own = Path(tempfile.gettempdir()) / f"dist_ssl-{os.geteuid()}"
        folder: Path | None = Path(cache) if cache else None
        remote = [one for one in (address, *more) if not one.local]
        if cache == AUTO:
            folder = own if remote else None
        fetcher = Fetcher(allow_pipe=allow_pipe)
        for one in remote:
            fetcher.source(one)  # raises ConfigError here rather than at the first read
        kept = Cache(folder, size) if folder else None
        return cls(fetcher, kept, sharers, cache == AUTO, NodeColumns(folder or own))

    def in_place(self, folder: Address) -> bool:
        """Return whether the shards of a folder are read where they are, without a copy in a cache."""
        return folder.local and (self.cache is None or self.only_remote)

    def check(self, split: Split, lanes: int, window: int) -> None:
        """Raise DataError where a split's shards are missing, ConfigError where the cache is too small for the lanes.

        All shards of a local folder are checked; of a remote one only the first and the last, as each check costs a
        request. Every lane of the node reads another shard, so a cache that cannot hold one per lane would fetch them
        again and again. With a pyramid each of them counts at every level and as the original. `lanes`: number of
        lanes that the node reads; `window`: number of samples shuffled together within a lane.
        """
        least = sum(self._check_run(split, folder, shards, lanes, window) for folder, shards in split.runs)
        if self.cache and self.cache.size < least:
            largest = max(_sizes(split, range(len(split.shards))))
            each = " of every source" if len(split.runs) > 1 else ""
            raise ConfigError(
                f"data.cache_bytes={show_bytes(self.cache.size)} is too little: {lanes} lanes of a node read as many"
                f" shards{each} at once, of up to {show_bytes(largest)}.",
                f"Set data.cache_bytes={show_bytes(least)} at least, make smaller shards, or set data.cache=null.",
            )

    def _check_run(self, split: Split, folder: Address, shards: range, lanes: int, window: int) -> int:
        """Check some shards, which lie in one folder; return the bytes of cache that they need. See `check`."""
        if folder.local:
            split.check(shards)
        else:
            for part, number in itertools.product((split, *split.levels), {shards[0], shards[-1]}):
                shard, address = part.shards[number], part.address(number)
                size = self.fetcher.size(address)
                if size not in (None, shard.bytes):
                    raise size_differs(address, size, shard)
        if self.cache is None or self.in_place(folder):
            return 0
        sizes = _sizes(split, shards)
        samples = sum(split.shards[number].samples for number in shards)
        return min(sum(sizes), lanes * (max(sizes) + window * sum(sizes) // samples))


def _sizes(split: Split, shards: range) -> list[int]:
    """Return the bytes of some shards, summed over the levels."""
    return [sum(part.shards[number].bytes for part in (split, *split.levels)) for number in shards]
