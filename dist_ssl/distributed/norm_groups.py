"""Batch-norm groups that span several ranks: sums over blocks of neighbouring ranks.

A block sum uses the all-reduce over all ranks: every block has a slot in one tensor, and a rank fills only the slot of
its own block. So no further process groups are needed, and a block is summed in rank order like the whole job. The
traffic grows with the number of blocks, so it is meant for the short vectors of batch norms.
"""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, plural
from dist_ssl.models.norm import BatchNorm, Scope, alone


def block_sum(world: World, ranks: int, x: Tensor) -> Tensor:
    """Return the sum of x over this rank's block of `ranks` neighbouring ranks; `ranks` divides the world size."""
    assert world.size % ranks == 0
    slots = x.new_zeros((world.size // ranks, *x.shape))
    slots[world.rank // ranks] = x
    return world.sum_const(slots)[world.rank // ranks]


def scope(world: World, samples: int | None) -> Scope:
    """Return the scope of batch-norm statistics: the whole job (None), or groups of `samples` samples of it."""
    return Scope(alone if world.alone else world.sum_const, lambda ranks: partial(block_sum, world, ranks), samples)


def fits(samples: int, at_once: int, batch_size: int, accumulate: int) -> bool:
    """Return whether groups of `samples` samples lie in one micro-batch (`at_once` samples) or in whole ranks."""
    if samples <= at_once:
        return samples > 1 and at_once % samples == 0
    return accumulate == 1 and samples % at_once == 0 and batch_size % samples == 0


def check_groups(method: nn.Module, batch_size: int, ranks: int, accumulate: int, possible: Iterable[int] = ()) -> None:
    """Raise ConfigError where the groups of a batch norm do not fit the samples that a rank computes at once.

    `possible`: other world sizes, to be named as a remedy for a started run, whose groups are fixed.
    """
    if type(accumulate) is not int or accumulate < 1:
        raise ConfigError(
            f"engine.accumulate={accumulate} is not possible: it must be a whole number of at least 1.", "Leave it out."
        )
    rows = batch_size // ranks
    if rows % accumulate:
        raise ConfigError(
            f"engine.accumulate={accumulate} does not divide the {plural(rows, 'sample')} of a rank "
            f"(batch_size={batch_size} on "
            f"{plural(ranks, 'rank')}).",
            f"Use one of these: {', '.join(str(n) for n in range(1, rows + 1) if rows % n == 0)}.",
        )
    at_once = rows // accumulate
    norms = ((name, m.scope.samples) for name, m in method.named_modules() if isinstance(m, BatchNorm))
    for name, samples in norms:
        if samples is not None and not fits(samples, at_once, batch_size, accumulate):
            place = "aux" if name.startswith("rotation.") else "method"
            fitting = [n for n in range(2, batch_size + 1) if fits(n, at_once, batch_size, accumulate)]
            none = f"Use a smaller engine.accumulate than {accumulate}: groups have 2 samples or more."
            cut = [n for n in possible if batch_size % (n * accumulate) == 0]
            others = [n for n in cut if fits(samples, batch_size // (n * accumulate), batch_size, accumulate)]
            again = (
                f" A started run keeps its groups: resume it on {listed(others)} "
                f"{'rank' if others == [1] else 'ranks'}."
                if others
                else ""
            )
            raise ConfigError(
                f"{place}.norm_group={samples} does not fit the {plural(at_once, 'sample')} that a rank "
                "computes at once.",
                (f"Use one of these: {', '.join(map(str, fitting))}." if fitting else none) + again,
            )


def listed(numbers: list[int]) -> str:
    """Return the numbers as text: `1`, or `1, 2 or 4`."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
