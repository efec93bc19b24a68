"""A rank's file is one that any reader of safetensors reads, and no byte of it changes unnoticed."""

import ctypes
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from dist_ssl.checkpoint import rank_file
from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.placement import Held, rank_file_name
from dist_ssl.checkpoint.rank_file import RankFile, as_bytes, write
from dist_ssl.checkpoint.rank_header import BEGIN, CODES, MOST_VALUES, ZEROS, Marked, sealed_header
from dist_ssl.checkpoint.table_rules import RANK_FILE
from dist_ssl.protocols.engine import Piece
from tests.checkpoint.test_staging import KINDS, pieces

MARKED = Marked("5" * 32, 0)


def test_any_reader_of_the_format_reads_it(tmp_path: Path) -> None:
    more = {code: torch.arange(6).to(getattr(torch, code)).reshape(2, 3) for code in CODES}
    length = write(tmp_path / "rank_00000.safetensors", pieces({**KINDS, **more}), MARKED)
    found = safetensors.torch.load_file(tmp_path / "rank_00000.safetensors")
    assert found.keys() == KINDS.keys() | more.keys()
    for name, value in {**KINDS, **more}.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert (tmp_path / "rank_00000.safetensors").stat().st_size == length


def test_a_rank_that_has_nothing_writes_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "rank_00000.safetensors", {}, MARKED)
    assert safetensors.torch.load_file(tmp_path / "rank_00000.safetensors") == {}
    RankFile(tmp_path / "rank_00000.safetensors", MARKED).close()


@pytest.mark.parametrize("skip", [0, 1, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 300_000, 600_000])
def test_any_run_of_a_piece_is_copied(tmp_path: Path, skip: int, count: int) -> None:
    whole = torch.arange(600_005, dtype=torch.float64)
    write(tmp_path / "rank_00000.safetensors", {"x": Piece(whole, (600_005,), 0)}, MARKED)
    out = torch.empty(count, dtype=torch.float64)
    file = RankFile(tmp_path / "rank_00000.safetensors", MARKED)
    file.copy("x", Held("rank_00000.safetensors", 0, 600_005), "float64", as_bytes(out), 8 * skip)
    file.close()
    assert torch.equal(out, whole[skip : skip + count])


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_what_has_no_header_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rank_00000.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="rank_00000"):
        RankFile(tmp_path / "rank_00000.safetensors", None)


@pytest.mark.parametrize("header", [b"[1, 2]  ", b'{"x": 5}', b'{"x": {"data_offsets": [1]}}', b'{"x": ', b"\xff\xfe"])
def test_a_header_that_says_nothing_is_damaged(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "rank_00000.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DamagedError, match="header cannot be read"):
        RankFile(tmp_path / "rank_00000.safetensors", None)


def described(file: Path, rows: dict[str, Any], data: bytes = bytes(16)) -> Path:
    """Write a rank's file whose header has these rows."""
    header = json.dumps(rows).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return file


@pytest.mark.parametrize(
    "offsets",
    [
        *([0, 16.0], [0.0, 16], [0.5, 15.5], [0, float("nan")], [float("-inf"), 16], [0, 1e308], [False, True]),
        *(["0", "16"], [None, 16], [[], []], [0, {}], "01", {"0": 0, "16": 1}, 16, None, [], [16], [0, 8, 16]),
        *(
            [-1, 16],
            [-16, 0],
            [16, 0],
            [8, 4],
            [0, 17],
            [17, 17],
            [0, 2**63],
            [2**64, 2**65],
            [-(2**63), 16],
            [10**400] * 2,
        ),
    ],
    ids=repr,
)
def test_a_tensor_that_lies_nowhere_in_the_file_is_damage(tmp_path: Path, offsets: Any) -> None:
    file = described(tmp_path / "rank_00000.safetensors", {"x": {"data_offsets": offsets}})
    with pytest.raises(DamagedError, match="header cannot be read"):
        RankFile(file, None)


def test_a_header_of_very_many_values_is_damage(tmp_path: Path) -> None:
    """One of 90 MB took 3 GB and a minute."""
    file = tmp_path / "rank_00000.safetensors"
    text = f'{BEGIN}{ZEROS}","save":"{MARKED.save}","rank":"0","pieces":""}},"x":[{"[]," * MOST_VALUES}0]}}'
    file.write_bytes(sealed_header(text.encode()))
    with pytest.raises(DamagedError, match=f"more than {MOST_VALUES} values"):
        RankFile(file, MARKED)


def test_tensors_that_overlap_are_damage(tmp_path: Path) -> None:
    rows = {name: {"data_offsets": ends} for name, ends in (("a", [0, 8]), ("b", [8, 16]), ("none", [8, 8]))}
    RankFile(described(tmp_path / "rank_00000.safetensors", rows), None).close()
    rows["c"] = {"data_offsets": [7, 9]}
    with pytest.raises(DamagedError, match=r"header cannot be read .*'c'.* overlap"):
        RankFile(described(tmp_path / "rank_00000.safetensors", rows), None)


@pytest.mark.parametrize("kind", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_damage_and_not_waited_for(tmp_path: Path, kind: Callable[[Path], None]) -> None:
    kind(tmp_path / "rank_00000.safetensors")
    with pytest.raises(DamagedError, match="rank_00000"):
        RankFile(tmp_path / "rank_00000.safetensors", None)


def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file system that answers so when it is asked for room."""

    def fallocate(*_: Any) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(rank_file, "LIBC", SimpleNamespace(fallocate=fallocate))


def test_a_disk_without_room_is_known_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "rank_00000.safetensors", pieces(KINDS), MARKED)
    assert (tmp_path / "rank_00000.safetensors").stat().st_size == 0


def test_room_is_reserved(tmp_path: Path) -> None:
    with (tmp_path / "file").open("xb") as out:
        rank_file._reserve(out, 1 << 20)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 1 << 20


def test_a_file_system_that_reserves_nothing_is_written_once_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, errno.EOPNOTSUPP)
    monkeypatch.setattr(os, "posix_fallocate", None)  # writes to every block
    write(tmp_path / "rank_00000.safetensors", pieces(KINDS), MARKED)
    assert safetensors.torch.load_file(tmp_path / "rank_00000.safetensors").keys() == KINDS.keys()


@pytest.mark.parametrize("rank", [0, 99_999, 100_000])
def test_every_name_that_a_rank_writes_is_known_to_the_reader(rank: int) -> None:
    assert RANK_FILE.fullmatch(rank_file_name(rank))
    assert not RANK_FILE.fullmatch(f"../{rank_file_name(rank)}")
