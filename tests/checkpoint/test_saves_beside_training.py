"""Saves are written beside training, one at a time; how they ended, all ranks know alike, and what is kept is kept."""

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_ssl.checkpoint import costs, saver
from dist_ssl.checkpoint.background import Background
from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.index import read, sealed_text
from dist_ssl.checkpoint.save_problems import SupersededError
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import State
from tests.checkpoint.test_saver import (
    FRESH,
    Store,
    assert_same_bits,
    at,
    keeper,
    names,
    restore,
    saved,
    tensors,
    weight,
)
from tests.ranks import Ranks

WAIT = 20


class Gate:
    """Holds up what is written until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came, self.opened = threading.Event(), threading.Event()
        write = saver.write

        def held(*given: Any) -> Any:
            self.came.set()
            assert self.opened.wait(WAIT)
            return write(*given)

        monkeypatch.setattr(saver, "write", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_save_returns_before_it_is_written_and_holds_what_was_true_then(tmp_path: Path, gate: Gate) -> None:
    own, engine = keeper(tmp_path), Store(3)
    own.save(engine, at(3))  # type: ignore[arg-type]
    assert own.writing
    for value in engine.held.values():
        value.zero_()
    assert gate.came.wait(WAIT)
    assert not list(tmp_path.glob("step_*"))
    gate.opened.set()
    own.wait()
    assert not own.writing
    assert_same_bits(restore(tmp_path)[1], tensors(3))


def test_a_second_save_waits_for_the_first_and_the_wait_is_counted(tmp_path: Path, gate: Gate) -> None:
    own = keeper(tmp_path)
    own.save(Store(1), at(1))  # type: ignore[arg-type]
    own.metrics()
    second = threading.Thread(target=own.save, args=(Store(2), at(2)))
    second.start()
    assert gate.came.wait(WAIT)
    second.join(0.2)
    assert second.is_alive()
    gate.opened.set()
    second.join(WAIT)
    assert own.metrics()["save_stall_seconds"] >= 0.2
    assert own.metrics()["save_stall_seconds"] == 0
    own.wait()
    assert names(tmp_path) == ["LATEST", "step_00000001", "step_00000002"]


def test_what_a_save_costs_training_is_the_copy_not_the_wait_for_the_save_before_nor_the_first_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Slow(Store):
        def state(self) -> State:
            now[0] += 3
            return super().state()

    def await_for_minutes(_: World, work: Background) -> None:
        work.wait()
        now[0] += 240

    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(saver, "await_on_all", await_for_minutes)
    own = keeper(tmp_path)
    own.save(Slow(1), at(1))  # type: ignore[arg-type]
    assert own.stall == 0
    own.save(Slow(2), at(2))  # type: ignore[arg-type]
    assert own.stall == 3
    own.wait()
    assert own.stall == 3
    assert own.metrics()["save_stall_seconds"] == 3 + 240 + 3 + 240


def test_metrics_tell_the_newest_checkpoint_and_what_it_took(tmp_path: Path) -> None:
    own = keeper(tmp_path)
    assert own.metrics()["saved_step"] == 0
    saved(own, Store(7), 7)
    found = own.metrics()
    assert (found["saved_step"], found["failed_saves"]) == (7, 0)
    assert found["save_seconds"] > 0
    assert found["checkpoint_bytes"] == sum(file.stat().st_size for file in (tmp_path / "step_00000007").iterdir())
    assert "restore_seconds" not in found, "it has restored nothing"
    again = keeper(tmp_path)
    again.restore(Store(), FRESH)  # type: ignore[arg-type]
    found = again.metrics()
    assert (found["saved_step"], found["damaged_checkpoints"]) == (7, 0)
    assert found["restore_seconds"] > 0
    assert "restore_seconds" not in again.metrics(), "it is reported once"


def test_metrics_tell_how_many_checkpoints_a_restore_passed_over(tmp_path: Path) -> None:
    own = keeper(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        saved(own, Store(step), step)
    for step in (2, 3):
        (tmp_path / f"step_{step:08d}" / "state.json").write_text("{")
    again = keeper(tmp_path)
    again.restore(Store(), FRESH)  # type: ignore[arg-type]
    found = again.metrics()
    assert (found["saved_step"], found["damaged_checkpoints"]) == (1, 2)
    assert again.metrics()["damaged_checkpoints"] == 0, "it is reported once"


def test_a_save_without_room_is_told_counted_and_made_up_for_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = keeper(tmp_path)
    saved(own, Store(1), 1)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(saver, "write", full)
        own.save(Store(2), at(2))  # type: ignore[arg-type]
        own.close()
    assert "Rank 0: [Errno 28] No space left on device" in caplog.text
    assert names(tmp_path) == ["LATEST", "step_00000001"]
    assert (own.metrics()["failed_saves"], own.metrics()["saved_step"]) == (1, 1)
    saved(own, Store(3), 3)
    assert names(tmp_path) == ["LATEST", "step_00000001", "step_00000003"]
    assert (own.metrics()["failed_saves"], own.metrics()["saved_step"]) == (0, 3), "it is reported once"


def test_a_checkpoint_that_could_not_be_kept_for_ever_is_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = keeper(tmp_path, keep_last=1, keep_every=Duration.parse("1 epochs"))
    in_epoch = at(3)
    saved(own, Store(3), 3)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Path, "touch", full)
        own.save(Store(3), in_epoch.next_epoch())  # type: ignore[arg-type]
        own.close()
    assert "No space left" in caplog.text
    saved(own, Store(4), 4)
    assert own.metrics()["failed_saves"] == 1


def test_the_last_save_fails_loudly_and_may_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = keeper(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saver, "write", full)
        own.save(Store(2), at(2))  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=r"could not be written.*No space left"):
            own.wait()
    own.wait()  # nothing is under way any more
    saved(own, Store(2), 2)
    assert restore(tmp_path)[0] == 2


def test_a_superseded_attempt_ends_at_its_next_save(tmp_path: Path) -> None:
    own = keeper(tmp_path, newest=lambda: False, attempt=4)
    own.save(Store(1), at(1))  # type: ignore[arg-type]
    with pytest.raises(SupersededError, match="attempt 4 is not the newest") as caught:
        own.save(Store(2), at(2))  # type: ignore[arg-type]
    assert caught.value.remedy == "Nothing is lost: the newer attempt goes on."
    assert names(tmp_path) == []


def test_an_old_checkpoint_that_cannot_be_removed_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = keeper(tmp_path, keep_last=1)
    saved(own, Store(1), 1)
    remove = saver.shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "step_00000001":
            raise OSError(errno.EBUSY, "busy")
        remove(path, ignore_errors)

    monkeypatch.setattr(saver.shutil, "rmtree", busy)
    saved(own, Store(2), 2)
    assert "step_00000001 cannot be removed" in caplog.text
    assert own.metrics()["failed_saves"] == 0


def test_an_error_of_our_own_reaches_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(saver, "write", wrong)
    own = keeper(tmp_path)
    own.save(Store(1), at(1))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        own.wait()


def test_multiples_of_steps_are_kept_for_ever_even_over_a_resume(tmp_path: Path) -> None:
    for first in (1, 6):
        own = keeper(tmp_path, keep_last=1, keep_every=Duration.parse("3 steps"))
        own.restore(Store(), FRESH)  # type: ignore[arg-type]
        for step in range(first, first + 5):
            saved(own, Store(step), step)
    assert names(tmp_path) == ["LATEST", *(f"step_{step:08d}" for step in (3, 6, 9, 10))]
    assert sorted(path.parent.name for path in tmp_path.glob("*/KEPT")) == [f"step_{s:08d}" for s in (3, 6, 9)]


def test_the_end_of_an_epoch_is_kept_though_its_step_is_saved_already(tmp_path: Path) -> None:
    own = keeper(tmp_path, keep_last=1, keep_every=Duration.parse("2 epochs"))
    for step in range(1, 7):
        saved(own, Store(step), step)
        own.save(Store(step), Progress(epochs=9, step=step, epoch=step))  # type: ignore[arg-type]
        own.wait()
    assert names(tmp_path) == ["LATEST", *(f"step_{step:08d}" for step in (2, 4, 6))]


def renamed(folder: Path) -> None:
    (folder / "step_00000002").rename(folder / "step_00000003")


def doctored(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of what the table says, sealed again."""

    def make(folder: Path) -> None:
        path = folder / "step_00000002" / "state.json"
        content = json.loads(path.read_text())
        del content["xxh3"]
        change(content)
        path.write_text(sealed_text(content))

    return make


def spaced(folder: Path) -> None:
    path = folder / "step_00000002" / "state.json"
    path.write_text(path.read_text().replace("\n", " ", 1))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "the folder of another step": (renamed, "it describes step 2"),
    "another white space": (spaced, "state.json: it is not what was written"),
    "a file that is absent": (
        doctored(lambda c: c.update(ranks=8) or weight(c).update(each=0, others=[[7, 0, 15]])),
        "rank_00007",
    ),
    "a gap": (
        doctored(lambda c: weight(c).update(each=0, others=[[0, 1, 14]])),
        "'model/weight' overlap or leave a gap",
    ),
    "too few elements": (doctored(lambda c: weight(c).update(each=1)), "'model/weight' overlap or leave a gap"),
    "fewer elements": (
        doctored(lambda c: weight(c).update(shape=[2])),
        "'model/weight' is missing or has another size",
    ),
    "a shape of words": (doctored(lambda c: weight(c).update(shape=["a"])), "'model/weight'"),
    "elements below 0": (doctored(lambda c: weight(c).update(others=[[0, -15, 15]])), "'model/weight'"),
    "an unknown type": (doctored(lambda c: weight(c).update(dtype="Tensor")), "'model/weight'"),
    "a wider type": (doctored(lambda c: weight(c).update(dtype="float64")), "'model/weight'"),
    "another type": (doctored(lambda c: weight(c).update(dtype="int32")), "'model/weight' has another type"),
    "no rule": (doctored(lambda c: weight(c).pop("each")), "each"),
    "another save": (doctored(lambda c: c.update(save="0" * 32)), "it is of another save than state.json"),
    "a name for no eyes": (
        doctored(lambda c: c["tensors"].update({"\ud800\x1b[2J": {"dtype": "none"}})),
        r"'\ud800\x1b[2J'",
    ),
    "no progress": (doctored(lambda c: c["progress"].clear()), "progress"),
    "a progress that is unknown": (doctored(lambda c: c["progress"].update(pace=1)), "progress"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_true_is_named_and_passed_over(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(keeper(tmp_path), Store(1), 1)
    saved(keeper(tmp_path), Store(2), 2)
    damage, told = WRONG[kind]
    damage(tmp_path)
    with caplog.at_level(logging.WARNING):
        step, state = restore(tmp_path)
    assert step == 1
    assert_same_bits(state, tensors(1))
    assert told in caplog.text
    assert caplog.text.encode()


def test_the_damaged_tensor_is_named_with_its_file(tmp_path: Path) -> None:
    saved(keeper(tmp_path), Store(1), 1)
    file = tmp_path / "step_00000001" / "rank_00000.safetensors"
    own = tensors(1)["model/conv"].contiguous().numpy().tobytes()
    data = file.read_bytes()
    at_ = data.index(own) + len(own) // 2
    file.write_bytes(data[:at_] + bytes([data[at_] ^ 4]) + data[at_ + 1 :])
    with pytest.raises(DamagedError, match=r"rank_00000\.safetensors: tensor 'model/conv'"):
        read(file.parent)


def spoilt(world: World, folder: Path) -> list[str]:
    """Saves of which rank 1 cannot write the second, while the ranks go on to exchange sums."""
    own = Checkpoint(folder, world, keep_last=9, attempt=2, newest=lambda: True)
    found, write = [], saver.write
    for step in (1, 2, 3):
        saver.write = full if step == 2 and world.rank == 1 else write
        own.save(Store(step), at(step))  # type: ignore[arg-type]
        for number in range(50):
            assert world.sum_const(torch.tensor([number])).item() == number * world.size
        if step == 2:
            try:
                own.wait()
            except CheckpointError as error:
                found.append(error.problem)
    own.wait()
    own.close()
    return [*found, f"failed: {own.metrics()['failed_saves']:.0f}"]


def test_ranks_save_beside_their_exchanges_and_hear_alike_of_a_disk_of_one(ranks: Ranks, tmp_path: Path) -> None:
    one, other = ranks.run(spoilt, 2, tmp_path)
    assert one == other
    assert "Rank 1: [Errno 28]" in one[0]
    assert one[1] == "failed: 1"
    assert names(tmp_path) == ["LATEST", "step_00000001", "step_00000003"]
    assert_same_bits(restore(tmp_path)[1], tensors(3))
