"""Where the epochs of a run begin, in samples: computed once from the plans of all epochs, integers only."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from dist_ssl.config.durations import Duration
from dist_ssl.core.plan import EpochPlan, epoch_samples


@dataclass(frozen=True)
class Timeline:
    """The epochs of a run on the axis of samples seen."""

    batch_sizes: tuple[int, ...]
    """Samples per step, one entry per epoch."""
    starts: tuple[int, ...]
    """Samples seen before each epoch, and, as the last entry, after the run."""

    @classmethod
    def of(cls, plans: Iterable[EpochPlan], num_samples: int) -> "Timeline":
        """Return the timeline of a run with these plans over a data set of `num_samples` samples."""
        sizes = tuple(plan.batch_size for plan in plans)
        return cls(sizes, tuple(accumulate((epoch_samples(num_samples, size) for size in sizes), initial=0)))

    @property
    def total(self) -> int:
        """Samples in the whole run."""
        return self.starts[-1]

    @property
    def steps(self) -> int:
        """Weight updates in the whole run."""
        lengths = zip(self.batch_sizes, self.starts, self.starts[1:], strict=False)
        return sum((end - start) // size for size, start, end in lengths)

    def samples(self, duration: Duration | None) -> int:
        """Return the samples seen once a counted duration has passed since the start; 0 for None.

        A duration longer than the run goes on with the last epoch's length and batch size.
        """
        if duration is None:
            return 0
        amount, epochs = int(duration.amount), len(self.batch_sizes)
        if duration.unit == "epochs":
            last = self.starts[-1] - self.starts[-2]
            return self.starts[min(amount, epochs)] + max(0, amount - epochs) * last
        for size, start, end in zip(self.batch_sizes, self.starts, self.starts[1:], strict=False):
            steps = (end - start) // size
            if amount <= steps:
                return start + amount * size
            amount -= steps
        return self.starts[-1] + amount * self.batch_sizes[-1]
