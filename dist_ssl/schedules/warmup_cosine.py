"""Curves of MoCo v3's form: a linear warm-up, then half a cosine over the rest of the cycle.

The learning rate warms up, may be held at its peak, and falls; every other hyperparameter follows half a cosine from
its start to its end over the whole cycle, or is constant. A run is one cycle unless others are appended to it.
"""

from collections.abc import Mapping

from dist_ssl.config.durations import Duration
from dist_ssl.config.validation import counted
from dist_ssl.core.plan import Curve
from dist_ssl.core.timeline import Cycle, Timeline
from dist_ssl.errors import ConfigError
from dist_ssl.schedules.cycle_curves import CycleCurves, rising
from dist_ssl.schedules.half_cosine import half_cosine


class WarmupCosine(CycleCurves):
    """The values of all curves at any position of a run.

    `warmup`: in epochs or steps, shorter than each cycle, or None. `hold`: share of the cycle, 0 to less than 1, for
    which the learning rate stays at its peak before it falls; 0 is MoCo v3's form, more suits short runs. `peak_decay`:
    factor of each cycle's peak to that of the cycle before. Raises ConfigError.
    """

    def __init__(
        self,
        warmup: Duration | None,
        *,
        curves: Mapping[str, Curve],
        timeline: Timeline,
        hold: float = 0.0,
        peak_decay: float = 1.0,
    ) -> None:
        if not 0 <= hold < 1:
            raise ConfigError(f"schedule.hold={hold} is not possible: it is a share of the run.", "0 to less than 1.")
        super().__init__(curves, timeline, peak_decay)
        self.warmups, self.hold = warmup_samples(warmup, timeline), hold

    def rate(self, curve: Curve, position: int, cycle: Cycle) -> float:
        """Return the value of a curve that warms up, `position` samples after the beginning of the cycle."""
        return value(curve, position, self.warmups[cycle.number], cycle.total, int(self.hold * cycle.total))


def warmup_samples(warmup: Duration | None, timeline: Timeline) -> list[int]:
    """Return the samples in which each cycle warms up. Raises ConfigError where that is as long as a cycle."""
    counted("schedule", warmup=warmup)
    found = [timeline.samples(warmup, cycle.number) for cycle in timeline.cycles]
    for cycle, samples in zip(timeline.cycles, found, strict=True):
        if warmup and samples >= cycle.total:
            whole, more = named(cycle, timeline)
            unit = warmup.unit.removesuffix("s") if warmup.amount == 1 else warmup.unit
            raise ConfigError(
                f"schedule.warmup={warmup.amount:g} {unit} is as long as {whole}.",
                f"It must end before {whole} does: shorten it (schedule.warmup=null leaves it out) or raise {more}.",
            )
    return found


def named(cycle: Cycle, timeline: Timeline) -> tuple[str, str]:
    """Return how a message names a cycle, and what makes it longer."""
    return ("the run", "epochs") if len(timeline.cycles) == 1 else (f"cycle {cycle.number + 1}", "its length")


def value(curve: Curve, position: int, warmup: int, total: int, hold: int = 0) -> float:
    """Return a curve's value after `position` of `total` samples, the first `warmup` of which warm up.

    A curve that warms up stays at `start` until `hold` samples are over; only then its cosine begins.
    """
    if curve.warms_up and position < warmup:
        return rising(curve, position, warmup)
    begin = max(warmup, hold) if curve.warms_up else 0
    return half_cosine(curve.start, curve.end, position - begin, total - begin)
