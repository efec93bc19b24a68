"""The plan of each epoch: made by rank 0, broadcast to all ranks, and recorded."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.protocols.schedule import EpochPlanner
from dist_ssl.runtime import jsonl


def check_plan(lanes: int, batch_size: int, ranks: int, num_samples: int) -> None:
    """Raise ConfigError, with the values that would work, if these ranks cannot divide an epoch equally."""
    if lanes < 1 or lanes % ranks:
        sizes = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)
        raise ConfigError(
            f"{ranks} ranks cannot share lanes={lanes} equally.",
            f"Use one of these numbers of ranks: {sizes}." if sizes else "Use lanes=48, say.",
        )
    if batch_size < 1 or batch_size % lanes:
        near = max(1, round(batch_size / lanes)) * lanes
        raise ConfigError(
            f"batch_size={batch_size} is no multiple of lanes={lanes}.",
            f"Use batch_size={near}, or lanes that divide {batch_size}.",
        )
    if batch_size > num_samples:
        raise ConfigError(
            f"batch_size={batch_size} is more than the {num_samples} samples of the data set.",
            "Use a smaller batch_size or more data.",
        )


class Coordinator:
    """The source of epoch plans: rank 0 asks the planner and broadcasts the plan. `record`: file of all plans."""

    def __init__(self, planner: EpochPlanner, *, world: World, num_samples: int, record: Path) -> None:
        self.planner, self.world, self.num_samples, self.record = planner, world, num_samples, record

    def plan(self, progress: Progress) -> EpochPlan:
        """Return the plan of the epoch at this position; a started epoch keeps its plan. Raises ConfigError."""
        if len(progress.plans) > progress.epoch:
            return progress.plans[progress.epoch]
        plan = asdict(self.planner.plan(progress.epoch)) if self.world.rank == 0 else None
        shared = EpochPlan(**self.world.share(plan))
        check_plan(shared.lanes, shared.batch_size, self.world.size, self.num_samples)
        if self.world.rank == 0:
            jsonl.append(self.record, [{"step": progress.step, "attempt": progress.attempt, **asdict(shared)}])
        return shared

    @staticmethod
    def metrics(plan: EpochPlan) -> Mapping[str, float]:
        """Return the plan's metrics, by the keys of the metric table."""
        return {
            "image_size": float(plan.image_size),
            "magnitude": plan.magnitude,
            "batch_size": float(plan.batch_size),
        }
