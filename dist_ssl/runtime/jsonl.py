"""JSON Lines files that survive a kill: a truncated line is skipped and never corrupts the next one."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

MOST_DEPTH = 100
"""Deepest nesting of a value that is read; what works through values does so by recursion."""
TOO_DEEP = f"it is nested deeper than {MOST_DEPTH}"
MOST_VALUES = 1 << 20
"""Values of a line that is read; a line of more is passed over."""
MOST_LINE = 1 << 26
"""Longest line that is read, in characters; a longer one is passed over like a truncated one."""


def read(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file that hold an object, in order; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(errors="replace") as file:
        found = [_row(line) for line in iter(lambda: file.readline(MOST_LINE), "") if line.endswith("\n")]
    return [row for row in found if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = parsed(line, MOST_VALUES)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def parsed(text: str | bytes, most_values: int | None = None) -> Any:
    """Return the value of a JSON text that somebody else may have written.

    `most_values`: how many values, at all depths, it may have at most; None: any number. Raises ValueError where it is
    no JSON, has more values than that, or is nested deeper than MOST_DEPTH.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    opened = text.count("[") + text.count("{")
    if most_values is not None and opened + text.count(",") > most_values:
        raise ValueError(f"it has more than {most_values} values")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    if opened > MOST_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_DEPTH):
        inner = (part for own in level for part in (own.values() if isinstance(own, dict) else own))
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def line_of(row: Mapping[str, Any]) -> str:
    """Return the line of a file that holds a row, with its end."""
    return json.dumps(row) + "\n"


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
        file.write("".join(map(line_of, rows)))
        file.flush()
        os.fsync(file.fileno())
