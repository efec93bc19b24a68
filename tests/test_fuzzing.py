"""What an input may not do is seen, and the input is named: otherwise thousands of them would prove nothing."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fuzzing
from tests.confined import changed
from tests.fuzzing import MORE_BYTES, tried


def hidden(path: Path) -> None:
    """Try to remove a file, and keep quiet about the refusal."""
    with contextlib.suppress(BaseException):
        path.unlink()


Work = Callable[[Path], object]
TOO_MUCH: dict[str, tuple[Work, str]] = {
    "memory": (lambda folder: bytearray(2 * MORE_BYTES), "see above"),
    "work": (lambda folder: all(True for _ in itertools.count()), "SIGPROF"),
    "waiting": (lambda folder: time.sleep(0.1), "see above"),
    "a crash": (lambda folder: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    "an error": (lambda folder: 1 // 0, "see above"),
    "a file": (lambda folder: (folder.parent / "thesis").write_text("x"), "see above"),
    "a folder": (lambda folder: shutil.rmtree(folder.parent / "kept", ignore_errors=True), "see above"),
    "a hidden change": (lambda folder: hidden(folder.parent / "kept" / "file"), "see above"),
    "a link": (lambda folder: (folder / "link").write_text("x"), "see above"),
    "another name": (lambda folder: (folder / "file").rename(folder.parent / "moved"), "see above"),
    "a mode": (lambda folder: (folder.parent / "kept").chmod(0o777), "see above"),
    "a command": (lambda folder: subprocess.run(["true"]), "see above"),
    "a host": (lambda folder: socket.create_connection(("192.0.2.1", 80), timeout=1), "see above"),
}


@pytest.mark.parametrize(("work", "why"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_an_input_that_does_too_much_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: Work, why: str
) -> None:
    monkeypatch.setattr(fuzzing, "INPUT_SECONDS", 0.05)
    folder = tmp_path / "run"
    for path in (folder, tmp_path / "kept"):
        path.mkdir()
        (path / "file").write_text("kept")
    (folder / "link").symlink_to(tmp_path / "kept" / "file")
    third = random.Random(3).getstate()
    with pytest.raises(AssertionError, match=f"input 3 ended its process: {why}"):
        tried(range(9), lambda chance: bool(work(folder)) if chance.getstate() == third else True, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "run"]
    assert (tmp_path / "kept" / "file").read_text() == "kept"


def test_what_is_inside_may_change_and_what_is_outside_may_be_read(tmp_path: Path) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("x")

    def work(chance: random.Random) -> bool:
        (folder / "a").mkdir()
        (folder / "a" / "b").write_text(outside.read_text())
        (folder / "a" / "b").rename(folder / "c")
        shutil.rmtree(folder / "a")
        return (folder / "c").read_text() == "x"

    assert tried(range(5, 9), work, folder) == 4


def test_a_change_that_starts_from_an_open_folder_has_its_full_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    folder = os.open(tmp_path / "link", os.O_RDONLY)
    try:
        assert changed("os.remove", ("x", folder)) == [str(tmp_path / "x")]
        assert changed("os.rename", ("x", "y", folder, -1)) == [str(tmp_path / "x"), str(Path.cwd() / "y")]
        assert changed("os.truncate", (folder, 0)) == [str(tmp_path)]
    finally:
        os.close(folder)


def test_inputs_go_on_where_some_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [share.values[0] for share in fuzzing.shares(100)] == [range(100), range(20_000)]
    monkeypatch.setenv("FUZZ_INPUTS", "500:600")
    assert fuzzing.shares(100)[1].values[0] == range(500, 600)
