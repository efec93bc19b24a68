"""The ledger: per step a commutative hash of the sample numbers that were delivered to the engine on this rank.

The sum of the ranks' hashes is the hash of the global batch at any world size. One file per attempt and node, to which
each of its ranks appends blocks (ledger_blocks.py): at every save, for which they are on disk before the checkpoint
counts, and in between every 1,024 steps. Steps after the last save may be lacking after a kill: a resume repeats them.
The first step of an attempt is written at once, so that every attempt that made a step has its place. Blocks wait in
memory while the disk cannot take them: a full disk, or a file server that hiccups, costs neither the run nor a step.

Where a later attempt resumes at step s, what earlier attempts say of steps >= s is void.
"""

import errno
import os
import re
import threading
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Ints
from dist_ssl.core.progress import Progress
from dist_ssl.data.order.ledger_blocks import ROW, STEPS, encode
from dist_ssl.data.order.older_attempts import join
from dist_ssl.distributed.world import World
from dist_ssl.runtime.patient_writes import PatientWrites

MASK = (1 << 64) - 1
NAME = re.compile(r"attempt_([0-9]{4,18})_node_([0-9]{5,18})")
Hashes = npt.NDArray[np.uint64]


def file_of(folder: Path, attempt: int, node: int) -> Path:
    """Return the ledger file of an attempt and node, whose stem matches NAME. `node`: the number of its first rank."""
    return folder / f"attempt_{attempt:04d}_node_{node:05d}.ledger"


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
    """This rank's part of the ledger file of its node and attempt in `folder`, opened to append."""

    def __init__(self, folder: Path, attempt: int, world: World) -> None:
        self.folder, self.attempt = folder, attempt
        self.rank, self.ranks = world.rank, world.size
        self.path = file_of(folder, attempt, world.rank - world.local_rank)
        self.file: FileIO | None = None
        """None before the first block."""
        self._rows: list[tuple[int, ...]] = []
        self._next: int | None = None
        """The step after the newest one that was recorded."""
        self._waiting: list[bytes] = []
        """Blocks that are not in the file yet."""
        self._writes = PatientWrites(self.path, "blocks")
        self._closed = False
        self._lock = threading.Lock()
        self._joined = world.rank != 0

    def record(self, progress: Progress, batch: Batch) -> None:
        """Note the step at this position, which used this batch."""
        ids, replaced = batch.ids.numpy(), np.array(list(batch.unreadable), dtype=np.int64)
        if self._rows and progress.step != self._next:
            self._append()
        row = progress.step, self.rank, self.ranks, len(ids), len(replaced), hash_ids(ids), hash_ids(replaced)
        self._rows.append(row)
        if self._next is None or len(self._rows) == STEPS:
            self._append()
        self._next = progress.step + 1

    def seal(self, progress: Progress) -> None:
        """Write all steps so far, and that a checkpoint of this position is about to be written. See `sync`."""
        self._append(progress.step)

    def sync(self) -> None:
        """Force what was written to disk, before a checkpoint counts; the first time, rank 0 joins older attempts."""
        self._write(sync=True)
        if not self._joined:
            self._joined = True
            join(self.folder, self.attempt)

    def close(self) -> None:
        """Write what is left and close the file; blocks that still wait are lost, and the log says how many."""
        if self._closed:
            return
        if self._rows:
            self._append()
        else:
            self._write()
        self._writes.give_up(len(self._waiting))
        self._closed = True
        if self.file:
            self.file.close()

    def _append(self, saved: int = -1) -> None:
        """Append the rows as a block, after those that wait."""
        self._waiting.append(encode(np.array(self._rows, dtype=ROW), self.rank, self.ranks, saved))
        self._rows = []
        self._write()

    def _write(self, sync: bool = False) -> None:
        """Write the blocks that wait, also in the thread that saves. Raises OSError where that will not go away."""
        with self._writes.attempt():
            with self._lock:
                file = self._written()
            if sync:
                os.fsync(file.fileno())

    def _written(self) -> FileIO:
        """Return the file once each block is written, in a call that the system does not mix with those of other ranks.

        Raises OSError.
        """
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = FileIO(self.path, "a")
        while self._waiting:
            if self.file.write(self._waiting[0]) != len(self._waiting[0]):  # readers pass over a part of a block
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            del self._waiting[0]
        return self.file
