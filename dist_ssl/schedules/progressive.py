"""Epoch planner whose image size and augmentation strength grow together, in a few stages of each cycle.

The second of the three strategies that Kocyigit et al. (WACV 2023, DOI 10.1109/WACV56688.2023.00561) combine is a
matching progressive schedule of resolution and augmentation magnitude. Theirs is not public; this is a reconstruction
after Kocyigit et al. in the form of EfficientNetV2 (arXiv 2104.00298): in stage i of M everything that grows has gone
i / (M - 1) of its way. The stages before the last share the ramp equally:

    g = clip((epoch / epochs - from) / (to - from), 0, 1),   i = floor(g * (M - 1)),   the last epoch: i = M - 1

Sizes lie on a grid that ends at the full size, so they fit the encoder and are few: what is compiled or tuned for each
size is so at most M times. The blur shrinks with the views, so that it is the same share of the image. The last epochs
have the full size, so the running statistics of batch norms come from it: with a momentum of 0.1, those of smaller
sizes weigh under 1 % after 44 steps.
"""

import math
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property

from dist_ssl.config.validation import at_least, positive, require
from dist_ssl.core.plan import EpochPlan
from dist_ssl.errors import ConfigError
from dist_ssl.protocols.schedule import EpochPlanner
from dist_ssl.schedules.same_every_epoch import candidates_at, check_local_size, check_share, within_cycle

LARGE = 128
"""Side, px, from which convolutional nets, which halve it five times, get sizes that are multiples of 32 px apart."""


@dataclass(frozen=True)
class Progressive(EpochPlanner):
    """Plans the epochs of each cycle in stages with growing views; those of the last stage are as published.

    Raises ConfigError.
    """

    image_size: int
    """Side of the global views in the last stage, px."""
    _: KW_ONLY
    views: int
    """Number of global views."""
    batch_size: int
    """Samples per step in the last stage, whole job."""
    lanes: int
    """Number of lanes; every batch is a multiple of it."""
    cycles: tuple[int, ...]
    """Number of epochs of every cycle."""
    multiple: int = 1
    """Sides that the encoder takes are multiples of it, px."""
    local_views: int = 0
    """Number of local views in the last stage."""
    local_size: int | None = None
    """Side of the local views in the last stage, px."""
    start_scale: float = 0.6
    """Side of the views in the first stage, as a share of that in the last, more than 0 to 1."""
    start_magnitude: float = 0.5
    """Strength of the augmentations in the first stage, more than 0 to 1."""
    fixed: list[str] = field(default_factory=list)
    """Augmentations that have their full strength from the start: keys of `views.SCALED`."""
    start_batch: int | None = None
    """Samples per step in the first stage, rounded to a multiple of `lanes`; None: as in the last."""
    start_local_views: int | None = None
    """Number of local views in the first stage, at most that in the last; None: the same."""
    start_tokens: float = 1.0
    """Share of a transformer's tokens that the student keeps in the first stage, more than 0 to 1; 1 in the last."""
    candidates: int = 1
    """Candidates of each of two global views, of which a hard pair is kept; 1: no choice."""
    candidates_from: float = 0.0
    """Share of the cycle before the first epoch with candidates, 0 to less than 1."""
    stages: int = 4
    """Number of stages, from 2."""
    ramp: tuple[float, float] = (0.0, 0.8)
    """Shares of the cycle at which the growth begins and is complete."""

    def __post_init__(self) -> None:
        at_least("schedule", 1, image_size=self.image_size)
        at_least("schedule", 2, stages=self.stages)
        check_local_size(self.local_views, self.local_size)
        check_share(self.candidates_from)
        starts = {name: getattr(self, name) for name in ("start_scale", "start_magnitude", "start_tokens")}
        require("schedule", "more than 0 and at most 1", lambda value: 0 < value <= 1, **starts)
        positive("schedule", start_batch=self.first_batch)
        most = f"from 0 to {self.local_views}, the number of the method"
        require(
            "schedule", most, lambda value: 0 <= value <= self.local_views, start_local_views=self.first_local_views
        )
        if not 0 <= self.ramp[0] < self.ramp[1] <= 1:
            raise ConfigError(
                f"schedule.ramp=[{self.ramp[0]:g}, {self.ramp[1]:g}] is not possible.",
                "It is two shares of a cycle, 0 to 1, the second larger: schedule.ramp=[0.0,0.8], say.",
            )

    @property
    def first_batch(self) -> int:
        """Samples per step in the first stage, before rounding."""
        return self.batch_size if self.start_batch is None else self.start_batch

    @property
    def first_local_views(self) -> int:
        """Number of local views in the first stage."""
        return self.local_views if self.start_local_views is None else self.start_local_views

    @cached_property
    def templates(self) -> list[EpochPlan]:
        """The plan of each stage, for epoch 0."""
        return [self._template(stage / (self.stages - 1)) for stage in range(self.stages)]

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch, counted from 0."""
        number = candidates_at(epoch, self.cycles, self.candidates, self.candidates_from)
        return replace(self.templates[self.stage(epoch)], epoch=epoch, candidates=number)

    def stage(self, epoch: int) -> int:
        """Return the stage of an epoch, 0 to `stages` - 1."""
        within, length = within_cycle(epoch, self.cycles)
        if within == length - 1:
            return self.stages - 1
        begin, full = self.ramp
        grown = min(max((within / length - begin) / (full - begin), 0.0), 1.0)
        return math.floor(grown * (self.stages - 1) + 1e-9)

    def _template(self, grown: float) -> EpochPlan:
        """Return the plan of the stage in which everything has gone this share of its way."""

        def between(first: float, last: float) -> float:
            return last if grown == 1 else first + (last - first) * grown

        size = on_grid(between(self.start_scale, 1.0), self.image_size, step_of(self.image_size, self.multiple))
        scale, local = size / self.image_size, self.local_size or 0
        number = round(between(self.first_local_views, self.local_views))
        return EpochPlan(
            0,
            size,
            between(self.start_magnitude, 1.0),
            self.views,
            max(1, round(between(self.first_batch, self.batch_size) / self.lanes)) * self.lanes,
            self.lanes,
            number,
            on_grid(scale, local, step_of(local, self.multiple)) if number else 0,
            scale,
            tuple(self.fixed),
            keep_tokens=between(self.start_tokens, 1.0),
        )


def step_of(side: int, multiple: int) -> int:
    """Return the distance of possible sizes, px: the encoder's multiple; without one 32 px for large views, else 4."""
    return multiple if multiple > 1 else 32 if side >= LARGE else 4


def on_grid(scale: float, side: int, step: int) -> int:
    """Return the size nearest to `scale` * `side` that is a multiple of `step` below `side`, at least `step`, px."""
    smaller = math.floor(side * (1 - scale) / step + 0.5) * step
    return max(side - smaller, min(step, side))
