"""What a checkpoint makes valid is on disk before it counts, and training does not wait for that."""

import os
import threading
from pathlib import Path

import pytest

from dist_ssl.core.progress import Progress
from dist_ssl.data.order import ledger_reader
from dist_ssl.data.order.ledger import Ledger
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError
from tests.checkpoint.test_saver import Store, at, keeper, names, restore
from tests.data.order.test_ledger import batch


def test_records_are_on_disk_before_the_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, book = keeper(tmp_path / "checkpoints"), Ledger(tmp_path / "ledger", 2, World())
    synced, fsync = list[tuple[bool, list[str], set[tuple[int, int]]]](), os.fsync

    def noted(number: int) -> None:
        if number == book.file.fileno():
            beside = threading.current_thread() is not threading.main_thread()
            synced.append((beside, names(tmp_path / "checkpoints"), ledger_reader.read(tmp_path / "ledger").saves))
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted)
    book.record(Progress(epochs=1, step=0), batch([1]))
    book.seal(at(1))
    assert not synced
    checkpoint.save(Store(), at(1), book.sync)  # type: ignore[arg-type]
    checkpoint.wait()
    assert synced == [(True, [".step_00000001.0002.part"], {(2, 1)})]
    assert "step_00000001" in names(tmp_path / "checkpoints")


def test_records_that_do_not_get_to_the_disk_cost_that_checkpoint_only(tmp_path: Path) -> None:
    def fails() -> None:
        raise OSError(28, "No space left on device")

    checkpoint = keeper(tmp_path)
    checkpoint.save(Store(1), at(1), fails)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.wait()
    assert names(tmp_path) == []
    checkpoint.save(Store(2), at(2), lambda: None)  # type: ignore[arg-type]
    checkpoint.wait()
    assert restore(tmp_path)[0] == 2
