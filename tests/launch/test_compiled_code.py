"""A run's code is compiled already where this code is, and only what was compiled of the very same source is taken."""

import os
import py_compile
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from launch.compiled_code import copy_compiled
from launch.source_commit import copy_for_owner

SAYS = "import dist_ssl.part; print(dist_ssl.part.__file__, dist_ssl.part.function.__code__.co_filename)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A module of a project; it is compiled, and `code` is a copy of the project."""
    path = tmp_path / "project" / "dist_ssl" / "part.py"
    path.parent.mkdir(parents=True)
    path.write_text("def function() -> None: ...\n")
    py_compile.compile(str(path))
    copy_for_owner(path.parent, tmp_path / "code" / "dist_ssl")
    return path


def cached(source: Path) -> Path:
    copy = source.parents[2] / "code" / "dist_ssl" / source.name
    return Path(cache_from_source(str(copy)))


def test_the_copy_runs_what_is_compiled_and_is_its_own_file(source: Path) -> None:
    project, code = source.parents[1], source.parents[2] / "code"
    copy_compiled(project, code)
    kept = cached(source).read_bytes()
    command = [sys.executable, "-P", "-c", SAYS]
    said = subprocess.run(command, env={"PYTHONPATH": str(code)}, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(code / "dist_ssl" / "part.py")] * 2
    assert cached(source).read_bytes() == kept, "Python has taken it as it was"
    assert not cached(source).stat().st_mode & 0o022


def test_what_is_compiled_of_another_source_is_left(source: Path) -> None:
    copy = source.parents[2] / "code" / "dist_ssl" / "part.py"
    copy.write_text(copy.read_text().replace("...", "1/0"))
    copy_compiled(source.parents[1], source.parents[2] / "code")
    assert not cached(source).exists()


@pytest.mark.parametrize("damage", [b"", b"x" * 400], ids=["empty", "of another Python"])
def test_what_is_no_compiled_code_is_left(source: Path, damage: bytes) -> None:
    Path(cache_from_source(str(source))).write_bytes(damage)
    copy_compiled(source.parents[1], source.parents[2] / "code")
    assert not cached(source).exists()


def test_what_is_compiled_of_an_earlier_source_is_left(source: Path) -> None:
    os.utime(source, ns=(0, 0))
    copy_compiled(source.parents[1], source.parents[2] / "code")
    assert not cached(source).exists()


def test_modules_that_the_copy_does_not_have_or_has_as_links_are_left(source: Path) -> None:
    copy = source.parents[2] / "code" / "dist_ssl" / "part.py"
    copy.unlink()
    copy_compiled(source.parents[1], source.parents[2] / "code")
    copy.symlink_to(source)
    copy_compiled(source.parents[1], source.parents[2] / "code")
    assert not cached(source).exists()


def test_a_folder_that_cannot_be_written_costs_time_only(source: Path) -> None:
    cached(source).parent.write_text("in the way")
    copy_compiled(source.parents[1], source.parents[2] / "code")
