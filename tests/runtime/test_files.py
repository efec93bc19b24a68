"""Files are replaced as a whole, and a write that fails leaves nothing behind."""

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dist_ssl.runtime import files
from dist_ssl.runtime.files import write_atomically, write_output


@pytest.mark.parametrize("content", ["", "text: ä €\n", b"", b"\x00\xff\n"])
@pytest.mark.parametrize("sync", [False, True])
def test_what_was_written_is_read_and_nothing_lies_beside_it(tmp_path: Path, content: str | bytes, sync: bool) -> None:
    path = tmp_path / "x.json"
    path.write_text("something older and longer than the new content")
    write_atomically(path, content, sync)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_no_reader_sees_half_a_file(tmp_path: Path) -> None:
    path, ended = tmp_path / "x", threading.Event()
    whole = {letter * 200_000 for letter in "ab"}
    write_atomically(path, "a" * 200_000)

    def write() -> None:
        for number in range(50):
            write_atomically(path, "ab"[number % 2] * 200_000)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [path.read_text()]
    while not ended.is_set():
        seen.append(path.read_text())
    writer.join()
    assert set(seen) <= whole


def _write_often(path: Path, text: str) -> None:
    for _ in range(100):
        write_atomically(path, text)


def test_processes_and_threads_that_write_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    texts = [letter * 50_000 for letter in "abcd"]
    spawn = multiprocessing.get_context("spawn")
    workers: list[Any] = [spawn.Process(target=_write_often, args=(path, text)) for text in texts[:2]]
    workers += [threading.Thread(target=_write_often, args=(path, text)) for text in texts[2:]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[:2]] == [0, 0]
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def _fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "name"), [(files.os, "open"), (Path, "replace"), (files.os, "fsync")])
def test_an_error_propagates_and_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    path = tmp_path / "x"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new", sync=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0, 0o022])
def test_a_private_file_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x", "text", private=True)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "x", "text")


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "x", []
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        synced.append((os.fstat(handle).st_size, path.exists()))

    monkeypatch.setattr(files.os, "fsync", noted)
    write_atomically(path, "text")
    assert synced == []
    path.unlink()
    write_atomically(path, "text", sync=True)
    assert synced == [(4, False)]


def test_the_module_is_light() -> None:
    code = "import sys, dist_ssl.runtime.files; print(*[m for m in ('torch', 'numpy', 'yaml') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == []


def test_an_output_replaces_a_link_and_goes_into_a_device_or_a_pipe(tmp_path: Path) -> None:
    canary, link, device, pipe = (tmp_path / name for name in ("thesis", "link", "null", "pipe"))
    canary.write_text("years of work")
    link.symlink_to(canary)
    device.symlink_to("/dev/null")
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device"):  # nobody reads it
        write_output(pipe, b"sheet")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (link, device, pipe):
        write_output(path, b"sheet")
    assert os.read(reader, 100) == b"sheet"
    os.close(reader)
    assert (canary.read_text(), link.read_bytes()) == ("years of work", b"sheet")
    assert (device.is_char_device(), pipe.is_fifo()) == (True, True)


@pytest.mark.parametrize("kind", ["is_fifo", "is_char_device"])
def test_a_link_that_takes_the_place_of_a_pipe_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    canary, out = tmp_path / "canary", tmp_path / "out.png"
    canary.write_text("years of work")
    out.symlink_to(canary)
    monkeypatch.setattr(Path, kind, lambda path: path == out)  # as it was when the command looked
    write_output(out, b"sheet")
    assert canary.read_text() == "years of work"
    assert (out.is_symlink(), out.read_bytes()) == (False, b"sheet")
    out.unlink()
    write_output(out, b"sheet")  # the pipe was removed
    assert out.read_bytes() == b"sheet"
