"""Columns over the samples of a split: position of the image's bytes in its tar, label, key; in memory, or in a file.

A split of 100 million samples has 6 GB of columns. So what computes with them reads single rows, or a block at a time
(`blocks`), and never assumes their type: columns in memory are int64, those in a file (column_file.py) of fewer bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Ints

Row = tuple[str, *tuple[int, ...]]
"""A sample as a row: its key, then its numbers in the order of `columns`."""
BLOCK = 1 << 20
"""Samples that are computed with at once where a split may have very many."""


class Numbers(Protocol):
    """Whole numbers, one per sample: an array, or `JoinedNumbers` ones."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: Any, /) -> Any: ...


class JoinedNumbers:
    """Several columns as one, which is not copied. A place is a number, or a slice without a step."""

    def __init__(self, parts: Sequence[Numbers]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            starts = (self.ends - np.diff(self.ends, prepend=0)).tolist()
            own = [p[max(start - at, 0) : max(stop - at, 0)] for p, at in zip(self.parts, starts, strict=True)]
            return np.concatenate([np.asarray(values, dtype=np.int64) for values in own])
        part = int(np.searchsorted(self.ends, place, side="right"))
        return self.parts[part][place - (int(self.ends[part - 1]) if part else 0)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Ints:
        """Return a copy of all values, for tests and tools."""
        return np.asarray(self[:], dtype=dtype)


def blocks(column: Numbers) -> Iterator[Ints]:
    """Yield the values of a column as int64, BLOCK samples at a time."""
    for first in range(0, len(column), BLOCK):
        yield np.asarray(column[first : first + BLOCK], dtype=np.int64)


@dataclass(frozen=True)
class Samples:
    """Columns over the N samples of a split: position of the image's bytes in its tar, label, key.

    Whole numbers, [N]: offsets and sizes in bytes, labels (-1: none). `widths`, `heights`: only in a level of a
    pyramid, the sides of the original image, upright, px; 0 where the original cannot be decoded.
    """

    offsets: Numbers
    sizes: Numbers
    labels: npt.NDArray[np.integer[Any]]
    keys: npt.NDArray[np.uint8]
    """All keys, concatenated, in UTF-8."""
    key_ends: npt.NDArray[np.integer[Any]]
    """Position in `keys` behind the last byte of each sample's key."""
    widths: Numbers | None = None
    heights: Numbers | None = None

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns that are present, by name."""
        return {name: np.asarray(values) for name, values in vars(self).items() if values is not None}

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, number: int) -> str:
        """Return the key of one sample."""
        start = int(self.key_ends[number - 1]) if number else 0
        return text_of(self.keys[start : int(self.key_ends[number])].tobytes())

    def unlabelled(self) -> tuple[int, int]:
        """Return the number of samples without a label, and the first of them (0 where there is none)."""
        found = [np.flatnonzero(own < 0) for own in blocks(self.labels)]
        first = next((number * BLOCK + int(own[0]) for number, own in enumerate(found) if len(own)), 0)
        return sum(map(len, found)), first

    def has_keys_of(self, other: "Samples") -> bool:
        """Return whether these samples have the keys of others, in order."""
        return np.array_equal(self.key_ends, other.key_ends) and np.array_equal(self.keys, other.keys)

    def to_read(self) -> "Samples":
        """Return the columns that reading needs, as they are sent to another process: no labels and no keys."""
        none, nothing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8)
        return replace(self, labels=none, keys=nothing, key_ends=none)


def text_of(key: bytes) -> str:
    """Return a key as text; bytes that are no UTF-8 are escaped."""
    return key.decode(errors="backslashreplace")


def columns(rows: Sequence[Row]) -> Samples:
    """Build the columns from rows (key, offset, size, label), for copies (..., width, height) of the original too."""
    encoded = [row[0].encode() for row in rows]
    numbers = np.array([row[1:] for row in rows], dtype=np.int64).reshape(len(rows), -1 if rows else 3)
    names = ("offsets", "sizes", "labels", "widths", "heights")
    return Samples(
        **{name: column.copy() for name, column in zip(names, numbers.T, strict=False)},
        keys=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        key_ends=np.cumsum([len(key) for key in encoded], dtype=np.int64),
    )


def joined(parts: Sequence[Samples]) -> Samples:
    """Concatenate the columns of several parts, in order."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return columns([])
    starts = np.cumsum([0, *(len(part.keys) for part in parts[:-1])])
    ends = [part.key_ends + start for part, start in zip(parts, starts, strict=True)]
    same = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Samples(**{**same, "key_ends": np.concatenate(ends)})


@dataclass(frozen=True)
class JoinedSamples(Samples):
    """The samples of several splits as those of one, without labels; nothing is copied. Made by `side_by_side`."""

    parts: tuple[Samples, ...] = ()

    def key(self, number: int) -> str:
        """See `Samples`."""
        ends = np.cumsum([len(part) for part in self.parts])
        part = int(np.searchsorted(ends, number, side="right"))
        return self.parts[part].key(number - (int(ends[part - 1]) if part else 0))

    def to_read(self) -> Samples:
        """See `Samples`."""
        return side_by_side([part.to_read() for part in self.parts])

    def __reduce__(self) -> tuple[Any, tuple[tuple[Samples, ...]]]:
        """Pickle the parts only."""
        return side_by_side, (self.parts,)


def side_by_side(parts: Sequence[Samples]) -> JoinedSamples:
    """Return the samples of several splits, in order, without their labels; with sides where all parts have them."""
    none = np.empty(0, dtype=np.uint8)
    sides: dict[str, Numbers] = {}
    for name in ("widths", "heights"):
        own = [getattr(part, name) for part in parts]
        sides |= {name: JoinedNumbers(own)} if all(values is not None for values in own) else {}
    return JoinedSamples(
        offsets=JoinedNumbers([part.offsets for part in parts]),
        sizes=JoinedNumbers([part.sizes for part in parts]),
        labels=np.broadcast_to(np.int64(-1), sum(map(len, parts))),
        keys=none,
        key_ends=none,
        **sides,
        parts=tuple(parts),
    )
