"""A schedule is an epoch planner and a set of curves, both pure functions of position.

Neither half holds a counter. Position is an integer: the epoch's number for the planner, the samples seen for the
curves. The plans of epochs that have started stand in `Progress`, so a changed planner cannot move the past.
"""

from dataclasses import dataclass
from typing import Protocol

from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress


class EpochPlanner(Protocol):
    """Decides image size, magnitude, views and batch size of every epoch."""

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch, counted from 0."""
        ...


class Curves(Protocol):
    """Gives learning rate, momentum and every other hyperparameter of every step."""

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        """Return the hyperparameters of the step at this position."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The two halves of a schedule, composed by the config."""

    planner: EpochPlanner
    curves: Curves

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch, counted from 0."""
        return self.planner.plan(epoch)

    def plans(self, epochs: int) -> list[EpochPlan]:
        """Return the plans of all epochs."""
        return list(map(self.plan, range(epochs)))

    def distinct_plans(self, epochs: int) -> list[EpochPlan]:
        """Return the plans of all epochs, those that differ by their number alone once."""
        return list({plan.numbered(0): plan for plan in self.plans(epochs)}.values())

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        """Return the hyperparameters of the step at this position."""
        return self.curves.hyperparameters(progress)
