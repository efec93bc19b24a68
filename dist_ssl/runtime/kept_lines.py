"""A JSON Lines file that a run writes beside training, whose lines wait in memory while its disk cannot take them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from dist_ssl.runtime import jsonl
from dist_ssl.runtime.patient_writes import PatientWrites


class KeptLines:
    """Lines that are appended to `path`, each row at once. Errors that do not go away by themselves are raised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = bytearray()
        self._writes = PatientWrites(path, "lines")
        self._file: TextIO | None = None
        """None before the first line."""
        self._closed = False

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append rows, after those that wait. Raises OSError."""
        self._waiting += "".join(map(jsonl.line_of, rows)).encode()
        self._write()

    def sync(self) -> None:
        """Force all lines to disk, but for those that have to wait. Raises OSError."""
        self._write(sync=True)

    def close(self) -> None:
        """Close the file; lines that still wait are lost, and the log says how many."""
        self._write()
        self._writes.give_up(self._waiting.count(b"\n"))
        self._closed = True
        if self._file:
            self._file.close()

    def _write(self, sync: bool = False) -> None:
        assert not self._closed, f"{self.path} is closed"
        with self._writes.attempt():
            self._file = self._file or jsonl.open_to_append(self.path)
            descriptor = self._file.fileno()
            while self._waiting:
                del self._waiting[: os.write(descriptor, self._waiting)]
            if sync:
                os.fsync(descriptor)
