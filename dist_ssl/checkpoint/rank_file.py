"""The file of one rank in a checkpoint: a safetensors file, written sequentially, read in pieces and verified.

A header of JSON, which is the table of the file (`rank_header.py`), holds the offsets of each tensor's bytes
(row-major), and the bytes follow without a gap, the widest element types first. Disk space is reserved before the first
byte is written, so a disk without enough space fails before it is full. Bytes are hashed when written and again when
read, in chunks that stay in a core's cache; data that is read is copied once. The header is written last, once the
hashes are known, into the room that was left for it. Reads are plain reads at an offset: a broken disk then returns an
error, where a memory-mapped file would kill the process.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from dist_ssl.checkpoint.damage import DamagedError, not_opened
from dist_ssl.checkpoint.placement import Held
from dist_ssl.checkpoint.rank_header import (
    CODES,
    HASHED_BYTES,
    HEADER_MOST_BYTES,
    Identity,
    Listed,
    Marked,
    PlaceInFile,
    header_of,
    order,
    read_header,
)
from dist_ssl.checkpoint.retries import with_retries
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece
from dist_ssl.runtime.strange_files import open_regular
from dist_ssl.runtime.tries import NO_ROOM, TRANSIENT

CHUNK_BYTES = 1 << 20
"""Bytes that are read or written at a time."""
LIBC: Any = ctypes.CDLL(None, use_errno=True)


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


def write(file: Path, own: Mapping[str, Piece], marked: Marked) -> int:
    """Write host pieces, in any memory layout, into a new file and sync it; return its length. Raises OSError."""
    room = len(header_of(own, marked))
    length = room + sum(piece.tensor.nbytes for piece in own.values())
    with file.open("xb") as out:
        _reserve(out, length)
        out.seek(room)
        header = header_of(own, marked, {name: _write_piece(out, own[name]) for name in order(own)})
        assert len(header) == room
        out.seek(0)
        out.write(header)
        out.flush()
        os.fsync(out.fileno())
    return length


def _reserve(out: BinaryIO, length: int) -> None:
    """Reserve `length` bytes where the file system supports it. Raises OSError where there is no space."""
    # not posix_fallocate: where reserving is not supported, as on NFS before 4.2, it writes to every block instead
    failed = LIBC.fallocate(out.fileno(), 0, ctypes.c_longlong(0), ctypes.c_longlong(length))
    number = ctypes.get_errno()
    if failed and number in NO_ROOM:
        raise OSError(number, os.strerror(number))


def _write_piece(out: BinaryIO, piece: Piece) -> list[str]:
    """Write a piece, and return the hash of every HASHED_BYTES of it."""
    data, hashes = as_bytes(piece.tensor.contiguous()), []
    for first in range(0, len(data), HASHED_BYTES):
        hashed, end = xxhash.xxh3_128(), min(first + HASHED_BYTES, len(data))
        for at in range(first, end, CHUNK_BYTES):
            hashed.update(data[at : min(at + CHUNK_BYTES, end)])
            out.write(data[at : min(at + CHUNK_BYTES, end)])
        hashes.append(hashed.hexdigest())
    return hashes


class RankFile:
    """A rank's file, open for reading by any number of threads.

    `identity`: how the table recognises it. Raises DamagedError, CheckpointError.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.name = path, path.name
        try:
            self._file = with_retries(path, lambda: open_regular(path))
        except OSError as error:
            raise not_opened(path, error) from error
        try:
            self.length = os.fstat(self._file.fileno()).st_size
            self._places = self._read_places(identity)
        except (DamagedError, CheckpointError):
            self.close()
            raise

    def close(self) -> None:
        """Close the file, which can be read all the same; not while others read it."""
        self._file.close()

    def _read_places(self, identity: Identity) -> dict[str, PlaceInFile]:
        """Return the place of each tensor in the file. Raises DamagedError."""
        if isinstance(identity, Listed) and self.length != identity.length:
            raise DamagedError(f"{self.name}: it has {self.length:,} bytes, {identity.length:,} were written")
        size = bytearray(8)
        self._fill(memoryview(size), 0)
        count = int.from_bytes(size, "little")
        if count > min(self.length - 8, HEADER_MOST_BYTES):
            raise DamagedError(f"{self.name}: its header is longer than the file")
        text = bytearray(count)
        self._fill(memoryview(text), 8)
        return read_header(self.name, bytes(size + text), self.length, identity)

    def verify(self, name: str, held: Held, dtype: str) -> None:
        """Compare all bytes of a piece with their hashes. Raises DamagedError."""
        self._copy(name, held, dtype, memoryview(b""), range(held.count * _width(dtype)))

    def copy(self, name: str, held: Held, dtype: str, to: memoryview, skip: int) -> None:
        """Copy the bytes of a piece from offset `skip` on into `to`, and verify them with what has the same hashes.

        Raises DamagedError.
        """
        self._copy(name, held, dtype, to, range(skip, skip + len(to)))

    def _copy(self, name: str, held: Held, dtype: str, to: memoryview, span: range) -> None:
        place = self._place(name, held, dtype)
        length = place.end - place.begin
        hashes, step = _hashes(held, place)
        for number in range(span.start // step, -(-span.stop // step) if span else span.start // step):
            first, end = number * step, min((number + 1) * step, length)
            if self._copy_hashed(range(first, end), place.begin, to, span.start) != hashes[number]:
                raise DamagedError(f"{self.name}: tensor '{name}' is not what was written")

    def _place(self, name: str, held: Held, dtype: str) -> PlaceInFile:
        """Return the place of a piece, which is the one that the table describes. Raises DamagedError."""
        place = self._places.get(name, PlaceInFile(0, -1))
        if place.end - place.begin != held.count * _width(dtype):
            raise DamagedError(f"{self.name}: tensor '{name}' is missing or has another size")
        if place.code not in (None, CODES[dtype]) or place.start not in (None, held.start):
            raise DamagedError(f"{self.name}: tensor '{name}' has another type or other elements than in state.json")
        return place

    def _copy_hashed(self, part: range, begin: int, to: memoryview, skip: int) -> str:
        """Read this part of a piece that begins at byte `begin`; return its hash.

        What of it lies from byte `skip` of the piece on, as far as `to` has room, is copied there.
        """
        hashed, beside = xxhash.xxh3_128(), memoryview(b"")
        for at in range(part.start, part.stop, CHUNK_BYTES):
            first, last = at - skip, min(at + CHUNK_BYTES, part.stop) - skip
            inside = first >= 0 and last <= len(to)
            if not inside and not beside:
                beside = memoryview(bytearray(CHUNK_BYTES))
            chunk = to[first:last] if inside else beside[: last - first]
            self._fill(chunk, begin + at)
            hashed.update(chunk)
            low, high = max(first, 0), min(last, len(to))
            if not inside and low < high:
                to[low:high] = chunk[low - first : high - first]
        return hashed.hexdigest()

    def _fill(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from the file at `offset`. Raises DamagedError, CheckpointError."""
        done = 0
        while done < len(buffer):
            try:
                count = self._read(buffer[done:], offset + done)
            except OSError as error:
                raise not_opened(self.path, error) from error
            except OverflowError as error:
                raise DamagedError(f"{self.name}: {error}") from error
            if not count:
                raise DamagedError(f"{self.name}: it ends after {offset + done:,} bytes")
            done += count

    def _read(self, buffer: memoryview, offset: int) -> int:
        """Return how many bytes were read; after a transient error the file is opened anew, as a stale handle needs.

        A file that has been closed is opened for each read.
        """
        try:
            if not self._file.closed:
                return os.preadv(self._file.fileno(), [buffer], offset)
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        return with_retries(self.path, lambda: _read_anew(self.path, buffer, offset))


def _read_anew(path: Path, buffer: memoryview, offset: int) -> int:
    with open_regular(path) as file:
        return os.preadv(file.fileno(), [buffer], offset)


def _width(dtype: str) -> int:
    """Return the bytes of an element."""
    width: int = getattr(torch, dtype).itemsize
    return width


def _hashes(held: Held, place: PlaceInFile) -> tuple[Sequence[str], int]:
    """Return the hashes of a piece, and of how many bytes each is: before format 3 one was of the whole piece."""
    if place.hashes is not None:
        return place.hashes, HASHED_BYTES
    return [held.xxh3 or ""], max(place.end - place.begin, 1)
