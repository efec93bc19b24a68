"""A rank that is gone, without a word, while a checkpoint is written or read ends the others; a slow disk does not."""

import os
import signal
import threading
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_ssl import train
from dist_ssl.checkpoint import saver
from dist_ssl.checkpoint.await_all import await_on_all
from dist_ssl.checkpoint.background import Background
from dist_ssl.checkpoint.read_on_all import read_on_all
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.distributed.world import Waits, World, joined
from launch import worker
from tests import forks
from tests.checkpoint.test_saver import Store, at
from tests.ranks import Ranks

JOIN_SECONDS = 300.0
EXCHANGE_SECONDS = 2.0
"""The run's `timeout`, from when both ranks are there: how long it takes to start them does not matter."""
HANGS_SECONDS = 120
"""A bound that only a rank reaches that waits for gloo's half hour."""


def lose_power(*_: Any) -> None:
    """Stop this process with all its threads, as a node does that has lost its power: no connection is closed."""
    os.kill(os.getpid(), signal.SIGSTOP)


def keep_training(job: Any) -> None:
    """A loop that saves once, and then exchanges something in every step."""
    job.checkpoint.save(Store(1), at(1))
    while True:
        job.checkpoint.world.agree(0)


def save_and_wait(job: Any) -> None:
    """The end of a run: all ranks wait for the last save."""
    job.checkpoint.save(Store(1), at(1))
    job.checkpoint.wait()


def rank(number: int, folder: Path, loop: Any, line: Connection | None) -> None:
    """One of two ranks, of which the second is lost while it writes; the first sends the exit code of its error."""
    os.environ.update(RANK=str(number), WORLD_SIZE="2", LOCAL_RANK=str(number), LOCAL_WORLD_SIZE="2")
    train.train = loop
    if number:
        saver.write = lose_power  # type: ignore[assignment]
    with joined(folder / "rendezvous.json", Waits(JOIN_SECONDS, JOIN_SECONDS)) as world:
        world.agree(0)
        assert world.shared_memory
        world.shared_memory.seconds = EXCHANGE_SECONDS
        try:
            own = Checkpoint(folder, world, keep_last=2, attempt=1, newest=lambda: True)
            worker.train_to_the_last_save(SimpleNamespace(checkpoint=own))  # type: ignore[arg-type]
        except Exception as error:
            if line:
                line.send(worker.code_of(error))
            worker.end(0)


@pytest.mark.parametrize("loop", [keep_training, save_and_wait])
def test_a_node_that_is_lost_during_a_save_ends_the_other_ranks_as_any_loss_does(tmp_path: Path, loop: Any) -> None:
    ours, theirs = forks.pipe()
    ranks = [forks.start(rank, number, tmp_path, loop, line) for number, line in enumerate((theirs, None))]
    try:
        theirs.close()  # so that a rank that ends without an answer is seen at once
        assert ours.poll(HANGS_SECONDS), "it waits for the lost rank"
        assert ours.recv() == worker.LOST_CODE
    finally:
        for process in ranks:
            process.kill()
            process.join()


def answer_late(world: World) -> tuple[int, list[str]]:
    """Rank 1 reads until rank 0, which has read at once, has looked for it several times."""
    looks, seen = [], threading.Event()
    agree = World.agree

    def counted(self: World, value: int) -> int:
        looks.append(value)
        if len(looks) == 5:
            seen.set()
        return agree(self, value)

    World.agree = counted  # type: ignore[method-assign]
    try:
        found = read_on_all(world, lambda: str(seen.wait(HANGS_SECONDS) if world.rank else ""))
    finally:
        World.agree = agree  # type: ignore[method-assign]
    return len(looks), world.collect(found)


def test_ranks_that_have_read_early_answer_until_the_slowest_has_read() -> None:
    ranks = Ranks(2)
    try:
        found = ranks.run(answer_late, 2)
    finally:
        ranks.close()
    assert all(looks >= 5 for looks, _ in found), "no exchange has lasted as long as the reading"
    assert [texts for _, texts in found] == [["", "True"]] * 2


def test_work_that_fails_has_ended() -> None:
    failed = Background(partial(int, "x"), "work")
    await_on_all(World(), failed)
    with pytest.raises(ValueError, match="invalid literal"):
        failed.result()
