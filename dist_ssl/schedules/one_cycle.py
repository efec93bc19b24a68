"""Curves of one cycle: the learning rate rises along half a cosine and falls along another, close to 0.

The first of the three strategies that Kocyigit et al. (WACV 2023, DOI 10.1109/WACV56688.2023.00561) combine is an
extendable cyclic learning rate. Their formula is not public; this one, reconstructed after Kocyigit et al., is that of
Smith and Topin (arXiv 1708.07120) as PyTorch's OneCycleLR computes it, as a pure function of position:

    t <= up:  lr = low + (peak - low) * (1 - cos(pi * t / up)) / 2                          up = warm * L - 1
    t >  up:  lr = least + (peak - least) * (1 + cos(pi * (t - up) / (L - 1 - up))) / 2

for step t = 0 ... L - 1 of a cycle of L steps, low = peak / start_divisor, least = low / end_divisor. At the end of a
cycle the model is finished; another cycle can be appended. The optimizer's own momentum stays as it is: cycling it is
not defined for LARS, nor for AdamW's two moments.
"""

from collections.abc import Mapping

from dist_ssl.config.validation import at_least, require
from dist_ssl.core.plan import Curve
from dist_ssl.core.timeline import Cycle, Timeline
from dist_ssl.schedules.cycle_curves import CycleCurves
from dist_ssl.schedules.half_cosine import half_cosine


class OneCycle(CycleCurves):
    """The values of all curves at any position of a run.

    `warm`: share of a cycle in which the learning rate rises, 0 to less than 1. `start_divisor`: peak by the rate of
    the first step; `end_divisor`: that by the rate of the last, 1 or more each. Where the optimizer itself has a rate
    that the warm-up rises from or the run falls to (`optim.rises_from`, `optim.falls_to` above 0), that one counts.
    `peak_decay`: factor of each cycle's peak to that of the cycle before. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        curves: Mapping[str, Curve],
        timeline: Timeline,
        warm: float = 0.3,
        start_divisor: float = 25.0,
        end_divisor: float = 1e4,
        peak_decay: float = 1.0,
    ) -> None:
        require("schedule", "a share of the cycle, 0 to less than 1", lambda share: 0 <= share < 1, warm=warm)
        at_least("schedule", 1, start_divisor=start_divisor, end_divisor=end_divisor)
        super().__init__(curves, timeline, peak_decay)
        self.warm, self.start_divisor, self.end_divisor = warm, start_divisor, end_divisor

    def rate(self, curve: Curve, position: int, cycle: Cycle) -> float:
        """Return the learning rate `position` samples after the beginning of the cycle."""
        low = curve.rises_from or curve.start / self.start_divisor
        least = curve.end or low / self.end_divisor
        last = cycle.total - cycle.batch_size  # the position of the last step
        up = self.warm * cycle.total - cycle.batch_size
        if position < up:
            return half_cosine(low, curve.start, position, up)
        return half_cosine(curve.start, least, position - up, last - up)
