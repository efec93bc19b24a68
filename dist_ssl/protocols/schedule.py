"""What a schedule is: a pure function of position that plans epochs and sets the hyperparameters of every step.

No schedule holds a counter. Position is an integer, the samples trained so far of the samples in the run.
"""

from typing import Protocol

from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress


class Schedule(Protocol):
    """Plans epochs and sets hyperparameters, from position alone."""

    def plan(self, progress: Progress) -> EpochPlan:
        """The plan of the epoch that begins at this position."""
        ...

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        """The hyperparameters of the step at this position."""
        ...
