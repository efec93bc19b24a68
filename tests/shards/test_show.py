"""The table tells what there is, the sheet shows it, and the data set's folder stays as it was."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.data.images.sheet_text import font_of_line
from dist_ssl.data.storage import manifest, pyramid
from shards.command_line import HeldOut
from shards.make import make
from shards.show import caption, run
from shards.sources.imagefolder import FolderOptions
from tests.shards.pictures import files_in, folder_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of one class, one of another, one of them no image; four held out."""
    folder_of(
        tmp_path / "in", *(f"train/a/{n}.png" for n in range(3)), "train/ü/1.jpg", *(f"val/a/{n}.png" for n in range(4))
    )
    (tmp_path / "in/train/a/bad.png").write_bytes(b"bad")
    make("imagefolder", tmp_path / "data", Console(quiet=True), FolderOptions(tmp_path / "in"))
    return tmp_path / "data"


def shown(words: list[str]) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    assert run(words, console) == 0
    return console.export_text()


def test_the_table_tells_counts_sizes_and_labels(data: Path, tmp_path: Path) -> None:
    text = shown([str(data), f"out={tmp_path / 'sheet.png'}"])
    found = manifest.read(data)
    assert found.identity in text
    train, val = (
        [cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")
    )
    size = f"{found.splits['train'].samples.sizes.mean() / 1e3:,.1f} KB"
    assert train == ["train", "1", "5", "0.0 MB", size, "5", "2", "1 / 2.5 / 4"]
    assert val[:3] == ["val", "1", "4"]
    assert val[5:] == ["4", "1", "4 / 4 / 4"]
    assert "classes: a, ü" in text


def test_the_sheet_shows_images_and_marks_what_is_none(data: Path, tmp_path: Path) -> None:
    before = dict(files_in(data))
    assert "5 images of train" in shown([str(data), f"out={tmp_path / 'sheet.png'}"])
    page = Image.open(tmp_path / "sheet.png")
    assert page.size == (3 * 128, 2 * (128 + 14))
    colours = {tuple(c) for c in np.asarray(page.convert("RGB")).reshape(-1, 3).tolist()}
    assert (200, 0, 0) in colours, "the cross"
    assert len(colours) > 100, "the images"
    assert files_in(data) == before


def test_another_split_and_fewer_images_can_be_asked_for(data: Path, tmp_path: Path) -> None:
    assert "1 image of val" in shown([str(data), f"out={tmp_path / 's.png'}", "split=val", "images=1"])
    assert Image.open(tmp_path / "s.png").size == (128, 142)
    assert "images of" not in shown([str(data), "images=0"])


def test_the_sheet_lies_where_one_is(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown(["data"])
    assert (tmp_path / "data.png").exists()


def test_pictures_of_12_bits_are_as_bright_as_a_run_should_see_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((20, 20), 4000, dtype=np.uint16)).save(tmp_path / "in/1.png")
    make("imagefolder", tmp_path / "data", Console(quiet=True), FolderOptions(tmp_path / "in"))
    shown([str(tmp_path / "data"), f"out={tmp_path / 'sheet.png'}"])
    assert Image.open(tmp_path / "sheet.png").convert("L").getpixel((64, 64)) == 4000 * 255 // 4095


def test_unlabelled_images_are_shown(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg")
    make("imagefolder", tmp_path / "d", Console(quiet=True), FolderOptions(tmp_path / "in", val=HeldOut()))
    assert "│ 0       │ -" in shown([str(tmp_path / "d"), f"out={tmp_path / 's.png'}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "The shard folder nowhere does not exist."),
        (["DATA", "split=tarin"], "Did you mean 'train'?"),
        (["DATA", "out=no/such/folder.png"], "no/such/folder.png cannot be written"),
        (["DATA", "size=3"], "This command has no option 'size'."),
        (["DATA", "images=many"], "images=many is not possible: it must be a whole number, 0 or more."),
        ([], "No folder is given: this script takes one folder of shards."),
    ],
)
def test_bad_input_is_refused(data: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(run, [str(data) if word == "DATA" else word for word in words]) == 2
    assert message in capsys.readouterr().out


def test_a_character_that_the_font_does_not_have_is_a_question_mark() -> None:
    names = "Ka\u0308fer", "猫 of a long name, cut"
    assert [caption(label, names) for label in (-1, 0, 1, 2)] == ["", "0 Kafer", "1 ? of a long name, ", "2"]
    assert caption(0, ("Käfer d'été",)) == "0 Kafer d'ete"
    font = font_of_line()
    missing = font.getmask("\uffff")
    assert all(bytes(font.getmask(sign)) != bytes(missing) for sign in caption(0, ("Größe яб",)) if sign != " ")


def test_a_level_that_does_not_say_how_it_was_made_is_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "read", lambda *_: {160: {"side": 160, "identity": "f" * 32}})
    monkeypatch.setattr(pyramid, "attach", lambda found, *_: found)
    text = shown([str(data), f"out={tmp_path / 'sheet.png'}"])
    assert f"level 160: identity {'f' * 32}; lossy: 160 px on the shorter side, JPEG of quality unknown" in text


def test_a_link_in_the_place_of_the_sheet_is_not_followed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the current folder knows how the sheet will be called."""
    canary, here = tmp_path / "thesis", tmp_path / "here"
    canary.write_text("years of work")
    here.mkdir()
    (here / "data.png").symlink_to(canary)
    monkeypatch.chdir(here)
    shown([str(data)])
    assert canary.read_text() == "years of work"
    assert Image.open(here / "data.png").width == 3 * 128
