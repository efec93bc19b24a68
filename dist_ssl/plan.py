"""What is decided ahead of the work: the plan of an epoch, made by rank 0, and the knobs of a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EpochPlan:
    """How one epoch is read and seen; decided once by rank 0, recorded in run folder and checkpoint."""

    epoch: int
    image_size: int
    """Side of a view, px."""
    magnitude: float
    """Augmentation strength; 1 is the recipe as published."""
    views: int
    """Views drawn of every image."""
    batch_size: int
    """Samples per step, whole job; a multiple of `lanes`."""
    lanes: int
    """Equal runs into which the epoch's samples are cut; a multiple of the number of ranks."""

    @property
    def samples_per_lane(self) -> int:
        """Samples that one step takes from every lane."""
        return self.batch_size // self.lanes


@dataclass(frozen=True)
class Knobs:
    """The numbers of one step (learning rate, momentum, ...), a pure function of position; 0-d float64 on the host."""

    values: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def number(self, name: str) -> float:
        """The knob as a Python float."""
        return float(self.values[name])
