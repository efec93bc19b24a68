"""The schedule protocol: a pure function of position that plans epochs and sets the hyperparameters of every step.

No schedule holds a counter. Position is an integer: the number of samples trained so far.
"""

from typing import Protocol

from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress


class Schedule(Protocol):
    """The plan of each epoch and the hyperparameters of each step, as functions of position only."""

    def plan(self, progress: Progress) -> EpochPlan:
        """Return the plan of the epoch that starts at this position."""
        ...

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        """Return the hyperparameters of the step at this position."""
        ...
