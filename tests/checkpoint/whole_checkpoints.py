"""Checkpoints that one process writes for all ranks, in the format of today and in the one before."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from dist_ssl.checkpoint.index import own_pieces, save_plan, save_report, sealed_text, table_text, write_table
from dist_ssl.checkpoint.placement import outline, rank_file_name
from dist_ssl.checkpoint.rank_file import as_bytes, write
from dist_ssl.checkpoint.rank_header import CODES, Marked, dtype_name, order
from dist_ssl.protocols.engine import Piece, State


def put(folder: Path, progress: Mapping[str, Any], states: Sequence[State]) -> None:
    """Write the checkpoint of what every rank gives."""
    folder.mkdir(parents=True, exist_ok=True)
    outlined, ranks = outline(states[0]), len(states)
    plan = save_plan(outlined, own_pieces(states[0], 0, ranks), ranks)
    reports = []
    for rank, state in enumerate(states):
        own = own_pieces(state, rank, ranks)
        write(folder / rank_file_name(rank), own, Marked(plan["save"], rank))
        reports.append(save_report(outline(state), own, plan, rank, ranks))
    write_table(folder / "state.json", table_text(progress, outlined, plan, reports))


def empty(state: State, rank: int) -> dict[str, Piece]:
    """The empty pieces that a rank wrote before format 3."""
    own = {name: value for name, value in state.items() if isinstance(value, Piece)}
    if rank == 0:
        whole = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        own |= {name: Piece(value, tuple(value.shape), 0) for name, value in whole.items()}
    return {name: piece for name, piece in own.items() if not piece.tensor.numel()}


def put_format_2(folder: Path, progress: Mapping[str, Any], states: Sequence[State], *, files: bool = True) -> None:
    """Write it as format 2, whose table lists every piece; the first versions of it listed no `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}
    known = {}
    for rank, state in enumerate(states):
        own, file = {**own_pieces(state, rank, len(states)), **empty(state, rank)}, rank_file_name(rank)
        rows: dict[str, Any] = {}
        data = b""
        for name in order(own):
            piece, begin = own[name], len(data)
            data += (content := bytes(as_bytes(piece.tensor.contiguous())))
            dtype, shape = dtype_name(piece.tensor), list(piece.tensor.shape)
            rows[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [begin, len(data)]}
            row = table.setdefault(name, {"shape": list(piece.shape), "dtype": dtype, "pieces": []})
            hashed = xxhash.xxh3_128_hexdigest(content)
            row["pieces"].append({"file": file, "start": piece.start, "count": piece.tensor.numel(), "xxh3": hashed})
        header = json.dumps(rows, separators=(",", ":")).encode()
        header = len(header).to_bytes(8, "little") + header
        (folder / file).write_bytes(header + data)
        known[file] = {"length": len(header) + len(data), "header": xxhash.xxh3_128_hexdigest(header)}
    content = {"format": 2, "progress": progress, "ranks": len(states), "files": known, "tensors": table}
    (folder / "state.json").write_text(sealed_text({k: v for k, v in content.items() if files or k != "files"}))
