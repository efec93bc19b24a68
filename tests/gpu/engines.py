"""Proves on GPUs, over nccl, what the tests of the engines prove on CPUs over gloo.

    python tests/gpu/engines.py [--device cpu] [--steps 20] [--seconds 330]

Every engine trains a few steps on 1, 2, 4 GPUs (as many as there are), saves beside further steps, and what is on disk
is what there was when it was asked for. Every engine reads each of these checkpoints on every number of GPUs, holds the
same bits, and its next losses agree: bit for bit with the writer's own engine and number of GPUs, to 1e-9 in fp64
elsewhere, DeepSpeed's to 1e-5 on the first step. Then what an engine can do besides: blocks computed twice or compiled,
bf16, shards in host memory, a large save, bitwise mode. A single GPU has a process group of its own, in which engines
wrap as on many; `alone` is without one. A row is printed as soon as it is known, and what is not shown here, or had no
time, is named as skipped. Prints one table and exits 1 where a claim fails. Without a GPU it says what is skipped;
`--device cpu` runs there, on 1 and 2 ranks, all that needs none.
"""

import argparse
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.engines.jobs import ENGINES
from tests.gpu.trials import METHODS, Writer, agree, bits_of, gone_on, large_save, losses_with, written
from tests.ranks import Ranks

HAVE_DEEPSPEED = find_spec("deepspeed") is not None
NAMES = [name for name in ENGINES if HAVE_DEEPSPEED or not name.startswith("deepspeed")]
PRECISE = [name for name in NAMES if not name.startswith("deepspeed")]
"""Engines that compute in double precision too."""
PROVED, FAILED, SKIPPED = "proved", "FAILED", "SKIPPED"


Claim = tuple[str, Callable[[], tuple[bool, str]]]
"""What is claimed, and how to find out: whether it holds, and what was seen."""


class Pool:
    """Ranks that are begun anew after one of them has failed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.ranks = self._started()

    def _started(self) -> Ranks:
        return Ranks(self.most, grouped=True, seconds=240)  # a compiler takes its time

    def run(self, function: Callable[..., Any], size: int, *arguments: Any, alone: bool = False) -> list[Any]:
        """As `Ranks.run`; `alone`: without a process group."""
        self.ranks.grouped = not alone
        try:
            return self.ranks.run(function, size, *arguments)
        except AssertionError:
            self.ranks.close()
            self.ranks = self._started()
            raise


class Exchange:
    """Every engine and number of ranks reads what every other wrote."""

    def __init__(self, pool: Pool, sizes: list[int], folder: Path, steps: int) -> None:
        self.pool, self.folder, self.steps = pool, folder, steps
        self.undisturbed: dict[Writer, dict[str, tuple[list[str], list[float]]]] = {}
        precise = [Writer(*who, False, torch.float64) for who in itertools.product(PRECISE, sizes)]
        single = [Writer(*who, False, torch.float32) for who in itertools.product(NAMES, sizes)] * HAVE_DEEPSPEED
        self.families = [[Writer("ddp", 1, True, torch.float64), *precise], single]

    def of_one(self) -> Iterator[Claim]:
        """Every writer, and the same as a reader."""
        for who in itertools.chain(*self.families):
            yield f"{who}: saves beside training", partial(self.write, who)
            yield f"{who}: reads its own", partial(self.take_over, who, who)

    def of_pairs(self) -> Iterator[Claim]:
        """Every writer with every other reader; those of double precision in that alone."""
        for family in self.families:
            for writer, reader in itertools.permutations(family, 2):
                if writer.dtype == torch.float64 or not {writer.engine, reader.engine} <= set(PRECISE):
                    yield f"{reader}: reads of {writer}", partial(self.take_over, reader, writer)

    def write(self, who: Writer) -> tuple[bool, str]:
        ran = self.pool.run(written, who.size, who, self.folder / who.folder, self.steps, alone=who.alone)
        self.undisturbed[who] = ran[0]
        wrong = {method: names for own in ran for method, (names, _) in own.items() if names}
        return not wrong, f"differing: {wrong}" if wrong else f"last loss {ran[0][METHODS[0]][1][-1]:.4f}"

    def take_over(self, reader: Writer, writer: Writer) -> tuple[bool, str]:
        if writer not in self.undisturbed:
            return False, "nothing was written"
        folder = self.folder / writer.folder
        answers = self.pool.run(gone_on, reader.size, reader, folder, self.steps, alone=reader.alone)
        apart, good = 0.0, True
        for method, (wrong, losses) in (row for answer in answers for row in answer.items()):
            if wrong:
                return False, f"{method}: differing: {', '.join(wrong)}"
            wanted = self.undisturbed[writer][method][1]
            good = good and agree(losses, wanted, reader, writer)
            apart = max(apart, *(abs(a - b) for a, b in zip(losses, wanted, strict=True)))
        return good, f"losses apart by {apart:.1e}, the first by {abs(losses[0] - wanted[0]):.1e}"


def besides(pool: Pool, sizes: list[int], gpu: bool) -> Iterator[Claim]:
    """What engines can do besides."""
    size = sizes[-1]

    def as_plain(engine: str, options: dict[str, Any]) -> tuple[bool, str]:
        pairs = zip(*(pool.run(losses_with, size, engine, own)[0] for own in ({}, options)), strict=True)
        apart = max(abs(plain - other) for plain, other in pairs)
        return apart <= 1e-9, f"losses apart by {apart:.1e}"

    def low(engine: str) -> tuple[bool, str]:
        found = pool.run(losses_with, size, engine, {"compute": torch.bfloat16, "dtype": torch.float32})[0]
        return all(map(math.isfinite, found)), f"last loss {found[-1]:.4f}"

    def large(engine: str) -> tuple[bool, str]:
        wrong, seen = pool.run(large_save, size, engine, 8192 if gpu else 256)[0]
        return not wrong, f"differing: {', '.join(wrong)}" if wrong else seen

    def equal(other: int) -> tuple[bool, str]:
        wanted, *found = [own for ranks in (1, other) for own in pool.run(bits_of, ranks, 4)]
        wrong = sorted({name for own in found for name in wanted if not torch.equal(own[name], wanted[name])})
        return not wrong, f"differing: {', '.join(wrong)}" if wrong else "equal bits"

    for engine in ("ddp", "fsdp"):
        yield f"{engine} on {size}: a large save beside training", partial(large, engine)
        yield (
            f"{engine} on {size}: blocks computed twice",
            partial(as_plain, engine, {"activation_checkpointing": True}),
        )
    for engine in (name for name in NAMES if name not in ("deepspeed 0", "deepspeed 1")):
        yield f"{engine} on {size}: bf16", partial(low, engine)
    for other in sizes:
        yield f"bitwise mode on {other}, as on 1", partial(equal, other)
    if gpu:
        yield f"fsdp on {size}: shards in host memory", partial(as_plain, "fsdp", {"cpu_offload": True})
        for engine in ("ddp", "fsdp"):
            yield f"{engine} on {size}: compiled blocks", partial(as_plain, engine, {"compile": True})


def not_here(gpus: int, sizes: list[int]) -> Iterator[str]:
    """What cannot be shown on this machine."""
    if absent := [str(size) for size in (2, 4) if size not in sizes]:
        change = ", and a change of their number" if len(sizes) == 1 else ""
        yield f"on {' and '.join(absent)} ranks{change}: there are {gpus or 2} at most"
    if not gpus:
        yield "shards in host memory, compiled blocks: they need a GPU"
    yield "engine.replicate=nodes: it needs several nodes of several GPUs"
    if not HAVE_DEEPSPEED:
        yield "deepspeed: it is not installed"


def proved(claims: Iterator[Claim], until: float) -> Iterator[tuple[str, str, str]]:
    """Every claim with what came of it, as soon as that is known."""
    for claim, find_out in claims:
        started = time.monotonic()
        if started > until:
            yield claim, SKIPPED, "no time was left"
            continue
        try:
            holds, seen = find_out()
        except AssertionError as error:  # a rank failed
            holds, seen = False, str(error).strip()[-1000:]
        yield claim, PROVED if holds else FAILED, f"{seen} ({time.monotonic() - started:.0f} s)"


def main() -> int:
    """Run all, print the table; 1 where a claim fails."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description="Proves the engines on GPUs.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="trained after each checkpoint")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no further claim is begun")
    asked = parser.parse_args()
    gpus = torch.cuda.device_count() if asked.device == "cuda" else 0
    if asked.device == "cuda" and not gpus:
        print("SKIPPED tests/gpu/engines.py: engines over nccl, no GPU is here (--device cpu runs it without)")
        return 0
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # engines order memory differently: single precision is to mean it
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sizes = [size for size in (1, 2, 4) if size <= (gpus or 2)]
    table = Table("claim", "", "seen", title=f"engines on {torch.cuda.get_device_name() if gpus else 'cpu'}")
    pool, failed = Pool(sizes[-1]), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            exchange = Exchange(pool, sizes, Path(folder), asked.steps)
            claims = itertools.chain(exchange.of_one(), besides(pool, sizes, bool(gpus)), exchange.of_pairs())
            skipped = ((claim, SKIPPED, "not here") for claim in not_here(gpus, sizes))
            for row in itertools.chain(skipped, proved(claims, started + asked.seconds)):
                print(*row, sep=" | ", flush=True)  # whoever is killed has said what it knew
                table.add_row(row[0], row[1], escape(row[2]))
                failed += row[1] == FAILED
    finally:
        pool.ranks.close()
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
