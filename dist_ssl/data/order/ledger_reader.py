"""Reads the ledger of a run as it is needed: memory for some steps of all ranks, however long the run is.

`read` goes through all files once, verifies every block, and keeps its header; `Deliveries.of_step` reads the rows of
some steps again. Ledgers of older versions (ledger_lines.py) are read too, whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO

import numpy as np

from dist_ssl.data.order import ledger_lines
from dist_ssl.data.order.ledger import NAME
from dist_ssl.data.order.ledger_blocks import ROW, Rows, rows_at, scan
from dist_ssl.data.order.older_attempts import JOINED_NAME, joined_of
from dist_ssl.errors import DataError, reason_of
from dist_ssl.runtime.strange_files import open_regular

WINDOW = 256
"""Steps whose rows are read at once."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one attempt, of steps from `first` to before `end`: a block of a file, or rows in memory."""

    attempt: int
    first: int
    end: int
    path: Path | None = None
    place: int = 0
    rows: Rows | None = None


class Deliveries:
    """The ledger of a run.

    `saves`: (attempt, step) of every save that directly follows the step before in what a rank wrote, or begins that.
    `ranks`: all numbers of ranks that occur.
    """

    def __init__(self, lines: list[Lines], saves: set[tuple[int, int]], ranks: set[int]) -> None:
        self.lines, self.saves, self.ranks = lines, saves, ranks
        bounds = np.array([(own.attempt, own.first, own.end) for own in lines], dtype=np.int64)
        self._attempts, self._firsts, self._ends = bounds.reshape(-1, 3).T
        self._window: tuple[int, int] | None = None
        self._rows, self._starts = np.empty(0, dtype=ROW), np.empty(0, dtype=np.int64)

    def restored(self) -> dict[int, int]:
        """Return the first step of each attempt that made at least one."""
        return {int(a): int(self._firsts[self._attempts == a].min()) for a in np.unique(self._attempts)}

    def of_step(self, attempt: int, step: int) -> Rows:
        """Return the rows of a step of an attempt, in the order of their ranks. Raises DataError."""
        window = attempt, step // WINDOW
        if window != self._window:
            first = step // WINDOW * WINDOW
            self._rows = self.between(attempt, first, first + WINDOW)
            self._starts = np.searchsorted(self._rows["step"], np.arange(first, first + WINDOW + 1))
            self._window = window
        start, stop = self._starts[step % WINDOW : step % WINDOW + 2]
        return self._rows[start:stop]

    def between(self, attempt: int, first: int, end: int) -> Rows:
        """Return the rows of an attempt's steps from `first` to before `end`, by step and rank. Raises DataError."""
        own = np.flatnonzero((self._attempts == attempt) & (self._firsts < end) & (self._ends > first))
        by_file: dict[Path | None, list[Lines]] = {}
        for number in own.tolist():
            by_file.setdefault(self.lines[number].path, []).append(self.lines[number])
        found = [rows for path, some in by_file.items() for rows in _rows_of(path, some)]
        rows = np.concatenate([np.empty(0, dtype=ROW), *found])
        rows = rows[(rows["step"] >= first) & (rows["step"] < end)]
        ordered: Rows = rows[np.lexsort((rows["rank"], rows["step"]))]
        return ordered


def _rows_of(path: Path | None, some: list[Lines]) -> list[Rows]:
    """Return the rows of lines that are all in one file, or in memory."""
    if path is None:
        return [own.rows for own in some if own.rows is not None]
    with _opened(path) as file:
        return [rows_at(file, own.place) for own in some]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file of blocks, open. Raises DataError where it cannot be read."""
    try:
        with BufferedReader(open_regular(path)) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {reason_of(error)}.",
            "Restore the file; if the run has just started another attempt, audit it again.",
        ) from error


def read(folder: Path) -> Deliveries:
    """Read all ledger files of a folder. Raises DataError where one cannot be read or has an impossible line."""
    lines: list[Lines] = []
    saves: set[tuple[int, int]] = set()
    ranks: set[int] = set()
    for path in sorted(folder.glob("attempt_*_rank_*.jsonl")):
        if found := ledger_lines.read(path):
            attempt, rows, saved = found
            saves |= {(attempt, step) for step in saved}
            ranks |= set(np.unique(rows["ranks"]).tolist())
            if len(rows):
                bounds = int(rows["step"].min()), int(rows["step"].max()) + 1
                lines.append(Lines(attempt, *bounds, rows=rows))
    for attempt, path in _files(folder):
        last: dict[int, int] = {}
        with _opened(path) as file:
            for block, place in scan(file):
                if block.steps:
                    last[block.rank] = block.first + block.steps - 1
                    ranks.add(block.ranks)
                    lines.append(Lines(attempt, block.first, block.first + block.steps, path, place))
                if block.saved >= 0 and last.get(block.rank, block.saved - 1) == block.saved - 1:
                    saves.add((attempt, block.saved))
    return Deliveries(lines, saves, ranks)


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the files of blocks in a folder with their attempt; not those that a joined file holds."""
    for path in sorted(folder.glob("attempt_*.ledger")):
        if (named := JOINED_NAME.fullmatch(path.name)) or (
            (named := NAME.fullmatch(path.stem)) and not joined_of(path).exists()
        ):
            yield int(named[1]), path
