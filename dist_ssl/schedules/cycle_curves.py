"""The form that all curves share: each cycle of a run goes through them once, from their start to their end.

So a cycle can be appended to a finished run, and the teacher's momentum, which ends at 1, begins anew with it. A
learning rate follows the schedule's own form, multiplied by `peak_decay` once for each cycle before it, and is
proportional to the epoch's batch size. A curve with a warm-up of its own is constant after it, and counts it from the
start of the run.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from dist_ssl.config.validation import positive
from dist_ssl.core.plan import Curve, Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Cycle, Timeline
from dist_ssl.schedules.half_cosine import half_cosine


class CycleCurves(ABC):
    """The values of all curves at any position of a run. `peak_decay`: more than 0. Raises ConfigError."""

    def __init__(self, curves: Mapping[str, Curve], timeline: Timeline, peak_decay: float = 1.0) -> None:
        positive("schedule", peak_decay=peak_decay)
        self.curves, self.timeline, self.peak_decay = curves, timeline, peak_decay
        self.cycles = timeline.cycles
        self._own = {name: timeline.samples(curve.warmup) for name, curve in curves.items() if curve.warmup}
        for name in self._own:
            assert curves[name].start == curves[name].end, f"{name} is not constant after its own warm-up"

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        """Return the values at `progress.samples` of the run's samples, 0-d float64 each."""
        numbers = {name: self._number(name, curve, progress) for name, curve in self.curves.items()}
        return Hyperparameters({name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()})

    def _number(self, name: str, curve: Curve, progress: Progress) -> float:
        batch_size, cycle = self.timeline.batch_sizes[progress.epoch], self._cycle(progress.epoch)
        position = progress.samples + batch_size * curve.for_next_step
        if curve.warmup:
            return rising(curve, position, self._own[name])
        position -= cycle.begin
        number = self.rate(curve, position, cycle) if curve.warms_up else self.other(curve, position, cycle)
        factor = batch_size / curve.batch_size * self.peak_decay**cycle.number if curve.batch_size else 1.0
        return factor * number

    def _cycle(self, epoch: int) -> Cycle:
        return next(c for c, after in zip(self.cycles, self.timeline.bounds[1:], strict=True) if epoch < after)

    @abstractmethod
    def rate(self, curve: Curve, position: int, cycle: Cycle) -> float:
        """Return the value of a curve that warms up, `position` samples after the beginning of the cycle."""

    def other(self, curve: Curve, position: int, cycle: Cycle) -> float:
        """Return the value of any other curve: half a cosine over the cycle."""
        return half_cosine(curve.start, curve.end, position, cycle.total)


def rising(curve: Curve, position: int, warmup: int) -> float:
    """Return the value of a curve's linear warm-up over `warmup` samples, and its start after that."""
    if position >= warmup:
        return curve.start
    return curve.rises_from + (curve.start - curve.rises_from) * position / warmup
