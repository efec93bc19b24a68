"""Folders as people have them: everything is read right, or one line says what is not read and why."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError
from shards import verify
from shards.command_line import HeldOut
from shards.make import make, report
from shards.make import run as make_command
from shards.sources.imagefolder import FolderOptions
from shards.sources.tars import TarOptions
from shards.split_names import check_inner_splits
from tests.shards.pictures import folder_of


def jpeg(number: int = 0, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(file, kind)
    return file.getvalue()


def indexed(folder: Path, **options: object) -> tuple[manifest.Manifest, str]:
    """The manifest of the tars in a folder, and what was printed."""
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    make("tars", None, console, TarOptions(folder, **options))  # type: ignore[arg-type]
    report(folder, console)
    assert verify.verify(folder, verify.VerifyOptions(), Console(quiet=True)) == []
    return manifest.read(folder), console.export_text()


def packed(folder: Path, out: Path, **options: object) -> tuple[manifest.Manifest, str]:
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    make("imagefolder", out, console, FolderOptions(folder, **options))  # type: ignore[arg-type]
    report(out, console)
    assert verify.verify(out, verify.VerifyOptions(), Console(quiet=True)) == []
    return manifest.read(out), console.export_text()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train", "test"),
        ("training", "validation"),
        ("Train", "Val"),
        ("train", "dev"),
        ("TRAIN", "eval"),
        ("train2017", "val2017"),
    ],
)
@pytest.mark.parametrize("inside", ["", "images/", "ILSVRC/Data/CLS-LOC/"])
def test_folders_of_splits_are_splits_whatever_they_are_called(
    tmp_path: Path, first: str, second: str, inside: str
) -> None:
    names = [f"{inside}{split}/{kind}/{n}.jpg" for split in (first, second) for kind in ("a", "b") for n in range(4)]
    folder_of(tmp_path / "in", *names)
    found, said = packed(tmp_path / "in", tmp_path / "out")
    assert found.classes == ("a", "b")
    assert "2 classes: a, b" in said
    assert {name: len(split.samples) for name, split in found.splits.items()} == {"train": 8, "val": 8}


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["images/train/1.jpg", "images/val/1.jpg", "masks/train/1.png", "masks/val/1.png"], "images"),
        (["cat/train/1.jpg", "cat/test/1.jpg", "dog/train/1.jpg", "dog/test/1.jpg"], "cat"),
    ],
)
def test_splits_inside_several_folders_are_refused(tmp_path: Path, names: list[str], first: str) -> None:
    folder_of(tmp_path / "in", *names)
    with pytest.raises(DataError, match=f"has folders of splits inside others: {first}/, ") as caught:
        packed(tmp_path / "in", tmp_path / "out")
    assert f"path={tmp_path / 'in' / first};" in caught.value.remedy
    folder_of(tmp_path / "plain", "trains/old/1.jpg", "trains/train/1.jpg", "cars/1.jpg")
    assert packed(tmp_path / "plain", tmp_path / "out")[0].classes == ("cars", "trains")


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"val": HeldOut()}, ("pat1", "pat2")),
        ({"labels": False}, ()),
        ({"val": HeldOut(2)}, None),
        ({"labels": True}, None),
    ],
)
def test_folders_of_splits_inside_others_are_used_where_that_is_said(
    tmp_path: Path, options: dict[str, object], classes: tuple[str, ...] | None
) -> None:
    folder_of(tmp_path / "in", *(f"pat{n}/{split}/1.jpg" for n in (1, 2) for split in ("train", "test")))
    if classes is None:
        with pytest.raises(DataError, match="folders of splits inside others") as caught:
            packed(tmp_path / "in", tmp_path / "out", **options)
        assert "or use all of them, with val=0 (nothing is held out) or labels=false" in caught.value.remedy
        return
    found, said = packed(tmp_path / "in", tmp_path / "out", **options)
    assert found.classes == classes
    assert {name: len(split.samples) for name, split in found.splits.items()} == {"train": 4}
    assert "Folders of splits inside others are no splits here, all their pictures are used: pat1/, pat2/." in said


def test_a_command_without_such_options_does_not_name_them(tmp_path: Path) -> None:
    """One that needs pictures to test on can neither hold nothing out nor do without labels."""
    with pytest.raises(DataError) as caught:
        check_inner_splits(["cat/train/1.jpg", "cat/val/1.jpg"], tmp_path, all_used=None)
    assert caught.value.remedy.endswith("or rename them, if they are no splits.")


def test_kinds_that_are_named_like_splits_are_no_splits_where_that_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "animal/1.jpg", *(f"vehicle/{kind}/1.jpg" for kind in ("train", "car", "test 1")))
    found, said = packed(tmp_path / "in", tmp_path / "out", labels=False)
    assert len(found.split("train").samples) == 4
    assert "all their pictures are used: vehicle/." in said


def test_of_several_held_out_folders_one_is_used_and_the_others_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{split}/{n}.jpg" for split in ("train", "test", "val") for n in range(3)))
    found, said = packed(tmp_path / "in", tmp_path / "out")
    assert "train/ is trained on, val/ is held out; not used: test." in said
    assert sum(len(split.samples) for split in found.splits.values()) == 6


@pytest.mark.parametrize(
    "names", [["train/1.jpg", "sea/1.jpg", "dev/1.jpg"], ["train/1.jpg", "Train/2.jpg", "val/1.jpg"]]
)
def test_what_may_be_a_split_or_a_class_is_refused(tmp_path: Path, names: list[str]) -> None:
    folder_of(tmp_path / "in", *names)
    with pytest.raises(DataError, match="beside them, images in"):
        packed(tmp_path / "in", tmp_path / "out")


def test_images_are_packed_by_their_content_where_the_extension_is_unknown(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder_of(folder, "1.jpg", "2.jpg")
    kinds = {
        "jfif": "JPEG",
        "jpe": "JPEG",
        "ppm": "PPM",
        "pgm": "PPM",
        "jp2": "JPEG2000",
        "avif": "AVIF",
        "dat": "PNG",
        "": "JPEG",
    }
    for number, (ending, kind) in enumerate(kinds.items()):
        (folder / f"n{number}{f'.{ending}' if ending else ''}").write_bytes(jpeg(number, kind))
    (folder / "notes.txt").write_text("x")
    (folder / "photo.cr2").write_bytes(b"II*\0")
    (folder / "empty.bin").touch()
    found, said = packed(folder, tmp_path / "out")
    assert len(found.split("train").samples) == 2 + len(kinds)
    assert "Left out, because they are no images: 1 .bin, 1 .cr2, 1 .txt." in said


@pytest.mark.parametrize("name", ["photo.dng", "photo.NEF", "photo.heic"])
def test_of_a_cameras_own_file_the_thumbnail_is_not_taken(tmp_path: Path, name: str) -> None:
    """A TIFF whose first picture is a thumbnail decodes well: a whole folder would be trained on at 160 px."""
    folder_of(tmp_path / "in", "1.jpg")
    (tmp_path / "in" / name).write_bytes(jpeg(1, "TIFF") if name != "photo.heic" else b"\0\0\0\x18ftypheic")
    found, said = packed(tmp_path / "in", tmp_path / "out")
    assert len(found.split("train").samples) == 1
    kind = name.rpartition(".")[2].lower()
    assert f"no images: 1 .{kind}. Pictures of a kind that is not read (.{kind}) can be converted" in said


def test_unknown_extensions_become_those_of_the_content_so_that_every_reader_finds_the_image(tmp_path: Path) -> None:
    """An extension may be that of a label, or no text: in the tar it would be that, and the image no image."""
    folder = tmp_path / "in"
    names = {"owl/1.cls": "JPEG", "owl/2": "PNG", "bee/3.json": "WEBP", os.fsdecode(b"bee/4.\xe9"): "BMP"}
    for number, (name, kind) in enumerate(names.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number, kind))
    found, _ = packed(folder, tmp_path / "out", val=HeldOut())
    assert sorted(found.split("train").samples.labels.tolist()) == [0, 0, 1, 1]
    with tarfile.open(tmp_path / "out/train-000000.tar") as members:
        kinds = sorted(name.rpartition(".")[2] for name in members.getnames())
    assert kinds == ["bmp", *["cls"] * 4, "jpg", "png", "webp"]
    (tmp_path / "out/manifest.json").unlink()
    again, _ = indexed(tmp_path / "out")
    assert len(again.split("train").samples) == 4


def deep(folder: Path, most: int, count: int = 60) -> Path:
    """A folder of pictures of 16 bits whose values end at `most`, and of one of 8 bits."""
    folder.mkdir()
    for n in range(count):
        values = np.add.outer(np.arange(12), np.arange(12) + n) * 43 % (most + 1)
        values[0, 0] = most
        Image.fromarray(values.astype(np.uint16)).save(folder / f"{n:03d}.png")
    (folder / "a.jpg").write_bytes(jpeg())
    return folder


@pytest.mark.parametrize(("most", "bright", "white"), [(4095, 15, 4095), (1000, 3, 1023), (32767, 127, 32767)])
def test_pictures_that_would_be_dark_are_named_with_the_key_that_helps(
    tmp_path: Path, most: int, bright: int, white: int
) -> None:
    _, said = packed(deep(tmp_path / "in", most), tmp_path / "out")
    found = f"60 of 61 pictures that were looked at have 16 bits, with values up to {most}: {bright} of 255 would be"
    assert found in said
    assert said.rstrip().endswith(f"data.range={white}")
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    assert verify.run([str(tmp_path / "out")], console) == 0
    assert found in console.export_text()


def test_a_command_has_one_range_for_both_splits_and_mean_and_std_of_that_range(tmp_path: Path) -> None:
    for split, most in (("train", 1000), ("val", 4000)):
        (tmp_path / "in" / split).mkdir(parents=True)
        for n in range(6):
            shades = np.linspace(0, most, 144).astype(np.uint16).reshape(12, 12)
            Image.fromarray(shades).save(tmp_path / "in" / split / f"{n}.png")
    _, said = packed(tmp_path / "in", tmp_path / "out")
    assert said.rstrip().endswith("data.range=4095")
    assert said.count("Set data.range=4095 in the run.") == 2
    assert f"'data.mean=[{','.join([f'{500 / 4095:.3f}'] * 3)}]'" in said
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    assert verify.run([str(tmp_path / "out")], console) == 0
    assert console.export_text().count("Set data.range=4095 in the run.") == 2


def test_pictures_of_the_whole_range_need_no_key(tmp_path: Path) -> None:
    _, said = packed(deep(tmp_path / "in", 65535), tmp_path / "out")
    assert "60 of 61 pictures that were looked at have 16 bits, with values up to 65535." in said
    assert "data.range" not in said


def test_levels_hold_the_pixels_of_the_range_and_a_run_of_another_is_refused(tmp_path: Path) -> None:
    packed(deep(tmp_path / "in", 4095, count=3), tmp_path / "out")
    with pytest.raises(DataError, match="no level of 6 px") as lacking:
        pyramid.attach(
            manifest.read(tmp_path / "out"), Address(str(tmp_path / "out")), (6,), Fetcher(), ImageRules(range=4095)
        )
    whole = ImageRules(range=2.0**24 - 1)
    with pytest.raises(DataError) as exact:
        pyramid.attach(manifest.read(tmp_path / "out"), Address(str(tmp_path / "out")), (6,), Fetcher(), whole)
    assert "range=16777215;" in exact.value.remedy
    given = [f"out={tmp_path / 'out'}", "pyramid=[6]", "range=4095"]
    assert f"python shards/make.py {' '.join(given)}; or" in lacking.value.remedy
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    assert make_command(given, console) == 0
    where, rules = Address(str(tmp_path / "out")), ImageRules(range=4095)
    found = pyramid.attach(manifest.read(tmp_path / "out"), where, (6,), Fetcher(), rules).split("train")
    with Reader(found) as reader:
        bright = {found.samples.key(n): int(decode(reader.read(n, 1), 1, rules).pixels.max()) for n in range(4)}
    assert min(value for key, value in bright.items() if key != "a") > 100
    for other, key in ((ImageRules(), "range"), (ImageRules(range=4095, alpha="drop"), "alpha")):
        with pytest.raises(DataError, match=f"made with {key}=") as caught:
            pyramid.attach(manifest.read(tmp_path / "out"), where, (6,), Fetcher(), other)
        again = {"range": "", "alpha": " range=4095 alpha=drop"}[key]
        made = f"python shards/make.py out={tmp_path / 'out'} pyramid=[6]{again}"
        assert caught.value.remedy.endswith(f"or remove the level and make it again: {made}")
