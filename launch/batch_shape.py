"""Lanes and batch size that fit the number of ranks, where the command and its recipe say neither.

The ranks must divide `lanes`, and `lanes` must divide `batch_size`. Both are science: they are chosen once, at the
start of a run, and recorded with its overrides. So a run that starts on 32 ranks has 96 lanes and keeps them on any
later number of ranks.
"""

import math
from collections.abc import Iterable

from dist_ssl.errors import ConfigError
from launch.config_groups import RECIPE

KEYS = ("lanes", "batch_size")


def said(overrides: Iterable[str]) -> set[str]:
    """Return which of lanes and batch_size the overrides set; a recipe sets both."""
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    return set(KEYS) if RECIPE in keys else keys & set(KEYS)


def fitted(lanes: int, batch_size: int, ranks: int, given: set[str]) -> tuple[int, int]:
    """Return lanes and batch size for the ranks; those in `given` stay, and what fits already stays too.

    A batch that is not given grows to a multiple of the lanes. Lanes that are not given become the least common
    multiple of their default and the ranks, so that they keep many divisors for later resumes; under a given batch they
    become its largest divisor of at most that size. Raises ConfigError where no number of lanes fits a given batch.
    """
    if "lanes" not in given:
        wide = math.lcm(lanes, ranks)
        lanes = wide if "batch_size" not in given else _divisor(batch_size, ranks, wide)
    if "batch_size" not in given:
        batch_size = lanes * math.ceil(batch_size / lanes)
    return lanes, batch_size


def _divisor(batch_size: int, ranks: int, most: int) -> int:
    """Return the largest number up to `most` that divides the batch and that the ranks divide. Raises ConfigError."""
    fitting = [number for number in range(ranks, min(batch_size, most) + 1, ranks) if batch_size % number == 0]
    if not fitting:
        near = ranks * max(1, round(batch_size / ranks))
        raise ConfigError(
            f"batch_size={batch_size} cannot be shared by {ranks} ranks.", f"Use batch_size={near}, a multiple of them."
        )
    return fitting[-1]
