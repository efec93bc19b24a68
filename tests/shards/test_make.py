"""The command line of make.py: every source has its own options, and what is wrong is named."""

import os
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from dist_ssl.config.command import run_command
from launch import settings
from launch.run_dir import PROJECT
from shards import make, show, verify
from shards.command_line import HeldOut, parse_held_out
from shards.make import run
from tests.shards.pictures import folder_of, forbidden, picture


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source=... is missing.\n  Set it to one of: demo, garments, imagefolder, tars, cifar10,"),
        (["source=imagefoldr"], "source=imagefoldr does not exist.\n  Did you mean 'imagefolder'?"),
        (["source=cifar1O"], "source=cifar1O does not exist.\n  Did you mean 'cifar10'?"),
        (["source=imagefolder", "out=o"], "source=imagefolder needs path=...\n"),
        (["source=imagefolder", "path=p"], "source=imagefolder needs out=..., the folder to write."),
        (["source=imagefolder", "path=p", "out=o", "train=3"], "source=imagefolder has no option 'train'."),
        (["source=demo", "out=o", "path=p"], "source=demo has no option 'path'."),
        (["source=tars", "path=p", "shard_bytes=1MB"], "source=tars has no option 'shard_bytes'."),
        (["source=cifar10", "path=p", "out=o", "val=3"], "source=cifar10 has no option 'val'."),
        (["source=cifar10", "path=p", "out=o", "donwload=true"], "Did you mean 'download'?"),
        (["source=cifar10", "path=p", "out=o", "download=yes"], "Write download=true or download=false."),
        (["source=demo", "out=o", "train=-3"], "train=-3 is not possible: it must be a whole number, 0 or more."),
        (["source=demo", "out=o", "shard_bytes=12"], "shard_bytes=12 is not a size."),
        (["source=imagefolder", "path=p", "out=o", "val=200%"], "val=200% is not possible: it must be a number"),
        (["source=imagefolder", "path=p", "out=o"], "path=p is not a folder."),
        (["source=tars", "path=p"], "path=p is not a folder."),
        (["out=o", "pyramid=[160,160]"], "pyramid=[160,160] is not possible: levels are named once each"),
        (["out=o", "pyramid=[256,160]"], "smallest first.\n  Write pyramid=[160,256]."),
        (["out=o", "pyramid=[0]"], "pyramid=[0] is not possible: 0 is no side of an image"),
        (["out=o", "pyramid=[]"], "pyramid=[] names no level."),
        (["out=o", "pyramid=160"], "pyramid=160 is not possible: it must be a list of sides in px."),
        (["out=o", "pyramid=[-1]"], "pyramid=[-1] is not possible: it must be a list of sides in px."),
        (["out=o", "pyramid=[8]", "quality=0"], "quality=0 is not possible: it must be between 1 and 100."),
        (["out=o", "pyramid=[8]", "quality=101"], "quality=101 is not possible"),
        (["out=o", "pyramid=[8]", "qualiyt=9"], "Did you mean 'quality'?"),
        (["out=o", "pyramid=[8]"], "The shard folder o does not exist."),
        (["pyramid=[8]"], "source=... is missing."),
        (["source=demo", "out=o", "quality=8"], "source=demo has no option 'quality'."),
        (["source=demo", "out"], "'out' is not of the form key=value."),
        (["source=demo", "out=a", "out=b"], "out is given twice: a and b."),
    ],
)
def test_a_wrong_word_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(run, words) == 2
    assert message in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [make, show, verify])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_usage(script: ModuleType, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(script.run, ["source=demo", flag]) == 0
    assert f"    python shards/{script.__name__.rpartition('.')[2]}.py " in capsys.readouterr().out


@pytest.mark.parametrize("source", ["imagefolder", "tars"])
def test_a_folder_of_another_user_is_named(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "private" / "in", "1.jpg")
    with forbidden(tmp_path / "private"):
        assert (
            run_command(run, [f"source={source}", f"path={tmp_path / 'private' / 'in'}", f"out={tmp_path / 'o'}"]) == 2
        )
    assert f"{tmp_path / 'private' / 'in'} cannot be used: Permission denied.\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["set [v2]", "set [/v2]", os.fsdecode(b"caf\xe9")])
def test_folders_of_any_name_are_told_as_they_are(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    out = tmp_path / name
    (tmp_path / f"{name}.part").mkdir(parents=True)
    for left in (".lock", "train-000000.tar"):
        (tmp_path / f"{name}.part" / left).touch()
    assert (
        run_command(run, ["source=imagefolder", f"path={tmp_path / 'in'}", f"out={out}", "pyramid=[4]", "val=0"]) == 0
    )
    assert run_command(verify.run, [str(out)]) == 0
    assert run_command(show.run, [str(out), f"out={tmp_path / 'sheet.png'}", "images=0"]) == 0
    shown = str(out).encode("utf-8", "backslashreplace").decode()
    lines = capfd.readouterr().out.splitlines()
    assert f"Resuming in {shown}.part: 0 whole shards kept, 1 other file removed." in lines
    assert f"{shown} is whole: every image was decoded." in lines
    assert any(line.startswith(f"{shown}: identity ") for line in lines)
    assert any(f"data.path={shown}" in line for line in lines)


def test_no_threads_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(run, ["source=imagefolder", f"path={tmp_path}", f"out={tmp_path / 'o'}", "threads=0"]) == 2
    assert "threads=0 is not possible" in capsys.readouterr().out


@pytest.mark.parametrize("labelled", [True, False])
def test_the_command_that_trains_on_it_is_printed(
    tmp_path: Path, labelled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path / "in", *(f"{'ab'[n % 2]}/{n}.jpg" if labelled else f"{n}.jpg" for n in range(10)))
    assert run_command(run, ["source=imagefolder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'o=1'}"]) == 0
    text = capsys.readouterr().out
    words = f"data=shards data.path={tmp_path / 'o=1'}" + (" data.val=val" if labelled else "")
    assert f"python launch/slurm.py method=simclr nodes=1 {words} " in text
    config = settings.compose(shlex.split(text.partition("launch/slurm.py ")[2]), PROJECT / "configs")
    assert config["data"]["path"] == str(tmp_path / "o=1")
    assert ("train: 8 images in 1 shard, labelled" if labelled else "train: 10 images in 1 shard, no labels") in text


def test_the_command_fits_the_pictures_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The defaults are those of the demo data, of 32 px: with them photographs are learnt from thumbnails."""
    for number in range(24):
        path = tmp_path / "in" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, side=300))
    assert run_command(run, ["source=imagefolder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'o'}", "val=6"]) == 0
    text = capsys.readouterr().out
    assert "  encoder=resnet18   photographs, fewer than 100000" in text
    config = settings.compose(shlex.split(text.partition("launch/slurm.py ")[2]), PROJECT / "configs")
    assert (config["schedule"]["image_size"], config["epochs"], config["batch_size"]) == (96, 400, 6)
    assert config["encoder"]["name"] == "resnet18"
    assert (config["data"]["val"], config["probe"]["every"]) == ("val", "5 epochs")
    assert (tmp_path / "in").is_dir()


def test_drawn_data_keeps_the_settings_that_were_made_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(run, ["source=demo", f"out={tmp_path / 'o'}", "train=20", "val=5"]) == 0
    text = capsys.readouterr().out
    assert text.endswith(
        f"python launch/slurm.py method=mocov3 nodes=1 data=shards data.path={tmp_path / 'o'} data.val=val\n"
    )


def test_pictures_of_which_none_can_be_read_are_said_to_be_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"<html>")
    assert run_command(run, ["source=imagefolder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'o'}"]) == 0
    text = capsys.readouterr().out
    assert f"None of the 3 pictures of {tmp_path / 'o'} that were tried can be read." in text
    assert text.endswith(f"python launch/slurm.py method=mocov3 nodes=1 data=shards data.path={tmp_path / 'o'}\n")


def test_pictures_that_cannot_be_read_are_counted_before_a_run_stops_at_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path / "in", *(f"{number}.jpg" for number in range(10)))
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"<html>")
    assert run_command(run, ["source=imagefolder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'o'}"]) == 0
    said = f"4 of 10 pictures that were tried cannot be read: python shards/verify.py {tmp_path / 'o'} lists all"
    assert said in capsys.readouterr().out


def test_shares() -> None:
    assert parse_held_out("5", "val") == HeldOut(number=5)
    assert parse_held_out("2.5%", "val").of(1000) == 25
    assert parse_held_out("0%", "val").of(1000) == 0
