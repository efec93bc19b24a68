"""The ledger: per step a commutative hash of the sample numbers that were delivered to the engine on this rank.

The sum of the ranks' hashes is the hash of the global batch at any world size. One file per attempt and rank, with one
line per step:

    {"step": 7, "epoch": 0, "ranks": 2, "count": 48, "hash": ..., "replaced": 1, "replaced_hash": ...}

(`replaced`, `replaced_hash`: number and hash of the unreadable samples that were replaced, if any) and one line per
save, {"saved": 8}: every line before it belongs to a step below 8. Where a later attempt resumes at step s, the lines
of earlier attempts for steps >= s are void.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Ints
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.kept_lines import KeptLines

MASK = (1 << 64) - 1
NAME = re.compile(r"attempt_([0-9]{4,18})_rank_([0-9]{5,18})")
Hashes = npt.NDArray[np.uint64]


def file_of(folder: Path, attempt: int, rank: int) -> Path:
    """Return the ledger file of an attempt and rank, whose stem matches NAME."""
    return folder / f"attempt_{attempt:04d}_rank_{rank:05d}.jsonl"


def mix(ids: Ints) -> Hashes:
    """Return a 64-bit hash of every sample number, same shape: splitmix64 (Steele et al. 2014)."""
    z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = z ^ (z >> np.uint64(31))
    return mixed


def hash_ids(ids: Ints) -> int:
    """Return a 64-bit hash of a multiset of sample numbers: the sum modulo 2^64 of their hashes."""
    return int(mix(ids).sum(dtype=np.uint64)) & MASK


class Ledger:
    """The ledger file of this attempt and rank in `folder`, opened to append."""

    def __init__(self, folder: Path, attempt: int, world: World) -> None:
        self.ranks = world.size
        self.lines = KeptLines(file_of(folder, attempt, world.rank))

    def record(self, progress: Progress, batch: Batch) -> None:
        """Write the line of the step at this position, which used this batch."""
        ids = batch.ids.numpy()
        line = {"step": progress.step, "epoch": progress.epoch, "ranks": self.ranks}
        line |= {"count": len(ids), "hash": hash_ids(ids)}
        if batch.unreadable:
            replaced = np.array(list(batch.unreadable), dtype=np.int64)
            line |= {"replaced": len(replaced), "replaced_hash": hash_ids(replaced)}
        self.lines.add(line)

    def seal(self, progress: Progress) -> None:
        """Note that a checkpoint of this position is about to be written, and fsync all lines before it is."""
        self.lines.add({"saved": progress.step})
        self.lines.sync()

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


@dataclass(frozen=True)
class Deliveries:
    """The ledger of a run as columns, one row per step and rank of an attempt.

    `saves`: (attempt, step) of every save that directly follows the line of the step before, or begins its file.
    """

    step: Ints
    attempt: Ints
    rank: Ints
    ranks: Ints
    count: Ints
    hash: Hashes
    replaced: Ints
    replaced_hash: Hashes
    saves: set[tuple[int, int]]

    def restored(self) -> dict[int, int]:
        """Return the first step of each attempt that made at least one."""
        return {int(a): int(self.step[self.attempt == a].min()) for a in np.unique(self.attempt)}


def read(folder: Path) -> Deliveries:
    """Read all ledger files of a folder. Raises DataError where a line is impossible or lacks a key."""
    rows: list[tuple[int, ...]] = []
    hashes: list[tuple[int, int]] = []
    saves: set[tuple[int, int]] = set()
    for path in sorted(folder.glob("attempt_*_rank_*.jsonl")):
        if not (named := NAME.fullmatch(path.stem)):
            continue
        attempt, rank = named.groups()
        last: int | None = None
        for line in jsonl.read(path):
            if not all(type(value) is int and value >= 0 for value in line.values()) or not line.get("ranks", 1):
                raise DataError(f"{path} has an impossible line.", "Restore the complete file.")
            if "saved" in line:
                saves |= {(int(attempt), line["saved"])} if last in (None, line["saved"] - 1) else set()
                continue
            try:
                last = line["step"]
                rows.append((line["step"], int(attempt), int(rank), line["ranks"], line["count"], _replaced(line)))
                hashes.append((line["hash"], line.get("replaced_hash", 0)))
            except KeyError as error:
                raise DataError(
                    f"{path} has a line without {error}.", "Audit the run with the version of dist_ssl that made it."
                ) from error
    try:
        step, attempts, ranks_own, ranks, count, replaced = np.array(rows, dtype=np.int64).reshape(-1, 6).T
        hashed, replaced_hash = np.array(hashes, dtype=np.uint64).reshape(-1, 2).T
    except OverflowError as error:
        raise DataError(f"{folder} has an impossible number: {error}.", "Restore its complete files.") from error
    return Deliveries(step, attempts, ranks_own, ranks, count, hashed, replaced, replaced_hash, saves)


def _replaced(line: dict[str, Any]) -> int:
    return int(line.get("replaced", 0))
