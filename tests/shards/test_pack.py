"""What a kill leaves of a data set is gone on with, and what was half-written or is another's is not."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from dist_ssl.config.command import Screen
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from launch.run_dir import PROJECT
from shards.command_line import Bytes
from shards.make import make
from shards.pack import Contents, Sample, locked, pack
from shards.sources.imagefolder import FolderOptions
from tests.shards.pictures import files_in, folder_of

QUIET = Console(quiet=True)


class StopError(Exception):
    """Ends a packing from within."""


def contents(count: int = 40, stop: int | None = None, stamp: str = "s") -> Contents:
    """Samples of 100 bytes; the one of number `stop` cannot be had."""

    def sample(number: int) -> Sample:
        if number == stop:
            raise StopError
        return Sample(f"k{number}", "jpg", bytes([number]) * 100, number % 3)

    return Contents(count, stamp, sample)


def packed(out: Path, *, stop: int | None = None, stamp: str = "s", shard_bytes: int = 500, count: int = 40) -> None:
    splits = {"train": contents(count, stop, stamp), "val": contents(7)}
    pack(out, splits, ("a", "b", "c"), shard_bytes=shard_bytes, threads=2, console=QUIET)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of one undisturbed packing."""
    packed(tmp_path / "whole")
    return dict(files_in(tmp_path / "whole"))


def test_an_unfinished_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """A data set of somebody else may bring one; an own data set, to which it leads, would be emptied."""
    packed(tmp_path / "mine")
    before = dict(files_in(tmp_path / "mine"))
    (tmp_path / "out.part").symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match="is a link"):
        packed(tmp_path / "out")
    assert dict(files_in(tmp_path / "mine")) == before


@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_the_lock_is_no_way_to_other_files(tmp_path: Path, kind: str) -> None:
    canary, part = tmp_path / "thesis", tmp_path / "out.part"
    canary.write_text("years of work")
    part.mkdir()
    (part / ".lock").symlink_to(canary) if kind == "a link" else os.mkfifo(part / ".lock")
    with pytest.raises(DataError, match="cannot be written"):
        packed(tmp_path / "out")
    assert canary.read_text() == "years of work"


RECORDS = [b"[" * 100_000, b"[]", b"3", b'{"stamp": 1}', b'{"stamp": null, "first": 0}', b"\xff"]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_of_another_kind_is_no_record(tmp_path: Path, whole: dict[str, bytes], record: bytes) -> None:
    part = interrupted(tmp_path / "out")
    (part / "train-000001.tar.record").write_bytes(record)
    packed(tmp_path / "out")
    assert dict(files_in(tmp_path / "out")) == whole


@pytest.mark.parametrize("edit", [{"rows": [["k", 2**70, 1, 1]]}, {"shard": {"name": "x"}}, {"rows": 5}, {"shard": 5}])
def test_a_record_with_a_fitting_stamp_and_other_values_is_no_record(
    tmp_path: Path, whole: dict[str, bytes], edit: dict[str, object]
) -> None:
    record = interrupted(tmp_path / "out") / "train-000001.tar.record"
    record.write_text(json.dumps({**json.loads(record.read_text()), **edit}))
    packed(tmp_path / "out")
    assert dict(files_in(tmp_path / "out")) == whole


def interrupted(out: Path) -> Path:
    """A packing that stopped within its fifth tar."""
    with pytest.raises(StopError):
        packed(out, stop=23)
    part = out.with_name(f"{out.name}.part")
    assert len(list(part.glob("*.record"))) == 4
    return part


def test_a_link_that_appears_while_tars_are_written_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the unfinished folder knows the names of the tars that come."""
    canary, part = tmp_path / "thesis", tmp_path / "out.part"
    canary.write_text("years of work")
    read = contents().sample

    def sample(number: int) -> Sample:
        if not number:
            for name in ("train-000001.tar", ".train-000001.tar", "train-000001.tar.record", "manifest.json"):
                (part / name).symlink_to(canary)
        return read(number)

    splits = {"train": Contents(40, "s", sample)}
    pack(tmp_path / "out", splits, shard_bytes=500, threads=1, console=QUIET)
    assert canary.read_text() == "years of work"
    whole = manifest.read(tmp_path / "out").split("train")
    assert not any(whole.path(number).is_symlink() for number in range(len(whole.shards)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_unfinished_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner can exchange what is in it, and its whole tars would be taken over."""
    part = interrupted(tmp_path / "out")
    os.chown(part, 12345, 12345)
    before = dict(files_in(part))
    with pytest.raises(DataError, match="belongs to another user"):
        packed(tmp_path / "out")
    assert dict(files_in(part)) == before
    os.chown(part, 0, 0)
    packed(tmp_path / "out")


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.tar.record"])
@pytest.mark.parametrize("kind", ["a pipe", "a link"])
def test_a_tar_or_a_record_that_has_no_end_is_none(
    tmp_path: Path, whole: dict[str, bytes], kind: str, name: str
) -> None:
    strange = interrupted(tmp_path / "out") / name
    strange.unlink()
    os.mkfifo(strange) if kind == "a pipe" else strange.symlink_to("/dev/zero")
    packed(tmp_path / "out")
    assert dict(files_in(tmp_path / "out")) == whole


def test_a_packing_goes_on_and_writes_only_what_is_missing(tmp_path: Path, whole: dict[str, bytes]) -> None:
    part = interrupted(tmp_path / "out")
    before = {path.name: path.stat().st_ino for path in part.glob("train-*.tar")}
    packed(tmp_path / "out")
    assert files_in(tmp_path / "out") == whole
    assert before.items() <= {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.tar")}.items()


def test_a_kill_while_records_are_removed_costs_only_their_tars(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    unlink = Path.unlink

    def third_fails(path: Path) -> None:
        if len(removed) == 3:
            raise StopError
        removed.append(path.name)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", third_fails)
    with pytest.raises(StopError):
        packed(tmp_path / "out")
    monkeypatch.undo()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.part").glob("*.tar")}
    packed(tmp_path / "out")
    assert files_in(tmp_path / "out") == whole
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert {f"{name}.record" for name in after if after[name] != before[name]} <= set(removed)


@pytest.mark.parametrize("what", ["flipped", "cut", "gone", "no record", "empty record"])
def test_a_tar_that_is_not_proved_whole_is_written_again(tmp_path: Path, whole: dict[str, bytes], what: str) -> None:
    part = interrupted(tmp_path / "out")
    tar, record = part / "train-000001.tar", part / "train-000001.tar.record"
    if what == "flipped":
        tar.write_bytes(tar.read_bytes().replace(b"k7", b"k8", 1))
    elif what == "cut":
        os.truncate(tar, 1000)
    elif what == "gone":
        tar.unlink()
    elif what == "no record":
        record.unlink()
    else:
        record.write_text("")
    packed(tmp_path / "out")
    assert files_in(tmp_path / "out") == whole


@pytest.mark.parametrize("other", [{"stamp": "t"}, {"shard_bytes": 700}, {"count": 30}])
def test_tars_of_other_samples_or_options_are_not_kept(tmp_path: Path, other: dict[str, int]) -> None:
    interrupted(tmp_path / "out")
    packed(tmp_path / "out", **other)  # type: ignore[arg-type]
    packed(tmp_path / "clean", **other)  # type: ignore[arg-type]
    assert files_in(tmp_path / "out") == files_in(tmp_path / "clean")


def test_what_does_not_belong_there_is_removed(tmp_path: Path, whole: dict[str, bytes]) -> None:
    part = interrupted(tmp_path / "out")
    for name in ("train-000009.tar", ".train-000004.tar", "test-000000.tar", "test-000000.tar.record"):
        (part / name).write_text("{}")
    packed(tmp_path / "out")
    assert files_in(tmp_path / "out") == whole


def test_everything_is_on_disk_before_the_folder_gets_its_name(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting: set[str] = set()
    fsync, rename = os.fsync, Path.rename

    def noted(handle: int) -> None:
        fsync(handle)
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        lasting.add(re.sub(r"^\.(.+)\.\d+-[0-9a-f]+\.part$", r"\1", name).removeprefix("."))

    def renamed(path: Path, target: Path) -> Path:
        assert lasting >= set(whole)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", renamed)
    packed(tmp_path / "out")
    assert files_in(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["[link=http://evil/]val[/link]", "[/x]"])
def test_the_name_of_a_split_is_no_markup(name: str) -> None:
    file = io.StringIO()
    with LongWork(Screen(file=file, force_terminal=True, width=200)) as shown:
        shown.add_task(name, total=3)
        shown.refresh()
    assert name in file.getvalue()
    assert "\x1b]8;" not in file.getvalue(), "a link of the terminal"


def test_files_of_a_person_are_not_removed(tmp_path: Path, whole: dict[str, bytes]) -> None:
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "holiday.jpg").write_text("dear")
    with pytest.raises(DataError, match=r"out\.part exists already and is not an unfinished data set"):
        packed(tmp_path / "out")
    assert files_in(part) == {"holiday.jpg": b"dear"}
    (part / "holiday.jpg").unlink()
    packed(tmp_path / "out")
    assert files_in(tmp_path / "out") == whole


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    part = tmp_path / "out.part"
    part.mkdir()
    with locked(part), pytest.raises(DataError, match="is being written by another process"):
        packed(tmp_path / "out")


def test_a_folder_that_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        packed(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"out\.part cannot be written: .*Not a directory"):
        packed(tmp_path / "file" / "out")


def test_a_maker_that_was_killed_is_resumed(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n % 5}/{n}.jpg" for n in range(400)))
    make("imagefolder", tmp_path / "whole", QUIET, FolderOptions(tmp_path / "in", Bytes(1000)))
    words = ["source=imagefolder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "shard_bytes=1KB"]
    command = [sys.executable, str(PROJECT / "shards" / "make.py"), *words]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    part = tmp_path / "out.part"
    maker = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    while len(list(part.glob("*.record"))) < 10 and maker.poll() is None:
        time.sleep(0.002)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert part.is_dir(), "it must be killed before it ends"
    assert not (tmp_path / "out").exists()
    last = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "whole shards kept" in last.stdout
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["classes"] == ["0", "1", "2", "3", "4"]
