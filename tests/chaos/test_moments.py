"""Killed at any moment of a save, on a disk that is full, at every step of a run: nothing is lost, no bit changes."""

import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dist_ssl.checkpoint.index import read
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.distributed.world import Waits, World, joined
from dist_ssl.errors import CheckpointError
from dist_ssl.metrics.sinks import COUNTERS, read_totals
from tests.chaos.warm import end, heard, start
from tests.checkpoint.test_saver import FRESH, Store, assert_same_bits, at, restore, tensors
from tests.disks import small_disk
from tests.jobs import finished, same_bits, small_config, small_job

ELEMENTS = 1 << 19


def state(step: int) -> dict[str, Tensor]:
    """2 MB whose every element tells the step, beside one tensor of every kind."""
    return {**tensors(step), "model/large": torch.full((ELEMENTS,), float(step))}


def engine_at(step: int) -> Any:
    made: Any = Store()
    made.held = state(step)
    return made


def kept(folder: Path, world: World) -> Checkpoint:
    return Checkpoint(folder, world, keep_last=2, attempt=2, newest=lambda: True)


def save_once(line: Connection, folder: Path, meeting: Path) -> None:
    """Go on from the newest checkpoint by one step and save it; says when the save begins and when it has ended."""
    with joined(meeting, Waits(100, 100)) as world:
        own = kept(folder, world)
        step = own.restore(engine_at(0), FRESH).step + 1
        engine = engine_at(step)
        world.agree(0)
        line.send("begins")
        own.save(engine, at(step))
        own.wait()
        line.send("ends")
        line.poll(None)


def one_save(folder: Path, meeting: Path, ranks: int, after: float | None, chance: random.Random) -> tuple[float, bool]:
    """A save that is killed so many seconds after its begin: all ranks, or one; None: not before its end.

    How long it took up to there, and whether it had ended.
    """
    started = [
        start(save_once, folder, meeting, RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=ranks)
        for rank in range(ranks)
    ]
    try:
        lines = [line for _, line in started]
        assert [heard(line) for line in lines] == ["begins"] * ranks
        clock = time.monotonic()
        if after is None:
            assert heard(lines[0]) == "ends"
        else:
            time.sleep(after)
        took = time.monotonic() - clock
        ended = after is None or bool(wait(lines, 0))
        for process, _ in [chance.choice(started)] if chance.random() < 0.5 else started:
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    finally:
        for process, line in started:
            end(process, line)
    return took, ended


@pytest.mark.parametrize(
    ("ranks", "count"),
    [(1, 10), pytest.param(1, 200, marks=pytest.mark.chaos), pytest.param(2, 100, marks=pytest.mark.chaos)],
)
def test_killed_at_any_moment_of_a_save_the_newest_checkpoint_is_whole(
    ranks: int, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    chance, folder = random.Random(seed), tmp_path / "checkpoints"
    calm = [one_save(folder, tmp_path / f"whole{n}" / "meet", ranks, None, chance)[0] for n in range(5)]
    most = 1.1 * statistics.median(calm)
    found: Counter[str] = Counter()
    step = restore(folder)[0]
    for number in range(count):
        after = chance.uniform(0, most)
        _, ended = one_save(folder, tmp_path / f"{number}" / "meet", ranks, after, chance)
        last, (step, held) = step, restore(folder)
        assert step in (last, last + 1)
        assert step == last + 1 or not ended
        assert_same_bits(held, state(step))
        found["after its end" if ended else "committed" if step > last else "not committed"] += 1
    assert "damaged" not in caplog.text
    table = Table("the save was", "times", "newest checkpoint", title=f"{count} kills within {most:.3f} s")
    for kind in ("not committed", "committed", "after its end"):
        table.add_row(kind, str(found[kind]), "whole")
    Console().print(table)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for three checkpoints of the state above."""
    with small_disk(tmp_path, 8) as mounted:
        yield mounted


def fill(path: Path, left: int) -> None:
    """Have no more than so many bytes left on the disk."""
    room = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(room.f_bavail * room.f_frsize - left, 1))


def failure(own: Checkpoint) -> str:
    """Why what was saved is not on disk; empty where it is."""
    try:
        own.wait()
    except CheckpointError as error:
        return error.problem
    return ""


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.chaos)])
def test_a_disk_that_fills_up_costs_one_save_and_no_more(count: int, disk: Path) -> None:
    chance = random.Random(count)
    own, folder = kept(disk / "checkpoints", World()), disk / "checkpoints"
    found: Counter[str] = Counter()
    step, newest = 1, 0
    while sum(found.values()) < count:
        own.save(engine_at(step), at(step))
        own.wait()
        newest, step = step, step + 1
        size = sum(path.stat().st_size for path in (folder / f"step_{newest:08d}").iterdir())
        fill(disk / "ballast", chance.choice([chance.randrange(size), size + chance.randrange(-12000, 12000)]))
        own.save(engine_at(step), at(step))
        problem = failure(own)
        assert not problem or "No space left on device" in problem
        newest = newest if problem else step
        found["failed" if problem else "fitted"] += 1
        last, held = restore(folder)
        assert last >= newest  # one that is whole but could not be announced counts too
        assert_same_bits(held, state(last))
        (disk / "ballast").unlink()
        step += 1
    assert found["failed"] >= count // 4
    table = Table("the save", "times", "newest checkpoint", "the next save", title=f"{count} full disks")
    for kind, times in sorted(found.items()):
        table.add_row(kind, str(times), "whole", "succeeds")
    Console().print(table)


EPOCH = 5
RUN = ("probe.every=200 epochs", "save_every=2 steps")


@dataclass
class Watched:
    """A stream that tells which step is about to be made."""

    stream: Any
    told: Any

    def epoch(self, plan: EpochPlan, start: int = 0, before: int | None = None) -> Iterator[Batch]:
        for batch in self.stream.epoch(plan, start, before):
            self.told(batch.step + EPOCH * plan.epoch)
            yield batch


def train_until(line: Connection, config: dict[str, Any], folder: Path, attempt: int, last: int, after: float) -> None:
    """Train, and be killed so many seconds after the begin of a step; the end is told."""

    def told(step: int) -> None:
        if step == last:
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()

    job = small_job(World(), config, folder, attempt)
    job.stream = Watched(job.stream, told)  # type: ignore[assignment]
    done = finished(job)
    if last >= 0:
        line.poll(None)
    line.send(done)


def attempt(config: dict[str, Any], folder: Path, number: int, last: int = -1, after: float = 0) -> bool:
    """Train in a process of its own; whether it came to the end."""
    process, line = start(train_until, config, folder, number, last, after)
    try:
        return bool(heard(line))
    except EOFError:
        process.join()
        assert process.exitcode == -signal.SIGKILL
        return False
    finally:
        end(process, line)


def final(folder: Path, steps: int) -> dict[str, Any]:
    """What the run's last checkpoint holds."""
    return read(folder / "checkpoints" / f"step_{steps:08d}")[1]


@pytest.mark.parametrize(
    ("epochs", "steps"), [(2, (0, 2, 5, 7, 9)), pytest.param(10, range(50), marks=pytest.mark.chaos)], ids=["5", "50"]
)
def test_killed_at_a_step_and_resumed_no_bit_differs(
    epochs: int, steps: Any, demo_shards: Path, tmp_path: Path
) -> None:
    config, end = small_config(demo_shards, *RUN, f"epochs={epochs}"), epochs * EPOCH
    assert attempt(config, tmp_path / "undisturbed", 1)
    wanted = final(tmp_path / "undisturbed", end)
    chance = random.Random(len(steps))

    def killed(step: int) -> bool:
        folder = tmp_path / f"{step}"
        assert not attempt(config, folder, 1, step, chance.choice([0, chance.uniform(0, 0.02)]))
        return attempt(config, folder, 2) and same_bits(final(folder, end), wanted)

    with ThreadPoolExecutor(2) as pool:
        same = list(pool.map(killed, steps))
    table = Table("killed at", "bit-identical", title=f"a run of {end} steps on one rank, fp32")
    table.add_row(f"{len(same)} steps", f"{sum(same)} of {len(same)}")
    Console().print(table)
    assert all(same), [step for step, held in zip(steps, same, strict=True) if not held]


def test_a_run_goes_on_past_a_full_disk_and_no_bit_differs(disk: Path, demo_shards: Path, tmp_path: Path) -> None:
    config = small_config(demo_shards, *RUN, "epochs=5")
    for name in ("undisturbed", "crowded"):
        folder = tmp_path / name
        folder.mkdir()
        (disk / name).mkdir()
        (folder / "checkpoints").symlink_to(disk / name)

        def told(step: int, full: bool = name == "crowded") -> None:
            if full and step == 8:
                # a save under way would take room, or make some; the job is the one that runs
                job.checkpoint.close()  # noqa: B023
                fill(disk / "ballast", 4096)
            if full and step == 19:
                (disk / "ballast").unlink()

        job = small_job(World(), config, folder)
        job.stream = Watched(job.stream, told)  # type: ignore[assignment]
        assert finished(job)
        assert (read_totals(folder / COUNTERS)["failed_saves"] >= 3) == (name == "crowded")
    assert same_bits(final(tmp_path / "crowded", 25), final(tmp_path / "undisturbed", 25))
