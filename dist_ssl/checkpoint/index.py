"""The files of one checkpoint: one safetensors file per rank, and `state.json`, which says where each tensor lies.

A piece is a run of a tensor's elements in row-major order. The file that holds it has its place, the index of its
first element and its xxh3-128, one for every 16 MiB, in a header with a hash of its own (`rank_header.py`).
`state.json` has the shape and the element type of every tensor, which ranks hold which elements of it (`placement.py`),
and a random number that every file of the save carries; it is sealed by a hash of its own. So no byte of a checkpoint
can change unnoticed, no file of another one can take a place in it, and no rank handles the tables of all. A reader
requests any elements, independently of the ranks that wrote them, opens the files that hold them, reads them with
several threads, and verifies all that it reads. Formats 1 and 2, whose `state.json` lists all pieces with their hashes,
are read too.
"""

import heapq
import json
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from dist_ssl.checkpoint.damage import DamagedError, not_opened
from dist_ssl.checkpoint.made_under import refuse_other_science
from dist_ssl.checkpoint.placement import Held, ListedTensor, Outline, RuledTensor, differences, rules
from dist_ssl.checkpoint.rank_file import RankFile, as_bytes, sync
from dist_ssl.checkpoint.rank_header import MOST_VALUES
from dist_ssl.checkpoint.retention import STATE
from dist_ssl.checkpoint.retries import with_retries
from dist_ssl.checkpoint.table_rules import FORMATS, CheckpointTable, whole_table
from dist_ssl.core.progress import Progress
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece, State
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.open_files import allow_open_files
from dist_ssl.runtime.strange_files import read_regular

FORMAT = FORMATS[-1]
MOST_TABLE = 1 << 26
"""Bytes of `state.json`, at most: in formats 1 and 2 a piece takes some 150."""
MOST_OPEN = 256
"""Files of a checkpoint that are kept open, at most; others are opened for each read of a megabyte."""
READERS = 4
"""Number of reading threads: enough to keep a disk and two cores busy."""


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
    """Return what a rank writes: its own pieces and its share of what every rank holds whole; no piece is empty."""
    whole = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    own = {name: value for name, value in state.items() if isinstance(value, Piece)}
    for name in share_out(whole, size)[rank]:
        own[name] = Piece(whole[name], tuple(whole[name].shape), 0)
    return {name: piece for name, piece in own.items() if piece.tensor.numel()}


def save_plan(outlined: Outline, own: Mapping[str, Piece], ranks: int) -> dict[str, Any]:
    """Return what rank 0 tells all ranks before they write: the number of the save, and the rule of each tensor.

    `own`: the pieces that rank 0 writes.
    """
    return {"save": secrets.token_hex(16), "rules": rules(outlined, own, ranks)}


def save_report(
    outlined: Outline, own: Mapping[str, Piece], plan: Mapping[str, Any], rank: int, ranks: int
) -> dict[str, Any]:
    """Return what rank 0 must know of what a rank has written: the pieces that differ from the rules.

    And a hash of the names, shapes and types of all tensors, which must be the same on all ranks.
    """
    same = len(plan["rules"]) == len(outlined)
    others = differences(outlined, plan["rules"], own, rank, ranks) if same else []
    return {"outline": seal(outlined), "others": others}


def table_text(
    progress: Mapping[str, Any],
    outlined: Outline,
    plan: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]],
    science: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of `state.json`, from the reports of all ranks in their order.

    `science`: the keys and values that the checkpoint is made under.
    """
    rows = [{**row, "each": rule, "others": []} for row, rule in zip(outlined.values(), plan["rules"], strict=True)]
    for rank, report in enumerate(reports):
        assert report["outline"] == reports[0]["outline"], f"rank {rank} has other tensors than rank 0"
        for number, start, count in report["others"]:
            rows[number]["others"].append([rank, start, count])
    for name, row in zip(outlined, rows, strict=True):
        others = tuple((rank, start, count) for rank, start, count in row["others"])
        problem = RuledTensor(tuple(row["shape"]), row["dtype"], (), len(reports), row["each"], others).gap()
        assert not problem, f"the pieces of '{name}' {problem}"
    content = {"format": FORMAT, "progress": progress, "ranks": len(reports), "save": plan["save"]}
    made_under = {"science": dict(science)} if science else {}
    return sealed_text({**content, "tensors": dict(zip(outlined, rows, strict=True)), **made_under})


def write_table(file: Path, text: str) -> None:
    """Write `state.json` and sync it to disk. Raises OSError."""
    file.write_text(text)
    sync(file)


def name_science(folder: Path, science: Mapping[str, Any]) -> None:
    """Let a checkpoint say that it was made under these keys and values.

    Raises OSError, DamagedError, CheckpointError.
    """
    write_atomically(folder / STATE, sealed_text({**_content(folder), "science": dict(science)}), sync=True)


def read_table(folder: Path) -> CheckpointTable:
    """Return what `state.json` says. Raises DamagedError, CheckpointError."""
    try:
        return whole_table(_content(folder))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"state.json: a key is missing or has another type ({error!r})") from error


def _content(folder: Path) -> dict[str, Any]:
    """Return the sealed content of `state.json`, without the seal. Raises DamagedError, CheckpointError."""
    try:
        path = folder / STATE
        text = with_retries(path, lambda: read_regular(path, MOST_TABLE)).decode()
        content: dict[str, Any] = jsonl.parsed(text, MOST_VALUES)
        version, sealed = content["format"], content.pop("xxh3")
    except OSError as error:
        raise not_opened(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"state.json: {error}") from error
    if sealed != seal(content) or text != sealed_text(content):
        raise DamagedError("state.json: it is not what was written")
    if version not in FORMATS:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}: this version reads {', '.join(map(str, FORMATS))}.",
            "Resume with the version of dist_ssl that wrote it.",
        )
    return content


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


def read(
    folder: Path, wants: Wants = everything, science: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor | Piece]]:
    """Return verified progress (as plain values) and state: a Piece where `wants` gave a range, else a whole tensor.

    `science`: keys and values that the checkpoint must have been made under. Raises DamagedError, CheckpointError.
    """
    table = read_table(folder)
    refuse_other_science(folder.name, table.science, science or {})
    state: dict[str, Tensor | Piece] = {}
    copies: list[Copy] = []
    spans = {name: wants(name, row.shape) for name, row in table.tensors.items()}
    with _rank_files(folder, table) as file:
        _check_lengths(table.tensors, spans, file)
        for name, row in table.tensors.items():
            span = spans[name]
            taken = range(math.prod(row.shape)) if span is None else span
            out = _room_for(f"{folder}: tensor '{name}'", len(taken), getattr(torch, row.dtype))
            copies += [_copying(file(held.file), name, held, taken, out) for held in row.within(span)]
            state[name] = out.view(row.shape) if span is None else Piece(out, row.shape, taken.start)
        _do_all(copies)
    return table.progress, state


def _room_for(what: str, count: int, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor of `count` elements. Raises CheckpointError: a file of holes is as long as one likes."""
    try:
        return torch.empty(count, dtype=dtype)
    except RuntimeError as error:
        raise CheckpointError(
            f"{what} takes {count * dtype.itemsize:,} bytes here, and there is no such memory.",
            "Give the ranks more of it, or divide the state among more of them; if the run is not that large, the "
            "checkpoint is not one of it.",
        ) from error


def _check_lengths(
    tensors: Mapping[str, ListedTensor], spans: Mapping[str, range | None], file: Callable[[str], RankFile]
) -> None:
    """Raise DamagedError where the pieces that are to be read are more than the files that hold them.

    Anybody can seal a table: memory is taken for what there is, and not for what it says.
    """
    taken: Counter[str] = Counter()
    for name, row in tensors.items():
        width = getattr(torch, row.dtype).itemsize
        for held in row.within(spans[name]):
            taken[held.file] += held.count * width
            if taken[held.file] > (length := file(held.file).length):
                raise DamagedError(f"state.json: it lists more bytes of {held.file} than the {length:,} that it has")


def verify(folder: Path) -> None:
    """Compare every byte of a checkpoint with its hash, without keeping any. Raises DamagedError, CheckpointError."""
    table = read_table(folder)
    with _rank_files(folder, table) as file:
        _do_all(
            partial(file(held.file).verify, name, held, row.dtype)
            for name, row in table.tensors.items()
            for held in row.within(None)
        )


@contextmanager
def _rank_files(folder: Path, table: CheckpointTable) -> Iterator[Callable[[str], RankFile]]:
    """Yield a function that returns the opened file of a name, the same one each time; leaving closes all files.

    Only the first MOST_OPEN stay open: a thousand ranks have as many files, and a process may not open so many.
    """
    files: dict[str, RankFile] = {}
    allow_open_files()

    def file(name: str) -> RankFile:
        if name not in files:
            files[name] = RankFile(folder / name, table.identity(name))
            if len(files) > MOST_OPEN:
                files[name].close()
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


def _copying(file: RankFile, name: str, held: Held, taken: range, out: Tensor) -> Copy:
    """Return the function that copies the elements of a piece within `taken` to their place in `out` [len(taken)]."""
    first, end = max(taken.start, held.start), min(taken.stop, held.start + held.count)
    to = as_bytes(out[first - taken.start : end - taken.start])
    dtype = str(out.dtype).removeprefix("torch.")
    return partial(file.copy, name, held, dtype, to, (first - held.start) * out.element_size())
