"""What the ranks of `tests/gpu/engines.py` do: train, save beside training, take over, and say what they found."""

import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dist_ssl.checkpoint.index import read
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel
from dist_ssl.engines.spread import whole
from tests.engines.jobs import filled, small_engine, small_method, trained, whole_state

METHODS = ("mocov3", "mocov2", "single_branch")
"""With a teacher, with a queue, with a bank."""
BEFORE = 4


class Writer(NamedTuple):
    """Who has written a checkpoint, or reads one."""

    engine: str
    size: int
    alone: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        place = "alone" if self.alone else f"on {self.size}"
        return f"{self.engine} {place}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def folder(self) -> str:
        return str(self).replace(", ", "-").replace(" ", "-")


def made(world: World, who: Writer, method: str, folder: Path, seed: int) -> tuple[Parallel, Checkpoint]:
    own = small_engine(world, who.engine, small_method(world, method, seed), dtype=who.dtype)
    return own, Checkpoint(folder / method, world, keep_last=9, attempt=1, newest=lambda: True)


def written(world: World, who: Writer, folder: Path, steps: int) -> dict[str, tuple[list[str], list[float]]]:
    """Train every method, and save it beside the steps that follow: what is wrong on disk, and their losses."""
    found = {}
    for method in METHODS:
        own, checkpoint = made(world, who, method, folder, 0)
        trained(filled(own), range(BEFORE))
        then = on_host(own)
        checkpoint.save(own, Progress(epochs=9, step=BEFORE))
        losses = trained(own, range(BEFORE, BEFORE + steps))
        checkpoint.wait()
        found[method] = wrong_on_disk(checkpoint, then), losses
    return found


def wrong_on_disk(checkpoint: Checkpoint, wanted: dict[str, Tensor]) -> list[str]:
    """The names of what the newest checkpoint does not hold as it was."""
    (newest,) = checkpoint.folder.glob("step_*")
    state = read(newest)[1]
    pairs = {name: (whole(state[name]), wanted[name]) for name in wanted.keys() & state.keys()}
    other = [name for name, (a, b) in pairs.items() if a.dtype != b.dtype or not torch.equal(a, b)]
    return sorted([*(wanted.keys() ^ state.keys()), *other])


def on_host(own: Parallel) -> dict[str, Tensor]:
    """The whole state, on the host."""
    return {name: value.cpu() for name, value in whole_state(own).items()}


def gone_on(world: World, who: Writer, folder: Path, steps: int) -> dict[str, tuple[list[str], list[float]]]:
    """What differs after loading what a writer saved of each method, and the losses of the steps after it."""
    found = {}
    for method in METHODS:
        own, checkpoint = made(world, who, method, folder, 1)
        assert checkpoint.restore(own, Progress(epochs=9)).step == BEFORE
        wrong = wrong_on_disk(checkpoint, on_host(own))
        found[method] = wrong, trained(own, range(BEFORE, BEFORE + steps))
    return found


def agree(losses: list[float], wanted: list[float], reader: Writer, writer: Writer) -> bool:
    """Whether losses go on as they must."""
    if reader == writer:
        return losses == wanted
    if reader.dtype == torch.float32:
        return math.isclose(losses[0], wanted[0], rel_tol=1e-5, abs_tol=1e-5)
    return all(abs(own - other) <= 1e-9 for own, other in zip(losses, wanted, strict=True))


def losses_with(world: World, engine: str, options: dict[str, Any]) -> list[float]:
    """Of a few steps in these options."""
    return trained(small_engine(world, engine, small_method(world, "mocov3"), **options), range(4))


def bits_of(world: World, virtual_ranks: int) -> dict[str, Tensor]:
    """The state after some steps in bitwise mode, on the host."""
    method = small_method(World(device=world.device), "simclr")
    engine = small_engine(world, "ddp", method, None, torch.float32, bitwise=True, virtual_ranks=virtual_ranks)
    trained(engine, range(10))
    return on_host(engine)


def large_save(world: World, engine: str, width: int) -> tuple[list[str], str]:
    """Save a large state beside steps that change all of it: what is wrong on disk, and what it took."""
    own = small_engine(world, engine, small_method(world, "mocov3", hidden=width, dim=width // 2), dtype=torch.float32)
    trained(own, range(2))
    stalls, seconds = [], float("nan")
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(world.share(folder))
        checkpoint = Checkpoint(shared, world, keep_last=1, attempt=1, newest=lambda: True)
        for step in (2, 3):  # memory to stage in is made by the first
            then, started = on_host(own), time.perf_counter()
            checkpoint.save(own, Progress(epochs=9, step=step))
            stalls.append(time.perf_counter() - started)
            trained(own, range(step, step + 1))
            checkpoint.wait()
            seconds = checkpoint.metrics()["save_seconds"]
        wrong = wrong_on_disk(checkpoint, then)
        world.collect(0)  # the folder is one rank's
    size = sum(value.nbytes for value in then.values()) / 2**30
    return wrong, f"{size:.2f} GiB: stalls of {stalls[0]:.3f} and {stalls[1]:.3f} s, written in {seconds:.1f} s"
