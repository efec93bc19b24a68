"""Damage of every kind is found, named by tar and key, and nothing else is."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.data.storage import manifest
from shards.command_line import Bytes
from shards.make import make
from shards.sources.imagefolder import FolderOptions
from shards.verify import Damage, run, verify
from shards.verify import VerifyOptions as Verify
from tests.shards.pictures import folder_of

QUIET = Console(quiet=True)
TAR = "train-000001.tar"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 60 pictures in two classes."""
    root = tmp_path_factory.mktemp("verify")
    folder_of(root / "in", *(f"{n % 2}/{n}.{'png' if n % 3 else 'jpg'}" for n in range(60)))
    make("imagefolder", root / "out", QUIET, FolderOptions(root / "in", Bytes(8000)))
    return root / "out"


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(good, tmp_path / "data"))


def third(folder: Path) -> tuple[str, int, int]:
    """Key, offset and size of the third sample of TAR."""
    split = manifest.read(folder).splits["train"]
    number = split.shards[0].samples + 2
    return split.samples.key(number), int(split.samples.offsets[number]), int(split.samples.sizes[number])


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def rewrite(folder: Path, column: str, number: int, value: int) -> None:
    """Change one value of the manifest's columns, and write a manifest that fits them."""
    found = manifest.read(folder)
    getattr(found.splits["train"].samples, column)[number] = value
    manifest.write(folder, {n: (list(s.shards), s.samples) for n, s in found.splits.items()}, found.classes)


def damage(folder: Path, decode: bool = True) -> list[Damage]:
    return verify(folder, Verify(decode), QUIET)


def test_what_was_made_is_whole(good: Path) -> None:
    assert len(manifest.read(good).splits["train"].shards) > 2
    assert damage(good) == []


def test_an_image_that_was_overwritten_is_found(data: Path) -> None:
    key, offset, size = third(data)
    overwrite(data / TAR, offset, bytes(size))
    found = damage(data)
    assert [(d.shard, d.key) for d in found] == [(TAR, ""), (TAR, key)]
    assert "sha256" in found[0].reason
    assert "not an image" in found[1].reason
    assert [d.key for d in damage(data, decode=False)] == [""]


def test_images_that_never_were_ones_are_found_in_a_whole_tar(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "in", "1.jpg", "2.png", "3.jpg")
    (tmp_path / "in" / "text.jpg").write_bytes(b"not an image")
    (tmp_path / "in" / "empty.jpg").touch()
    (tmp_path / "in" / "cut.png").write_bytes(files["2.png"][:200])
    make("imagefolder", tmp_path / "out", QUIET, FolderOptions(tmp_path / "in"))
    assert {d.key for d in damage(tmp_path / "out")} == {"text", "empty", "cut"}
    assert damage(tmp_path / "out", decode=False) == []


def test_a_tar_that_is_missing_or_cut_is_found(data: Path) -> None:
    (data / "train-000000.tar").unlink()
    size = third(data)[1] + 5
    with (data / TAR).open("r+b") as file:
        file.truncate(size)
    found = damage(data)
    assert Damage("train-000000.tar", "", "the tar is missing") in found
    assert Damage(TAR, "", "the tar is damaged: unexpected end of data.") in found
    assert Damage(TAR, third(data)[0], "the tar ends before this image") in found


def test_a_damaged_header_is_found(data: Path) -> None:
    overwrite(data / TAR, third(data)[1] - 500, b"?")
    (found,) = damage(data)
    assert "bad checksum" in found.reason


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("offsets", 513, "at byte 513 is no member"),
        ("sizes", 7, "the manifest says 7 bytes of this key"),
        ("labels", 9, "manifest says 9"),
    ],
)
def test_a_manifest_that_is_not_the_tars_is_found(data: Path, column: str, value: int, reason: str) -> None:
    rewrite(data, column, 0, value)
    found = damage(data, decode=False)
    assert len(found) == 1
    assert reason in found[0].reason


def test_another_tar_of_the_same_name_is_found_by_its_keys(data: Path) -> None:
    shutil.copy(data / "train-000000.tar", data / TAR)
    reasons = {d.reason for d in damage(data, decode=False) if d.key}
    assert "is not in the manifest" in reasons
    assert any("the manifest says" in reason for reason in reasons)


def test_exit_codes_and_the_table(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(run, [str(data)]) == 0
    assert "is whole: every image was decoded." in capsys.readouterr().out
    assert run_command(run, [str(data), "decode=false"]) == 0
    assert "images were not decoded" in capsys.readouterr().out
    (data / TAR).unlink()
    (data / "train-000000.tar").unlink()
    assert run_command(run, [str(data), "rows=1"]) == 1
    text = capsys.readouterr().out
    assert "train-000000.tar" in text
    assert "... and 1 more row (rows=2 shows them)." in text
    assert run_command(run, [str(data / "nowhere")]) == 2
    assert run_command(run, []) == 2
    assert run_command(run, [str(data), "deocde=false"]) == 2
    assert "This command has no option 'deocde'.\n  Did you mean 'decode'?" in capsys.readouterr().out


def test_the_columns_are_compared_in_every_split(good: Path, data: Path) -> None:
    found = manifest.read(data)
    assert np.array_equal(found.splits["val"].samples.offsets, manifest.read(good).splits["val"].samples.offsets)
    overwrite(data / found.splits["val"].shards[0].name, 600, b"\xff\x00\xff")
    assert {d.shard for d in damage(data, decode=False)} == {"val-000000.tar"}
