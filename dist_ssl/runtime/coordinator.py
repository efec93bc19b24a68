"""The plan of each epoch: made by rank 0, checked, broadcast to all ranks, agreed by all, logged and recorded."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import xxhash

from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, DisagreementError, plural
from dist_ssl.protocols.schedule import Schedule
from dist_ssl.runtime.kept_lines import KeptLines

log = logging.getLogger(__name__)


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
            f"batch_size={batch_size} is more than the {plural(num_samples, 'sample')} of the data set.",
            "Use a smaller batch_size or more data.",
        )


def fingerprint(plan: EpochPlan, progress: Progress, hyper: Hyperparameters) -> str:
    """Return a hash of what the next step does: the epoch's plan, the position, the hyperparameters to nine digits."""
    values = {name: f"{float(value):.9g}" for name, value in hyper.values.items()}
    place = (progress.step, progress.epoch, progress.lane_offset, progress.samples)
    return xxhash.xxh3_64_hexdigest(json.dumps([asdict(plan), place, values], sort_keys=True).encode())


def described(plan: EpochPlan, epochs: int, hyper: Hyperparameters) -> str:
    """Return an epoch's plan as one line."""
    chosen = f", chosen from {plan.candidates} candidates each" if plan.candidates > 1 else ""
    rate = f", lr {hyper.number('lr'):.4g}" if "lr" in hyper.values else ""
    return (
        f"Epoch {plan.epoch + 1} of {epochs}: {plan.views_in_words}{chosen}, "
        f"magnitude {plan.magnitude:.4g}, batch {plan.batch_size}{rate}."
    )


class Coordinator:
    """The source of epoch plans: rank 0 asks the schedule and broadcasts the plan. `record`: file of all plans.

    `check` raises ConfigError where an epoch of a plan cannot be trained, `fit` where one of several epochs needs more
    memory than a rank has; it is called on rank 0 alone.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        world: World,
        record: Path,
        check: Callable[[EpochPlan], None],
        fit: Callable[[Sequence[EpochPlan]], None] = lambda _: None,
    ) -> None:
        self.schedule, self.world, self.check, self.fit = schedule, world, check, fit
        self.lines = KeptLines(record)

    def check_memory(self, progress: Progress) -> None:
        """Raise ConfigError on all ranks where an epoch from this position on needs more memory than a rank has."""
        refusal = None
        if self.world.rank == 0:
            started = progress.plans[progress.epoch :]
            try:
                self.fit([*started, *map(self.schedule.plan, range(progress.epoch + len(started), progress.epochs))])
            except ConfigError as error:
                refusal = [error.problem, error.remedy]
        if refusal := self.world.share(refusal):
            raise ConfigError(*refusal)

    def plan(self, progress: Progress) -> EpochPlan:
        """Return the plan of the epoch at this position; a started epoch keeps its plan.

        Raises ConfigError on all ranks where the epoch cannot be trained, DisagreementError on all where a rank would
        train it differently: its plan, its position or its hyperparameters differ.
        """
        started = len(progress.plans) > progress.epoch
        plan = progress.plans[progress.epoch] if started else self._planned(progress.epoch)
        hyper = self.schedule.hyperparameters(progress)
        self._agree(fingerprint(plan, progress, hyper), plan)
        self.check(plan)
        if self.world.rank == 0:
            log.info("%s", described(plan, progress.epochs, hyper))
            if not started:
                self.lines.add({"step": progress.step, "attempt": progress.attempt, **asdict(plan)})
                self.lines.sync()
        return plan

    def _planned(self, epoch: int) -> EpochPlan:
        return EpochPlan(**self.world.share(asdict(self.schedule.plan(epoch)) if self.world.rank == 0 else None))

    def _agree(self, own: str, plan: EpochPlan) -> None:
        found = self.world.collect(own)
        if others := [str(rank) for rank, other in enumerate(found) if other != found[0]]:
            raise DisagreementError(
                f"Rank {', '.join(others)} would train epoch {plan.epoch + 1} differently from rank 0: "
                "its plan, its position or its hyperparameters differ.",
                "All nodes must see the same run folder, with the same code, config and checkpoints.",
            )

    @staticmethod
    def metrics(plan: EpochPlan) -> Mapping[str, float]:
        """Return the plan's metrics, by the keys of the metric table."""
        return {key: float(getattr(plan, key)) for key in ("image_size", "magnitude", "batch_size")}
