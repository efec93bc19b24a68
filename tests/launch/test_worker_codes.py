"""The exit code of a worker says whether its run may be resumed by itself: what was lost may come back."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist_ssl import train
from dist_ssl.errors import (
    CheckpointAwayError,
    CheckpointError,
    ConfigError,
    DataError,
    DisagreementError,
    LostPeerError,
    ServerAwayError,
    TooManyUnreadableError,
    TrainingError,
    UserError,
)
from launch.ending import DISAGREED_CODE, DIVERGED_CODE, LOST_CODE, UNREADABLE_CODE
from launch.run_dir import RunDir
from launch.worker import LOST_SECONDS, code_of, is_newest, train_to_the_last_save

RANK_LOST: list[Exception] = [
    LostPeerError("a", "b"),
    ConnectionResetError("peer"),
    RuntimeError("[gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:4711"),
    RuntimeError("[gloo/transport/tcp/buffer.cc:72] Timed out waiting 1800000ms for send operation to complete"),
    RuntimeError("NCCL error: ncclRemoteError: A call failed possibly due to a network error"),
]
OTHER_LOST: list[Exception] = [
    ServerAwayError("a", "b"),
    CheckpointAwayError("a", "b"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EIO, "Input/output error", "config.yaml"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("GPU is lost. Reboot the system to recover this GPU"),
]


@pytest.mark.parametrize("error", RANK_LOST + OTHER_LOST, ids=lambda error: str(error)[:40])
def test_what_is_lost_may_come_back(error: Exception) -> None:
    assert code_of(error) == LOST_CODE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError("a", "b"), DIVERGED_CODE),
        (DisagreementError("a", "b"), DISAGREED_CODE),
        (ConfigError("a", "b"), 2),
        (DataError("a", "b"), 2),
        (CheckpointError("a", "b"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 1),
        (TooManyUnreadableError("a", "b"), UNREADABLE_CODE),
        (UserError("a", "b"), 2),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 1),
        (KeyError("x"), 1),
    ],
)
def test_a_fault_of_the_run_itself_does_not(error: Exception, code: int) -> None:
    assert code_of(error) == code


@pytest.mark.parametrize("error", [*RANK_LOST, *OTHER_LOST, ValueError("a fault")], ids=lambda error: str(error)[:40])
def test_only_a_rank_that_is_gone_bounds_the_wait_for_a_save(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_job: object) -> None:
        raise error

    monkeypatch.setattr(train, "train", broken)
    waited: list[float | None] = []
    with pytest.raises(type(error)):
        train_to_the_last_save(SimpleNamespace(checkpoint=SimpleNamespace(close=waited.append)))  # type: ignore[arg-type]
    assert waited == [LOST_SECONDS if error in RANK_LOST else None]


def test_a_new_attempt_is_noticed_through_a_stale_copy_of_the_folder_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS attempts are listed from a copy until this machine itself has changed their folder."""
    run, copies, touch, attempts = RunDir(tmp_path), [[1]], Path.touch, RunDir.attempts
    first, _ = run.new_attempt({}), run.new_attempt({})

    def touched(path: Path) -> None:
        touch(path)
        if path.parent == tmp_path / "attempts":
            copies.clear()

    monkeypatch.setattr(RunDir, "attempts", lambda own: copies[0] if copies else attempts(own))
    monkeypatch.setattr(Path, "touch", touched)
    assert run.newest_attempt() == 1, "the copy is stale"
    assert not is_newest(first)
    assert sorted(path.name for path in (tmp_path / "attempts").iterdir()) == ["0001", "0002"]


def test_a_disk_without_room_does_not_make_an_attempt_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    first = RunDir(tmp_path).new_attempt({})
    monkeypatch.setattr(Path, "touch", full)
    assert is_newest(first)
