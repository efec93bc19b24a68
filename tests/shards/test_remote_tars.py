"""Tars on a server get a manifest without being kept: the same as on this machine, and each is fetched once."""

import errno
import io
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.progress import TaskID

from dist_ssl.build import check
from dist_ssl.config.command import run_command
from dist_ssl.config.instantiate import keywords
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.data_keys import Data
from dist_ssl.data.storage import fetch, manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher, Patience
from dist_ssl.data.storage.object_store import Store
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import ConfigError, DataError
from launch import science_keys
from shards import make as command
from shards import remote_tars
from shards.make import make
from shards.pack import LOCK
from shards.remote_tars import RemoteTars, Rules, fitting, named, names_of_splits
from shards.sources import tars
from shards.sources.tars import TarOptions
from tests.jobs import small_config
from tests.shards.pictures import picture
from tests.shards.test_strange_tars import tar
from tests.web import Server, serving

PATTERNS = {"train": "train-{0..2}.tar", "val": "val-0.tar"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tars to train on and one held out, of two classes by name."""
    for number, name in enumerate(("train-0", "train-1", "train-2", "val-0")):
        members: dict[str, bytes] = {}
        for n in range(6):
            members |= {f"{number}{n}.jpg": picture(10 * number + n), f"{number}{n}.cls": (b"bee", b"owl")[n % 2]}
        tar(tmp_path / "tars" / f"{name}.tar", members)
    return tmp_path / "tars"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as found:
        yield found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetches are given up after few tries, without long pauses."""
    monkeypatch.setattr(tars, "Fetcher", lambda: Fetcher(Patience(3, 0.002, stall_seconds=0.3)))


def indexed(url: str, out: Path, **options: object) -> str:
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    make("tars", out, console, TarOptions(Address.parse(url), **{**PATTERNS, "threads": 1, **options}))  # type: ignore[arg-type]
    return console.export_text()


def asked(server: Server) -> dict[str, int]:
    """Requests for the content of each tar; one for a single byte asks for its size."""
    own = [path.strip("/") for path, part in server.requests if part != "bytes=0-0"]
    return {name: own.count(name) for name in sorted(set(own))}


def test_the_manifest_is_that_of_the_same_tars_here(server: Server, folder: Path, tmp_path: Path) -> None:
    indexed(server.url, tmp_path / "away")
    make("tars", None, Console(quiet=True), TarOptions(folder))
    assert manifest.read(tmp_path / "away").identity == manifest.read(folder).identity
    assert manifest.read(tmp_path / "away").classes == ("bee", "owl")
    assert asked(server) == {f"{name}.tar": 1 for name in ("train-0", "train-1", "train-2", "val-0")}
    assert not (tmp_path / "away.part").exists()


def test_a_transfer_that_breaks_off_goes_on_at_its_byte(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SLOWEST_BYTES", 1)
    wanted = "/train-1.tar"  # its size is asked for first
    server.fault = lambda path: (
        "short" if path == wanted and [own for own, _ in server.requests].count(path) == 2 else ""
    )
    indexed(server.url, tmp_path / "away")
    parts = [part for path, part in server.requests if path == wanted]
    make("tars", None, Console(quiet=True), TarOptions(folder))
    assert manifest.read(tmp_path / "away").identity == manifest.read(folder).identity
    assert parts[:2] == ["bytes=0-0", ""]
    (rest,) = parts[2:]
    assert rest.startswith("bytes=")
    assert not rest.startswith("bytes=0-"), "the rest alone is asked for"


def test_after_a_failure_only_the_other_tars_are_fetched(server: Server, tmp_path: Path) -> None:
    server.fault = lambda path: "404" if path == "/val-0.tar" and len(asked(server)) > 1 else ""
    with pytest.raises(DataError, match=r"val-0\.tar does not exist"):
        indexed(server.url, tmp_path / "away")
    assert not (tmp_path / "away").exists()
    before = asked(server)
    server.fault = lambda path: ""
    said = indexed(server.url, tmp_path / "away")
    assert f"Resuming in {tmp_path / 'away.part'}: 3 of 4 tars indexed already." in said
    after = asked(server)
    assert all(after[name] == before[name] for name in ("train-0.tar", "train-1.tar", "train-2.tar"))
    assert not (tmp_path / "away.part").exists()


def test_what_a_kill_left_of_a_record_does_not_stay(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "away.part"
    part.mkdir()
    for left in (LOCK, f".{'0' * 64}.index.77-0123abcd.part"):
        (part / left).touch()
    indexed(server.url, tmp_path / "away")
    assert (tmp_path / "away" / manifest.NAME).exists()
    assert not part.exists()


def test_on_nfs_too_the_folder_of_the_records_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a file that is removed while a process has it open stays under another name until it is closed."""
    remove = os.unlink

    def on_nfs(path: str | Path, **options: Any) -> None:
        opened = {os.path.realpath(own) for own in Path("/proc/self/fd").iterdir()}
        if Path(path).name == LOCK and str(tmp_path / "away.part" / LOCK) in opened:
            (tmp_path / "away.part" / LOCK).rename(tmp_path / "away.part" / ".nfs0001")
        else:
            remove(path, **options)

    monkeypatch.setattr(os, "unlink", on_nfs)
    indexed(server.url, tmp_path / "away")
    assert (tmp_path / "away" / manifest.NAME).exists()
    assert not (tmp_path / "away.part").exists()


def test_half_packed_shards_in_the_folder_of_the_records_stay(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "away.part"
    part.mkdir()
    for name in (LOCK, "train-000000.tar"):
        (part / name).touch()
    indexed(server.url, tmp_path / "away")
    assert {path.name for path in part.iterdir()} == {LOCK, "train-000000.tar"}


def test_a_record_that_cannot_be_written_is_one_message(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, sync: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote_tars, "write_atomically", full)
    with pytest.raises(DataError, match=r"The index for .*away cannot be made: .* No space left on device") as caught:
        indexed(server.url, tmp_path / "away")
    assert "it continues where it stopped" in caught.value.remedy


def test_a_record_of_other_rules_or_of_a_tar_that_has_changed_is_not_used(server: Server, tmp_path: Path) -> None:
    missing = {"/val-0.tar"}
    server.fault = lambda path: "404" if path in missing and len(asked(server)) > 2 else ""
    with pytest.raises(DataError):
        indexed(server.url, tmp_path / "away")
    tar(server.folder / "train-0.tar", {"new.jpg": picture(99)})
    missing.clear()
    said = indexed(server.url, tmp_path / "away")
    assert "2 of 4 tars indexed already" in said
    assert len(manifest.read(tmp_path / "away").split("train").samples) == 13


def test_the_command_says_where_the_manifest_goes_and_fits_the_pictures(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"path={server.url}", f"out={tmp_path / 'away'}", *(f"{key}={value}" for key, value in PATTERNS.items())]
    assert run_command(command.run, ["source=tars", *words]) == 0
    text = capsys.readouterr().out
    files = "manifest.json, train.samples.safetensors, val.samples.safetensors"
    assert f"The command below reads the manifest from {tmp_path / 'away'}. Where you can write to {server.url}" in text
    assert f"\n{files} there, beside the tars" in text
    assert f"data=shards data.path={server.url} data.val=val schedule.image_size=16 encoder=tiny" in text
    assert f" data.manifest={tmp_path / 'away'}" in text.splitlines()[-1]


def test_a_kill_within_the_second_rule_for_keys_loses_nothing(server: Server, tmp_path: Path) -> None:
    """Names have dots of their own: all tars are indexed by keys to the first dot, and then by keys to the last."""
    for number in range(3):
        tar(server.folder / f"train-{number}.tar", {f"cam1.{number}{n:03d}.jpg": picture(n) for n in range(9)})
    wanted = {"train": "train-{0..2}.tar", "val": None}
    server.fault = lambda path: "404" if path == "/train-2.tar" and asked(server).get("train-1.tar", 0) > 1 else ""
    with pytest.raises(DataError, match=r"train-2\.tar does not exist"):
        indexed(server.url, tmp_path / "away", **wanted)
    assert asked(server)["train-2.tar"] == 2, "the second fetch failed"
    server.fault = lambda path: ""
    indexed(server.url, tmp_path / "away", **wanted)
    assert asked(server) == {"train-0.tar": 2, "train-1.tar": 2, "train-2.tar": 3}
    assert len(manifest.read(tmp_path / "away").split("train").samples) == 27


def test_the_command_has_the_range_that_its_mean_assumes(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of 12 bits in files of 16: nothing lies here that could be looked at before."""
    shades = np.linspace(0, 4000, 256, dtype=np.uint16).reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(shades).save(file, "PNG")
    tar(server.folder / "deep.tar", {f"{n}.png": file.getvalue() for n in range(6)})
    words = [f"path={server.url}", f"out={tmp_path / 'away'}", "train=deep.tar"]
    assert run_command(command.run, ["source=tars", *words]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.count(" data.range=4095") == 1
    assert "data.mean=[0.488,0.488,0.488]" in line


def test_the_bar_counts_what_is_left_to_fetch(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[float | None] = []

    class Shown(LongWork):
        def add_task(self, description: str, *_: Any, total: float | None = None, **__: Any) -> TaskID:
            totals.append(total)
            return super().add_task(description, total=total)

    monkeypatch.setattr(remote_tars, "LongWork", Shown)
    found = RemoteTars(Address.parse(server.url), Fetcher(), tmp_path)
    for names in (["train-0.tar"], ["train-0.tar", "train-1.tar"]):
        found.indexes(names, Rules(None, labels=True, last_dot=False), 1, Console(quiet=True))
    assert totals == [(server.folder / f"train-{number}.tar").stat().st_size for number in range(2)]


def test_what_is_not_measured_elsewhere_is_said(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((16, 16, 5), dtype=np.uint8))
    tar(server.folder / "bands.tar", {f"{n}.npy": file.getvalue() for n in range(3)})
    words = ["source=tars", f"path={server.url}", "train=bands.tar"]
    for name, given, channels in (("guessed", [], 3), ("given", ["channels=5"], 5)):
        assert run_command(command.run, [*words, f"out={tmp_path / name}", *given]) == 0
        assert manifest.read(tmp_path / name).channels == channels
        said = "Of tars elsewhere their channels are not measured: they count as 3."
        assert (said in capsys.readouterr().out) == (not given)


def test_credentials_are_used_and_never_shown(server: Server, tmp_path: Path) -> None:
    server.login = "Basic dXNlcjpzZWNyZXQ="
    url = server.url.replace("//", "//user:secret@")
    indexed(url, tmp_path / "away")
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "away").iterdir())
    server.login = "Basic another"
    with pytest.raises(DataError, match="asks for credentials") as caught:
        indexed(url, tmp_path / "again")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("pattern", [None, "train-*.tar", "train-?.tar"])
def test_a_server_that_lists_nothing_needs_the_names(server: Server, tmp_path: Path, pattern: str | None) -> None:
    with pytest.raises(ConfigError, match="does not list its files") as caught:
        indexed(server.url, tmp_path / "away", train=pattern)
    assert "train='train-{000..146}.tar'" in caught.value.remedy


def test_a_manifest_needs_a_folder_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command.run, ["source=tars", "path=https://host/set", "train=a.tar"]) == 2
    assert "path=https://host/set needs out=..., a folder of this machine." in capsys.readouterr().out
    assert run_command(command.run, ["source=tars", "path=ftp://host/set", f"out={tmp_path}/o"]) == 2
    assert "ftp:// addresses are not supported." in capsys.readouterr().out


def test_patterns_find_what_a_store_lists() -> None:
    here, there = Address("s3://bucket/set", "s3"), ["a-0.tar", "a-1.tar", "b-0.tar"]
    assert fitting(here, there, "a-*.tar") == ["a-0.tar", "a-1.tar"]
    assert fitting(here, there, "{b,a}-0.tar") == ["a-0.tar", "b-0.tar"]
    with pytest.raises(DataError, match=r"No tar in s3://bucket/set fits c\.tar"):
        fitting(here, there, "{a-0,c}.tar")
    assert named(here, "x-{0..1}.tar", "train") == ["x-0.tar", "x-1.tar"]


@pytest.mark.parametrize(
    ("train", "val", "splits"),
    [
        (None, "shard-0009*.tar", (["shard-00000.tar", "shard-00001.tar"], ["shard-00090.tar", "shard-00091.tar"])),
        ("shard-0000*.tar", "shard-00090.tar", (["shard-00000.tar", "shard-00001.tar"], ["shard-00090.tar"])),
        ("shard-0000*.tar", None, (["shard-00000.tar", "shard-00001.tar"], None)),
    ],
)
def test_in_a_bucket_what_is_held_out_is_not_trained_on(
    train: str | None, val: str | None, splits: tuple[list[str], list[str] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, fetcher = bucket_of(monkeypatch, "shard-00000.tar", "shard-00001.tar", "shard-00090.tar", "shard-00091.tar")
    found = names_of_splits(here, train, val, fetcher)
    assert (found["train"], found.get("val")) == splits


def test_a_tar_in_train_and_in_val_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here, fetcher = bucket_of(monkeypatch, "a-0.tar", "a-1.tar")
    with pytest.raises(DataError, match=r"a-1\.tar is in train and in val"):
        names_of_splits(here, "*.tar", "a-1.tar", fetcher)
    with pytest.raises(DataError, match="holds no tars to train on"):
        names_of_splits(here, None, "*.tar", fetcher)


def test_a_tar_that_is_named_twice_on_a_server_is_refused() -> None:
    with pytest.raises(DataError, match=r"x-2\.tar is in train and in val"):
        names_of_splits(Address.parse("https://host/set"), "x-{0..2}.tar", "x-{2..3}.tar", Fetcher())


def bucket_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> tuple[Address, Fetcher]:
    """A folder in a store that holds files of these names, and what would fetch them."""
    store = object.__new__(Store)
    monkeypatch.setattr(Store, "names", lambda self, address: list(names))
    monkeypatch.setattr(Fetcher, "source", lambda self, address: store)
    return Address("s3://bucket/set", "s3"), Fetcher()


def test_no_command_is_named_that_needs_the_tars_here(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar(server.folder / "cut.tar", {f"{n}.jpg": picture(n)[:-30] if n == 3 else picture(n) for n in range(6)})
    words = [f"path={server.url}", f"out={tmp_path / 'away'}", "train=cut.tar"]
    assert run_command(command.run, ["source=tars", *words]) == 0
    text = capsys.readouterr().out
    assert "1 of 6 pictures that were tried cannot be read: a run lists those that it meets" in text
    assert "verify.py" not in text, "the manifest's tars are not beside it"


def data_of(path: str | list[str], **more: object) -> Data:
    node = {"path": path, "train": "train", "mean": [0.5] * 3, "std": [0.5] * 3, "max_bad": "1 %", **more}
    return Data(**keywords(Data, node, "data"))


def test_a_run_reads_tars_at_one_place_by_a_manifest_at_another(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{key}={value}" for key, value in PATTERNS.items()]
    assert run_command(command.run, ["source=tars", f"path={server.url}", f"out={tmp_path / 'away'}", *words]) == 0
    line = shlex.split(capsys.readouterr().out.splitlines()[-1])
    given = [word for word in line if word.startswith(("data.path=", "data.manifest="))]
    assert given == [f"data.path={server.url}", f"data.manifest={tmp_path / 'away'}"]
    data = data_of(server.url, manifest=str(tmp_path / "away"), cache=str(tmp_path / "cache"))
    access = data.access(1)
    found = data.open(access)
    assert found.identity == manifest.read(tmp_path / "away").identity
    with Reader(found.split("train"), access) as reader:
        assert [reader.read(n) for n in range(18)] == [picture(10 * n + m) for n in range(3) for m in range(6)]
    own = small_config(tmp_path / "away", "data.val=val", "schedule.image_size=8", "batch_size=12", "lanes=12")
    own["data"] |= {"path": server.url, "manifest": str(tmp_path / "away")}
    assert check(own, ranks=1) == found.identity
    assert "data.manifest" not in science_keys.science(own), "a resume may set or leave it"


@pytest.mark.parametrize(
    ("path", "more", "problem"),
    [
        (["a", "b"], {}, r"several places in data\.path"),
        ("a", {"pyramid": [8]}, r"not possible with data\.pyramid"),
        ("a", {"manifest": "https://host/index"}, r"data\.manifest=https://host/index is an address"),
    ],
)
def test_what_cannot_be_apart_from_its_manifest_is_refused(
    path: str | list[str], more: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        data_of(path, **{"manifest": "index", **more}).access(1)


def test_a_manifest_that_names_tars_elsewhere_itself_needs_no_other_place(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    make("tars", tmp_path / "here", Console(quiet=True), TarOptions(folder, **PATTERNS))  # type: ignore[arg-type]
    data = data_of(server.url, manifest=str(tmp_path / "here"))
    with pytest.raises(ConfigError, match=r"names its tars from there, \.\./tars/(?s:.*)Leave data\.manifest out"):
        data.open(data.access(1))
    gone = data_of(server.url, manifest=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        gone.open(gone.access(1))
