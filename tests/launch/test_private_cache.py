"""Compiled code is kept where no other user can have put some."""

import os
import stat
from pathlib import Path

import pytest

from launch.private_cache import OF_NUMBA, VARIABLES, private_caches, private_folder, use_private_cache


def test_the_folder_is_made_for_its_owner_alone_and_used_again(tmp_path: Path) -> None:
    found = private_folder(tmp_path / "cache")
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert private_folder(tmp_path / "cache") == found == tmp_path / "cache"


@pytest.mark.parametrize("kind", ["others can write", "a link", "a file", "another user's"])
def test_a_folder_that_others_may_have_filled_is_not_used(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, other = tmp_path / "cache", tmp_path / "other"
    other.mkdir(mode=0o700)
    if kind == "a link":
        folder.symlink_to(other)
    elif kind == "a file":
        folder.touch(mode=0o600)
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o722 if kind == "others can write" else 0o700)
    if kind == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    found = private_folder(folder)
    assert found not in (folder, other)
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_the_compilers_are_pointed_to_it_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen")
    use_private_cache()
    folder = tmp_path / f"dist_ssl-compiled-{os.geteuid()}"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "/chosen"
    assert Path(os.environ["NUMBA_CACHE_DIR"]).parent == folder


def test_other_code_does_not_get_what_numba_compiled_of_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run folder is removed, and one of the same name is made with other code."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    (tmp_path / OF_NUMBA).mkdir(parents=True)
    places = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / OF_NUMBA / "numba_tools.py").write_text(text)
        places.append(private_caches(tmp_path)["NUMBA_CACHE_DIR"])
    assert places[0] == places[2] != places[1]
