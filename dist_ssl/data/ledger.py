"""What was delivered: per step a commutative hash of the sample numbers that entered the engine on this rank.

The sum of the ranks' hashes is the hash of the global batch at any world size. A line per step and rank; lines of an
attempt beyond the step that the next attempt restored are void.
"""

import json
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from dist_ssl.batch import Batch
from dist_ssl.progress import Progress

MASK = (1 << 64) - 1


def hash_ids(ids: npt.NDArray[np.int64]) -> int:
    """A 64-bit hash of a multiset of sample numbers: the sum of splitmix64 over them (Steele et al. 2014)."""
    z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((z ^ (z >> np.uint64(31))).sum(dtype=np.uint64)) & MASK


class Ledger:
    """Appends to one file per attempt and rank in `folder`."""

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"attempt_{attempt:04d}_rank_{rank:05d}.jsonl"
        self.file: TextIO = path.open("a", buffering=1)

    def record(self, progress: Progress, batch: Batch) -> None:
        """Note that this batch made the step at this position."""
        ids = batch.ids.numpy()
        line = {"step": progress.step, "epoch": progress.epoch, "count": len(ids), "hash": hash_ids(ids)}
        self.file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the file."""
        self.file.close()
