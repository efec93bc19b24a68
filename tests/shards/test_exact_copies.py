"""Images with the same bytes as others are counted and named, above all held-out ones that are trained on."""

import io
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from shards import exact_copies
from shards.exact_copies import Copies, copies_in, say_copies
from shards.make import main
from tests.shards.pictures import folder_of, picture


def made(tmp_path: Path, *options: str) -> manifest.Manifest:
    """The shards of the folder `in`."""
    place = [f"path={tmp_path / 'in'}", f"out={tmp_path / 'out'}"]
    assert main(["source=imagefolder", *place, *options]) == 0
    return manifest.read(tmp_path / "out")


def test_copies_are_images_with_the_bytes_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = folder_of(tmp_path / "in", "a.png", "x/b.png")
    for name in ("z.png", "x/c.png"):
        (tmp_path / "in" / name).write_bytes(files["a.png"])
    other = bytearray(files["a.png"])
    other[-3] ^= 1
    (tmp_path / "in" / "same size.png").write_bytes(bytes(other))
    for name in ("e1.png", "e2.png"):
        (tmp_path / "in" / name).write_bytes(b"")
    data = made(tmp_path, "shard_bytes=1kB")
    assert len(data.split("train").shards) > 1
    for middle in (8, 1 << 20):  # where the middles agree, all bytes count
        monkeypatch.setattr(exact_copies, "MIDDLE", middle)
        found = copies_in(data, threads=2)
        assert not found.trained_on
        assert len(found.repeated.pop("train")) == 2
        assert not found.repeated


def test_a_held_out_image_that_is_trained_on_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{split}/{label}/{n}.jpg" for split in ("train", "val") for label in "ab" for n in range(3)]
    files = folder_of(tmp_path / "in", *names)
    (tmp_path / "in/val/b/again.jpg").write_bytes(files["train/a/1.jpg"])
    (tmp_path / "in/val/b/twice.jpg").write_bytes(files["val/a/0.jpg"])
    data = made(tmp_path)
    (repeated,) = copies_in(data, threads=1).repeated.values()
    assert copies_in(data, threads=1).trained_on == {"val": ["b/again"]}
    text = capsys.readouterr().out
    assert "val: 1 image is in train too, byte for byte, so an accuracy on val is too high: b/again. Remove" in text
    assert f"val: 1 image repeats another one byte for byte; all are used: {repeated[0]}." in text


def test_different_images_of_one_size_are_no_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(20):
        (tmp_path / "in" / f"{number}.bmp").write_bytes(picture(number, "bmp"))
    assert copies_in(made(tmp_path), threads=2) == Copies({}, {})
    assert "byte for byte" not in capsys.readouterr().out


def test_copies_in_tars_of_others_are_found_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for number in range(2):
                data = picture(number if split == "train" else number + 1)
                info = tarfile.TarInfo(f"{split}{number}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    assert main(["source=tars", f"path={tmp_path}"]) == 0
    assert "val: 1 image is in train too, byte for byte" in capsys.readouterr().out


def test_very_many_images_are_not_read_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exact_copies, "MOST_IMAGES", 1)
    monkeypatch.setattr(exact_copies, "copies_in", None)
    folder_of(tmp_path / "in", "a.bmp", "b.bmp")
    made(tmp_path)
    assert "Copies are not looked for among 2 images" in capsys.readouterr().out


def test_a_shard_that_is_gone_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.bmp", "b.bmp")
    data = made(tmp_path)
    data.split("train").path(0).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        say_copies(data, 1, Console(quiet=True))
