"""The position of a run as a frozen value; it holds the only counters in the system."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dist_ssl.config.bounds import MOST_COUNT, MOST_EPOCHS, MOST_OF_A_VIEW
from dist_ssl.core.plan import EpochPlan

RANGES = {
    **dict.fromkeys(("lanes", "batch_size"), (1, MOST_COUNT)),
    **dict.fromkeys(("image_size", "views", "candidates"), (1, MOST_OF_A_VIEW)),
    **dict.fromkeys(("local_size", "local_views", "patch_size"), (0, MOST_OF_A_VIEW)),
}
"""The least and the largest value that a plan's whole numbers may have."""


@dataclass(frozen=True)
class Progress:
    """Position of a run. Integers only, so that equal positions compare equal on every machine."""

    epochs: int
    """Number of epochs in the whole run."""
    step: int = 0
    """Number of weight updates made."""
    epoch: int = 0
    """Epoch that the next step belongs to, from 0."""
    lane_offset: int = 0
    """Number of samples already taken from every lane in this epoch."""
    samples: int = 0
    """Number of samples seen since the start of the run, whole job."""
    attempt: int = 1
    """Number of the attempt that reached this position, from 1."""
    plans: tuple[EpochPlan, ...] = ()
    """Plan of every epoch started so far, in order; a resumed epoch uses its recorded plan."""

    @property
    def finished(self) -> bool:
        """Return whether all epochs are done."""
        return self.epoch >= self.epochs

    @property
    def between_epochs(self) -> bool:
        """Return whether at least one epoch is done and the next step is the first of another one."""
        return self.epoch > 0 and self.lane_offset == 0

    @property
    def samples_before(self) -> int:
        """Return the number of samples seen before this epoch, which has started, whole job."""
        return self.samples - self.lane_offset * self.plans[self.epoch].lanes

    def begin(self, plan: EpochPlan) -> "Progress":
        """Return the position with this plan recorded as started; unchanged if it already is (after a resume)."""
        if len(self.plans) > plan.epoch:
            assert self.plans[plan.epoch] == plan
            return self
        return replace(self, plans=(*self.plans, plan))

    def advance(self) -> "Progress":
        """Return the position one step later."""
        plan = self.plans[self.epoch]
        return replace(
            self,
            step=self.step + 1,
            lane_offset=self.lane_offset + plan.samples_per_lane,
            samples=self.samples + plan.batch_size,
        )

    def next_epoch(self) -> "Progress":
        """Return the position at the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, lane_offset=0)

    def to_json(self) -> dict[str, Any]:
        """Return the position as plain values, for `state.json`: of consecutive equal plans the first, and `count`."""
        rows: list[dict[str, Any]] = []
        last: dict[str, Any] = {}
        for plan in self.plans:
            values = vars(plan)
            if rows and values == {**last, "epoch": last["epoch"] + rows[-1]["count"]}:
                rows[-1]["count"] += 1
            else:
                last = values
                rows.append({**asdict(plan), "count": 1})
        return {**vars(self), "plans": rows}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Build a position from the values that `to_json` returned, in this version or one with a row per plan.

        Raises KeyError, TypeError, ValueError where they cannot be those of a run.
        """
        plans: list[EpochPlan] = []
        for row in values["plans"]:
            count = row.get("count", 1)
            first = EpochPlan(**{key: value for key, value in row.items() if key != "count"})
            check_numbers({**vars(first), "count": count}, EpochPlan)
            check_plan(first, row.get("fixed", []))
            if len(plans) + count > MOST_EPOCHS:
                raise ValueError(f"a plan for {count} epochs is more than the {MOST_EPOCHS} that a run may have")
            plans += [first.numbered(first.epoch + further) for further in range(count)]
        check_numbers({key: value for key, value in values.items() if key != "plans"}, cls)
        found = cls(**{**values, "plans": tuple(plans)})
        if found.epoch > len(plans) or any(plan.epoch != number for number, plan in enumerate(plans)):
            raise ValueError(f"the plans are not those of the epochs up to {found.epoch + 1}")
        if found.lane_offset:
            check_place(found)
        return found


def check_numbers(values: Mapping[str, Any], kind: type) -> None:
    """Raise ValueError where the value of a number's field of this dataclass is none, or is negative or too large.

    What is no field is a whole number. The file that the values come from may have been written by anybody.
    """
    types = {field.name: field.type for field in fields(kind)}
    for name, value in values.items():
        expected = types.get(name, int)
        number = type(value) is int or (expected is float and type(value) is float)
        if expected in (int, float) and not (number and 0 <= value <= MOST_COUNT):
            raise ValueError(f"{name} is {value!r:.60}, which is no number from 0 to {MOST_COUNT}")


def check_plan(plan: EpochPlan, fixed: object) -> None:
    """Raise ValueError where no epoch can have this plan, whose values are numbers. `fixed`: that field, as written."""
    for name, (least, most) in RANGES.items():
        if not least <= getattr(plan, name) <= most:
            raise ValueError(f"{name} is {getattr(plan, name)}, which is not from {least} to {most}")
    if plan.batch_size % plan.lanes:
        raise ValueError(f"batch_size is {plan.batch_size}, which is no multiple of lanes, {plan.lanes}")
    if not 0 < plan.keep_tokens <= 1:
        raise ValueError(f"keep_tokens is {plan.keep_tokens}, which is no share")
    if not isinstance(fixed, list | tuple) or not all(isinstance(name, str) for name in fixed):
        raise ValueError(f"fixed is {fixed!r:.60}, which is no list of names")


def check_place(found: Progress) -> None:
    """Raise ValueError where no step of its epoch's plan leads to a position within an epoch."""
    plan = found.plans[found.epoch] if found.epoch < len(found.plans) else None
    if plan is None or found.lane_offset % plan.samples_per_lane or found.samples_before < 0:
        raise ValueError(f"lane_offset is {found.lane_offset}, to which no step of epoch {found.epoch + 1} leads")
