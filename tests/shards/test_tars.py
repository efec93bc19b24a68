"""Tars that exist are indexed where they lie, and what is odd about them is said."""

import io
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from shards import verify
from shards.make import make
from shards.sources.tars import TarOptions
from tests.shards.pictures import files_in, held
from tests.shards.test_archive import tar_of


def tar(path: Path, *members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(*members, form=form))


def indexed(folder: Path, out: Path | None = None, **options: object) -> str:
    """Index; what was said."""
    console = Console(record=True, soft_wrap=True, file=(folder.parent / "log").open("w"))
    make("tars", out, console, TarOptions(folder, **options))  # type: ignore[arg-type]
    return console.export_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training tars and a validation one."""
    folder = tmp_path / "tars"
    tar(folder / "train-0.tar", ("a.jpg", b"A"), ("a.cls", b"1"), ("d/b.WEBP", b"B"), ("d/b.cls", b"0"))
    tar(folder / "train-1.tar", ("c.cls", b"5"), ("c.png", b"C"), form=tarfile.GNU_FORMAT)
    tar(folder / "val-0.tar", ("v.jpg", b"V"), ("v.cls", b"2"))
    return folder


def test_tars_stay_as_they_are_and_get_a_manifest(folder: Path) -> None:
    before = dict(files_in(folder))
    assert indexed(folder) == ""
    assert held(folder) == {"a": (b"A", 1), "d/b": (b"B", 0), "c": (b"C", 3)}  # 0, 1, 2 and 5 are numbered
    assert held(folder, "val") == {"v": (b"V", 2)}
    after = files_in(folder)
    assert after.keys() - before.keys() == {"manifest.json", "train.samples.safetensors", "val.samples.safetensors"}
    assert before.items() <= after.items()


def test_the_manifest_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    before = dict(files_in(folder))
    indexed(folder, tmp_path / "deep" / "index")
    assert files_in(folder) == before
    assert held(tmp_path / "deep" / "index", "val") == {"v": (b"V", 2)}


def test_indexing_in_parallel_gives_the_same_identity(folder: Path, tmp_path: Path) -> None:
    for threads in (1, 4):
        indexed(folder, tmp_path / f"i{threads}", threads=threads)
    assert len({manifest.read(tmp_path / f"i{threads}").identity for threads in (1, 4)}) == 1


def test_names_that_are_no_utf8_are_spelt_in_keys(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    files = {"caf\xe9.jpg": b"1", "caf\xe8/x.jpg": b"2", "ok.\xe9.jpg": b"3"}
    with tarfile.open(tmp_path / "t" / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    indexed(tmp_path / "t")
    assert held(tmp_path / "t") == {"caf%E9": (b"1", -1), "caf%E8/x": (b"2", -1), "ok": (b"3", -1)}
    assert verify.verify(tmp_path / "t", verify.VerifyOptions(decode=False), Console(quiet=True)) == []


@pytest.mark.parametrize(
    ("options", "splits"),
    [
        ({"train": "*.tar"}, {"train": "abcv"}),
        ({"train": "train-{0..1}.tar"}, {"train": "abc"}),
        ({"train": "train-{1..1}.tar", "val": "train-0.tar"}, {"train": "c", "val": "ab"}),
        ({"val": "train-1.tar"}, {"train": "ab", "val": "c"}),
    ],
)
def test_patterns_say_which_tars_are_which_split(folder: Path, options: dict[str, str], splits: dict[str, str]) -> None:
    indexed(folder, **options)
    assert {name: "".join(k[-1] for k in held(folder, name)) for name in manifest.read(folder).splits} == splits


def test_without_names_of_splits_all_tars_are_for_training(tmp_path: Path) -> None:
    for name in ("00.tar", "01.tar"):
        tar(tmp_path / "t" / name, (f"{name[1]}.jpg", b"1"))
    indexed(tmp_path / "t")
    assert {k: label for k, (_, label) in held(tmp_path / "t").items()} == {"0": -1, "1": -1}


def test_the_image_can_be_named(tmp_path: Path) -> None:
    tar(tmp_path / "t" / "a.tar", ("k.left.jpg", b"L"), ("k.right.jpg", b"R"))
    indexed(tmp_path / "t", image="right.jpg")
    assert held(tmp_path / "t") == {"k": (b"R", -1)}


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    tar(tmp_path / "t" / "a.tar", ("k.jpg", b"L"), ("k.seg.png", b"R"), ("text.txt", b""))
    for name in ("b.tar", "c.tar"):
        tar(tmp_path / "t" / name, ("k.jpg", b"2"))
    text = indexed(tmp_path / "t")
    assert "1 sample has no image: left out." in text
    assert "1 sample has several images: one was chosen (set image=EXT to choose another), 1 image is not used." in text
    assert "Several tars have the same contents:" in text
    assert "train: 2 samples have the key of one in another tar" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "nope*.tar"}, r"No tar in .* fits nope\*\.tar"),
        ({"train": "train-{0..2}.tar"}, r"No tar in .* fits train-2\.tar"),
        ({"train": "*.tar", "val": "val*"}, r"val-0\.tar is in train and in val"),
        ({"image": "ppm"}, r"No tar of train in .* holds \.ppm"),
    ],
)
def test_options_that_fit_nothing_are_refused(folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        indexed(folder, **options)
    assert not (folder / "manifest.json").exists()


def test_a_damaged_tar_is_named_and_no_manifest_is_left(folder: Path) -> None:
    data = (folder / "train-1.tar").read_bytes()
    (folder / "train-1.tar").write_bytes(data[:1500])
    with pytest.raises(DataError, match=r"train-1\.tar is damaged"):
        indexed(folder)
    assert not (folder / "manifest.json").exists()


def test_a_folder_that_is_indexed_is_left_alone(folder: Path) -> None:
    indexed(folder)
    with pytest.raises(DataError, match=r"has a manifest\.json already"):
        indexed(folder)


def test_a_folder_without_tars_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(DataError, match=r"No tar in .* fits \*\.tar"):
        indexed(tmp_path / "t")
