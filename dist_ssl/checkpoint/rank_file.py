"""The file of one rank within a checkpoint: a safetensors file, written in one go, read by pieces and verified.

Eight bytes tell the length of a JSON header, the header tells where each tensor's bytes lie (row by row), and they
follow without a gap, the widest elements first. Room on the disk is reserved before the first byte is written, so a
disk that is too small is known before it is full. Bytes are hashed on their way out, and again on their way in, in
runs that stay in a core's cache; what is read is copied once. Reads are plain reads at an offset: a broken disk then
answers with an error, where a mapped file would end the process.
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

from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece

CHUNK_BYTES = 1 << 20
HEADER_MOST_BYTES = 100_000_000
"""What readers of this format accept."""
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
"""torch's names of element types to those of the format."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_THE_FILE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Why a file cannot be opened that may be as it was written."""
LIBC: Any = ctypes.CDLL(None, use_errno=True)


class DamagedError(Exception):
    """A checkpoint on disk is not what was written."""


def not_opened(path: Path, error: OSError) -> Exception:
    """What it means that a file of a checkpoint cannot be opened: that it is damaged, or nothing about it."""
    if error.errno not in NOT_THE_FILE:
        return DamagedError(f"{path.name}: {error.strerror}")
    return CheckpointError(
        f"{path} cannot be opened: {error.strerror}.",
        "The checkpoint may be whole: mend the rights of its files or the limit on open ones (ulimit -n), then resume.",
    )


@dataclass(frozen=True)
class Entry:
    """What the table says of one piece, and of the tensor that it belongs to; dtype is torch's name."""

    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    count: int
    xxh3: str


@dataclass(frozen=True)
class Written:
    """What the table says of one rank's file: its name, its length, the xxh3-128 of its header, and its pieces."""

    file: str
    length: int
    header: str
    pieces: dict[str, Entry]


def dtype_name(tensor: Tensor) -> str:
    """`float32`, say."""
    return str(tensor.dtype).removeprefix("torch.")


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous host tensor."""
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def order(own: Mapping[str, Piece]) -> list[str]:
    """The names in the order of their bytes: every tensor then begins at a multiple of its element's size."""
    return sorted(own, key=lambda name: (-own[name].tensor.element_size(), name))


def header_of(own: Mapping[str, Piece]) -> bytes:
    """The length of the header, and the header."""
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
    """Write host pieces, whatever their order in memory, into a new file, safe on disk. Raises OSError."""
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
    """Have room for so many bytes, where the file system can promise it."""
    # not posix_fallocate: where nothing is promised, as on NFS before 4.2, it writes to every block of the file instead
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

    `written`: its length and its header's hash, where the table tells them. Raises DamagedError.
    """

    def __init__(self, path: Path, written: tuple[int, str] | None) -> None:
        self.name = path.name
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise not_opened(path, error) from error
        try:
            self.length = os.fstat(self._handle).st_size
            self._places = self._read_header(written)
        except DamagedError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _read_header(self, written: tuple[int, str] | None) -> dict[str, tuple[int, int]]:
        """Where each tensor's bytes begin and end."""
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
            rows: dict[str, Any] = json.loads(text)
            rows.pop("__metadata__", None)
            ends = {name: row["data_offsets"] for name, row in rows.items()}
            return {name: (8 + count + begin, 8 + count + end) for name, (begin, end) in ends.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{self.name}: its header cannot be read ({error})") from error

    def copy(self, name: str, piece: Mapping[str, Any], to: memoryview, skip: int, width: int) -> None:
        """Verify a piece whose elements take `width` bytes, and copy its bytes from number `skip` on into `to`.

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
        """Read all of a buffer from the file."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._handle, [buffer[done:]], offset + done)
            except (OSError, OverflowError) as error:
                raise DamagedError(f"{self.name}: {error}") from error
            if not count:
                raise DamagedError(f"{self.name}: it ends after {offset + done:,} bytes")
            done += count
