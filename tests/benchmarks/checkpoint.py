"""Measures what saves and restores cost, against a plain copy of memory and torch's checkpoints, and holds it to bars.

    python tests/benchmarks/checkpoint.py [sizes=369MB,1500MB] [rounds=15] [steps=40] [folder=FOLDER]

The state has the tensors of ResNet-50s in training (weights, a teacher's, moments, steps), as many as the size takes;
weights lie in memory as convolutions like them. One process, files in `folder` (by default the temporary folder), all
in turns. Reads come from the page cache for both. Prints medians and quotients with 95 % intervals, and the time of a
training step while a save is written; exits 1 where a bar is missed.
"""

import ctypes
import statistics
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import xxhash
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.checkpoint.rank_file import CHUNK_BYTES
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.config.byte_sizes import parse_bytes, show_bytes
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.runtime.own_cores import own_cores
from tests.benchmarks.turns import in_turns, quotient, seconds, verdict

CORES = own_cores()
FRESH = Progress(epochs=1)


@dataclass
class Held:
    """An engine that has nothing but its state."""

    tensors: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        return self.tensors

    def wants(self, name: str, shape: tuple[int, ...]) -> None:
        return None

    def load(self, state: Any) -> None:
        for name, value in self.tensors.items():
            value.copy_(state[name])


def state_of(size: int) -> dict[str, Tensor]:
    """Tensors of so many bytes: those of as many ResNet-50s as it takes, and one to fill the rest."""
    like = timm.create_model("resnet50", num_classes=0).to(memory_format=torch.channels_last)
    shapes = {
        **dict(like.named_parameters()),
        **{f"{name}/step": torch.zeros(()) for name, _ in like.named_parameters()},
    }
    found: dict[str, Tensor] = {}
    left, copy = size, 0
    while True:
        for name, value in shapes.items():
            if value.nbytes > left:
                return {**found, "rest": torch.randn(left // 4)}
            found[f"{copy}/{name}"] = torch.randn_like(value.detach()).requires_grad_(False)
            left -= value.nbytes
        copy += 1


def hashed(data: memoryview) -> None:
    """The hash of all bytes, in the runs in which a save takes it."""
    total = xxhash.xxh3_128()
    for at in range(0, len(data), CHUNK_BYTES):
        total.update(data[at : at + CHUNK_BYTES])


class Bench:
    """All that is measured of a state of one size."""

    def __init__(self, size: int, folder: Path) -> None:
        self.engine: Any = Held(state_of(size))
        self.ours = Checkpoint(folder / "ours", World(), keep_last=1, attempt=1, newest=lambda: True)
        self.theirs = folder / "theirs"
        self.step = 0
        self.size = sum(value.nbytes for value in self.engine.tensors.values())
        self.here, self.there = (torch.ones(self.size, dtype=torch.uint8) for _ in range(2))
        self.whole: list[float] = []

    def memcpy(self) -> float:
        """A plain copy to memory that is there."""
        return seconds(lambda: ctypes.memmove(self.there.data_ptr(), self.here.data_ptr(), self.size))

    def hash(self) -> float:
        """What verification adds to a save."""
        return seconds(lambda: hashed(memoryview(self.here.numpy())))  # type: ignore[arg-type]

    def stall(self) -> float:
        """Of our save; the whole of it is noted too."""
        self.step += 1
        found = seconds(lambda: self.ours.save(self.engine, Progress(epochs=1, step=self.step)))
        self.whole.append(found + seconds(self.ours.wait))
        return found

    def their_stall(self) -> float:
        """Of `dcp.async_save` as it comes."""
        found: list[Any] = []
        took = seconds(lambda: found.append(async_save(self.engine.tensors, checkpoint_id=self.theirs)))
        found[0].result()
        return took

    def restore(self) -> float:
        """Ours, verified."""
        fresh = Checkpoint(self.ours.folder, World(), keep_last=1, attempt=1, newest=lambda: True)
        return seconds(lambda: fresh.restore(self.engine, FRESH))

    def their_restore(self) -> float:
        """`dcp.load`, which verifies nothing."""
        return seconds(lambda: load(self.engine.tensors, checkpoint_id=self.theirs))


def rows(bench: Bench, rounds: int, table: Table) -> bool:
    """Fill the table; whether no bar is missed."""
    works = (bench.memcpy, bench.stall, bench.their_stall, bench.restore, bench.their_restore, bench.hash)
    memcpy, stall, their_stall, restore, their_restore, hash_ = in_turns(rounds, *works)
    whole = bench.whole[1:]
    passed = True
    for name, a, b, bar, at_least in (
        ("stall of a save / memcpy", stall, memcpy, 1.5, False),
        ("stall of dcp.async_save / stall of a save", their_stall, stall, 3, True),
        ("dcp.load / restore, verified", their_restore, restore, 1.5, True),
        ("hash / save until it is on disk", hash_, whole, 0.05, False),
    ):
        q = quotient(a, b)
        word = verdict(q.mean, bar) if at_least else verdict(1 / q.mean, 1 / bar)
        medians = (f"{1e3 * statistics.median(a):.1f}", f"{1e3 * statistics.median(b):.1f}")
        sign = ">=" if at_least else "<="
        table.add_row(name, *medians, f"{q.mean:.3f}", f"{q.low:.3f}-{q.high:.3f}", f"{sign} {bar:g}", word)
        passed = passed and word != "MISSED"
    return passed


def steps_beside(bench: Bench, count: int) -> tuple[list[float], list[float]]:
    """The seconds of training steps, quiet and while a save is being written: as many of each, in turns."""
    model = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3 if n == 0 else 32, 32, 3, padding=1), nn.ReLU()) for n in range(4))
    )
    x = torch.randn(16, 3, 64, 64)

    def step() -> None:
        model(x).square().mean().backward()

    quiet: list[float] = []
    busy: list[float] = []
    for _ in range(3):  # warm
        step()
    while len(busy) < count:
        bench.step += 1
        bench.ours.save(bench.engine, Progress(epochs=1, step=bench.step))
        while bench.ours.writing and len(busy) < count:
            busy.append(seconds(step))
        bench.ours.wait()
        quiet += [seconds(step) for _ in range(len(busy) - len(quiet))]
    return quiet, busy


def main(words: list[str]) -> int:
    """Print a table per size; 1 where a bar is missed."""
    options = {key: value for key, _, value in (word.partition("=") for word in words)}
    console = Console(width=150)
    given, rounds = options.pop("sizes", "369MB,1500MB"), int(options.pop("rounds", 15))
    count, folder = int(options.pop("steps", 40)), options.pop("folder", None)
    if options:
        console.print(f"There is no option {', '.join(options)}: sizes, rounds, steps, folder.")
        return 2
    try:
        sizes = [parse_bytes(size, "sizes") for size in given.split(",")]
    except ConfigError as error:
        console.print(str(error))
        return 2
    warnings.filterwarnings("ignore")  # torch's own, of its checkpoints
    torch.set_num_threads(CORES)
    passed = True
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=0, world_size=1)
        for size in sizes:
            bench = Bench(size, Path(scratch) / str(size))
            title = f"{show_bytes(bench.size)} in {len(bench.engine.tensors)} tensors, {CORES} cores, {rounds} rounds"
            table = Table("what", "first, ms", "second, ms", "quotient", "95 %", "bar", "", title=title)
            passed = rows(bench, rounds, table) and passed
            quiet, busy = (1e3 * statistics.median(found) for found in steps_beside(bench, count))
            table.add_row("step while a save is written / quiet", f"{busy:.1f}", f"{quiet:.1f}", f"{busy / quiet:.3f}")
            console.print(table)
            del bench
        dist.destroy_process_group()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
