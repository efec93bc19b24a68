"""Groups of samples that reach over several ranks: sums over blocks of neighbouring ranks.

They go through the one exchange that all ranks take part in: every block has a slot in one tensor, to which a rank
adds in its own block's only. So no groups of processes are needed, and a block adds up in rank order like the whole.
What is sent grows with the number of blocks: it is made for the short vectors of batch norms.
"""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.models.norm import BatchNorm, Scope


def block_sum(world: World, ranks: int, x: Tensor) -> Tensor:
    """The sum of x over the block of `ranks` ranks, a divisor of the world's size, that this rank is in."""
    assert world.size % ranks == 0
    slots = x.new_zeros((world.size // ranks, *x.shape))
    slots[world.rank // ranks] = x
    return world.sum_const(slots)[world.rank // ranks]


def scope(world: World, samples: int | None) -> Scope:
    """Where batch norms take their statistics: over the whole job, or groups of so many samples of it."""
    return Scope(world.sum_const, lambda ranks: partial(block_sum, world, ranks), samples)


def fits(samples: int, at_once: int, batch_size: int, accumulate: int) -> bool:
    """Whether groups of so many samples lie whole in what a rank computes at once, or in a block of whole ranks."""
    if samples <= at_once:
        return samples > 1 and at_once % samples == 0
    return accumulate == 1 and samples % at_once == 0 and batch_size % samples == 0


def check_groups(method: nn.Module, batch_size: int, ranks: int, accumulate: int, possible: Iterable[int] = ()) -> None:
    """Raise ConfigError where groups of samples do not fit what one rank computes at once.

    `possible`: other numbers of ranks, for a run that has begun and keeps its groups.
    """
    rows = batch_size // ranks
    if rows % accumulate:
        raise ConfigError(
            f"engine.accumulate={accumulate} does not divide the {rows} samples of a rank (batch_size={batch_size} on "
            f"{ranks} ranks).",
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
            again = f" A run that has begun keeps its groups: resume it on {listed(others)} ranks." if others else ""
            raise ConfigError(
                f"{place}.norm_group={samples} does not fit the {at_once} samples that a rank computes at once.",
                (f"Use one of these: {', '.join(map(str, fitting))}." if fitting else none) + again,
            )


def listed(numbers: list[int]) -> str:
    """`1`, or `1, 2 or 4`."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
