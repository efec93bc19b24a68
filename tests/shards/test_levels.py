"""Levels have the samples of their originals, smaller; the originals stay as they are; a kill changes nothing."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.data.images.decode import decode
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError
from launch.run_dir import PROJECT
from shards import levels, make, show, verify
from shards.command_line import Bytes, Quality, Sides
from shards.sources import imagefolder, tars
from tests.shards.pictures import files_in, odd_pictures
from tests.shards.test_archive import tar_of

QUIET = Console(quiet=True)
SIDES = (24, 48)


def of(folder: Path, *sides: int) -> manifest.Manifest:
    """The data set with these levels."""
    return pyramid.attach(manifest.read(folder), Address(str(folder)), sides or SIDES, Fetcher())


def add(folder: Path, *sides: int, quality: int = 90) -> None:
    """Make levels beside the originals."""
    levels.write(folder, levels.LevelOptions(Sides(sides or SIDES), Quality(quality)), QUIET)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of many kinds."""
    root = tmp_path_factory.mktemp("levels")
    odd_pictures(root / "in")
    return root / "in"


@pytest.fixture(scope="module")
def bare(source: Path) -> Path:
    """Their shards."""
    make.make("imagefolder", source.parent / "bare", QUIET, imagefolder.FolderOptions(source, Bytes(20_000)))
    return source.parent / "bare"


@pytest.fixture(scope="module")
def whole(bare: Path) -> Path:
    """Their shards with two levels."""
    shutil.copytree(bare, bare.parent / "whole")
    add(bare.parent / "whole")
    return bare.parent / "whole"


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


def images(split: Split) -> Mapping[str, tuple[bytes, list[bytes]]]:
    """By key, the original and its copies."""
    with Reader(split) as reader:
        return {
            split.samples.key(n): (reader.read(n), [reader.read(n, level) for level in range(1, 1 + len(split.levels))])
            for n in range(len(split.samples))
        }


def both(data: manifest.Manifest) -> dict[str, tuple[bytes, list[bytes]]]:
    """The same of both splits."""
    return {key: found for split in data.splits.values() for key, found in images(split).items()}


def test_the_originals_stay_as_they_are(bare: Path, whole: Path) -> None:
    before = files_in(bare)
    after = files_in(whole)
    assert before.items() <= after.items()
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"level-24", "level-48", "pyramid.json"}
    assert manifest.read(whole).identity == manifest.read(bare).identity


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_level_has_the_shards_and_samples_of_its_originals(whole: Path, name: str) -> None:
    split = of(whole).splits[name]
    assert len(split.shards) > (name == "train")
    for level, side in zip(split.levels, SIDES, strict=True):
        assert level.side == side
        assert [s.samples for s in level.shards] == [s.samples for s in split.shards]
        assert [level.samples.key(n) for n in range(len(level.samples))] == [
            split.samples.key(n) for n in range(len(split.samples))
        ]
        assert all(shard.name.startswith(f"level-{side}/{name}-") for shard in level.shards)
    split.check()


def test_copies_are_small_and_upright_and_the_rest_stands_there_as_it_is(whole: Path) -> None:
    for name, split in of(whole).splits.items():
        samples = split.levels[0].samples
        for number, (key, (original, copies)) in enumerate(images(split).items()):
            width, height = int(samples.widths[number]), int(samples.heights[number])
            if key.endswith(("text", "empty", "cut")):
                assert (width, height) == (0, 0)
                assert copies == [original] * 2
                continue
            pixels = decode(original, 10**6).pixels
            assert (height, width) == pixels.shape[:2], (name, key)
            for side, copy in zip(SIDES, copies, strict=True):
                if copy == original:
                    assert min(width, height) <= side or "flat" in key
                    continue
                assert copy[:3] == b"\xff\xd8\xff"
                assert len(copy) < len(original)
                small = Image.open(io.BytesIO(copy))
                assert min(small.size) == side
                assert max(small.size) == round(max(width, height) * side / min(width, height))
                assert (small.mode, small.getexif().get(0x0112, 1)) == ("RGB", 1)
                resized = Image.fromarray(pixels).resize(small.size, Image.Resampling.BILINEAR).convert("L")
                assert np.abs(np.asarray(small.convert("L")).astype(float) - np.asarray(resized)).mean() < 4


def test_every_kind_of_picture_was_made_smaller(whole: Path) -> None:
    smaller = {key for key, (original, copies) in both(of(whole)).items() if copies[0] != original}
    assert {key.rpartition("/")[2] for key in smaller} >= {"turned", "gray", "cmyk", "alpha", "deep", "wide", "0"}


def test_labels_are_not_repeated_and_still_known(bare: Path, whole: Path) -> None:
    split = of(whole).split("train")
    assert split.labelled
    assert (split.levels[0].samples.labels == split.samples.labels).all()
    assert (manifest.read(whole, inside="level-24/").splits["train"].samples.labels == -1).all()
    assert all(b".cls" not in path.read_bytes() for path in (whole / "level-24").glob("*.tar"))


def test_what_is_lossy_is_said(whole: Path) -> None:
    known = json.loads((whole / "pyramid.json").read_text())
    identity = manifest.read(whole).identity
    assert known["of"] == identity
    for side, level in zip(SIDES, known["levels"], strict=True):
        made = {"side": side, "quality": 90, "chroma": "4:2:0", "range": None, "alpha": "white", "of": identity}
        found = manifest.read(whole, inside=f"level-{side}/")
        assert found.copied == made
        assert level == {**made, "identity": found.identity}


def test_levels_added_one_by_one_are_the_same(bare: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "data")
    add(tmp_path / "data", 48)
    add(tmp_path / "data", 24)
    assert files_in(tmp_path / "data") == files_in(whole)


def test_the_pyramid_is_part_of_the_identity_and_a_level_that_is_not_read_is_not(data: Path) -> None:
    first = of(data, 24).identity
    assert first != manifest.read(data).identity
    assert of(data, 48).identity not in (first, of(data, 24, 48).identity)
    add(data, 24, 30, 48)
    assert of(data, 24).identity == first
    for name in ("level-24", "level-48"):
        shutil.rmtree(data / name)
    add(data, 24, quality=50)
    assert of(data, 24).identity != first


def test_a_maker_that_was_killed_is_resumed(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["source=imagefolder", f"path={source}", f"out={out}", "shard_bytes=20KB", "pyramid=[24,48]", "threads=1"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    script = str(PROJECT / "shards" / "make.py")
    for _ in range(10):
        maker = subprocess.Popen([sys.executable, script, *words], env=env, stdout=subprocess.DEVNULL)
        while not list(out.glob("level-*.part/*.record")) and maker.poll() is None:
            time.sleep(0.001)
        maker.send_signal(signal.SIGKILL)
        maker.wait()
        if not (out / "pyramid.json").exists():
            break
        for name in ("level-24", "level-48"):  # it was faster than this process
            shutil.rmtree(out / name)
        (out / "pyramid.json").unlink()
    assert not (out / "pyramid.json").exists(), "it must be killed before it ends"
    assert run_command(make.run, words) == 0
    assert files_in(out) == files_in(whole)


def test_tars_in_place_get_levels_also_where_the_manifest_lies_elsewhere_and_one_is_empty(tmp_path: Path) -> None:
    folder, index = tmp_path / "tars", tmp_path / "index"
    files = odd_pictures(tmp_path / "in")
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_of(("x.jpg", files["wide.jpg"]), ("y.jpg", files["flat.jpg"])))
    (folder / "b.tar").write_bytes(tar_of(("nothing.txt", b"")))
    (folder / "c.tar").write_bytes(tar_of(("z.jpg", files["gray.jpg"])))
    make.make("tars", index, QUIET, tars.TarOptions(folder))
    before = files_in(folder)
    add(index)
    split = of(index).split("train")
    assert [shard.samples for shard in split.levels[0].shards] == [2, 0, 1]
    assert sorted(images(split)) == ["x", "y", "z"]
    assert min(Image.open(io.BytesIO(images(split)["z"][1][0])).size) == 24
    assert files_in(folder) == before
    assert verify.verify(index, verify.VerifyOptions(), QUIET) == []


def test_levels_of_pictures_of_12_bits_have_the_range_that_the_command_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that `make.py` printed set data.range=4095 beside levels without a range, and a run refuses that."""
    (tmp_path / "in").mkdir()
    for n in range(6):
        values = np.add.outer(np.arange(60), np.arange(60) + n) * 43 % 4096
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "in" / f"{n}.png")
    into = [f"out={tmp_path / 'out'}", "pyramid=[24]"]
    assert run_command(make.run, ["source=imagefolder", f"path={tmp_path / 'in'}", *into]) == 0
    assert capsys.readouterr().out.rstrip().endswith("'data.pyramid=[24]' data.range=4095")
    made = manifest.read(tmp_path / "out", inside=f"{pyramid.folder_of(24)}/").copied
    assert made["range"] == 4095
    assert run_command(make.run, [f"out={tmp_path / 'out'}", "pyramid=[24,32]"]) == 0
    assert manifest.read(tmp_path / "out", inside=f"{pyramid.folder_of(32)}/").copied["range"] == 4095


def test_another_level_of_that_side_is_not_written_over(data: Path) -> None:
    with pytest.raises(DataError, match=r"level-24 exists already and is made with quality=90, not 80"):
        add(data, 24, quality=80)
    (data / "manifest.json").write_text((data / "manifest.json").read_text() + " ")
    with pytest.raises(DataError, match=r"level-24 exists already and is of other originals"):
        add(data, 24)


def test_a_level_from_before_there_was_a_key_for_transparency_dropped_it(data: Path) -> None:
    path = data / "level-24" / "manifest.json"
    content = json.loads(path.read_text())
    del content["copied"]["alpha"], content["copied"]["range"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"level-24 exists already and is made with alpha=drop, not white"):
        add(data, 24)
    levels.write(data, levels.LevelOptions(Sides((24,)), alpha="drop"), QUIET)


def test_levels_of_other_originals_are_refused(data: Path) -> None:
    (data / "manifest.json").write_text((data / "manifest.json").read_text() + " ")
    with pytest.raises(DataError, match=r"pyramid\.json is of other originals than"):
        of(data)


def test_a_level_that_is_missing_is_named_with_those_that_are_there(data: Path) -> None:
    with pytest.raises(DataError, match=r"has no level of 32 px: it has 24, 48\.\n.*pyramid=\[32\]"):
        of(data, 24, 32)
    (data / "pyramid.json").unlink()
    with pytest.raises(DataError, match=r"has no level of 24 px: it has none"):
        of(data)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "of": "x", "levels": [{}]}', '{"format": 9}'])
def test_a_damaged_list_of_levels_is_named(data: Path, content: str) -> None:
    (data / "pyramid.json").write_text(content)
    with pytest.raises(DataError, match=r"pyramid\.json (is damaged|has format 9)"):
        of(data)


def test_a_level_that_was_made_again_is_not_the_one_that_is_listed(data: Path) -> None:
    path = data / "level-24" / "manifest.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match=r"level-24 is not the level that pyramid.json beside it lists"):
        of(data)


def test_a_level_of_other_samples_is_refused(data: Path) -> None:
    inner = manifest.read(data / "level-24")
    found = {name: (list(s.shards), s.samples) for name, s in inner.splits.items()}
    found["train"][1].keys[0] ^= 1
    manifest.write(data / "level-24", found, inner.classes, inner.copied)
    pyramid.write(data, manifest.read(data))
    with pytest.raises(DataError, match=r"The level of 24 px in .* has other samples than the originals"):
        of(data)


def test_damage_of_a_level_is_found_and_that_of_its_originals_is_told_once(data: Path) -> None:
    damaged = verify.verify(data, verify.VerifyOptions(), QUIET)
    assert {d.key.rpartition("/")[2] for d in damaged} == {"text", "empty", "cut"}
    assert not any(d.shard.startswith("level") for d in damaged)
    split = of(data).split("train")
    level = split.levels[0]
    number = next(n for n in range(len(split.samples)) if split.samples.key(n).endswith("gray"))
    with level.path(level.shard_of(number)).open("r+b") as file:
        file.seek(int(level.samples.offsets[number]))
        file.write(bytes(int(level.samples.sizes[number])))
    shutil.rmtree(data / "level-48")
    known = {(d.shard, d.key) for d in damaged}
    found = {(d.shard, d.key) for d in verify.verify(data, verify.VerifyOptions(), QUIET)}
    name = level.shards[level.shard_of(number)].name
    assert found - known == {(name, ""), (name, split.samples.key(number)), ("level-48", "")}
    (data / "pyramid.json").write_text("{}")
    assert any(d.shard == "pyramid.json" for d in verify.verify(data, verify.VerifyOptions(decode=False), QUIET))


def test_show_tells_of_levels_and_shows_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert run_command(show.run, [str(whole), f"out={tmp_path / 'a.png'}", "level=24"]) == 0
    text = capsys.readouterr().out
    assert "train@24" in text
    assert "val@48" in text
    assert "lossy: 24 px on the shorter side, JPEG of quality 90, chroma 4:2:0" in text
    assert f"identity {manifest.read(whole).identity}\n" in text
    assert run_command(show.run, [str(whole), f"out={tmp_path / 'b.png'}"]) == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert run_command(show.run, [str(whole), f"out={tmp_path / 'c.png'}", "level=25"]) == 2
    assert "level=25 does not exist.\n  Levels: 24, 48." in capsys.readouterr().out


def test_the_command_adds_levels_to_shards_that_exist(
    source: Path, bare: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(bare, tmp_path / "data"))
    given = [f"out={out}", "pyramid=[24, 48]"]
    assert run_command(make.run, ["source=imagefolder", f"path={source}", *given]) == 0
    text = capsys.readouterr().out
    assert "has its shards already: they are not changed." in text
    assert "levels: 24 px, 48 px" in text
    assert "'data.pyramid=[24,48]'" in text
    assert files_in(out) == files_in(whole)
    assert run_command(make.run, [*given, "quality=90"]) == 0
    assert "Making the level" not in capsys.readouterr().out
    assert files_in(out) == files_in(whole)
