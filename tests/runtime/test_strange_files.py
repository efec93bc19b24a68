"""Files of others are read whole where they are ordinary ones of a bounded size; nothing else is waited for."""

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from dist_ssl.runtime import strange_files
from dist_ssl.runtime.strange_files import close_to_others, numbers, others_may_change, parsed_object, read_regular


def test_an_ordinary_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_regular(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "b", 4)


def test_what_is_no_file_is_neither_waited_for_nor_read_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "endless"):
        with pytest.raises(ValueError, match="no regular file"):
            read_regular(path, 100)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 100)


@pytest.mark.parametrize("text", ["", "[1]", "3", "{", '{"a": ' * 100_000, "[" * 100_000, b"\xff{}"])
def test_what_is_no_object_is_none(text: str | bytes) -> None:
    assert parsed_object(text) is None
    assert parsed_object('{"a": 1}') == {"a": 1}


def test_only_finite_numbers_are_numbers() -> None:
    odd = {"a": float("nan"), "b": float("inf"), "c": 10**400, "d": "3", "e": True, "f": None, "g": [1]}
    assert numbers({**odd, "x": 1, "y": -0.5}) == {"x": 1, "y": -0.5}


@pytest.mark.parametrize(("mode", "expected"), [(0o700, False), (0o755, False), (0o757, True), (0o1777, True)])
def test_a_mode_that_lets_others_write_is_recognized(tmp_path: Path, mode: int, expected: bool) -> None:
    tmp_path.chmod(mode)
    assert others_may_change(tmp_path) is expected


def test_the_users_own_group_has_no_others_and_any_other_group_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    os.chown(tmp_path, -1, os.getegid())
    tmp_path.chmod(0o770)
    assert others_may_change(tmp_path) is (user != group)
    monkeypatch.setattr(strange_files, "_of_one_user", lambda number: False)
    assert others_may_change(tmp_path) is True


def test_an_access_list_may_name_others_though_the_group_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o770)
    monkeypatch.setattr(strange_files, "_of_one_user", lambda number: True)
    assert others_may_change(tmp_path) is False
    asked: list[str] = []

    def listed(place: object, name: str) -> bytes:
        asked.append(name)
        return b"a list"

    monkeypatch.setattr(os, "getxattr", listed)
    assert others_may_change(tmp_path) is True
    assert asked == ["system.posix_acl_access"]


def test_a_folder_is_closed_with_what_will_be_made_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(os, "removexattr", lambda place, name: removed.append(name))
    tmp_path.chmod(0o2777)
    close_to_others(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o2755
    assert removed == ["system.posix_acl_default"]


def test_a_large_bound_costs_no_memory_for_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"abc")
    assert read_regular(path, 1 << 62) == b"abc", "a read of so many bytes would ask for them first"
    assert read_regular(path, 3) == b"abc"
    with pytest.raises(ValueError, match="more than 2 bytes"):
        read_regular(path, 2)
