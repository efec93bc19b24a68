"""Where the epochs and cycles of a run begin, in samples: computed once from the plans of all epochs, integers only.

A run is one cycle or several, one after the other: in each of them all curves go from their start to their end. Where a
cycle begins and ends does not depend on the cycles after it, so appending one to a run moves nothing of its past.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from dist_ssl.config.durations import Duration
from dist_ssl.core.plan import EpochPlan, epoch_samples


@dataclass(frozen=True)
class Cycle:
    """One cycle of a run, on the axis of samples seen."""

    number: int
    """Counted from 0."""
    begin: int
    """Samples seen before the cycle."""
    end: int
    """Samples seen after it."""
    batch_size: int
    """Samples per step in its last epoch."""

    @property
    def total(self) -> int:
        """Samples in the cycle."""
        return self.end - self.begin


@dataclass(frozen=True)
class Timeline:
    """The epochs of a run on the axis of samples seen."""

    batch_sizes: tuple[int, ...]
    """Samples per step, one entry per epoch."""
    starts: tuple[int, ...]
    """Samples seen before each epoch, and, as the last entry, after the run."""
    bounds: tuple[int, ...]
    """First epoch of each cycle, and, as the last entry, the number of epochs."""

    @classmethod
    def of(cls, plans: Iterable[EpochPlan], num_samples: int, cycles: Sequence[int] | None = None) -> "Timeline":
        """Return the timeline of a run with these plans over a data set of `num_samples` samples.

        `cycles`: number of epochs of each cycle; by default the run is one cycle.
        """
        sizes = tuple(plan.batch_size for plan in plans)
        starts = tuple(accumulate((epoch_samples(num_samples, size) for size in sizes), initial=0))
        bounds = tuple(accumulate(cycles or [len(sizes)], initial=0))
        assert bounds[-1] == len(sizes), f"cycles of {bounds[-1]} epochs in a run of {len(sizes)}"
        return cls(sizes, starts, bounds)

    @property
    def total(self) -> int:
        """Samples in the whole run."""
        return self.starts[-1]

    @property
    def steps(self) -> int:
        """Weight updates in the whole run."""
        lengths = zip(self.batch_sizes, self.starts, self.starts[1:], strict=False)
        return sum((end - start) // size for size, start, end in lengths)

    @property
    def cycles(self) -> list[Cycle]:
        """All cycles of the run."""
        pairs = zip(self.bounds, self.bounds[1:], strict=False)
        return [
            Cycle(number, self.starts[first], self.starts[after], self.batch_sizes[after - 1])
            for number, (first, after) in enumerate(pairs)
        ]

    def samples(self, duration: Duration | None, cycle: int = 0) -> int:
        """Return the samples seen once a counted duration has passed since the start of a cycle; 0 for None.

        A duration longer than the cycle continues with the length and batch size of the cycle's last epoch.
        """
        if duration is None:
            return 0
        first, after = self.bounds[cycle], self.bounds[cycle + 1]
        starts, sizes = self.starts[first : after + 1], self.batch_sizes[first:after]
        amount, epochs = int(duration.amount), len(sizes)
        if duration.unit == "epochs":
            last = starts[-1] - starts[-2]
            return starts[min(amount, epochs)] - starts[0] + max(0, amount - epochs) * last
        for size, start, end in zip(sizes, starts, starts[1:], strict=False):
            steps = (end - start) // size
            if amount <= steps:
                return start - starts[0] + amount * size
            amount -= steps
        return starts[-1] - starts[0] + amount * sizes[-1]

    def last_samples(self, duration: Duration, cycle: int) -> int:
        """Return the samples in a counted duration before the end of a cycle.

        One longer than the cycle continues with the length and batch size of the cycle's first epoch.
        """
        first, after = self.bounds[cycle], self.bounds[cycle + 1]
        amount, found = int(duration.amount), 0
        for epoch in reversed(range(first, after)):
            samples, size = self.starts[epoch + 1] - self.starts[epoch], self.batch_sizes[epoch]
            length = 1 if duration.unit == "epochs" else samples // size
            if amount < length:
                return found + amount * size
            found, amount = found + samples, amount - length
        return found + amount * (samples if duration.unit == "epochs" else size)
