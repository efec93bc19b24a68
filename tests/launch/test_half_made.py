"""A run folder that a command was killed in does not keep its name from the next one; one at work, or a run, does."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from dist_ssl.errors import ConfigError
from launch.half_made import NAME, being_made, remove_left, was_left
from launch.run_dir import RunDir

KILLED = """
import os, pathlib, sys
from launch.half_made import being_made
from launch.run_dir import RunDir
run = RunDir.create(pathlib.Path(sys.argv[1]), "mine", "mocov3")
with being_made(run.folder):
    run.code.mkdir()
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_command_has_left_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert sorted(path.name for path in folder.iterdir()) == [NAME, "code"]
    with pytest.raises(ConfigError, match="ended before it was complete") as caught:
        RunDir.open(folder)
    assert "Start the run again" in caught.value.remedy
    run = RunDir.create(tmp_path, "mine", "mocov3")
    assert not list(run.folder.iterdir())
    with being_made(run.folder):
        assert not was_left(run.folder)
        with pytest.raises(ConfigError, match="exists already"):
            RunDir.create(tmp_path, "mine", "mocov3")
        run.begin({}, [])
    assert not (run.folder / NAME).exists()
    with pytest.raises(ConfigError, match="exists already"):
        RunDir.create(tmp_path, "mine", "mocov3")


def test_two_commands_that_find_the_same_left_over_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    usual, others = fcntl.flock, []

    def flock(file: int, how: int) -> None:  # another command is faster, just before this one has the lock
        monkeypatch.setattr(fcntl, "flock", usual)
        others.append(RunDir.create(tmp_path, "mine", "mocov3"))
        (others[0].folder / NAME).touch()
        usual(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="exists already"):
        RunDir.create(tmp_path, "mine", "mocov3")
    assert [path.name for path in others[0].folder.iterdir()] == [NAME]


def test_an_error_leaves_the_name_free(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "mine", "mocov3")
    with pytest.raises(KeyboardInterrupt), being_made(run.folder):
        raise KeyboardInterrupt
    assert not run.folder.exists()


@pytest.mark.parametrize("content", ["notes.txt", "config.yaml", "attempts/0001/config.yaml"])
def test_what_somebody_has_made_is_never_replaced(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / content).parent.mkdir(parents=True)
    (folder / content).touch()
    if content != "notes.txt":  # a run whose command was killed just as it was complete
        (folder / NAME).touch()
    assert not was_left(folder)
    with pytest.raises(ConfigError, match="exists already"):
        RunDir.create(tmp_path, "mine", "mocov3")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert not was_left(link)


def test_a_folder_that_was_replaced_while_it_was_made_is_left_to_the_other_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, usual = RunDir.create(tmp_path, "mine", "mocov3"), fcntl.flock

    def flock(file: int, how: int) -> None:  # before this command has its lock, another takes the folder for a left one
        monkeypatch.setattr(fcntl, "flock", usual)
        remove_left(run.folder)
        run.folder.mkdir()
        (run.folder / "theirs").touch()
        usual(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="removed by another command"), being_made(run.folder):
        raise AssertionError("the folder is not this command's any more")
    assert [path.name for path in run.folder.iterdir()] == ["theirs"]


def test_a_complete_folder_stays_where_its_mark_cannot_be_removed(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "mine", "mocov3")
    with being_made(run.folder):
        run.begin({}, [])
        (run.folder / NAME).unlink()
    assert RunDir.open(run.folder)
