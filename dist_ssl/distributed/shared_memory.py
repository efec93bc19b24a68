"""Small exchanges between processes of one machine through shared memory, some fifty times faster than sockets there.

Every rank has two shared memory, used in turn. In round t a rank writes its bytes and then their hash, keyed by t, and
reads the others' until each hash fits: a reader never takes half a letter, whatever the order in which the machine
makes writes visible. Two boxes are enough, because nobody writes round t + 2 before all have read round t. A rank
that has written rings its bell; who waits for it sleeps meanwhile, and leaves the core to who has work. Who waits for
a rank that has ended hears of it at once, as from a socket.
"""

import mmap
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from dist_ssl.distributed.futex import LINE_BYTES, Futexes
from dist_ssl.distributed.liveness import Liveness
from dist_ssl.errors import UserError

HASH_BYTES = 8
LOOK_SECONDS = 0.2
"""A rank that is so late may have ended."""
Bytes = npt.NDArray[np.uint8]


def message_hash(data: Bytes, round_number: int) -> int:
    """The hash that makes a letter of this round valid; never 0, which is what fresh memory holds."""
    buffer: memoryview = memoryview(data)  # type: ignore[arg-type]
    return xxhash.xxh3_64_intdigest(buffer, seed=round_number) or 1


def file_bytes(size: int, capacity: int) -> int:
    """Of the bells and both boxes of `size` ranks."""
    return size * (LINE_BYTES + 2 * (HASH_BYTES + capacity))


def create(folder: Path, name: str, size: int, capacity: int) -> Path:
    """A file for the shared memory of `size` ranks, its room reserved; remove it as soon as all have opened it."""
    path = folder / name
    with path.open("xb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, file_bytes(size, capacity))
        except OSError:
            path.unlink()
            raise
    return path


class SharedMemory:
    """One rank's view of the shared memory in `path`. `capacity`: most bytes of a letter; `seconds`: most to wait."""

    def __init__(self, path: Path, rank: int, size: int, capacity: int, seconds: float) -> None:
        self.rank, self.size, self.capacity, self.seconds = rank, size, capacity, seconds
        file = path.open("r+b", buffering=0)
        self.memory = mmap.mmap(file.fileno(), file_bytes(size, capacity))
        self.liveness = Liveness(file, rank)
        self.all_shown = False
        """Whether every rank's presence is known to be shown: set it where that was agreed."""
        self.futexes = Futexes(self.memory, size)
        cells = np.frombuffer(self.memory, dtype=np.uint8, offset=size * LINE_BYTES)
        cells = cells.reshape(2, size, HASH_BYTES + capacity)
        self.hashes = cells[:, :, :HASH_BYTES]
        self.messages = cells[:, :, HASH_BYTES:]
        self.round = 0

    def exchange(self, data: Bytes) -> Bytes:
        """[n] bytes of this rank -> [size, n] bytes of all, in rank order; n is the same on every rank."""
        self.round += 1
        box = self.round % 2
        self.messages[box, self.rank, : len(data)] = data
        own = np.array([message_hash(data, self.round)], dtype=np.uint64)
        self.hashes[box, self.rank] = own.view(np.uint8)
        self.futexes.ring(self.rank)
        out = np.empty((self.size, len(data)), dtype=np.uint8)
        out[self.rank] = data
        for rank in range(self.size):
            if rank != self.rank:
                self._read(box, rank, out[rank])
        return out

    def _read(self, box: int, rank: int, out: Bytes) -> None:
        """Copy a letter once it is whole. Raises ConnectionError, or UserError where its writer lives."""
        started = 0.0
        while True:
            late = time.monotonic() - started if started else 0.0
            gone = self.all_shown and late > LOOK_SECONDS and self.liveness.gone(rank)  # before it looks a last time
            word = self.futexes.read(rank)
            hashed = int(self.hashes[box, rank].copy().view(np.uint64)[0])
            if hashed:
                out[:] = self.messages[box, rank, : len(out)]
                if message_hash(out, self.round) == hashed:
                    return
            if gone:
                raise ConnectionError(f"Rank {rank} has ended: its log tells why.")
            if late > self.seconds:
                raise UserError(
                    f"Rank {rank} did not answer for {self.seconds:.0f} s.",
                    "Its log tells why; timeout=10 minutes waits longer.",
                )
            started = started or time.monotonic()
            self.futexes.wait(rank, word)

    def fits(self, count: int) -> bool:
        """Whether a letter of so many bytes fits."""
        return count <= self.capacity
