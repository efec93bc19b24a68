"""The header of a rank's file, which is also the table of its pieces: as JSON, as safetensors has it, and sealed.

Beside each tensor's element type, shape and offsets the metadata holds `xxh3`, the hash of the header with zeros in its
place; `save`, a random number that all files of a save carry; `rank`; and `pieces`, in the order of the tensors: the
index of each piece's first element, and the hash of every HASHED_BYTES of it. All hashes are xxh3-128, so the header is
as long before they are known as after. A header that anybody may have sealed is checked field by field.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash
from torch import Tensor

from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.protocols.engine import Piece
from dist_ssl.runtime import jsonl

HEADER_MOST_BYTES = 100_000_000
"""Longest header that readers of this format accept."""
MOST_VALUES = 1 << 21
"""Values of a header or of `state.json`, at most: a tensor and a hash of it have ten, and one takes 100 bytes."""
HASHED_BYTES = 1 << 24
"""Bytes of a piece that have one hash: a part of the piece is verified without what is far from it."""
ZEROS = "0" * 32
"""Digits in the place of a hash that is not known yet."""
BEGIN = '{"__metadata__":{"xxh3":"'
"""How a sealed header begins, up to its hash."""
PIECE = re.compile(r"([0-9]{1,18}):((?:[0-9a-f]{32},)*(?:[0-9a-f]{32})?)")
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


@dataclass(frozen=True)
class Listed:
    """The file of a checkpoint of format 2, whose length and header hash the table has."""

    length: int
    header: str


@dataclass(frozen=True)
class Marked:
    """The file that a rank wrote in a save, whose random number the table has."""

    save: str
    rank: int


Identity = Listed | Marked | None
"""How a file is recognised; None: not at all, as in the first checkpoints."""


@dataclass(frozen=True)
class PlaceInFile:
    """Begin and end of a piece's bytes in its file, and what else a sealed header has: type, first element, hashes."""

    begin: int
    end: int
    code: str | None = None
    start: int | None = None
    hashes: tuple[str, ...] | None = None


def dtype_name(tensor: Tensor) -> str:
    """Return torch's name of the element type, e.g. `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def order(own: Mapping[str, Piece]) -> list[str]:
    """Return the names in file order, wide elements first, so that every tensor is aligned to its element size."""
    return sorted(own, key=lambda name: (-own[name].tensor.element_size(), name))


def hash_count(length: int) -> int:
    """Return the number of hashes of a piece. `length`: its size in bytes."""
    return -(-length // HASHED_BYTES)


def header_of(own: Mapping[str, Piece], marked: Marked, hashes: Mapping[str, Sequence[str]] | None = None) -> bytes:
    """Return the bytes before the data: the header's length (8 bytes, little-endian) and the header.

    `hashes`: those of each piece; None: they are not known yet, and a header of the same length is returned.
    """
    rows, pieces, end = {}, [], 0
    for name in order(own):
        tensor = own[name].tensor
        begin, end = end, end + tensor.nbytes
        rows[name] = {
            "dtype": CODES[dtype_name(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        known = hashes[name] if hashes else [ZEROS] * hash_count(tensor.nbytes)
        pieces.append(f"{own[name].start}:{','.join(known)}")
    metadata = {"xxh3": ZEROS, "save": marked.save, "rank": str(marked.rank), "pieces": " ".join(pieces)}
    text = json.dumps({"__metadata__": metadata, **rows}, separators=(",", ":")).encode()
    return sealed_header(text + b" " * (-len(text) % 8))


def sealed_header(text: bytes) -> bytes:
    """Return a header that begins with BEGIN and 32 digits, its length before it and its hash in their place."""
    first, end = len(BEGIN), len(BEGIN) + len(ZEROS)
    head = len(text).to_bytes(8, "little")
    sealed = xxhash.xxh3_128_hexdigest(head + text[:first] + ZEROS.encode() + text[end:])
    return head + text[:first] + sealed.encode() + text[end:]


def read_header(file: str, head: bytes, length: int, identity: Identity) -> dict[str, PlaceInFile]:
    """Return the places of all pieces in a file of `length` bytes, from its header with the 8 bytes before it.

    Raises DamagedError.
    """
    if isinstance(identity, Listed) and xxhash.xxh3_128_hexdigest(head) != identity.header:
        raise DamagedError(f"{file}: its header is not what was written")
    if isinstance(identity, Marked) and (head[8:].find(BEGIN.encode()) or sealed_header(head[8:]) != head):
        raise DamagedError(f"{file}: its header is not what was written")
    try:
        rows: dict[str, Any] = jsonl.parsed(head[8:], MOST_VALUES)
        metadata = rows.pop("__metadata__", None)
        ends = _offsets({name: row["data_offsets"] for name, row in rows.items()}, length - len(head))
        if not isinstance(identity, Marked):
            return {name: PlaceInFile(len(head) + begin, len(head) + end) for name, (begin, end) in ends.items()}
        _check_mark(file, metadata, identity)
        _check_full(file, ends, length - len(head))
        return _places(rows, ends, metadata["pieces"].split(" "), len(head))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{file}: its header cannot be read ({error})") from error


def _offsets(offsets: Mapping[str, Any], length: int) -> dict[str, tuple[int, int]]:
    """Return begin and end of each tensor's bytes, which lie within `length` bytes of data, without an overlap.

    Anybody may have written them. Raises ValueError, TypeError.
    """
    for name, (begin, end) in offsets.items():
        if not (type(begin) is int and type(end) is int and 0 <= begin <= end <= length):
            raise ValueError(f"tensor {name!r:.60} lies from {begin!r:.60} to {end!r:.60} of {length} bytes")
    before = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda place: (*place[1],)):
        if begin < before:
            raise ValueError(f"tensor {name!r:.60} and the one before it overlap")
        before = end
    return {name: (begin, end) for name, (begin, end) in offsets.items()}


def _check_full(file: str, ends: Mapping[str, tuple[int, int]], length: int) -> None:
    """Raise DamagedError where the tensors, which do not overlap, are not all of the bytes after the header."""
    if (written := sum(end - begin for begin, end in ends.values())) != length:
        raise DamagedError(f"{file}: it has {length:,} bytes of tensors, {written:,} were written")


def _check_mark(file: str, metadata: Mapping[str, Any], marked: Marked) -> None:
    """Raise DamagedError where a file is of another save or of another rank."""
    if metadata["save"] != marked.save:
        raise DamagedError(f"{file}: it is of another save than state.json")
    if metadata["rank"] != str(marked.rank):
        raise DamagedError(f"{file}: it is the file of rank {metadata['rank']!r:.60}")


def _places(
    rows: Mapping[str, Any], ends: Mapping[str, tuple[int, int]], pieces: Sequence[str], first: int
) -> dict[str, PlaceInFile]:
    """Return the places of a sealed header's pieces, whose texts have the order of the rows.

    Raises ValueError, KeyError, TypeError.
    """
    if len(pieces) != max(len(rows), 1):
        raise ValueError(f"it describes {len(pieces)} pieces of {len(rows)} tensors")
    found = {}
    for (name, row), text in zip(rows.items(), pieces, strict=False):
        (begin, end), fields = ends[name], PIECE.fullmatch(text)
        if fields is None:
            raise ValueError(f"tensor {name!r:.60} has the piece {text!r:.60}, which is none")
        hashes = tuple(fields[2].split(",")) if fields[2] else ()
        if row["dtype"] not in CODES.values():
            raise ValueError(f"tensor {name!r:.60} is of {row['dtype']!r:.60}, which is unknown")
        if len(hashes) != hash_count(end - begin):
            raise ValueError(f"tensor {name!r:.60} has {len(hashes)} hashes for {end - begin} bytes")
        found[name] = PlaceInFile(first + begin, first + end, row["dtype"], int(fields[1]), hashes)
    return found
