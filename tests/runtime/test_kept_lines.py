"""Lines of a run wait while a disk is full or does not answer, and then stand in the file, in order and whole."""

import errno
import logging
import os
from pathlib import Path

import pytest

from dist_ssl.runtime import jsonl
from dist_ssl.runtime.kept_lines import KeptLines


class Disk:
    """What os.write and os.fsync do on a disk with room for so many bytes; None: for any number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        self.room: int | None = None
        self.number = number
        self._write, self._sync = os.write, os.fsync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.sync)

    def write(self, descriptor: int, data: bytearray) -> int:
        if self.room == 0:
            raise OSError(self.number, os.strerror(self.number))
        written = self._write(descriptor, data[: self.room])
        self.room = None if self.room is None else self.room - written
        return written

    def sync(self, descriptor: int) -> None:
        if self.room == 0:
            raise OSError(self.number, os.strerror(self.number))
        self._sync(descriptor)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("room", [0, 1, 13])
def test_what_cannot_be_written_waits_and_then_stands_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, room: int
) -> None:
    disk, lines = Disk(monkeypatch, number), KeptLines(tmp_path / "new" / "rows.jsonl")
    lines.add({"step": 0})
    disk.room = room
    for step in range(1, 5):
        lines.add({"step": step})
        lines.sync()
    assert len(jsonl.read(lines.path)) < 4
    disk.room = None
    lines.add({"step": 5})
    assert jsonl.read(lines.path) == [{"step": step} for step in range(6)]
    lines.close()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [os.strerror(number) in said[0], "has all its lines again" in said[1]] == [True, True]
    assert len(said) == 2, "once, however long it lasts"


def test_the_end_of_a_run_says_how_many_lines_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, lines = Disk(monkeypatch), KeptLines(tmp_path / "rows.jsonl")
    disk.room = 0
    lines.add({"step": 0}, {"step": 1})
    lines.close()
    assert "lacks its last 2 lines" in caplog.text


def test_an_error_that_does_not_go_away_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, lines = Disk(monkeypatch, errno.EROFS), KeptLines(tmp_path / "rows.jsonl")
    disk.room = 0
    with pytest.raises(OSError, match="Read-only"):
        lines.add({"step": 0})
