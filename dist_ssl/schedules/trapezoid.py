"""Curves of a trapezoid: the learning rate warms up, is held, and falls in a straight line at the end of the cycle.

While it is held nothing says how long the run will be, so the same held run serves runs of many lengths: each is a fork
of it with an anneal of its own (Zhai et al., arXiv 2106.04560; Haegele et al., arXiv 2405.18392). The other
hyperparameters, the teacher's momentum among them, are constant until the anneal begins and follow half a cosine then.
"""

from collections.abc import Mapping

from dist_ssl.config.durations import Duration
from dist_ssl.config.validation import counted
from dist_ssl.core.plan import Curve
from dist_ssl.core.timeline import Cycle, Timeline
from dist_ssl.errors import ConfigError
from dist_ssl.schedules.cycle_curves import CycleCurves, rising
from dist_ssl.schedules.half_cosine import half_cosine
from dist_ssl.schedules.warmup_cosine import named, warmup_samples


class Trapezoid(CycleCurves):
    """The values of all curves at any position of a run.

    `warmup`: in epochs or steps, or None; `anneal`: length of the fall at the end of every cycle, in epochs or steps;
    a cycle is at least as long as both. `peak_decay`: factor of each cycle's peak to that of the cycle before. Raises
    ConfigError.
    """

    def __init__(
        self,
        warmup: Duration | None,
        anneal: Duration,
        *,
        curves: Mapping[str, Curve],
        timeline: Timeline,
        peak_decay: float = 1.0,
    ) -> None:
        counted("schedule", anneal=anneal)
        super().__init__(curves, timeline, peak_decay)
        self.warmups = warmup_samples(warmup, timeline)
        self.anneals = [timeline.last_samples(anneal, cycle.number) for cycle in timeline.cycles]
        for cycle, rise, fall in zip(timeline.cycles, self.warmups, self.anneals, strict=True):
            if rise + fall > cycle.total:
                whole, more = named(cycle, timeline)
                raise ConfigError(
                    f"schedule.anneal={anneal.amount:g} {anneal.unit} and the warm-up are longer than {whole}.",
                    f"Shorten one of them, or raise {more}.",
                )

    def rate(self, curve: Curve, position: int, cycle: Cycle) -> float:
        """Return the learning rate `position` samples after the beginning of the cycle."""
        fallen = position - (cycle.total - self.anneals[cycle.number])
        if fallen <= 0:
            return rising(curve, position, self.warmups[cycle.number])
        return curve.start + (curve.end - curve.start) * fallen / self.anneals[cycle.number]

    def other(self, curve: Curve, position: int, cycle: Cycle) -> float:
        """Return the value of any other curve: constant, then half a cosine while the learning rate falls."""
        anneal = self.anneals[cycle.number]
        return half_cosine(curve.start, curve.end, position - (cycle.total - anneal), anneal)
