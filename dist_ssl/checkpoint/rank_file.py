"""The file of one rank in a checkpoint: a safetensors file, written sequentially, read in pieces and verified.

Eight bytes hold the length of a JSON header, the header holds the offsets of each tensor's bytes (row-major), and the
bytes follow without a gap, the widest element types first. Disk space is reserved before the first byte is written, so
a disk without enough space fails before it is full. Bytes are hashed when written and again when read, in chunks that
stay in a core's cache; data that is read is copied once. Reads are plain reads at an offset: a broken disk then
returns an error, where a memory-mapped file would kill the process.
"""

import ctypes
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from dist_ssl.checkpoint.retries import TRANSIENT, with_retries
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.strange_files import open_regular

CHUNK_BYTES = 1 << 20
HEADER_MOST_BYTES = 100_000_000
"""Longest header that readers of this format accept."""
CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Element types by torch's name, as the format names them."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that say that there is not enough disk space."""
GONE = (errno.ENOENT, errno.ESTALE)
"""Errors of opening a file that has been removed."""
NOT_THE_FILE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that say nothing about its content."""
LIBC: Any = ctypes.CDLL(None, use_errno=True)


class DamagedError(Exception):
    """A checkpoint on disk differs from what was written."""


class MissingError(DamagedError):
    """A file of a checkpoint is not there, as while the checkpoint is being removed."""


def not_opened(path: Path, error: OSError) -> Exception:
    """Return the error for a file that cannot be opened: DamagedError, or CheckpointError if it may be intact."""
    if error.errno not in NOT_THE_FILE:
        return (MissingError if error.errno in GONE else DamagedError)(f"{path.name}: {error.strerror}")
    return CheckpointError(
        f"{path} cannot be opened: {error.strerror}.",
        "The checkpoint may be whole: fix the permissions or the limit on open files (ulimit -n), then resume.",
    )


@dataclass(frozen=True)
class Entry:
    """The table's entry of one piece and of the tensor that it belongs to; `dtype` is torch's name."""

    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    count: int
    xxh3: str


@dataclass(frozen=True)
class Written:
    """The table's entry of one rank's file: name, length in bytes, xxh3-128 of the header, and pieces by tensor."""

    file: str
    length: int
    header: str
    pieces: dict[str, Entry]

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "Written":
        """Return the entry whose plain values, as `dataclasses.asdict` gives them, another rank has sent."""
        pieces = {name: Entry(**{**entry, "shape": tuple(entry["shape"])}) for name, entry in values["pieces"].items()}
        return cls(values["file"], values["length"], values["header"], pieces)


def dtype_name(tensor: Tensor) -> str:
    """Return torch's name of the element type, e.g. `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous host tensor, without a copy."""
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def sync(path: Path) -> None:
    """Force a file or folder to disk (fsync). Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def order(own: Mapping[str, Piece]) -> list[str]:
    """Return the names in file order, wide elements first, so that every tensor is aligned to its element size."""
    return sorted(own, key=lambda name: (-own[name].tensor.element_size(), name))


def header_of(own: Mapping[str, Piece]) -> bytes:
    """Return the bytes before the data: the header's length (8 bytes, little-endian) and the header."""
    rows, end = {}, 0
    for name in order(own):
        tensor = own[name].tensor
        begin, end = end, end + tensor.nbytes
        rows[name] = {
            "dtype": CODES[dtype_name(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(file: Path, own: Mapping[str, Piece]) -> Written:
    """Write host pieces, in any memory layout, into a new file and sync it to disk. Raises OSError."""
    header = header_of(own)
    length = len(header) + sum(piece.tensor.nbytes for piece in own.values())
    with file.open("xb") as out:
        _reserve(out, length)
        out.write(header)
        pieces = {name: _write_piece(out, file.name, own[name]) for name in order(own)}
        out.flush()
        os.fsync(out.fileno())
    return Written(file.name, length, xxhash.xxh3_128_hexdigest(header), pieces)


def _reserve(out: BinaryIO, length: int) -> None:
    """Reserve `length` bytes where the file system supports it. Raises OSError where there is no space."""
    # not posix_fallocate: where reserving is not supported, as on NFS before 4.2, it writes to every block instead
    failed = LIBC.fallocate(out.fileno(), 0, ctypes.c_longlong(0), ctypes.c_longlong(length))
    number = ctypes.get_errno()
    if failed and number in NO_ROOM:
        raise OSError(number, os.strerror(number))


def _write_piece(out: BinaryIO, file: str, piece: Piece) -> Entry:
    data = as_bytes(piece.tensor.contiguous())
    hashed = xxhash.xxh3_128()
    for at in range(0, len(data), CHUNK_BYTES):
        hashed.update(data[at : at + CHUNK_BYTES])
        out.write(data[at : at + CHUNK_BYTES])
    count = piece.tensor.numel()
    return Entry(piece.shape, dtype_name(piece.tensor), file, piece.start, count, hashed.hexdigest())


class RankFile:
    """A rank's file, open for reading by any number of threads.

    `written`: its length and header hash as recorded in the table; None where it has none. Raises DamagedError,
    CheckpointError.
    """

    def __init__(self, path: Path, written: tuple[int, str] | None) -> None:
        self.path, self.name = path, path.name
        try:
            self._file = with_retries(path, lambda: open_regular(path))
        except OSError as error:
            raise not_opened(path, error) from error
        try:
            self.length = os.fstat(self._file.fileno()).st_size
            self._places = self._read_header(written)
        except (DamagedError, CheckpointError):
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_header(self, written: tuple[int, str] | None) -> dict[str, tuple[int, int]]:
        """Return begin and end of each tensor's bytes, from the start of the file. Raises DamagedError."""
        if written and self.length != written[0]:
            raise DamagedError(f"{self.name}: it has {self.length:,} bytes, {written[0]:,} were written")
        size = bytearray(8)
        self._fill(memoryview(size), 0)
        count = int.from_bytes(size, "little")
        if count > min(self.length - 8, HEADER_MOST_BYTES):
            raise DamagedError(f"{self.name}: its header is longer than the file")
        text = bytearray(count)
        self._fill(memoryview(text), 8)
        if written and xxhash.xxh3_128_hexdigest(bytes(size + text)) != written[1]:
            raise DamagedError(f"{self.name}: its header is not what was written")
        try:
            rows: dict[str, Any] = jsonl.parsed(bytes(text))
            rows.pop("__metadata__", None)
            return _places({name: row["data_offsets"] for name, row in rows.items()}, 8 + count, self.length)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{self.name}: its header cannot be read ({error})") from error

    def copy(self, name: str, piece: Mapping[str, Any], to: memoryview, skip: int, width: int) -> None:
        """Verify a piece whose elements take `width` bytes each, and copy its bytes from offset `skip` on into `to`.

        Raises DamagedError.
        """
        begin, end = self._places.get(name, (0, -1))
        if end - begin != piece["count"] * width:
            raise DamagedError(f"{self.name}: tensor '{name}' is missing or has another size")
        whole = skip == 0 and len(to) == end - begin
        hashed, beside = xxhash.xxh3_128(), memoryview(bytearray(0 if whole else CHUNK_BYTES))
        for at in range(0, end - begin, CHUNK_BYTES):
            first, last = at - skip, min(at + CHUNK_BYTES, end - begin) - skip
            inside = first >= 0 and last <= len(to)
            chunk = to[first:last] if inside else beside[: last - first]
            self._fill(chunk, begin + at)
            hashed.update(chunk)
            low, high = max(first, 0), min(last, len(to))
            if not inside and low < high:
                to[low:high] = chunk[low - first : high - first]
        if hashed.hexdigest() != piece["xxh3"]:
            raise DamagedError(f"{self.name}: tensor '{name}' is not what was written")

    def _fill(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from the file at `offset`. Raises DamagedError, CheckpointError."""
        done = 0
        while done < len(buffer):
            try:
                count = self._read(buffer[done:], offset + done)
            except (OSError, OverflowError) as error:
                raise DamagedError(f"{self.name}: {error}") from error
            if not count:
                raise DamagedError(f"{self.name}: it ends after {offset + done:,} bytes")
            done += count

    def _read(self, buffer: memoryview, offset: int) -> int:
        """Return how many bytes were read; after a transient error the file is opened anew, as a stale handle needs."""
        try:
            return os.preadv(self._file.fileno(), [buffer], offset)
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        return with_retries(self.path, lambda: _read_anew(self.path, buffer, offset))


def _read_anew(path: Path, buffer: memoryview, offset: int) -> int:
    with open_regular(path) as file:
        return os.preadv(file.fileno(), [buffer], offset)


def _places(offsets: Mapping[str, Any], first: int, length: int) -> dict[str, tuple[int, int]]:
    """Return begin and end of each tensor's bytes, which lie between `first` and `length`, without an overlap.

    `offsets`: the same as the header has them, counted from `first`; anybody may have written it. Raises ValueError,
    TypeError.
    """
    found = {}
    for name, (begin, end) in offsets.items():
        if not (type(begin) is int and type(end) is int and 0 <= begin <= end <= length - first):
            raise ValueError(f"tensor {name!r:.60} lies from {begin!r:.60} to {end!r:.60} of {length - first} bytes")
        found[name] = (first + begin, first + end)
    before = first
    for name, (begin, end) in sorted(found.items(), key=lambda place: place[1]):
        if begin < before:
            raise ValueError(f"tensor {name!r:.60} and the one before it overlap")
        before = end
    return found
