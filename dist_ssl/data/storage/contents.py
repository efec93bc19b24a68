"""Verifies that local shards hold what the manifest says: once per attempt and node, in a thread beside training.

Before a run starts only the sizes of its shards are checked, which an exchanged image need not change. So every shard
that samples were read from is hashed once, and nothing is saved before all of them have the manifest's sha256: no
checkpoint comes from other images. The ranks of a node share the work by a file that the audit reads too. Shards that
are read through a node's cache were verified when they entered it.
"""

import logging
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from dist_ssl.core.batch import Batch
from dist_ssl.data.order.older_attempts import JOINED_NAME
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.read import in_several_tries
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError, UserError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.kept_lines import KeptLines
from dist_ssl.runtime.strange_files import parsed_object, sha256_of

log = logging.getLogger(__name__)
IN_PLACE, CACHED, BY_RANGE, UNVERIFIED = HOW = ("in place", "from the cache", "by range requests", "unverified")
"""How an attempt reads its shards."""
NAME = re.compile(r"attempt_([0-9]{4,18})_node_([0-9]{5,18})")


def file_of(folder: Path, attempt: int, node: int) -> Path:
    """Return the record of an attempt and node, whose stem matches NAME."""
    return folder / f"attempt_{attempt:04d}_node_{node:05d}.jsonl"


class ShardContents:
    """The check of one rank's shards. `folder`: of the ledger; `verify`: False takes shards as they are."""

    def __init__(
        self, split: Split, access: Access, folder: Path, attempt: int, *, world: World, verify: bool = True
    ) -> None:
        self.parts = (split, *split.levels)
        self.path = file_of(folder, attempt, world.rank // world.local_size)
        self.how = _how(split, access) if verify else UNVERIFIED
        self._seen: set[int] = set()
        self._known = _Verified(self.path, len(split.shards))
        self._waiting: Queue[int] = Queue()
        self._problem: UserError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._verify_all, name="contents", daemon=True)
        self._record = KeptLines(self.path)
        if world.local_rank == 0:
            self._record.add({"how": self.how})

    def record(self, batch: Batch) -> None:
        """Begin to verify the shards that this batch was the first to be read from. Raises the DataError of `check`."""
        if self.how != UNVERIFIED and (new := set(batch.opened) - self._seen):
            self._begin(new)
        if self._problem:
            raise self._problem

    def check(self) -> None:
        """Wait until all shards that samples were read from are verified.

        Raises DataError where one has another sha256 than the manifest says, or cannot be read.
        """
        self._waiting.join()
        if self._problem:
            raise self._problem

    def close(self) -> None:
        """Close the record; shards that are not verified yet never will be."""
        self._closed = True
        self._record.close()

    def _begin(self, places: Iterable[int]) -> None:
        self._seen |= {*places}
        for place in sorted(places):
            self._waiting.put(place)
        if not self._thread.is_alive():
            self._thread.start()

    def _verify_all(self) -> None:
        while True:
            place = self._waiting.get()
            try:
                if not self._closed and not self._problem and place not in self._known:
                    self._verify(place)
            except UserError as error:
                self._problem = error
            except Exception as error:
                if self._closed:  # the record, and perhaps its folder, are gone
                    continue
                log.exception("The contents of shards cannot be verified")
                self._problem = DataError(f"The contents of shards cannot be verified: {error!r}.", "See the log.")
            finally:
                self._waiting.task_done()

    def _verify(self, place: int) -> None:
        """Record that the shard at a place (see `Reader`) has the manifest's sha256. Raises DataError if it has not."""
        level, number = divmod(place, len(self.parts[0].shards))
        path, known = self.parts[level].path(number), self.parts[level].shards[number].sha256
        found = in_several_tries(lambda: sha256_of(path), f"Shard {path}")
        if found != known:
            raise DataError(
                f"Shard {path} has changed since the manifest was made: its sha256 is {found[:12]}..., not "
                f"{known[:12]}.... Nothing has been saved that was learned from it.",
                "Put the old tar back and resume, or make the shards again for a new run; shards/verify.py names all "
                "samples that differ.",
            )
        self._record.add({"level": level, "shard": number})


def _how(split: Split, access: Access) -> str:
    """Return how the shards of a split are read; of several ways, the one that says least of their contents."""
    if access.cache is None and not all(folder.local for folder, _ in split.runs):
        return BY_RANGE
    return IN_PLACE if any(access.in_place(folder) for folder, _ in split.runs) else CACHED


class _Verified:
    """The places that the ranks of a node have verified, as far as the shared record says by now."""

    def __init__(self, path: Path, shards: int) -> None:
        self.path, self.shards = path, shards
        self._places: set[int] = set()
        self._read, self._rest = 0, b""

    def __contains__(self, place: int) -> bool:
        with self.path.open("rb") as file:
            file.seek(self._read)
            news = file.read()
        self._read += len(news)
        *lines, self._rest = (self._rest + news).split(b"\n")
        rows = filter(None, map(parsed_object, lines))
        self._places |= {row["level"] * self.shards + row["shard"] for row in rows if "shard" in row}
        return place in self._places


@dataclass(frozen=True)
class Vouched:
    """The records of an attempt's nodes: how they read shards, and the shards that they verified at any level."""

    how: frozenset[str]
    shards: frozenset[int]


def vouched(folder: Path) -> dict[int, Vouched]:
    """Return what is recorded of each attempt in the folder of a ledger, by its number."""
    found: dict[int, Vouched] = {}
    for path in sorted(folder.glob("attempt_*.jsonl")):
        if named := NAME.fullmatch(path.stem) or JOINED_NAME.fullmatch(path.name):
            rows, before = jsonl.read(path), found.get(int(named[1]), Vouched(frozenset(), frozenset()))
            how = {row["how"] for row in rows if row.get("how") in HOW}
            shards = {row["shard"] for row in rows if type(row.get("shard")) is int}
            found[int(named[1])] = Vouched(before.how | how, before.shards | shards)
    return found
