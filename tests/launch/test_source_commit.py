"""The commit that a run's code was copied from: git's, that of a forked run, or none."""

import json
import subprocess
from pathlib import Path

import pytest

from launch.source_commit import UNKNOWN, source_of, write_source


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("a = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "--quiet"], ["add", "a.py"], [*who, "commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def commit_of(project: Path) -> str:
    done = subprocess.run(["git", "-C", str(project), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_and_changed_files_are_gits(project: Path) -> None:
    assert source_of(project) == {"commit": commit_of(project), "changed": []}
    (project / "a.py").write_text("a = 2\n")
    (project / "b.py").write_text("b = 1\n")
    assert source_of(project) == {"commit": commit_of(project), "changed": ["a.py", "b.py"]}


def test_code_that_git_does_not_know_has_no_commit(project: Path, tmp_path: Path) -> None:
    (project / "installed").mkdir()
    assert source_of(project / "installed") == UNKNOWN, "the commit would be that of another project"
    (tmp_path / "plain").mkdir()
    assert source_of(tmp_path / "plain") == UNKNOWN


def test_without_git_there_is_no_commit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert source_of(project) == UNKNOWN


def test_a_fork_has_the_commit_of_the_run_whose_code_it_takes(project: Path, tmp_path: Path) -> None:
    run, fork = tmp_path / "run", tmp_path / "fork"
    (run / "code").mkdir(parents=True)
    fork.mkdir()
    write_source(run, project)
    write_source(fork, run / "code")
    assert json.loads((fork / "source.json").read_text())["commit"] == commit_of(project)
