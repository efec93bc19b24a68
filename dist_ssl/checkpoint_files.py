"""The files of one checkpoint: one safetensors file per rank, and the table in `state.json` of what lies where.

The table names every tensor with its shape, its dtype and its pieces. A piece is a run of the tensor's elements,
counted row by row: the file that holds it, the number of its first element, how many there are, and the xxh3-128 of its
bytes. A reader takes whichever elements it wants, whoever wrote them, and verifies every piece that it takes some from.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from dist_ssl.engine import Piece, State
from dist_ssl.errors import CheckpointError

FORMAT = 2
Table = dict[str, Any]
"""Tensor names to {shape, dtype, pieces: [{file, start, count, xxh3}, ...]}, as plain values."""


class DamagedError(Exception):
    """A checkpoint on disk is not what was written."""


@dataclass(frozen=True)
class Entry:
    """What the table says of one piece, and of the tensor that it belongs to; dtype is torch's name."""

    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    count: int
    xxh3: str


def digest(tensor: Tensor) -> str:
    """The xxh3-128 of a contiguous host tensor's bytes."""
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return xxhash.xxh3_128_hexdigest(data)


def seal(content: Mapping[str, Any]) -> str:
    """The xxh3-128 of plain values."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def dtype_name(tensor: Tensor) -> str:
    """`float32`, say."""
    return str(tensor.dtype).removeprefix("torch.")


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share_out(whole: Mapping[str, Tensor], ranks: int) -> list[list[str]]:
    """The names that each rank writes: largest first, each to the rank that has the fewest bytes so far."""
    parts: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(whole, key=lambda n: (-whole[n].nbytes, n)):
        rank = loads.index(min(loads))
        parts[rank].append(name)
        loads[rank] += whole[name].nbytes
    return parts


def own_pieces(state: State, rank: int, size: int) -> dict[str, Piece]:
    """What a rank writes: its pieces, and its share of the tensors that all ranks have whole."""
    whole = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    own = {name: value for name, value in state.items() if isinstance(value, Piece)}
    for name in share_out(whole, size)[rank]:
        own[name] = Piece(whole[name], tuple(whole[name].shape), 0)
    return own


def write(file: Path, own: Mapping[str, Piece]) -> dict[str, Entry]:
    """Write pieces into one file, safe on disk; what the table is to say of them. Raises OSError."""
    held = {name: piece.tensor.detach().to("cpu", copy=False).contiguous() for name, piece in own.items()}
    file.write_bytes(safetensors.torch.save(held))
    sync(file)
    return {
        name: Entry(piece.shape, dtype_name(held[name]), file.name, piece.start, held[name].numel(), digest(held[name]))
        for name, piece in own.items()
    }


def join(written: Iterable[Mapping[str, Entry]]) -> Table:
    """The table of what all ranks have written."""
    table: Table = {}
    for own in written:
        for name, e in own.items():
            row = table.setdefault(name, {"shape": list(e.shape), "dtype": e.dtype, "pieces": []})
            assert (tuple(row["shape"]), row["dtype"]) == (e.shape, e.dtype), f"'{name}' differs between ranks"
            row["pieces"].append({"file": e.file, "start": e.start, "count": e.count, "xxh3": e.xxh3})
    for name, row in table.items():
        row["pieces"].sort(key=lambda piece: (piece["start"], piece["count"]))
        end = 0
        for piece in row["pieces"]:
            assert piece["start"] == end or piece["count"] == 0, f"the pieces of '{name}' overlap or leave a gap"
            end += piece["count"]
        assert end == math.prod(row["shape"]), f"the pieces of '{name}' are not all of it"
    return table


def write_table(file: Path, progress: Mapping[str, Any], ranks: int, table: Table) -> None:
    """Write `state.json`, sealed and safe on disk. Raises OSError."""
    content = {"format": FORMAT, "progress": progress, "ranks": ranks, "tensors": table}
    file.write_text(json.dumps({**content, "xxh3": seal(content)}, indent=1))
    sync(file)


def read_table(folder: Path) -> tuple[dict[str, Any], Table]:
    """Progress (as plain values) and table of a checkpoint. Raises DamagedError, CheckpointError."""
    try:
        content = json.loads((folder / "state.json").read_text())
        version, sealed = content["format"], content.pop("xxh3")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"state.json: {error}") from error
    if version not in (1, FORMAT):
        raise CheckpointError(
            f"{folder} has checkpoint format {version}: this version reads 1 and {FORMAT}.",
            "Resume with the version of dist_ssl that wrote it.",
        )
    if sealed != seal(content):
        raise DamagedError("state.json: its hash is another")
    table: Table = content["tensors"]
    return content["progress"], _of_whole_tensors(table) if version == 1 else table


def _of_whole_tensors(table: Table) -> Table:
    """The table of format 1, in which every tensor lay whole in one file."""
    return {
        name: {
            "shape": row["shape"],
            "dtype": row["dtype"],
            "pieces": [{"file": row["file"], "start": 0, "count": math.prod(row["shape"]), "xxh3": row["xxh3"]}],
        }
        for name, row in table.items()
    }


Wants = Callable[[str, tuple[int, ...]], range | None]
"""Name and shape of a tensor to the elements that are wanted of it; None where all of them."""


def everything(_name: str, _shape: tuple[int, ...]) -> None:
    """Wants all of every tensor."""


def read(folder: Path, wants: Wants = everything) -> tuple[dict[str, Any], dict[str, Tensor | Piece]]:
    """Progress (as plain values) and state of a checkpoint, verified: whole tensors, pieces where pieces are wanted.

    Raises DamagedError, CheckpointError.
    """
    progress, table = read_table(folder)
    files: dict[str, Any] = {}
    state: dict[str, Tensor | Piece] = {}
    for name, row in table.items():
        shape = tuple(row["shape"])
        span = wants(name, shape)
        if span is None:
            state[name] = _elements(folder, files, name, row, range(math.prod(shape))).view(shape)
        else:
            state[name] = Piece(_elements(folder, files, name, row, span), shape, span.start)
    return progress, state


def _elements(folder: Path, files: dict[str, Any], name: str, row: dict[str, Any], span: range) -> Tensor:
    """[len(span)] elements of a tensor, from pieces that are verified."""
    pieces = row["pieces"]
    if len(pieces) == 1 and pieces[0]["count"] == len(span):
        return _verified(folder, files, name, row["dtype"], pieces[0])
    out = torch.empty(len(span), dtype=getattr(torch, row["dtype"]))
    filled = 0
    for piece in pieces:
        start = piece["start"]
        first, end = max(span.start, start), min(span.stop, start + piece["count"])
        if first < end:
            held = _verified(folder, files, name, row["dtype"], piece)
            out[first - span.start : end - span.start] = held[first - start : end - start]
            filled += end - first
    assert filled == len(span), f"'{name}' has no elements {span}"
    return out


def _verified(folder: Path, files: dict[str, Any], name: str, dtype: str, piece: dict[str, Any]) -> Tensor:
    """[count] elements of a piece that is what was written."""
    file = piece["file"]
    try:
        if file not in files:
            files[file] = safetensors.safe_open(folder / file, "pt")
        tensor: Tensor = files[file].get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise DamagedError(f"{file}: {error}") from error
    if tensor.numel() != piece["count"] or dtype_name(tensor) != dtype or digest(tensor) != piece["xxh3"]:
        raise DamagedError(f"{file}: tensor '{name}'")
    return tensor.reshape(-1)
