"""Curves of MoCo v3's form: a linear warm-up, then half a cosine over the rest of the run.

The learning rate warms up, may be held at its peak, and falls; every other hyperparameter follows half a cosine from
its start to its end over the whole run, or is constant.
"""

import math
from collections.abc import Mapping

import torch

from dist_ssl.config.durations import Duration
from dist_ssl.config.validation import counted
from dist_ssl.core.plan import Curve, Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.errors import ConfigError


class WarmupCosine:
    """The values of all curves at any position of a run.

    `warmup`: in epochs or steps, shorter than the run, or None. `hold`: share of the run, 0 to less than 1, for which
    the learning rate stays at its peak before it falls; 0 is MoCo v3's form, more suits short runs. Raises ConfigError.
    """

    def __init__(
        self, warmup: Duration | None, *, curves: Mapping[str, Curve], timeline: Timeline, hold: float = 0.0
    ) -> None:
        if not 0 <= hold < 1:
            raise ConfigError(f"schedule.hold={hold} is not possible: it is a share of the run.", "0 to less than 1.")
        self.curves, self.timeline = curves, timeline
        shared = self._warmup_samples(warmup)
        self.warmups = {
            name: timeline.samples(curve.warmup) if curve.warmup else shared for name, curve in curves.items()
        }
        self.hold = int(hold * timeline.total)

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        """Return the values at `progress.samples` of the run's samples, 0-d float64 each."""
        total, step = self.timeline.total, self.timeline.batch_sizes[progress.epoch]
        values = {
            name: value(curve, progress.samples + step * curve.for_next_step, self.warmups[name], total, self.hold)
            for name, curve in self.curves.items()
        }
        return Hyperparameters({name: torch.tensor(number, dtype=torch.float64) for name, number in values.items()})

    def _warmup_samples(self, warmup: Duration | None) -> int:
        counted("schedule", warmup=warmup)
        samples = self.timeline.samples(warmup)
        if warmup and samples >= self.timeline.total:
            raise ConfigError(
                f"schedule.warmup={warmup.amount:g} {warmup.unit} is as long as the run.",
                "It must end before the run does: shorten it or raise epochs.",
            )
        return samples


def value(curve: Curve, position: int, warmup: int, total: int, hold: int = 0) -> float:
    """Return a curve's value after `position` of `total` samples, the first `warmup` of which warm up.

    A curve that warms up stays at `start` until `hold` samples are over; only then its cosine begins.
    """
    begin = max(warmup, hold) if curve.warms_up else 0
    if curve.warms_up and position < warmup:
        return curve.rises_from + (curve.start - curve.rises_from) * position / warmup
    if curve.start == curve.end or position <= begin:
        return curve.start
    turn = math.pi * (position - begin) / (total - begin)
    return curve.end + (curve.start - curve.end) * 0.5 * (1 + math.cos(turn))
