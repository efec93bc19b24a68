"""Proves on GPUs, over nccl, what the tests of the engines prove on CPUs over gloo.

    python tests/gpu/engines.py [--device cpu] [--steps 20]

Every engine trains a few steps on 1, 2, 4 GPUs (as many as there are), saves, and trains on; every engine reads each of
these checkpoints on every number of GPUs, holds the same bits, and its next losses agree: bit for bit with the writer's
own engine and number of GPUs, to 1e-9 in fp64 elsewhere, DeepSpeed's to 1e-5 on the first step. Then what an engine can
do besides: blocks computed twice or compiled, bf16, and bitwise mode. Prints one table and exits 1 where a claim fails.
Without a GPU it says what is skipped; `--device cpu` runs all of it there, on 1 and 2 ranks, but for the compiler.
"""

import argparse
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.checkpoint import Checkpoint
from dist_ssl.checkpoint_files import read
from dist_ssl.engines.parallel import Parallel
from dist_ssl.progress import Progress
from dist_ssl.world import World
from tests.engines.jobs import ENGINES, filled, small_engine, small_method, trained, whole_state
from tests.ranks import Ranks

METHODS = ("mocov3", "mocov2", "single_branch")
"""With a teacher, with a queue, with a bank."""
BEFORE = 4
NAMES = [name for name in ENGINES if not name.startswith("deepspeed") or find_spec("deepspeed")]
LABEL = {True: "proved", False: "FAILED"}


def made(world: World, engine: str, method: str, folder: Path, seed: int) -> tuple[Parallel, Checkpoint]:
    own = small_engine(world, engine, small_method(world, method, seed))
    return own, Checkpoint(folder / f"{method}-{engine}", world, keep_last=9, attempt=1, newest=lambda: True)


def written(world: World, engine: str, folder: Path, steps: int) -> dict[str, list[float]]:
    """Train and save every method; the losses after that, undisturbed."""
    losses = {}
    for method in METHODS:
        own, checkpoint = made(world, engine, method, folder, 0)
        trained(filled(own), range(BEFORE))
        checkpoint.save(own, Progress(epochs=9, step=BEFORE))
        checkpoint.commit()
        losses[method] = trained(own, range(BEFORE, BEFORE + steps))
    return losses


def gone_on(
    world: World, engine: str, writer: str, folder: Path, steps: int
) -> dict[str, tuple[list[str], list[float]]]:
    """What differs after loading what a writer saved of each method, and the losses of the steps after it."""
    found = {}
    for method in METHODS:
        own = made(world, engine, method, folder, 1)[0]
        checkpoint = Checkpoint(folder / f"{method}-{writer}", world, keep_last=9, attempt=1, newest=lambda: True)
        assert checkpoint.restore(own, Progress(epochs=9)).step == BEFORE
        wanted, held = read(checkpoint.folder / f"step_{BEFORE:08d}")[1], whole_state(own)
        wrong = sorted(wanted.keys() ^ held.keys())
        for name in wanted.keys() & held.keys():
            value = wanted[name]
            assert isinstance(value, Tensor)
            wrong += [] if torch.equal(held[name].cpu(), value) else [name]
        found[method] = wrong, trained(own, range(BEFORE, BEFORE + steps))
    return found


def agree(losses: list[float], wanted: list[float], reader: tuple[str, int], writer: tuple[str, int]) -> bool:
    """Whether losses go on as they must."""
    if reader == writer:
        return losses == wanted
    if reader[0].startswith("deepspeed") or writer[0].startswith("deepspeed"):
        return abs(losses[0] - wanted[0]) <= 1e-5
    return all(abs(own - other) <= 1e-9 for own, other in zip(losses, wanted, strict=True))


Claim = tuple[str, Callable[[], tuple[bool, str]]]
"""What is claimed, and how to find out: whether it holds, and what was seen."""


class Pool:
    """Ranks that are begun anew after one of them has failed."""

    def __init__(self, most: int) -> None:
        self.most, self.ranks = most, Ranks(most)

    def run(self, function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
        """As `Ranks.run`."""
        try:
            return self.ranks.run(function, size, *arguments)
        except AssertionError:
            self.ranks.close()
            self.ranks = Ranks(self.most)
            raise


def exchanged(pool: Pool, sizes: list[int], folder: Path, steps: int) -> Iterator[Claim]:
    """Every engine and number of ranks reads what every other wrote."""
    undisturbed: dict[tuple[str, int], dict[str, list[float]]] = {}

    def write(writer: str, size: int) -> tuple[bool, str]:
        found = undisturbed[writer, size] = pool.run(written, size, writer, folder / str(size), steps)[0]
        return True, f"last loss {found[METHODS[0]][-1]:.4f}"

    def take_over(reader: str, other: int, writer: str, size: int) -> tuple[bool, str]:
        wanted = undisturbed[writer, size]
        answers = pool.run(gone_on, other, reader, writer, folder / str(size), steps)
        apart, good = 0.0, True
        for method, (wrong, losses) in (row for answer in answers for row in answer.items()):
            if wrong:
                return False, f"{method}: differing: {', '.join(wrong)}"
            good = good and agree(losses, wanted[method], (reader, other), (writer, size))
            apart = max(apart, *(abs(a - b) for a, b in zip(losses, wanted[method], strict=True)))
        return good, f"losses apart by {apart:.1e}"

    for writer, size in itertools.product(NAMES, sizes):
        yield f"{writer} on {size} trains and saves", partial(write, writer, size)
        for reader, other in itertools.product(NAMES, sizes):
            yield f"{reader} on {other} reads {writer} of {size}", partial(take_over, reader, other, writer, size)


def losses_with(world: World, engine: str, options: dict[str, Any]) -> list[float]:
    """Of a few steps in these options."""
    return trained(small_engine(world, engine, small_method(world, "mocov3"), **options), range(4))


def bits_of(world: World, virtual_ranks: int) -> dict[str, Tensor]:
    """The state after some steps in bitwise mode, on the host."""
    method = small_method(World(device=world.device), "simclr")
    engine = small_engine(world, "ddp", method, None, torch.float32, bitwise=True, virtual_ranks=virtual_ranks)
    trained(engine, range(10))
    return {name: value.cpu() for name, value in whole_state(engine).items()}


def besides(pool: Pool, sizes: list[int], gpu: bool) -> Iterator[Claim]:
    """What engines can do besides."""
    size = sizes[-1]

    def same(engine: str, options: dict[str, Any]) -> tuple[bool, str]:
        pairs = zip(*(pool.run(losses_with, size, engine, own)[0] for own in ({}, options)), strict=True)
        apart = max(abs(plain - other) for plain, other in pairs)
        return apart <= 1e-9, f"losses apart by {apart:.1e}"

    def low(engine: str) -> tuple[bool, str]:
        found = pool.run(losses_with, size, engine, {"compute": torch.bfloat16, "dtype": torch.float32})[0]
        return all(map(math.isfinite, found)), f"last loss {found[-1]:.4f}"

    def equal(other: int) -> tuple[bool, str]:
        wanted, *found = [own for ranks in (1, other) for own in pool.run(bits_of, ranks, 4)]
        wrong = sorted({name for own in found for name in wanted if not torch.equal(own[name], wanted[name])})
        return not wrong, f"differing: {', '.join(wrong)}" if wrong else "equal bits"

    for engine in ("ddp", "fsdp"):
        yield f"{engine} on {size}: blocks computed twice", partial(same, engine, {"activation_checkpointing": True})
        if gpu:
            yield f"{engine} on {size}: compiled blocks", partial(same, engine, {"compile": True})
        yield f"{engine} on {size}: bf16", partial(low, engine)
    for other in sizes:
        yield f"bitwise mode on {other}", partial(equal, other)


def main() -> int:
    """Run all, print the table; 1 where a claim fails."""
    parser = argparse.ArgumentParser(description="Proves the engines on GPUs.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    gpus = torch.cuda.device_count() if asked.device == "cuda" else 0
    if asked.device == "cuda" and not gpus:
        print("SKIPPED tests/gpu/engines.py: engines over nccl, no GPU is here (--device cpu runs it without)")
        return 0
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sizes = [size for size in (1, 2, 4) if size <= (gpus or 2)]
    table = Table("claim", "", "seen", title=f"engines on {torch.cuda.get_device_name() if gpus else 'cpu'}")
    pool, failed = Pool(sizes[-1]), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            claims = [*exchanged(pool, sizes, Path(folder), asked.steps), *besides(pool, sizes, bool(gpus))]
            for claim, find_out in claims:
                try:
                    holds, seen = find_out()
                except (AssertionError, KeyError) as error:  # a rank failed, or the writer of what is read
                    holds, seen = False, str(error).strip()[-1000:]
                table.add_row(claim, LABEL[holds], escape(seen))
                failed += not holds
    finally:
        pool.ranks.close()
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
