"""Measures what a bank costs on every rank, spread over ranks against a copy on each: bytes held and bytes exchanged.

Both take one full step in real processes: all images compared with all rows, forward and backward, and the rows of
the batch moved. Bytes exchanged are counted where tensors leave for other ranks. Three claims: a rank holds its even
share of the rows; a step exchanges queries and partial sums, to the byte, and nothing else; and so the same for half
the images. Prints one table and exits 1 when a claim fails.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.distributed.world import World
from dist_ssl.memory.bank import Bank
from tests.ranks import Ranks

TEMPERATURE = 0.2


@dataclass(frozen=True)
class CountingWorld(World):
    """A world that counts the bytes which a rank receives from the others."""

    received: list[int] = field(default_factory=list)

    def gather_const(self, x: Tensor) -> Tensor:
        self.received.append((self.size - 1) * x.nbytes)
        return super().gather_const(x)

    def sum_const(self, x: Tensor) -> Tensor:
        before = len(self.received)
        total = super().sum_const(x)
        if len(self.received) == before:  # not by a gather but by a ring
            self.received.append(2 * (self.size - 1) * x.nbytes // self.size)
        return total


class Cost(NamedTuple):
    """Of one rank: bytes of rows, bytes received in a step, seconds of the step, and the loss, so that work is done."""

    held: int
    received: int
    seconds: float
    loss: float


def sample(world: World, rows: int, dim: int, batch: int) -> tuple[Tensor, Tensor]:
    """This rank's queries and row numbers of one global batch."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.nn.functional.normalize(torch.randn(batch, dim, generator=generator), dim=1)
    ids = torch.randint(rows, (batch,), generator=generator)
    return queries.chunk(world.size)[world.rank].clone().requires_grad_(), ids.chunk(world.size)[world.rank]


def spread(world: World, rows: int, dim: int, batch: int) -> Cost:
    """A step with a bank that is spread over the ranks."""
    counting = CountingWorld(**vars(world))
    bank = Bank(rows, dim, world=counting)
    bank.rows.normal_(generator=torch.Generator().manual_seed(world.rank)).mul_(dim**-0.5)
    queries, ids = sample(world, rows, dim, batch)
    start = time.perf_counter()
    found = bank.compare(queries, ids[None], (TEMPERATURE,))
    loss = (found.logsumexp[0] - found.own[0] / TEMPERATURE).mean()
    loss.backward()
    bank.update_by_ema(found.kept["targets"][0], found.kept["queries"], found.kept["weights"][0] > 0, 0.5)
    seconds = time.perf_counter() - start
    return Cost(bank.rows.nbytes, sum(counting.received), seconds, float(world.mean(loss.detach())))


def copied(world: World, rows: int, dim: int, batch: int) -> Cost:
    """A step with all rows on every rank: only what moves them is exchanged."""
    counting = CountingWorld(**vars(world))
    alone = Bank(rows, dim, world=World())
    alone.rows.normal_(generator=torch.Generator().manual_seed(0)).mul_(dim**-0.5)
    queries, ids = sample(world, rows, dim, batch)
    start = time.perf_counter()
    found = alone.compare(queries, ids[None], (TEMPERATURE,))
    loss = (found.logsumexp[0] - found.own[0] / TEMPERATURE).mean()
    loss.backward()
    everyone, all_ids = counting.gather_const(queries), counting.gather_const(ids)
    alone.update_by_ema(all_ids, everyone, torch.ones(len(all_ids), dtype=torch.bool), 0.5)
    seconds = time.perf_counter() - start
    return Cost(alone.rows.nbytes, sum(counting.received), seconds, float(world.mean(loss.detach())))


def queries_and_sums(ranks: int, dim: int, batch: int) -> int:
    """Bytes that a rank receives in a step: queries with weights, row numbers, sums, their gradients, the queries'."""
    each, numbers, sums, gradients = 4 * (dim + 1), 8, 4 * (3 + 1), 4 * (2 + 1)
    per_own_sample = each + numbers + gradients
    per_sample_of_the_job = sums + 4 * dim
    return (ranks - 1) * (batch // ranks * per_own_sample + batch * per_sample_of_the_job)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_281_167, help="images")
    parser.add_argument("--dim", type=int, default=128, help="width of a row")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step, whole job")
    parser.add_argument("--ranks", type=int, default=4)
    args = parser.parse_args()
    pool = Ranks(args.ranks)

    def worst(work: Callable[..., Cost], rows: int) -> Cost:
        costs = pool.run(work, args.ranks, rows, args.dim, args.batch)
        return Cost(*(max(values) for values in zip(*costs, strict=True)))

    try:
        found = {
            "spread": worst(spread, args.rows),
            "spread, half the images": worst(spread, args.rows // 2),
            "copied": worst(copied, args.rows),
        }
    finally:
        pool.close()
    print(f"{args.rows:,} rows of {args.dim} fp32, {args.ranks} ranks, {args.batch} samples a step; the worst rank")
    print(f"{'bank':<26}{'bytes held':>16}{'bytes received':>16}{'seconds':>10}{'loss':>8}")
    for name, cost in found.items():
        print(f"{name:<26}{cost.held:>16,}{cost.received:>16,}{cost.seconds:>10.2f}{cost.loss:>8.2f}")
    one, half, copy = found.values()
    share = -(-args.rows // args.ranks) * args.dim * 4
    meant = queries_and_sums(args.ranks, args.dim, args.batch)
    claims = {
        f"a rank holds 1/{args.ranks} of {copy.held:,} bytes": one.held == share,
        f"a step exchanges queries and sums, {meant:,} bytes": one.received == meant,
        "half the images exchange as much": half.received == one.received,
    }
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
