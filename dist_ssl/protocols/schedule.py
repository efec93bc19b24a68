"""What a schedule is: a pure function of position that plans epochs and sets the knobs of every step.

No schedule holds a counter. Position is an integer, the samples trained so far of the samples in the run.
"""

from typing import Protocol

from dist_ssl.core.plan import EpochPlan, Knobs
from dist_ssl.core.progress import Progress


class Schedule(Protocol):
    """Plans epochs and sets knobs, from position alone."""

    def plan(self, progress: Progress) -> EpochPlan:
        """The plan of the epoch that begins at this position."""
        ...

    def step(self, progress: Progress) -> Knobs:
        """The knobs of the step at this position."""
        ...
