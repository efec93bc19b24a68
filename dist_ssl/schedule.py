"""What a schedule is: a pure function of position that plans epochs and sets the knobs of every step.

No schedule holds a counter. Position is an integer, the samples trained so far of the samples in the run.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from dist_ssl.plan import EpochPlan, Knobs
from dist_ssl.progress import Progress


@dataclass(frozen=True)
class Knob:
    """One number's course over a run: from `start` to `end` along half a cosine; constant where they are equal."""

    start: float
    end: float
    warms_up: bool = False
    """Rises linearly from 0 to `start` during the schedule's warm-up, and follows the cosine after it."""
    ahead: bool = False
    """Takes the value of the following step: a teacher that moves at the end of a step moves for the next."""

    def at(self, position: int, warmup: int, total: int) -> float:
        """The value after `position` of `total` samples, the first `warmup` of which warm up."""
        if not self.warms_up:
            warmup = 0
        if position < warmup:
            return self.start * position / warmup
        if self.start == self.end:
            return self.start
        turn = math.pi * (position - warmup) / (total - warmup)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(turn))


class Schedule(Protocol):
    """Plans epochs and sets knobs, from position alone."""

    def plan(self, progress: Progress) -> EpochPlan:
        """The plan of the epoch that begins at this position."""
        ...

    def step(self, progress: Progress) -> Knobs:
        """The knobs of the step at this position."""
        ...
