"""A data set has images of one number of channels, measured or given; others are refused by their names."""

import io
import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.config.bounds import MOST_CHANNELS
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.samples import columns
from dist_ssl.errors import ConfigError, DataError
from launch import own_pictures
from shards import channels, depth, show, verify
from shards.make import make, run
from shards.sources.tars import TarOptions
from tests.data.images.test_tiff_bands import tiff
from tests.shards.pictures import folder_of
from tests.shards.test_tars import tar


def array(number: int, channels: int = 5, dtype: str = "u1") -> bytes:
    """An image of noise in a file of numpy."""
    file = io.BytesIO()
    np.save(file, np.random.default_rng(number).integers(0, 200, (12, 14, channels)).astype(dtype))
    return file.getvalue()


def put(root: Path, **files: bytes) -> None:
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        (root / f"{name}.npy").write_bytes(data)


def made(tmp_path: Path, *words: str) -> tuple[manifest.Manifest, str]:
    """The data set of the folder `in`, and what was said."""
    console = Console(file=io.StringIO(), soft_wrap=True)
    run(["source=imagefolder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'out'}", *words], console)
    assert isinstance(console.file, io.StringIO)
    return manifest.read(tmp_path / "out"), console.file.getvalue()


def test_pictures_are_rgb_and_their_manifest_is_the_one_that_it_always_was(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg", "b.png")
    Image.new("L", (9, 9)).save(tmp_path / "in" / "grey.png")
    found, _ = made(tmp_path)
    assert found.channels == 3
    assert set(json.loads((tmp_path / "out" / manifest.NAME).read_text())) == {"format", "splits"}


def test_the_channels_of_arrays_are_measured_with_their_statistics(tmp_path: Path) -> None:
    put(tmp_path / "in", **{str(n): array(n) for n in range(6)})
    found, text = made(tmp_path)
    assert found.channels == 5
    values = np.stack([np.random.default_rng(n).integers(0, 200, (12, 14, 5)) for n in range(6)]) / 255
    keys = {key: json.loads(value) for key, value in re.findall(r"data\.(mean|std)=(\[.*?\])", text)}
    assert keys["mean"] == pytest.approx(values.mean((0, 1, 2)), abs=1e-3)
    assert keys["std"] == pytest.approx(values.std((0, 1, 2)), abs=1e-3)
    assert json.loads((tmp_path / "out" / manifest.NAME).read_text())["channels"] == 5


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_pictures_are_read_as_one_and_as_four_channels_where_it_is_said(
    tmp_path: Path, channels: int, mode: str
) -> None:
    folder_of(tmp_path / "in", "a.jpg", "b.png")
    Image.new(mode, (9, 9), 7 if channels == 1 else (7, 7, 7, 7)).save(tmp_path / "in" / "c.png")
    found, text = made(tmp_path, f"channels={channels}")
    assert found.channels == channels
    assert re.search(rf"data\.mean=\[[0-9.]+(,[0-9.]+){{{channels - 1}}}\]", text)


@pytest.mark.parametrize("words", [(), ("channels=5",)], ids=["measured", "given"])
def test_a_mixture_is_refused_with_the_names_of_both(tmp_path: Path, words: tuple[str, ...]) -> None:
    put(tmp_path / "in", a=array(0), b=array(1), c=array(2, channels=4))
    with pytest.raises(DataError) as caught:
        made(tmp_path, *words)
    message = str(caught.value)
    assert str(tmp_path / "in" / "c.npy") in message
    assert "5" in message
    assert "4" in message
    assert not (tmp_path / "out").exists()


def test_pictures_beside_arrays_of_other_channels_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg")
    put(tmp_path / "in", b=array(0, channels=1), c=array(1, channels=1))  # the majority, so they are images
    with pytest.raises(DataError, match="different numbers of channels"):
        made(tmp_path)
    assert made(tmp_path, "channels=1")[0].channels == 1


@pytest.mark.parametrize("number", [0, MOST_CHANNELS + 1])
def test_an_impossible_number_is_refused(tmp_path: Path, number: int) -> None:
    folder_of(tmp_path / "in", "a.jpg")
    with pytest.raises(ConfigError, match=f"channels={number} is not possible"):
        made(tmp_path, f"channels={number}")


def test_pictures_cannot_have_five_channels(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg")
    with pytest.raises(DataError, match=r"channels=5 is given, but .*a.jpg is a picture"):
        made(tmp_path, "channels=5")


def test_a_file_of_numpy_that_holds_no_image_is_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg")
    put(tmp_path / "in", features=array(0)[:90], b=b"\x93NUMPY")
    np.save(tmp_path / "in" / "labels.npy", np.arange(9))
    found, text = made(tmp_path)
    assert len(found.split("train").samples) == 1
    assert "Left out, because they are no images: 3 .npy" in text


def test_arrays_beside_as_many_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg", "b.png")
    put(tmp_path / "in", features=array(0), mask=array(1, channels=1))
    found, text = made(tmp_path)
    assert len(found.split("train").samples) == 2
    assert "2 arrays (.npy) beside 2 pictures are no images: features.npy, mask.npy" in text


def test_arrays_beside_pictures_are_images_where_the_channels_are_given(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg", "b.jpg")
    put(tmp_path / "in", c=array(0, channels=3))
    found, _ = made(tmp_path, "channels=3")
    assert len(found.split("train").samples) == 3


def test_in_tars_too_arrays_are_no_images_beside_pictures(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg")
    picture = (tmp_path / "in" / "a.jpg").read_bytes()
    tar(tmp_path / "tars" / "train-0.tar", ("a.jpg", picture), ("a.npy", array(0)), ("b.jpg", picture))
    odd = ("m.npy", array(2)), ("m.cls", b"mask"), ("c.jpg", picture), ("c.cls", b"cat"), ("c.left.npy", array(1))
    tar(tmp_path / "tars" / "train-1.tar", *odd)
    console = Console(file=io.StringIO(), soft_wrap=True)
    run(["source=tars", f"path={tmp_path / 'tars'}"], console)
    found = manifest.read(tmp_path / "tars")
    samples = found.split("train").samples
    assert [samples.key(number) for number in range(len(samples))] == ["a", "b", "c"]
    assert (found.channels, list(found.classes), samples.labels.tolist()) == (3, ["cat"], [-1, -1, 0])
    assert [shard.samples for shard in found.split("train").shards] == [2, 1]
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1 sample has no image: left out." in text
    assert "neither images nor labels (.cls): 3 .npy" in text
    assert "several images" not in text


def test_tars_of_arrays_have_their_channels_too(tmp_path: Path) -> None:
    tar(tmp_path / "tars" / "train-0.tar", ("a.npy", array(0)), ("b.npy", array(1)), ("b.json", b"{}"))
    run(["source=tars", f"path={tmp_path / 'tars'}"], Console(quiet=True))
    assert manifest.read(tmp_path / "tars").channels == 5
    tar(tmp_path / "mixed" / "train-0.tar", ("a.npy", array(0)), ("b.npy", array(1, channels=2)))
    with pytest.raises(DataError, match=r"train-0.tar: a has 5 channels, .*train-0.tar: b has 2"):
        run(["source=tars", f"path={tmp_path / 'mixed'}"], Console(quiet=True))


def test_of_tars_of_pictures_nothing_is_read_to_count_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(channels, "head_at", lambda file, offset, size: looked.append(size) or b"")
    for number in range(2):
        tar(tmp_path / "tars" / f"train-{number}.tar", *((f"{number}{n}.jpg", b"1") for n in range(3)))
    make("tars", None, Console(quiet=True), TarOptions(tmp_path / "tars"))
    assert manifest.read(tmp_path / "tars").channels == 3
    assert looked == []
    with pytest.raises(DataError, match=r"channels=5 is given, but .*train-0.tar: 00 is a picture"):
        make("tars", tmp_path / "again", Console(quiet=True), TarOptions(tmp_path / "tars", channels=5))
    tar(tmp_path / "raw" / "train-0.tar", ("a.raw", array(0)), ("b.raw", array(1)))
    make("tars", None, Console(quiet=True), TarOptions(tmp_path / "raw", image="raw"))
    assert len(looked) == 2, "the name does not say what these are"


def test_such_shards_are_shown_and_verified_and_have_no_levels(tmp_path: Path) -> None:
    put(tmp_path / "in", **{str(n): array(n, dtype="<f4") for n in range(4)})
    found, text = made(tmp_path)
    out = tmp_path / "out"
    assert "data.range=255" in text
    split = found.split("train")
    rules = depth.rules_of(split, found.channels)
    assert (rules.range, rules.channels) == (255, 5)
    sheet = show.sheet(split, (), 4, rules)
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100, "noise, and no red crosses"
    options = verify.VerifyOptions(decode=True)
    assert verify.verify(out, options, Console(quiet=True)) == []
    with pytest.raises(DataError, match=r"JPEGs, which are RGB: the images in .* have 5 channels"):
        run([f"out={out}", "pyramid=[8]"], Console(quiet=True))


def test_tiffs_of_bands_are_counted_and_one_that_begins_with_colours_may_be_a_picture(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (12, 14, 6), dtype=np.uint8)
    for number in range(3):
        (tmp_path / "in" / f"{number}.tif").write_bytes(tiff(values, deflated=True))
    found, _ = made(tmp_path)
    assert found.channels == 6
    tar(tmp_path / "tars" / "train-0.tar", ("a.tif", tiff(values)), ("b.tif", tiff(values)))
    run(["source=tars", f"path={tmp_path / 'tars'}"], Console(quiet=True))
    assert manifest.read(tmp_path / "tars").channels == 6
    with pytest.raises(DataError, match=r"channels=3 is given, but .*0.tif has 6"):
        channels.of_files([tmp_path / "in" / "0.tif"], 3, 1, Console(quiet=True))
    (tmp_path / "coloured.tif").write_bytes(tiff(values, t262=2, t338=0))
    assert channels.of_files([tmp_path / "coloured.tif"], None, 1, Console(quiet=True)) == 6
    assert channels.of_files([tmp_path / "coloured.tif"], 3, 1, Console(quiet=True)) == 3


@pytest.mark.parametrize("channels", [3, 5])
def test_floats_of_any_channels_are_shown_and_verified(tmp_path: Path, channels: int) -> None:
    put(tmp_path / "in", **{str(n): array(n, channels, "<f4") for n in range(4)})
    found, text = made(tmp_path)
    assert "data.range=255" in text
    assert verify.verify(tmp_path / "out", verify.VerifyOptions(), Console(quiet=True)) == []
    rules = depth.rules_of(found.split("train"), channels)
    assert (rules.range, rules.channels) == (255, channels)


def test_floats_without_a_value_above_0_are_said_to_be_black_and_no_range_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 30, (12, 14, 5)) - 30
        np.save(tmp_path / "in" / f"{number}.npy", values.astype(np.float32))
    _, text = made(tmp_path)
    assert "no value is above 0, which is black." in text
    assert "with values up to 0: all of them would be black." in text
    assert "data.range" not in text
    with pytest.raises(DataError, match=r"no value is above 0(?s:.*)30 to decibels"):
        own_pictures.fitted([["data=folder", f"data.path={tmp_path / 'in'}"]], Console(quiet=True), [])


@pytest.mark.parametrize(("scale", "shift", "white"), [(300, 0, 65535), (1, -100, 127), (0.001, 0, 1)])
def test_floats_of_any_values_are_measured_and_their_range_is_said(
    tmp_path: Path, scale: float, shift: float, white: int
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 200, (12, 14, 5)) * scale + shift
        np.save(tmp_path / "in" / f"{number}.npy", values.astype(np.float32))
    _, text = made(tmp_path)
    assert re.findall(r"data\.range=(\d+)$", text, re.MULTILINE) == [str(white)], text
    assert len(re.findall(r"data\.mean=\[[0-9.,]+\]", text)) > 0
    assert "settings of the demo" not in text


@pytest.mark.parametrize("kind", ["<", ">", "big"])
def test_of_a_tiff_only_the_tags_are_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are behind 64 MB that are not there: a file with a hole, and the same as a member at an odd place."""
    hole, shift = 64 << 20, 513
    tags = [(256, 14), (257, 12), (262, 1), (277, 6)]
    order = ">" if kind == ">" else "<"
    if kind == "big":
        start = b"II+\0" + struct.pack("<HHQ", 8, 0, hole)
        table = struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", t, 3, 1, value) for t, value in tags)
    else:
        start = {"<": b"II*\0", ">": b"MM\0*"}[kind] + struct.pack(order + "L", hole)
        table = struct.pack(order + "H", len(tags))
        table += b"".join(struct.pack(order + "HHLHxx", t, 3, 1, value) for t, value in tags)
    read, sizes = os.pread, []

    def counted(file: int, size: int, offset: int) -> bytes:
        data = read(file, size, offset)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    for place in (0, shift):
        with (tmp_path / "a.tif").open("wb") as file:
            file.seek(place)
            file.write(start)
            file.seek(place + hole)
            file.write(table)
        size = (tmp_path / "a.tif").stat().st_size - place
        samples = columns([("a", place, size, -1)])
        assert [own for _, own in channels.of_tar(tmp_path / "a.tif", samples)] == [channels.Kind(6)]
    assert sum(sizes) < 20_000
    monkeypatch.setattr(os, "pread", read)
    with (tmp_path / "b.tif").open("wb") as file:
        file.write(start)
        file.seek(hole)
        file.write(table)
    assert channels.of_files([tmp_path / "b.tif"], None, 1, Console(quiet=True)) == 6
    (tmp_path / "b.tif").write_bytes(start)
    assert channels.of_files([tmp_path / "b.tif"], None, 1, Console(quiet=True)) == 3, "damaged: a run counts it"


def test_a_damaged_or_foreign_file_has_no_say(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.tif").write_bytes(tiff(np.full((9, 9, 5), number, np.uint8)))
    (tmp_path / "in" / "cut.tif").write_bytes(tiff(np.zeros((9, 9, 5), np.uint8))[:200])
    (tmp_path / "in" / "text.jpg").write_text("no image")
    assert made(tmp_path)[0].channels == 5
    file = io.BytesIO()
    np.save(file, np.zeros((9, 9, 5)))
    for given in ((), ("channels=5",)):
        root = tmp_path / f"tars{len(given)}"
        tar(root / "train-0.tar", ("a.npy", array(0)), ("b.npy", file.getvalue()), ("c.npy", b"no array"))
        run(["source=tars", f"path={root}", *given], Console(quiet=True))
        assert manifest.read(root).channels == 5


def test_tiffs_that_begin_with_colours_are_pictures_beside_pictures(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a.jpg")
    values = np.random.default_rng(0).integers(0, 256, (12, 14, 6), dtype=np.uint8)
    (tmp_path / "in" / "b.tif").write_bytes(tiff(values, t262=2, t338=0))
    assert made(tmp_path)[0].channels == 3


def test_it_is_said_where_tiffs_that_begin_with_colours_are_read_as_bands(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for bands in (5, 6):
        values = np.random.default_rng(0).integers(0, 256, (12, 14, bands), dtype=np.uint8)
        (tmp_path / "in" / f"{bands}.tif").write_bytes(tiff(values, t262=2, t338=0))
    with pytest.raises(DataError, match="Or set channels=3: the TIFF begins with red, green and blue"):
        made(tmp_path)
    (tmp_path / "in" / "5.tif").unlink()
    found, text = made(tmp_path)
    assert found.channels == 6
    assert "are read as 6 channels; channels=3 reads them as pictures" in text
