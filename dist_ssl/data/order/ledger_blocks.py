"""Blocks of a ledger: what one rank was given in consecutive steps, in 8 bytes a step.

    header       LEDG and the xxh3 of all that follows; rank, number of ranks, samples of a step, number of steps and of
                 exceptions, first step, and the step of the save that comes after them (-1: none)
    hashes       of the samples of every step
    exceptions   steps with another number of samples, or with replaced ones: place, samples, replaced, their hash

Blocks of several ranks follow each other in a file in any order. One that was cut short is passed over.
"""

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from dist_ssl.config.bounds import MOST_COUNT

MAGIC = b"LEDG"
START = struct.Struct("<4sQ")
FIELDS = struct.Struct("<IIIIIqq")
HEADER = START.size + FIELDS.size
STEPS = 1024
"""Most steps of a block."""
CHUNK = 1 << 16
"""Bytes that are searched at once for the next block."""
Rows = npt.NDArray[np.void]
ROW = np.dtype(
    [(name, "<i8") for name in ("step", "rank", "ranks", "count", "replaced")]
    + [(name, "<u8") for name in ("hash", "replaced_hash")]
)
"""A rank's line of a step: number and hash of its samples, and of those that were replaced."""
EXCEPTION = np.dtype([("place", "<u4"), ("count", "<u4"), ("replaced", "<u4"), ("replaced_hash", "<u8")])


class Block(NamedTuple):
    """The header of a block: `steps` from `first` on, of `samples` each but for `exceptions` of them."""

    rank: int
    ranks: int
    samples: int
    steps: int
    exceptions: int
    first: int
    saved: int

    @property
    def size(self) -> int:
        """Return the bytes that follow the header."""
        return 8 * self.steps + EXCEPTION.itemsize * self.exceptions

    @property
    def possible(self) -> bool:
        """Return whether a rank can have written this."""
        small = self.exceptions <= self.steps <= STEPS and self.rank < self.ranks
        return small and 0 <= self.first <= MOST_COUNT and -1 <= self.saved <= MOST_COUNT


def encode(rows: Rows, rank: int, ranks: int, saved: int = -1) -> bytes:
    """Return the block of these rows, which are of consecutive steps. `saved`: the step of the save after them."""
    count = int(rows["count"][0]) if len(rows) else 0
    places = np.flatnonzero((rows["count"] != count) | (rows["replaced"] != 0))
    other = np.zeros(len(places), dtype=EXCEPTION)
    other["place"] = places
    for name in ("count", "replaced", "replaced_hash"):
        other[name] = rows[name][places]
    first = int(rows["step"][0]) if len(rows) else 0
    fields = FIELDS.pack(rank, ranks, count, len(rows), len(places), first, saved)
    rest = fields + rows["hash"].tobytes() + other.tobytes()
    return START.pack(MAGIC, xxhash.xxh3_64_intdigest(rest)) + rest


def scan(file: IO[bytes]) -> Iterator[tuple[Block, int]]:
    """Yield the header of every whole block of a file, and where it begins."""
    place: int | None = 0
    while place is not None:
        file.seek(place)
        found = _at(file)
        if found:
            yield found[0], place
            place += HEADER + found[0].size
        else:
            place = _next(file, place)


def rows_at(file: IO[bytes], place: int) -> Rows:
    """Return the rows of the block that begins there; none where it is damaged by now."""
    file.seek(place)
    found = _at(file)
    if found is None:
        return np.empty(0, dtype=ROW)
    block, body = found
    rows = np.zeros(block.steps, dtype=ROW)
    rows["step"] = block.first + np.arange(block.steps)
    rows["rank"], rows["ranks"], rows["count"] = block.rank, block.ranks, block.samples
    rows["hash"] = np.frombuffer(body, "<u8", block.steps)
    other = np.frombuffer(body, EXCEPTION, block.exceptions, 8 * block.steps)
    other = other[other["place"] < block.steps]
    for name in ("count", "replaced", "replaced_hash"):
        rows[name][other["place"]] = other[name]
    return rows


def _at(file: IO[bytes]) -> tuple[Block, bytes] | None:
    """Read the block at the place of a file: its header and what follows; None where there is no whole one."""
    header = file.read(HEADER)
    if len(header) < HEADER or header[:4] != MAGIC:
        return None
    block = Block(*FIELDS.unpack(header[START.size :]))
    body = file.read(block.size) if block.possible else b""
    whole = block.possible and len(body) == block.size
    if not whole or xxhash.xxh3_64_intdigest(header[START.size :] + body) != START.unpack(header[: START.size])[1]:
        return None
    return block, body


def _next(file: IO[bytes], place: int) -> int | None:
    """Return where the next block may begin after a place; None where there is none."""
    place += 1
    while True:
        file.seek(place)
        chunk = file.read(CHUNK)
        if (found := chunk.find(MAGIC)) >= 0:
            return place + found
        if len(chunk) < CHUNK:
            return None
        place += CHUNK - len(MAGIC) + 1
