"""A resume uses the launcher of the run's own code, and only where that is another."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ssl.config import command_names
from dist_ssl.errors import ConfigError
from dist_ssl.runtime.files import remove
from launch.handover import files, hand_over
from launch.run_dir import PROJECT, RunDir
from launch.variables import ADDRESS


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with the code of this project."""
    found = RunDir(tmp_path / "run")
    found.begin({"seed": 0}, [])
    return found


def test_the_same_code_goes_on_here(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files(run.code) == files(PROJECT)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("nothing is to be handed over"))
    hand_over(run, ["resume=run"], Console(quiet=True))


def test_other_code_becomes_this_process(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.code / "configs" / "config.yaml").write_text("seed: 1\n")
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.extend(given))
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    hand_over(run, ["resume=run", "nodes=2"], Console(quiet=True))
    program, command, environment = became
    assert program == sys.executable
    assert command == [sys.executable, "-P", str(run.code / "launch" / "slurm.py"), "resume=run", "nodes=2"]
    assert environment["PYTHONPATH"] == f"{run.code}{os.pathsep}elsewhere"


def test_the_installed_command_stays_what_the_user_sees(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own code is not beside the user, so its messages must not name its scripts either."""
    (run.code / "configs" / "config.yaml").write_text("seed: 1\n")
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.extend(given))
    monkeypatch.setattr(command_names, "_subcommands", {"launch/evaluate.py": "evaluate"})
    hand_over(run, ["run=run"], Console(quiet=True), "evaluate.py")
    assert became[1] == [sys.executable, "-P", "-m", "launch.subcommands", "evaluate", "run=run"]
    assert became[2]["PYTHONPATH"].split(os.pathsep)[0] == str(run.code)
    became.clear()
    (run.code / "launch" / "subcommands.py").unlink()  # code that is older than the installed command
    (run.folder / "source.json").unlink()  # which lists what was copied
    hand_over(run, ["run=run"], Console(quiet=True), "evaluate.py")
    assert became[1] == [sys.executable, "-P", str(run.code / "launch" / "evaluate.py"), "run=run"]


def test_a_login_that_was_typed_is_no_word_of_the_new_command(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the environment, where other users of the machine cannot read it."""
    (run.code / "configs" / "config.yaml").write_text("seed: 1\n")
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.extend(given))
    monkeypatch.setenv(ADDRESS, "")
    hand_over(run, ["resume=run", "data.path=https://g4711:opensesame@host/x"], Console(quiet=True))
    assert became[1][-2:] == ["resume=run", "data.path=https://host/x"]
    assert became[2][ADDRESS] == "https://g4711:opensesame@host/x"


def test_another_script_is_that_of_the_other_code(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.code / "configs" / "config.yaml").write_text("seed: 1\n")
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.extend(given))
    hand_over(run, ["run=run"], Console(quiet=True), "evaluate.py")
    assert became[1] == [sys.executable, "-P", str(run.code / "launch" / "evaluate.py"), "run=run"]


def test_a_script_that_the_other_code_does_not_have_goes_on_here(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.code / "launch" / "evaluate.py").unlink()
    (run.folder / "source.json").unlink()  # the run of a version that did not list its files, nor have that one
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("there is nothing to hand over to"))
    console = Console(record=True, quiet=False, width=200)
    hand_over(run, ["run=run"], console, "evaluate.py")
    assert "code that has no evaluate.py: this code is used" in console.export_text()


def test_a_document_that_was_edited_is_no_other_code(tmp_path: Path) -> None:
    """Documents are neither copied into a run nor compared."""
    assert not [place for place in files(PROJECT) if place.suffix in (".md", ".svg")]
    project = tmp_path / "project"
    for place, content in {"README.md": "new", "train.py": "code", "__pycache__/train.pyc": "bytes"}.items():
        (project / "dist_ssl" / place).parent.mkdir(parents=True, exist_ok=True)
        (project / "dist_ssl" / place).write_text(content)
    assert files(project) == {Path("dist_ssl/train.py"): b"code"}


@pytest.mark.parametrize("lost", ["dist_ssl/train.py", "configs", ""])
def test_code_of_which_something_was_lost_is_refused_by_name(lost: str, run: RunDir) -> None:
    remove(run.code / lost)
    with pytest.raises(ConfigError, match=r"code is not complete: .* is missing") as caught:
        hand_over(run, ["resume=run"], Console(quiet=True))
    assert (lost or "configs/aux/none.yaml") in caught.value.problem
