"""The columns of a split as a file that is mapped into memory, of some 15 bytes a sample; see node_columns.py.

    header     4,096 bytes: the xxh3 of the rest of the header, then JSON: the file's length, the xxh3 of what follows,
               and of every column its type, place and number of values
    numbers    offsets, sizes, labels, widths, heights: of as few bytes as hold what the column may have
    keys       blocks of 1,024 keys, deflated: the length of each (uint16), then all texts; then the end of every block

It is made in one pass from the bytes of the data set's own file, a block at a time, with the checks of fields.py.
Whatever is unusual about those bytes is a ValueError: the reader of whole files then says what is wrong, or reads it.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from dist_ssl.config.bounds import MOST_COUNT
from dist_ssl.data.storage import fields
from dist_ssl.data.storage.fields import Column
from dist_ssl.data.storage.node_folder import itself
from dist_ssl.data.storage.samples import BLOCK, Samples, text_of
from dist_ssl.runtime import jsonl

HEADER = 4096
KEYS = 1024
"""Keys of a block."""
CHUNK = 1 << 22
"""Bytes that are hashed at once."""
UNIT = 64
"""Every column begins at a multiple of this many bytes."""
LEVEL = 1
"""The fastest of zlib. Keys of one folder become a fifth of their size, hexadecimal digits three fifths."""
NUMBERS = {"offsets": MOST_COUNT, "sizes": MOST_COUNT, "labels": MOST_COUNT} | dict.fromkeys(
    ("widths", "heights"), fields.MOST_SIDE
)
"""Largest value of every column of numbers that `read` accepts."""


@dataclass(frozen=True)
class MappedSamples(Samples):
    """Columns in a file that is mapped: `keys` holds deflated blocks of them, `key_ends` where each block ends."""

    path: Path = field(kw_only=True)

    def key(self, number: int) -> str:
        """See `Samples`."""
        block, place = divmod(number, KEYS)
        start = int(self.key_ends[block - 1]) if block else 0
        lengths, texts = _unpacked(self.keys[start : int(self.key_ends[block])].tobytes(), len(self) - block * KEYS)
        first = int(lengths[:place].sum(dtype=np.int64))
        return text_of(texts[first : first + int(lengths[place])])

    @property
    def columns(self) -> dict[str, Column]:
        """Not available: these columns are not written again, as their keys are deflated."""
        raise NotImplementedError

    def to_read(self) -> Samples:
        """See `Samples`: only the name of the file is sent."""
        none, nothing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8)
        return SentSamples(self.offsets, self.sizes, none, nothing, none, self.widths, self.heights, path=self.path)


@dataclass(frozen=True)
class SentSamples(MappedSamples):
    """The mapped columns that reading needs; pickled, they are the name of the file, which the receiver maps itself."""

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return _received, (self.path,)


def _received(path: Path) -> Samples:
    with FileIO(path, opener=itself) as file:
        found = mapped(file, path)
    if found is None:
        raise OSError(f"{path} was damaged since the run started: resume the run, which makes it again")
    return found.to_read()


@lru_cache(maxsize=4)
def _unpacked(block: bytes, most: int) -> tuple[npt.NDArray[np.uint16], bytes]:
    """Return the lengths of a block's keys, and their texts. `most`: keys from its first one to the last of all."""
    data = zlib.decompress(block)
    count = min(KEYS, most)
    return np.frombuffer(data, np.uint16, count), data[2 * count :]


class UnusualError(ValueError):
    """Some values do not fit the narrow types that nearly all data sets need."""


def write(part: FileIO, chunks: Iterable[bytes], hashed: str, shards: Sequence[tuple[int, int]], wide: bool) -> None:
    """Write the file of columns to an empty part. Raises ValueError; UnusualError where `wide` types are needed.

    `chunks`: the content of the data set's file of columns, whose xxh3 is `hashed`; `shards`: samples and bytes of
    each shard. Memory is needed for a block, and 2 bytes a sample while keys are written.
    """
    total, source, out = sum(count for count, _ in shards), _Source(chunks), _Writer(part)
    lengths = np.empty(0, dtype=np.uint16)
    for name, count in _described(source, total):
        if name == "keys":
            _write_keys(source, out, lengths, count)
        elif name == "key_ends":
            lengths = _lengths(source, total)
        else:
            kind = _type_of(name, max((size for _, size in shards), default=0), wide)
            out.column(name, kind, (_narrow(source, name, n, kind) for n in _steps(total)))
    source.finish(hashed)
    out.finish()
    _check_within(part, shards)


def mapped(file: FileIO, path: Path) -> MappedSamples | None:
    """Return the columns of an open file, mapped; None where it is not whole. Raises OSError."""
    header = _header(os.pread(file.fileno(), HEADER, 0))
    if header is None or os.fstat(file.fileno()).st_size != header["bytes"]:
        return None
    if _hash(file, HEADER) != header["xxh3"]:
        return None
    view = mmap.mmap(file.fileno(), header["bytes"], prot=mmap.PROT_READ)
    columns = {name: np.frombuffer(view, kind, n, place) for name, (kind, place, n) in header["columns"].items()}
    return MappedSamples(**columns, path=path)


def _hash(file: FileIO, start: int) -> str:
    """Return the xxh3 of a file from a place on; it is read, not mapped, as pages of keys need not stay."""
    hashed = xxhash.xxh3_128()
    while chunk := os.pread(file.fileno(), CHUNK, start):
        hashed.update(chunk)
        start += len(chunk)
    return hashed.hexdigest()


def _header(data: bytes) -> dict[str, Any] | None:
    """Return the fields of a header; None where it is damaged."""
    hashed, text = data[:32], data[32:]
    if len(data) != HEADER or hashed != xxhash.xxh3_128_hexdigest(text).encode():
        return None
    found = jsonl.parsed(text)
    return found if isinstance(found, dict) else None


class _Writer:
    """A file of columns that is written from its start to its end. Its header comes last: until then it is damaged."""

    def __init__(self, part: FileIO) -> None:
        self.part, self.columns = part, dict[str, tuple[str, int, int]]()
        self.hashed, self.place = xxhash.xxh3_128(), HEADER
        part.truncate(0)
        part.seek(HEADER)

    def column(self, name: str, kind: npt.DTypeLike, blocks: Iterable[Column]) -> None:
        """Append a column, in blocks."""
        self._append(bytes(-self.place % UNIT))
        start, values = self.place, 0
        for block in blocks:
            self._append(block.tobytes())
            values += len(block)
        self.columns[name] = (np.dtype(kind).str, start, values)

    def finish(self) -> None:
        """Write the header."""
        content = {"bytes": self.place, "xxh3": self.hashed.hexdigest(), "columns": self.columns}
        text = json.dumps(content).encode().ljust(HEADER - 32)
        self.part.seek(0)
        self.part.write(xxhash.xxh3_128_hexdigest(text).encode() + text)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.part.write(rest) :]
        self.hashed.update(data)
        self.place += len(data)


class _Source:
    """The bytes of a data set's file of columns, taken from its start to its end, and their hash."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks, self.hashed, self.rest = iter(chunks), xxhash.xxh3_128(), bytearray()

    def take(self, size: int) -> bytes:
        """Return the next bytes. Raises ValueError where there are fewer."""
        while len(self.rest) < size:
            chunk = next(self.chunks, b"")
            if not chunk:
                raise ValueError("it ends early")
            self.hashed.update(chunk)
            self.rest += chunk
        taken = bytes(self.rest[:size])
        del self.rest[:size]
        return taken

    def finish(self, hashed: str) -> None:
        """Raise ValueError unless this was all, and has this hash."""
        if self.rest or next(self.chunks, b"") or self.hashed.hexdigest() != hashed:
            raise ValueError("its hash is another one")


def _described(source: _Source, total: int) -> Iterator[tuple[str, int]]:
    """Yield name and number of values of every column in a file of safetensors, in order. Raises ValueError."""
    size = int.from_bytes(source.take(8), "little")
    if size > fields.HEADER_BYTES:
        raise ValueError("its header is too long")
    entries = jsonl.parsed(source.take(size), fields.MOST_VALUES)
    if not isinstance(entries, dict) or not {*entries} >= {"offsets", "sizes", "labels", "keys", "key_ends"}:
        raise ValueError("it lacks a column")
    if not {*entries} <= {*NUMBERS, "keys", "key_ends"} or list(entries)[-1] != "keys":
        raise ValueError("its columns are others, or in another order")
    if 8 * total * (len(entries) - 1) + entries["keys"]["shape"][0] > fields.MOST_COLUMN_BYTES:
        raise ValueError("it is too large")  # it may be full of holes, or come from a server that makes it up
    at = 0
    for name, entry in entries.items():
        count = entry["shape"][0] if name == "keys" else total
        kind, width = ("U8", 1) if name == "keys" else ("I64", 8)
        end = at + count * width
        if entry != {"dtype": kind, "shape": [count], "data_offsets": [at, end]}:
            raise ValueError(f"column {name} is another one")
        yield name, count
        at = end


def _steps(total: int, step: int = BLOCK) -> Iterator[int]:
    """Yield the sizes of the blocks of a column."""
    yield from (min(step, total - first) for first in range(0, total, step))


def _type_of(name: str, largest: int, wide: bool) -> type[np.integer[Any]]:
    """Return the type of a column of numbers. `largest`: bytes of the largest shard."""
    if name == "offsets":
        return np.uint32 if largest < 1 << 32 else np.int64
    if name == "labels":
        return np.int64 if wide else np.int16
    if name == "sizes":
        return np.uint32
    return np.uint32 if wide else np.uint16


def _narrow(source: _Source, name: str, count: int, kind: type[np.integer[Any]]) -> Column:
    """Return the next numbers of a column. Raises ValueError where one is impossible or does not fit the type."""
    values = np.frombuffer(source.take(8 * count), np.int64)
    least, most = int(values.min()), int(values.max())
    if least < (-1 if name == "labels" else 0) or most > NUMBERS[name]:
        raise ValueError(f"column {name} has impossible values")
    if most > np.iinfo(kind).max:
        raise UnusualError(f"column {name} has large values")
    return values.astype(kind)


def _lengths(source: _Source, total: int) -> npt.NDArray[np.uint16]:
    """Return the length of every key. Raises ValueError where one is impossible."""
    lengths, last, first = np.empty(total, dtype=np.uint16), 0, 0
    for count in _steps(total):
        ends = np.frombuffer(source.take(8 * count), np.int64)
        own = np.diff(ends, prepend=last)
        if own.min() < 0 or own.max() > fields.MOST_KEY:
            raise ValueError("a key has an impossible length")
        lengths[first : first + count], last, first = own, int(ends[-1]), first + count
    return lengths


def _write_keys(source: _Source, out: _Writer, lengths: npt.NDArray[np.uint16], count: int) -> None:
    """Write the blocks of keys, and where each ends. Raises ValueError where they are not as long as they say."""
    if int(lengths.sum(dtype=np.int64)) != count:
        raise ValueError("keys and their ends do not fit")
    ends: list[int] = []

    def packed() -> Iterator[Column]:
        for first in range(0, len(lengths), KEYS):
            own = lengths[first : first + KEYS]
            block = zlib.compress(own.tobytes() + source.take(int(own.sum(dtype=np.int64))), LEVEL)
            ends.append((ends[-1] if ends else 0) + len(block))
            yield np.frombuffer(block, np.uint8)

    out.column("keys", np.uint8, packed())
    out.column("key_ends", np.int64, [np.array(ends, dtype=np.int64)])


def _check_within(part: FileIO, shards: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError unless the samples lie within their shards and are no longer than may be read."""
    found = mapped(part, Path())
    if found is None:
        raise OSError("the file that was written is not what is read")
    first = 0
    for count, size in shards:
        offsets = np.asarray(found.offsets[first : first + count], dtype=np.int64)
        sizes = np.asarray(found.sizes[first : first + count], dtype=np.int64)
        if count and ((offsets + sizes).max() > size or sizes.max() > fields.MOST_IMAGE):
            raise ValueError("an image lies behind the end of its shard, or is too long")
        first += count
