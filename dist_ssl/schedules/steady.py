"""The steady schedule: every epoch alike, warm-up and half a cosine over the whole run (MoCo v3's form)."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from dist_ssl.config.durations import Duration
from dist_ssl.config.validation import counted
from dist_ssl.core.plan import Curve, EpochPlan, Hyperparameters, epoch_samples
from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError


class Steady:
    """One image size, one magnitude, one batch size from the first epoch to the last.

    `image_size`, `local_size`: sides of global and of local views, px. `warmup`: in epochs or steps, shorter than the
    run, or None. `num_samples`: samples in the data set; an epoch uses the largest multiple of `batch_size`. `hold`:
    share of the run, 0 to less than 1, for which the learning rate stays at its peak before it falls; 0 is MoCo v3's
    form, more suits short runs.
    """

    def __init__(
        self,
        image_size: int,
        warmup: Duration | None,
        *,
        curves: Mapping[str, Curve],
        epochs: int,
        views: int,
        batch_size: int,
        lanes: int,
        num_samples: int,
        local_views: int = 0,
        local_size: int | None = None,
        hold: float = 0.0,
    ) -> None:
        if not 0 <= hold < 1:
            raise ConfigError(f"schedule.hold={hold} is not possible: it is a share of the run.", "0 to less than 1.")
        if local_views and (local_size is None or local_size < 1):
            raise ConfigError(
                f"schedule.local_size={'null' if local_size is None else local_size} is not possible: the method takes "
                f"{local_views} local views.",
                "Set their side, px: schedule.local_size=96, say, beside schedule.image_size=224.",
            )
        small = (local_views, local_size) if local_views and local_size else (0, 0)
        self.template = EpochPlan(0, image_size, 1.0, views, batch_size, lanes, *small)
        self.curves = curves
        self.epoch_samples = epoch_samples(num_samples, batch_size)
        self.total = epochs * self.epoch_samples
        shared = self._samples(warmup)
        self.warmups = {name: self._counted(curve.warmup) if curve.warmup else shared for name, curve in curves.items()}
        self.hold = int(hold * self.total)

    def plan(self, progress: Progress) -> EpochPlan:
        """The same plan for every epoch."""
        return replace(self.template, epoch=progress.epoch)

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        """The hyperparameters at `progress.samples` of the run's samples."""
        step = self.template.batch_size
        values = {
            name: curve.at(progress.samples + step * curve.for_next_step, self.warmups[name], self.total, self.hold)
            for name, curve in self.curves.items()
        }
        return Hyperparameters({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})

    def _counted(self, duration: Duration | None) -> int:
        """The samples of a counted duration."""
        if duration is None:
            return 0
        return int(duration.amount) * (self.epoch_samples if duration.unit == "epochs" else self.template.batch_size)

    def _samples(self, warmup: Duration | None) -> int:
        counted("schedule", warmup=warmup)
        samples = self._counted(warmup)
        if warmup and samples >= self.total:
            raise ConfigError(
                f"schedule.warmup={warmup.amount:g} {warmup.unit} is as long as the run.",
                "It must end before the run does: shorten it or raise epochs.",
            )
        return samples
