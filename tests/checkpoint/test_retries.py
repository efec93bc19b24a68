"""A file system that fails for a moment costs a retry, never a checkpoint."""

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.index import read
from dist_ssl.checkpoint.read_on_all import read_on_all
from dist_ssl.checkpoint.retries import PAUSES, with_retries
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointAwayError, CheckpointError
from dist_ssl.runtime.tries import TRANSIENT
from tests.checkpoint.test_saver import assert_same_bits, save


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def failing(times: int, number: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """The work, which fails so often first."""
    left = [times]

    def tried(*given: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return work(*given, **options)

    return tried


@pytest.mark.parametrize("number", sorted(TRANSIENT))
def test_a_moment_is_waited_for(tmp_path: Path, number: int) -> None:
    assert with_retries(tmp_path, failing(len(PAUSES), number, lambda: 7)) == 7


def test_a_file_system_that_stays_away_ends_the_attempt_and_damages_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointAwayError, match=r"state\.json cannot be read: Stale file handle, in 4 tries"
    ) as caught:
        with_retries(tmp_path / "state.json", failing(9, errno.ESTALE, lambda: 7))
    assert caught.value.transient, "a job that ends so comes back by itself"


def test_all_ranks_know_whether_the_file_system_may_answer_again(tmp_path: Path) -> None:
    away = partial(with_retries, tmp_path, failing(9, errno.ESTALE, lambda: 7))
    with pytest.raises(CheckpointAwayError):
        read_on_all(World(), away)
    with pytest.raises(CheckpointError) as caught:
        read_on_all(World(), partial(refuse, tmp_path))
    assert not caught.value.transient


def refuse(path: Path) -> int:
    """A file that may not be read will not be readable by itself."""
    raise CheckpointError(f"{path} cannot be opened: Permission denied.", "Fix the permissions.")


def test_another_error_is_raised_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with_retries(tmp_path, failing(1, errno.ENOENT, lambda: 7))


@pytest.mark.parametrize("call", ["open", "preadv"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_checkpoint_is_read_across_failures_of_every_kind_of_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, times: int
) -> None:
    save(tmp_path, 1)
    progress, before = read(tmp_path / "step_00000001")
    monkeypatch.setattr(os, call, failing(times, errno.EIO, getattr(os, call)))
    again, after = read(tmp_path / "step_00000001")
    assert again == progress
    assert_same_bits(after, before)


def test_only_a_wrong_length_or_hash_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "step_00000001"
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(10**6, errno.EIO, os.preadv))
        with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
            read(folder)
    file = folder / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError):
        read(folder)
