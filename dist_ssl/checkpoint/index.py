"""The files of one checkpoint: one safetensors file per rank, and the table in `state.json` of what lies where.

The table names every tensor with its shape, its dtype and its pieces. A piece is a run of the tensor's elements,
counted row by row: the file that holds it, the number of its first element, how many there are, and the xxh3-128 of its
bytes. Of every file it tells the length and the hash of the header, and it is sealed by a hash of its own: no byte of a
checkpoint can change unnoticed. A reader takes whichever elements it wants, whoever wrote them, by several threads, and
verifies every piece that it takes some from.
"""

import heapq
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from dist_ssl.checkpoint.rank_file import CODES, DamagedError, RankFile, Written, as_bytes, not_opened, sync
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece, State

FORMAT = 2
READERS = 4
"""Threads that read: as many as keep a disk and two cores busy."""
RANK_FILE = re.compile(r"rank_\d{5}\.safetensors")
Table = dict[str, Any]
"""Tensor names to {shape, dtype, pieces: [{file, start, count, xxh3}, ...]}, as plain values."""


def seal(content: Mapping[str, Any]) -> str:
    """The xxh3-128 of plain values."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def sealed_text(content: Mapping[str, Any]) -> str:
    """A table as it stands on disk."""
    return json.dumps({**content, "xxh3": seal(content)}, indent=1)


def share_out(whole: Mapping[str, Tensor], ranks: int) -> list[list[str]]:
    """The names that each rank writes: largest first, each to the rank that has the fewest bytes so far."""
    parts: list[list[str]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for name in sorted(whole, key=lambda n: (-whole[n].nbytes, n)):
        load, rank = loads[0]
        parts[rank].append(name)
        heapq.heapreplace(loads, (load + whole[name].nbytes, rank))
    return parts


def own_pieces(state: State, rank: int, size: int) -> dict[str, Piece]:
    """What a rank writes: its pieces, and its share of the tensors that all ranks have whole."""
    whole = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    own = {name: value for name, value in state.items() if isinstance(value, Piece)}
    for name in share_out(whole, size)[rank]:
        own[name] = Piece(whole[name], tuple(whole[name].shape), 0)
    return own


def join(written: Iterable[Written]) -> Table:
    """The table of what all ranks have written."""
    table: Table = {}
    for own in written:
        for name, e in own.pieces.items():
            row = table.setdefault(name, {"shape": list(e.shape), "dtype": e.dtype, "pieces": []})
            assert (tuple(row["shape"]), row["dtype"]) == (e.shape, e.dtype), f"'{name}' differs between ranks"
            row["pieces"].append({"file": e.file, "start": e.start, "count": e.count, "xxh3": e.xxh3})
    for name, row in table.items():
        row["pieces"].sort(key=lambda piece: (piece["start"], piece["count"]))
        problem = _gap(row)
        assert not problem, f"the pieces of '{name}' {problem}"
    return table


def _gap(row: Mapping[str, Any]) -> str:
    """Why pieces, in order, are not all of a tensor; empty where they are."""
    end = 0
    for piece in row["pieces"]:
        if piece["start"] != end and piece["count"]:
            return "overlap or leave a gap"
        end += piece["count"]
    return "" if end == math.prod(row["shape"]) else "are not all of it"


def write_table(file: Path, progress: Mapping[str, Any], written: list[Written]) -> None:
    """Write `state.json`, sealed and safe on disk. Raises OSError."""
    files = {own.file: {"length": own.length, "header": own.header} for own in written}
    content = {"format": FORMAT, "progress": progress, "ranks": len(written), "files": files, "tensors": join(written)}
    file.write_text(sealed_text(content))
    sync(file)


def read_table(folder: Path) -> tuple[dict[str, Any], Table, dict[str, tuple[int, str]]]:
    """Progress (as plain values) and table of a checkpoint; length and header's hash of its files, where it tells them.

    Raises DamagedError, CheckpointError.
    """
    try:
        text = (folder / "state.json").read_text()
        content = json.loads(text)
        version, sealed = content["format"], content.pop("xxh3")
    except OSError as error:
        raise not_opened(folder / "state.json", error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"state.json: {error}") from error
    if sealed != seal(content) or text != sealed_text(content):
        raise DamagedError("state.json: it is not what was written")
    if version not in (1, FORMAT):
        raise CheckpointError(
            f"{folder} has checkpoint format {version}: this version reads 1 and {FORMAT}.",
            "Resume with the version of dist_ssl that wrote it.",
        )
    try:
        table: Table = _of_whole_tensors(content["tensors"]) if version == 1 else content["tensors"]
        files = {name: (row["length"], row["header"]) for name, row in content.get("files", {}).items()}
        for name, row in table.items():
            _check(name, row)
        return content["progress"], table, files
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"state.json: it does not tell what it should ({error!r})") from error


def _check(name: str, row: Mapping[str, Any]) -> None:
    """Raise DamagedError where a row of the table cannot be true, however well it is sealed."""
    if row["dtype"] not in CODES:
        raise DamagedError(f"state.json: tensor '{name}' is of {row['dtype']}, which is unknown")
    numbers = [*row["shape"], *(piece[key] for piece in row["pieces"] for key in ("start", "count"))]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise DamagedError(f"state.json: a number of elements of tensor '{name}' is none")
    if problem := _gap(row):
        raise DamagedError(f"state.json: the pieces of tensor '{name}' {problem}")
    for piece in row["pieces"]:
        if not RANK_FILE.fullmatch(piece["file"]):
            raise DamagedError(f"state.json: tensor '{name}' lies in {piece['file']!r}, which is no rank's file")


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
Copy = Callable[[], None]


def everything(_name: str, _shape: tuple[int, ...]) -> None:
    """Wants all of every tensor."""


def read(folder: Path, wants: Wants = everything) -> tuple[dict[str, Any], dict[str, Tensor | Piece]]:
    """Progress (as plain values) and state of a checkpoint, verified: whole tensors, pieces where pieces are wanted.

    Raises DamagedError, CheckpointError.
    """
    progress, table, known = read_table(folder)
    files: dict[str, RankFile] = {}
    state: dict[str, Tensor | Piece] = {}
    copies: list[Copy] = []
    try:
        for name, row in table.items():
            shape = tuple(row["shape"])
            span = wants(name, shape)
            taken = range(math.prod(shape)) if span is None else span
            out = torch.empty(len(taken), dtype=getattr(torch, row["dtype"]))
            for piece in row["pieces"]:
                if max(taken.start, piece["start"]) < min(taken.stop, piece["start"] + piece["count"]):
                    file = piece["file"]
                    if file not in files:
                        files[file] = RankFile(folder / file, known.get(file))
                    copies.append(_copying(files[file], name, piece, taken, out))
            state[name] = out.view(shape) if span is None else Piece(out, shape, taken.start)
        with ThreadPoolExecutor(READERS, "reader") as readers:
            for done in [readers.submit(copy) for copy in copies]:
                done.result()
    finally:
        for opened in files.values():
            opened.close()
    return progress, state


def _copying(file: RankFile, name: str, piece: Mapping[str, Any], taken: range, out: Tensor) -> Copy:
    """What copies the elements of a piece that are in `taken` to their place in `out` [len(taken)]."""
    width = out.element_size()
    first, end = max(taken.start, piece["start"]), min(taken.stop, piece["start"] + piece["count"])
    to = as_bytes(out[first - taken.start : end - taken.start])
    return partial(file.copy, name, piece, to, (first - piece["start"]) * width, width)
