"""Ledgers as older versions wrote them: a file of JSON lines for every attempt and rank, one line a step.

    {"step": 7, "epoch": 0, "ranks": 2, "count": 48, "hash": ..., "replaced": 1, "replaced_hash": ...}

(`replaced`, `replaced_hash`: number and hash of the unreadable samples that were replaced, if any) and one line per
save, {"saved": 8}.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from dist_ssl.data.order.ledger_blocks import ROW, Rows
from dist_ssl.errors import DataError
from dist_ssl.runtime import jsonl

NAME = re.compile(r"attempt_([0-9]{4,18})_rank_([0-9]{5,18})")


def read(path: Path) -> tuple[int, Rows, set[int]] | None:
    """Return the attempt of a file, its rows, and the steps that were saved; None where it is no ledger.

    A save counts where it directly follows the line of the step before, or begins the file. Raises DataError where a
    line is impossible or lacks a key.
    """
    if not (named := NAME.fullmatch(path.stem)):
        return None
    attempt, rank = map(int, named.groups())
    rows: list[tuple[int, ...]] = []
    saves: set[int] = set()
    last: int | None = None
    for line in jsonl.read(path):
        if not all(type(value) is int and value >= 0 for value in line.values()) or not line.get("ranks", 1):
            raise DataError(f"{path} has an impossible line.", "Restore the complete file.")
        if "saved" in line:
            saves |= {line["saved"]} if last in (None, line["saved"] - 1) else set()
            continue
        try:
            last = line["step"]
            rows.append(_row(line, rank))
        except KeyError as error:
            raise DataError(
                f"{path} has a line without {error}.", "Audit the run with the version of dist_ssl that made it."
            ) from error
    try:
        return attempt, np.array(rows, dtype=ROW), saves
    except OverflowError as error:
        raise DataError(f"{path.parent} has an impossible number: {error}.", "Restore its complete files.") from error


def _row(line: dict[str, Any], rank: int) -> tuple[int, ...]:
    replaced = line.get("replaced", 0), line.get("replaced_hash", 0)
    return line["step"], rank, line["ranks"], line["count"], replaced[0], line["hash"], replaced[1]
