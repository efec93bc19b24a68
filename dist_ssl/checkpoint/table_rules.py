"""The rules of the table in `state.json`: it describes whole tensors in files of ranks, whatever a stranger sealed.

Format 3 has a rule for each tensor (`placement.py`), and the hashes are in the files; formats 1 and 2 list every piece.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.placement import EVEN, Held, ListedTensor, RuledTensor
from dist_ssl.checkpoint.rank_header import CODES, Identity, Listed, Marked
from dist_ssl.config.bounds import MOST_COUNT

FORMATS = (1, 2, 3)
"""Formats that are read; the last one is written."""
MOST_ELEMENTS = 1 << 40
"""No tensor has more elements, even where one of its sides is 0."""
MOST_SIDES = 64
"""No tensor has more sides: torch reads no more."""
MOST_RANKS = 1 << 20
RANK_FILE = re.compile(r"rank_([0-9]{5,18})\.safetensors")
HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class CheckpointTable:
    """The content of `state.json`: the position of the run as plain values, and where each tensor lies.

    `save`: the random number of the save, from format 3 on; `files`: how the files of format 2 are recognised.
    `science`: the keys and values that the checkpoint was made under, empty where it does not say.
    """

    progress: dict[str, Any]
    tensors: Mapping[str, ListedTensor]
    save: str | None = None
    files: Mapping[str, Listed] | None = None
    science: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, file: str) -> Identity:
        """Return how a file of the checkpoint is recognised. `file`: a name that matches RANK_FILE."""
        if self.save is None:
            return self.files.get(file) if self.files else None
        place = RANK_FILE.fullmatch(file)
        assert place
        return Marked(self.save, int(place[1]))


def whole_table(content: Mapping[str, Any]) -> CheckpointTable:
    """Return the table of `state.json`, of any format that is read.

    Raises DamagedError, KeyError, TypeError, AttributeError where it describes no whole tensors.
    """
    for name, row in content["tensors"].items():
        _check_shape(name, row)
    if content["format"] > 2:
        return _ruled_table(content)
    first = content["format"] == 1
    rows = _of_whole_tensors(content["tensors"]) if first else content["tensors"]
    files = None if first or "files" not in content else _files(content["files"], content["ranks"])
    tensors = {name: _listed_tensor(name, row, files) for name, row in rows.items()}
    return CheckpointTable(content["progress"], tensors, files=files)


def _ruled_table(content: Mapping[str, Any]) -> CheckpointTable:
    ranks, save = content["ranks"], content["save"]
    if type(ranks) is not int or not 1 <= ranks <= MOST_RANKS:
        raise DamagedError(f"state.json: it is of {ranks!r:.60} ranks")
    _check_hash("save", save)
    tensors = {name: _ruled_tensor(name, row, ranks) for name, row in content["tensors"].items()}
    science = content.get("science")
    return CheckpointTable(content["progress"], tensors, save, science=science if isinstance(science, dict) else {})


def _ruled_tensor(name: str, row: Mapping[str, Any], ranks: int) -> RuledTensor:
    """Return a tensor that lies in the files of ranks by a rule. Raises DamagedError, KeyError, TypeError."""
    shape, each, others = tuple(row["shape"]), row["each"], row["others"]
    if each != EVEN or not shape:
        _check_elements(name, [each])
    for other in others:
        _check_elements(name, other)
        if len(other) != 3:
            raise DamagedError(f"state.json: tensor '{name}' lies in {other!r:.60}, which is no rank, start and count")
    listed = {rank for rank, _, _ in others}
    if len(listed) < len(others) or max(listed, default=0) >= ranks:
        raise DamagedError(f"state.json: tensor '{name}' lists a rank twice, or one beyond {ranks}")
    found = RuledTensor(shape, row["dtype"], ranks=ranks, each=each, others=tuple(map(tuple, others)))
    if problem := found.gap():
        raise DamagedError(f"state.json: the pieces of tensor '{name}' {problem}")
    return found


def gap(shape: Iterable[int], pieces: Iterable[Held]) -> str:
    """Return why pieces, in order, do not make up a whole tensor; empty if they do."""
    end = 0
    for piece in pieces:
        if piece.start != end and piece.count:
            return "overlap or leave a gap"
        end += piece.count
    return "" if end == math.prod(shape) else "are not all of it"


def _files(rows: Mapping[str, Mapping[str, Any]], ranks: object) -> dict[str, Listed]:
    """Return the length and the header hash of each file. Raises DamagedError, TypeError, KeyError, AttributeError."""
    if type(ranks) is not int or ranks != len(rows):
        raise DamagedError(f"state.json: it is of {ranks!r:.60} ranks, and lists {len(rows)} files")
    for name, row in rows.items():
        if not RANK_FILE.fullmatch(name):
            raise DamagedError(f"state.json: it lists {name!r:.60}, which is no rank's file")
        if type(row["length"]) is not int or not 0 <= row["length"] <= MOST_COUNT:
            raise DamagedError(f"state.json: {name} has a length of {row['length']!r:.60}")
        _check_hash(name, row["header"])
    return {name: Listed(row["length"], row["header"]) for name, row in rows.items()}


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


def _listed_tensor(name: str, row: Mapping[str, Any], files: Mapping[str, Any] | None) -> ListedTensor:
    """Return a tensor of which every piece is listed. `files`: those that it may lie in; None: any file of a rank.

    Raises DamagedError where it does not lie in these files, KeyError, TypeError.
    """
    _check_elements(name, [piece[key] for piece in row["pieces"] for key in ("start", "count")])
    pieces = tuple(Held(piece["file"], piece["start"], piece["count"], piece["xxh3"]) for piece in row["pieces"])
    if problem := gap(row["shape"], pieces):
        raise DamagedError(f"state.json: the pieces of tensor '{name}' {problem}")
    for piece in pieces:
        if not RANK_FILE.fullmatch(piece.file):
            raise DamagedError(f"state.json: tensor '{name}' lies in {piece.file!r}, which is no rank's file")
        if files is not None and piece.file not in files:
            raise DamagedError(f"state.json: tensor '{name}' lies in {piece.file}, which is not listed")
        _check_hash(name, piece.xxh3)
    return ListedTensor(tuple(row["shape"]), row["dtype"], pieces)


def _of_whole_tensors(table: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the table of format 1, in which every tensor lay whole in one file."""
    return {
        name: {
            "shape": row["shape"],
            "dtype": row["dtype"],
            "pieces": [{"file": row["file"], "start": 0, "count": math.prod(row["shape"]), "xxh3": row["xxh3"]}],
        }
        for name, row in table.items()
    }
