"""Epoch planner that plans every epoch alike: one image size, one magnitude, one batch size."""

from dist_ssl.core.plan import EpochPlan
from dist_ssl.errors import ConfigError


class SameEveryEpoch:
    """Plans the same epoch again and again.

    `image_size`, `local_size`: sides of global and of local views, px. Raises ConfigError where the method takes local
    views and they have no size. `keep_tokens`, `patch_size`: for transformers, see `EpochPlan`.
    """

    def __init__(
        self,
        image_size: int,
        *,
        views: int,
        batch_size: int,
        lanes: int,
        local_views: int = 0,
        local_size: int | None = None,
        keep_tokens: float = 1.0,
        patch_size: int = 0,
    ) -> None:
        check_local_size(local_views, local_size)
        local = (local_views, local_size) if local_views and local_size else (0, 0)
        self.template = EpochPlan(
            0, image_size, 1.0, views, batch_size, lanes, *local, keep_tokens=keep_tokens, patch_size=patch_size
        )

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch, counted from 0."""
        return self.template.numbered(epoch)


def check_local_size(local_views: int, local_size: int | None) -> None:
    """Raise ConfigError where a method takes local views that have no size."""
    if local_views and (local_size is None or local_size < 1):
        raise ConfigError(
            f"schedule.local_size={'null' if local_size is None else local_size} is not possible: the method takes "
            f"{local_views} local views.",
            "Set their side, px: schedule.local_size=96, say, beside schedule.image_size=224.",
        )
