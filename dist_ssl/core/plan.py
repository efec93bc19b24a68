"""What is decided ahead of the work: the plan of an epoch, made by rank 0, and the hyperparameters of a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dist_ssl.config.durations import Duration

FROZEN = "frozen/"
"""Prefix of a hyperparameter that names a part of a method: the part does not learn while the value is above 0."""


@dataclass(frozen=True)
class EpochPlan:
    """How one epoch is read and seen; decided once by rank 0, recorded in run folder and checkpoint."""

    epoch: int
    image_size: int
    """Side of a global view, px."""
    magnitude: float
    """Augmentation strength; 1 is the recipe as published."""
    views: int
    """Global views drawn of every image."""
    batch_size: int
    """Samples per step, whole job; a multiple of `lanes`."""
    lanes: int
    """Equal runs into which the epoch's samples are cut; a multiple of the number of ranks."""
    local_views: int = 0
    """Smaller views drawn beside the global ones."""
    local_size: int = 0
    """Side of those, px; 0 where there are none."""

    @property
    def samples_per_lane(self) -> int:
        """Samples that one step takes from every lane."""
        return self.batch_size // self.lanes


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers of one step (learning rate, momentum, ...), a pure function of position; 0-d float64 on the host."""

    values: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def number(self, name: str) -> float:
        """The hyperparameter as a Python float."""
        return float(self.values[name])


@dataclass(frozen=True)
class Curve:
    """One number's course over a run: from `start` to `end` along half a cosine; constant where they are equal."""

    start: float
    end: float
    warms_up: bool = False
    """Rises linearly from `rises_from` to `start` during the schedule's warm-up, and follows the cosine after it."""
    for_next_step: bool = False
    """Takes the value of the following step: a teacher that moves at the end of a step moves for the next."""

    rises_from: float = 0.0
    """Where the warm-up begins."""
    warmup: Duration | None = None
    """Of its own, counted, however long the run; None: the schedule's."""


def freeze(part: str, time: Duration | None) -> dict[str, Curve]:
    """The hyperparameter that keeps a part of a method (the beginning of its parameters' names) from learning at first.

    It falls from 1 to 0 during that time; None: no hyperparameter.
    """
    return {FROZEN + part: Curve(0.0, 0.0, warms_up=True, rises_from=1.0, warmup=time)} if time else {}
