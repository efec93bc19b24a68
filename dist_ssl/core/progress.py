"""Where a run is, as a frozen value: the only counters in the system."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from dist_ssl.core.plan import EpochPlan


@dataclass(frozen=True)
class Progress:
    """Position of a run. Integers only, so that equal positions compare equal on every machine."""

    epochs: int
    """Epochs in the whole run."""
    step: int = 0
    """Weight updates made."""
    epoch: int = 0
    """The epoch that the next step belongs to, from 0."""
    lane_offset: int = 0
    """Samples already taken from every lane in this epoch."""
    samples: int = 0
    """Samples seen in the whole run."""
    attempt: int = 1
    """The attempt that made this position, from 1."""
    plans: tuple[EpochPlan, ...] = ()
    """The plan of every epoch begun, in order; authoritative for them."""

    @property
    def finished(self) -> bool:
        """Nothing is left to train."""
        return self.epoch >= self.epochs

    @property
    def between_epochs(self) -> bool:
        """At least one epoch lies behind, and the next step begins another."""
        return self.epoch > 0 and self.lane_offset == 0

    def begin(self, plan: EpochPlan) -> "Progress":
        """The epoch of this plan has begun (again, after a resume)."""
        if len(self.plans) > plan.epoch:
            assert self.plans[plan.epoch] == plan
            return self
        return replace(self, plans=(*self.plans, plan))

    def advance(self) -> "Progress":
        """One step later."""
        plan = self.plans[self.epoch]
        return replace(
            self,
            step=self.step + 1,
            lane_offset=self.lane_offset + plan.samples_per_lane,
            samples=self.samples + plan.batch_size,
        )

    def next_epoch(self) -> "Progress":
        """At the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, lane_offset=0)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for `state.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """The inverse of `to_json`."""
        plans = tuple(EpochPlan(**plan) for plan in values["plans"])
        return cls(**{**values, "plans": plans})
