"""JSON Lines files that survive a kill: a truncated line is skipped and never corrupts the next one."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO


def read(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file that hold an object, in order; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(errors="replace") as file:
        found = [_parsed(line) for line in file if line.endswith("\n")]
    return [row for row in found if row is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def open_to_append(path: Path) -> TextIO:
    """Open a file to append whole lines, each in one write; make the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", buffering=1)
    if file.tell() and not _ends_in_newline(path):
        file.write("\n")
    return file


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows; they are on disk when this returns."""
    with open_to_append(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())
