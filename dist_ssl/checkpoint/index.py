"""The files of one checkpoint: one safetensors file per rank, and `state.json` with the table of all tensors.

The table lists every tensor with its shape, its dtype and its pieces. A piece is a run of the tensor's elements in
row-major order: the file that holds it, the index of its first element, the number of elements, and the xxh3-128 of
its bytes. For every file the table holds the length and the hash of the header, and it is sealed by a hash of its own,
so no byte of a checkpoint can change unnoticed. A reader requests any elements, independently of the ranks that wrote
them, reads them with several threads, and verifies every piece that it reads from.
"""

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from dist_ssl.checkpoint.rank_file import DamagedError, RankFile, Written, as_bytes, not_opened, sync
from dist_ssl.checkpoint.retries import with_retries
from dist_ssl.checkpoint.table_rules import Table, gap, whole_table
from dist_ssl.core.progress import Progress
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece, State
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.strange_files import read_regular

FORMAT = 2
MOST_TABLE = 1 << 30
"""Bytes of `state.json`, at most: a piece takes some 150."""
READERS = 4
"""Number of reading threads: enough to keep a disk and two cores busy."""


def rank_file_name(rank: int) -> str:
    """Return the name of a rank's file in the folder of a checkpoint, which matches RANK_FILE."""
    return f"rank_{rank:05d}.safetensors"


def seal(content: Mapping[str, Any]) -> str:
    """Return the xxh3-128 of plain values, as JSON with sorted keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def sealed_text(content: Mapping[str, Any]) -> str:
    """Return the content with its seal, as the text of `state.json`."""
    return json.dumps({**content, "xxh3": seal(content)}, indent=1)


def share_out(whole: Mapping[str, Tensor], ranks: int) -> list[list[str]]:
    """Return the names that each rank writes: largest first, each to the rank with the fewest bytes so far."""
    parts: list[list[str]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for name in sorted(whole, key=lambda n: (-whole[n].nbytes, n)):
        load, rank = loads[0]
        parts[rank].append(name)
        heapq.heapreplace(loads, (load + whole[name].nbytes, rank))
    return parts


def own_pieces(state: State, rank: int, size: int) -> dict[str, Piece]:
    """Return what a rank writes: its own pieces, and its share of the tensors that every rank holds whole."""
    whole = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    own = {name: value for name, value in state.items() if isinstance(value, Piece)}
    for name in share_out(whole, size)[rank]:
        own[name] = Piece(whole[name], tuple(whole[name].shape), 0)
    return own


def join(written: Iterable[Written]) -> Table:
    """Return the table of what all ranks have written."""
    table: Table = {}
    for own in written:
        for name, e in own.pieces.items():
            row = table.setdefault(name, {"shape": list(e.shape), "dtype": e.dtype, "pieces": []})
            assert (tuple(row["shape"]), row["dtype"]) == (e.shape, e.dtype), f"'{name}' differs between ranks"
            row["pieces"].append({"file": e.file, "start": e.start, "count": e.count, "xxh3": e.xxh3})
    for name, row in table.items():
        row["pieces"].sort(key=lambda piece: (piece["start"], piece["count"]))
        problem = gap(row)
        assert not problem, f"the pieces of '{name}' {problem}"
    return table


def write_table(file: Path, progress: Mapping[str, Any], written: list[Written]) -> None:
    """Write `state.json`, sealed, and sync it to disk. Raises OSError."""
    files = {own.file: {"length": own.length, "header": own.header} for own in written}
    content = {"format": FORMAT, "progress": progress, "ranks": len(written), "files": files, "tensors": join(written)}
    file.write_text(sealed_text(content))
    sync(file)


def read_table(folder: Path) -> tuple[dict[str, Any], Table, dict[str, tuple[int, str]]]:
    """Return progress (as plain values), table, and each file's length and header hash where these are listed.

    Raises DamagedError, CheckpointError.
    """
    try:
        path = folder / "state.json"
        text = with_retries(path, lambda: read_regular(path, MOST_TABLE)).decode()
        content = jsonl.parsed(text)
        version, sealed = content["format"], content.pop("xxh3")
    except OSError as error:
        raise not_opened(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"state.json: {error}") from error
    if sealed != seal(content) or text != sealed_text(content):
        raise DamagedError("state.json: it is not what was written")
    if version not in (1, FORMAT):
        raise CheckpointError(
            f"{folder} has checkpoint format {version}: this version reads 1 and {FORMAT}.",
            "Resume with the version of dist_ssl that wrote it.",
        )
    try:
        table, files = whole_table(content, first=version == 1)
        return content["progress"], table, files
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"state.json: a key is missing or has another type ({error!r})") from error


def progress_of(values: dict[str, Any]) -> Progress:
    """Return the position that `state.json` describes. Raises DamagedError where it cannot be that of a run."""
    try:
        return Progress.from_json(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"state.json: its progress cannot be read ({error!r})") from error


Wants = Callable[[str, tuple[int, ...]], range | None]
"""Function from a tensor's name and shape to the elements that are requested of it; None requests all."""
Copy = Callable[[], None]


def everything(_name: str, _shape: tuple[int, ...]) -> None:
    """Request all of every tensor."""


def read(folder: Path, wants: Wants = everything) -> tuple[dict[str, Any], dict[str, Tensor | Piece]]:
    """Return verified progress (as plain values) and state: a Piece where `wants` gave a range, else a whole tensor.

    Raises DamagedError, CheckpointError.
    """
    progress, table, known = read_table(folder)
    state: dict[str, Tensor | Piece] = {}
    copies: list[Copy] = []
    spans = {name: wants(name, tuple(row["shape"])) for name, row in table.items()}
    with _rank_files(folder, known) as file:
        _check_lengths(table, spans, file)
        for name, row in table.items():
            shape, span = tuple(row["shape"]), spans[name]
            taken = range(math.prod(shape)) if span is None else span
            out = torch.empty(len(taken), dtype=getattr(torch, row["dtype"]))
            copies += [_copying(file(piece["file"]), name, piece, taken, out) for piece in _within(row, span)]
            state[name] = out.view(shape) if span is None else Piece(out, shape, taken.start)
        _do_all(copies)
    return progress, state


def _within(row: Mapping[str, Any], span: range | None) -> Iterator[Mapping[str, Any]]:
    """Yield the pieces of a tensor that hold some of the elements in `span`; None: all of them."""
    for piece in row["pieces"]:
        first, end = piece["start"], piece["start"] + piece["count"]
        if first < end and (span is None or max(span.start, first) < min(span.stop, end)):
            yield piece


def _check_lengths(table: Table, spans: Mapping[str, range | None], file: Callable[[str], RankFile]) -> None:
    """Raise DamagedError where the pieces that are to be read are more than the files that hold them.

    Anybody can seal a table: memory is taken for what there is, and not for what it says.
    """
    taken: Counter[str] = Counter()
    for name, row in table.items():
        width = getattr(torch, row["dtype"]).itemsize
        for piece in _within(row, spans[name]):
            taken[piece["file"]] += piece["count"] * width
    for name, count in taken.items():
        if count > file(name).length:
            raise DamagedError(f"state.json: it lists {count:,} bytes of {name}, which has {file(name).length:,}")


def verify(folder: Path) -> None:
    """Compare every byte of a checkpoint with its hash, without keeping any. Raises DamagedError, CheckpointError."""
    _, table, known = read_table(folder)
    with _rank_files(folder, known) as file:
        _do_all(
            [
                partial(
                    file(piece["file"]).copy, name, piece, memoryview(b""), 0, getattr(torch, row["dtype"]).itemsize
                )
                for name, row in table.items()
                for piece in row["pieces"]
            ]
        )


@contextmanager
def _rank_files(folder: Path, known: Mapping[str, tuple[int, str]]) -> Iterator[Callable[[str], RankFile]]:
    """Yield a function that opens a file of a checkpoint by its name, once; all of them are closed at the end."""
    files: dict[str, RankFile] = {}

    def file(name: str) -> RankFile:
        if name not in files:
            files[name] = RankFile(folder / name, known.get(name))
        return files[name]

    try:
        yield file
    finally:
        for opened in files.values():
            opened.close()


def _do_all(copies: Iterable[Copy]) -> None:
    """Run the functions in several threads; raise the error of the first that has one."""
    with ThreadPoolExecutor(READERS, "reader") as readers:
        for done in [readers.submit(copy) for copy in copies]:
            done.result()


def _copying(file: RankFile, name: str, piece: Mapping[str, Any], taken: range, out: Tensor) -> Copy:
    """Return the function that copies the elements of a piece within `taken` to their place in `out` [len(taken)]."""
    width = out.element_size()
    first, end = max(taken.start, piece["start"]), min(taken.stop, piece["start"] + piece["count"])
    to = as_bytes(out[first - taken.start : end - taken.start])
    return partial(file.copy, name, piece, to, (first - piece["start"]) * width, width)
