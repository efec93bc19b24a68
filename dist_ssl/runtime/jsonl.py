"""Files of JSON lines that outlive a kill: a line that was cut short is passed over and never spoils the next one."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, in order; none where there is no file."""
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
    """A file to which whole lines are added, each in one write; the folder is made where it is missing."""
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
    """Add rows that are on disk when this returns."""
    with open_to_append(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())
