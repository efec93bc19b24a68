"""Epoch planner that plans every epoch alike: one image size, one magnitude, one batch size."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from dist_ssl.config.validation import require
from dist_ssl.core.plan import EpochPlan
from dist_ssl.errors import ConfigError
from dist_ssl.protocols.schedule import EpochPlanner

ROUNDING = 1e-9
"""Error of a share multiplied by a number of epochs: 0.07 * 100 is a little more than 7."""


class SameEveryEpoch(EpochPlanner):
    """Plans the same epoch again and again, but for the candidates of views.

    `image_size`, `local_size`: sides of global and of local views, px. Raises ConfigError where the method takes local
    views and they have no size. `keep_tokens`, `patch_size`: for transformers, see `EpochPlan`. `candidates`,
    `candidates_from`: see `candidates_at`; `cycles`: lengths of the run's cycles, in epochs.
    """

    def __init__(
        self,
        image_size: int,
        *,
        views: int,
        batch_size: int,
        lanes: int,
        local_views: int = 0,
        local_size: int | None = None,
        keep_tokens: float = 1.0,
        patch_size: int = 0,
        candidates: int = 1,
        candidates_from: float = 0.0,
        cycles: tuple[int, ...] = (),
    ) -> None:
        check_local_size(local_views, local_size)
        check_share(candidates_from)
        self.candidates, self.candidates_from, self.cycles = candidates, candidates_from, cycles
        local = (local_views, local_size) if local_views and local_size else (0, 0)
        self.template = EpochPlan(
            0, image_size, 1.0, views, batch_size, lanes, *local, keep_tokens=keep_tokens, patch_size=patch_size
        )

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch, counted from 0."""
        number = candidates_at(epoch, self.cycles, self.candidates, self.candidates_from)
        return replace(self.template, epoch=epoch, candidates=number)


def within_cycle(epoch: int, cycles: Sequence[int]) -> tuple[int, int]:
    """Return the number of an epoch within its cycle, and the length of that; `cycles`: lengths of all, in epochs."""
    length, end = next(pair for pair in zip(cycles, accumulate(cycles), strict=True) if epoch < pair[1])
    return epoch - (end - length), length


def candidates_at(epoch: int, cycles: Sequence[int], candidates: int, since: float) -> int:
    """Return the number of candidates of a view in an epoch: 1 until the share `since` of its cycle is over.

    The last epoch of a cycle always has candidates, however short the cycle is.
    """
    if candidates == 1 or since == 0:
        return candidates
    place, length = within_cycle(epoch, cycles)
    first = min(since * length - ROUNDING, length - 1)
    return candidates if place >= first else 1


def check_share(since: float) -> None:
    """Raise ConfigError where the share of a cycle from which on there are candidates is none."""
    require("schedule", "at least 0 and less than 1", lambda value: 0 <= value < 1, candidates_from=since)


def check_local_size(local_views: int, local_size: int | None) -> None:
    """Raise ConfigError where a method takes local views that have no size."""
    if local_views and (local_size is None or local_size < 1):
        raise ConfigError(
            f"schedule.local_size={'null' if local_size is None else local_size} is not possible: the method takes "
            f"{local_views} local views.",
            "Set their side, px: schedule.local_size=96, say, beside schedule.image_size=224.",
        )
