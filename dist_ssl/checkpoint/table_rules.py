"""The rules of the table in `state.json`: it describes whole tensors in files of ranks, whatever a stranger sealed."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dist_ssl.checkpoint.rank_file import CODES, DamagedError
from dist_ssl.config.bounds import MOST_COUNT

MOST_ELEMENTS = 1 << 40
"""No tensor has more elements, even where one of its sides is 0."""
MOST_SIDES = 64
"""No tensor has more sides: torch reads no more."""
RANK_FILE = re.compile(r"rank_[0-9]{5,18}\.safetensors")
HASH = re.compile(r"[0-9a-f]{32}")
Table = dict[str, Any]
"""Tensor names to {shape, dtype, pieces: [{file, start, count, xxh3}, ...]}, as plain values."""


def whole_table(content: Mapping[str, Any], *, first: bool) -> tuple[Table, dict[str, tuple[int, str]]]:
    """Return the table of `state.json`, and each file's length and header hash, where these are listed.

    The first format has none of these, and the second had none at first. Raises DamagedError, KeyError, TypeError,
    AttributeError where it describes no whole tensors.
    """
    for name, row in content["tensors"].items():
        _check_shape(name, row)
    table: Table = _of_whole_tensors(content["tensors"]) if first else content["tensors"]
    files = None if first or "files" not in content else _files(content["files"], content["ranks"])
    for name, row in table.items():
        _check_pieces(name, row, files)
    return table, files or {}


def gap(row: Mapping[str, Any]) -> str:
    """Return why pieces, in order, do not make up a whole tensor; empty if they do."""
    end = 0
    for piece in row["pieces"]:
        if piece["start"] != end and piece["count"]:
            return "overlap or leave a gap"
        end += piece["count"]
    return "" if end == math.prod(row["shape"]) else "are not all of it"


def _files(rows: Mapping[str, Mapping[str, Any]], ranks: object) -> dict[str, tuple[int, str]]:
    """Return the length and the header hash of each file. Raises DamagedError, TypeError, KeyError, AttributeError."""
    if type(ranks) is not int or ranks != len(rows):
        raise DamagedError(f"state.json: it is of {ranks!r:.60} ranks, and lists {len(rows)} files")
    for name, row in rows.items():
        if not RANK_FILE.fullmatch(name):
            raise DamagedError(f"state.json: it lists {name!r:.60}, which is no rank's file")
        if type(row["length"]) is not int or not 0 <= row["length"] <= MOST_COUNT:
            raise DamagedError(f"state.json: {name} has a length of {row['length']!r:.60}")
        _check_hash(name, row["header"])
    return {name: (row["length"], row["header"]) for name, row in rows.items()}


def _check_hash(what: str, value: object) -> None:
    if not isinstance(value, str) or not HASH.fullmatch(value):
        raise DamagedError(f"state.json: {what!r:.60} has the hash {value!r:.60}, which is none")


def _check_shape(name: str, row: Mapping[str, Any]) -> None:
    """Raise DamagedError where a row of the table is of no tensor, even if the seal fits."""
    if row["dtype"] not in CODES:
        raise DamagedError(f"state.json: tensor '{name}' is of {row['dtype']}, which is unknown")
    shape = row["shape"]
    _check_elements(name, shape)
    if len(shape) > MOST_SIDES or math.prod(side or 1 for side in shape) > MOST_ELEMENTS:
        raise DamagedError(f"state.json: tensor '{name}' has a shape that no tensor has")


def _check_elements(name: str, numbers: Iterable[Any]) -> None:
    if not all(type(number) is int and 0 <= number <= MOST_ELEMENTS for number in numbers):
        raise DamagedError(
            f"state.json: a number of elements of tensor '{name}' is not a whole number from 0 to {MOST_ELEMENTS}"
        )


def _check_pieces(name: str, row: Mapping[str, Any], files: Mapping[str, Any] | None) -> None:
    """Raise DamagedError where a tensor does not lie in these files; None: any file of a rank."""
    _check_elements(name, [piece[key] for piece in row["pieces"] for key in ("start", "count")])
    if problem := gap(row):
        raise DamagedError(f"state.json: the pieces of tensor '{name}' {problem}")
    for piece in row["pieces"]:
        if not RANK_FILE.fullmatch(piece["file"]):
            raise DamagedError(f"state.json: tensor '{name}' lies in {piece['file']!r}, which is no rank's file")
        if files is not None and piece["file"] not in files:
            raise DamagedError(f"state.json: tensor '{name}' lies in {piece['file']}, which is not listed")
        _check_hash(name, piece["xxh3"])


def _of_whole_tensors(table: Table) -> Table:
    """Convert the table of format 1, in which every tensor lay whole in one file."""
    return {
        name: {
            "shape": row["shape"],
            "dtype": row["dtype"],
            "pieces": [{"file": row["file"], "start": 0, "count": math.prod(row["shape"]), "xxh3": row["xxh3"]}],
        }
        for name, row in table.items()
    }
