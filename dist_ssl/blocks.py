"""Groups of samples that reach over several ranks: sums over blocks of neighbouring ranks.

They go through the one exchange that all ranks take part in: every block has a slot in one tensor, to which a rank
adds in its own block's only. So no groups of processes are needed, and a block adds up in rank order like the whole.
What is sent grows with the number of blocks: it is made for the short vectors of batch norms.
"""

from functools import partial

from torch import Tensor, nn

from dist_ssl.errors import ConfigError
from dist_ssl.models.norm import BatchNorm, Scope
from dist_ssl.world import World


def block_sum(world: World, ranks: int, x: Tensor) -> Tensor:
    """The sum of x over the block of `ranks` ranks, a divisor of the world's size, that this rank is in."""
    assert world.size % ranks == 0
    slots = x.new_zeros((world.size // ranks, *x.shape))
    slots[world.rank // ranks] = x
    return world.sum_const(slots)[world.rank // ranks]


def scope(world: World, samples: int | None) -> Scope:
    """Where batch norms take their statistics: over the whole job, or groups of so many samples of it."""
    return Scope(world.sum_const, lambda ranks: partial(block_sum, world, ranks), samples)


def check_groups(method: nn.Module, batch_size: int, ranks: int, accumulate: int) -> None:
    """Raise ConfigError where groups of samples do not fit what one rank computes at once."""
    rows = batch_size // ranks
    if rows % accumulate:
        raise ConfigError(
            f"engine.accumulate={accumulate} does not divide the {rows} samples of a rank (batch_size={batch_size} on "
            f"{ranks} ranks).",
            f"Use one of these: {', '.join(str(n) for n in range(1, rows + 1) if rows % n == 0)}.",
        )
    at_once = rows // accumulate
    whole_blocks = [n for n in range(at_once + 1, batch_size + 1) if n % at_once == 0 and batch_size % n == 0]
    fitting = [n for n in range(2, at_once + 1) if at_once % n == 0] + (whole_blocks if accumulate == 1 else [])
    norms = ((name, m.scope.samples) for name, m in method.named_modules() if isinstance(m, BatchNorm))
    for name, samples in norms:
        place = "aux" if name.startswith("rotation.") else "method"
        if samples is not None and samples not in fitting:
            none = f"Use a smaller engine.accumulate than {accumulate}: groups have 2 samples or more."
            raise ConfigError(
                f"{place}.norm_group={samples} does not fit the {at_once} samples that a rank computes at once.",
                f"Use one of these: {', '.join(map(str, fitting))}." if fitting else none,
            )
