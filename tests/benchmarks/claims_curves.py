"""Curves of accuracy over time: an accuracy at equal seconds, and the seconds to an equal accuracy."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from tests.benchmarks.table_rows import Found, number

TOLERANCE = 0.002
"""How far below an accuracy still counts as having reached it: 0.2 points, PAPERS' rule for "comparable accuracy"."""
DRAWN = 2000
"""Samples of a mean of several methods."""
Curve = dict[int, dict[float, Found]]
"""The numbers of a variant by seed and budget."""


def at_seconds(points: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Return a curve's value, (seconds, value) each, between its points by the logarithm of the seconds.

    After its last point it has that one's value; None before its first.
    """
    points = sorted(points)
    if not points or seconds < points[0][0]:
        return None
    for (begin, low), (end, high) in pairwise(points):
        if seconds <= end:
            return low + (high - low) * math.log(seconds / begin) / math.log(end / begin)
    return points[-1][1]


def seconds_to(points: Sequence[tuple[float, float]], value: float) -> float | None:
    """Return the seconds at which a curve, (seconds, value) each, first comes to a value; None if it never does.

    Between points as in `at_seconds`. A curve that has it at its first point is given that point's seconds: no earlier
    run was made, so the time is at most that.
    """
    points = sorted(points)
    if points and points[0][1] >= value:
        return points[0][0]
    for (begin, low), (end, high) in pairwise(points):
        if high >= value:
            return float(begin * (end / begin) ** ((value - low) / (high - low)))
    return None


def mean_curve(found: Curve, seeds: Sequence[int], name: str, clock: str = "seconds") -> list[tuple[float, float]]:
    """Return the mean seconds and accuracy over the seeds (which may repeat), for each budget that all of them have."""
    budgets = set.intersection(*({*found[seed]} for seed in seeds))
    runs = [[found[seed][budget] for seed in seeds] for budget in sorted(budgets)]
    return [(statistics.mean(n[clock] for n in own), statistics.mean(number(n, name) for n in own)) for own in runs]


@dataclass(frozen=True)
class Speed:
    """How many times sooner one variant has the accuracy of another's longest run.

    `ratio`: of the mean curves over the seeds, None where it is never reached. `samples`: the ratios of samples with
    replacement of the seeds, the same for both variants (a paired bootstrap); 0 where it is never reached.
    """

    ratio: float | None
    samples: tuple[float, ...] = ()

    @property
    def low(self) -> float:
        """The 5 % quantile of the samples."""
        return self.samples[len(self.samples) // 20] if self.samples else 0.0

    @property
    def high(self) -> float:
        """The 95 % quantile of the samples."""
        return self.samples[-1 - len(self.samples) // 20] if self.samples else 0.0

    @property
    def shown(self) -> str:
        """Return the ratio and its interval."""
        return "never reached" if self.ratio is None else f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def speed(first: Curve, second: Curve, name: str, clock: str = "seconds") -> Speed:
    """Return how many times sooner `first` has the accuracy that `second` has after its largest budget.

    All samples of the seeds are enumerated. `clock`: the number of a row that is the time.
    """
    seeds = sorted(first.keys() & second.keys())

    def ratio(sample: Sequence[int]) -> float | None:
        seconds, bar = max(mean_curve(second, sample, name, clock))
        found = seconds_to(mean_curve(first, sample, name, clock), bar - TOLERANCE)
        return None if found is None else seconds / found

    if not seeds:
        return Speed(None)
    samples = sorted(ratio(sample) or 0.0 for sample in product(seeds, repeat=len(seeds)))
    return Speed(ratio(seeds), tuple(samples))


def mean_speed(speeds: Sequence[Speed]) -> Speed:
    """Return the geometric mean of several, whose seeds are independent of each other: their samples are drawn."""
    ratios = [each.ratio for each in speeds if each.ratio is not None]
    if not speeds or len(ratios) < len(speeds):
        return Speed(None)
    draw = random.Random(0)
    samples = sorted(_mean([draw.choice(each.samples) for each in speeds]) for _ in range(DRAWN))
    return Speed(_mean(ratios), tuple(samples))


def _mean(ratios: Sequence[float]) -> float:
    return statistics.geometric_mean(ratios) if min(ratios) > 0 else 0.0
