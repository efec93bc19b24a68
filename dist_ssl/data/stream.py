"""The stream: yields the batches of an epoch from any position; it is stateless, the position lives in `Progress`.

Lanes determine the samples (lanes.py), threads decode and crop them (load.py), photometric augmentation runs on the
device (photometric.py). All randomness is keyed by sample, so a batch is the same in whichever process it is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.images.decode import MAX_PIXELS, SLOW
from dist_ssl.data.images.photometric import Photometry, colour
from dist_ssl.data.images.views import Augmentation, Cutter, of_views
from dist_ssl.data.loader.load import Loaded, SampleLoader
from dist_ssl.data.order.lanes import EpochOrder
from dist_ssl.data.order.requests import Steps
from dist_ssl.distributed.world import World


@dataclass(frozen=True)
class Colours:
    """The normalisation of pixels: mean and standard deviation per channel, for values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Stream:
    """One rank's batches.

    `window`: number of samples shuffled together within a lane; `dtype`: the views' dtype. Images of more than
    `max_pixels` pixels count as unreadable. `parts`: number of equal parts in which a batch is augmented on the device.
    """

    def __init__(
        self,
        loader: SampleLoader,
        recipes: Sequence[Augmentation],
        colours: Colours,
        *,
        world: World,
        seed: int,
        window: int,
        dtype: torch.dtype,
        max_pixels: int = MAX_PIXELS,
        parts: int = 1,
    ) -> None:
        self.loader, self.recipes, self.colours = loader, recipes, colours
        self.world, self.seed, self.window, self.dtype = world, seed, window, dtype
        self.max_pixels, self.parts = max_pixels, parts
        self.split = loader.split

    def epoch(self, plan: EpochPlan, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from offset `start` in every lane on; an incomplete last one is left out."""
        draws = Draws(self.seed, plan.epoch)
        order = EpochOrder(self.split.shard_sizes, draws, plan.lanes, self.window)
        recipes = [r.at(plan.magnitude) for r in of_views(self.recipes, plan.views, plan.local_views)]
        sizes = [plan.local_size if recipe.local else plan.image_size for recipe in recipes]
        changes = [Photometry(r, slot, self.colours.mean, self.colours.std) for slot, r in enumerate(recipes)]
        steps = Steps(order, self.world.rank, self.world.size, start, plan.samples_per_lane)
        cutter = Cutter(recipes, sizes, self.max_pixels)
        pyramid = self.loader.pyramid
        upcoming = steps.shards, pyramid.expected(cutter, draws) if pyramid else None
        loaded = self.loader.load(steps, cutter, len(sizes), upcoming)
        for at, pixels in zip(steps.starts, loaded, strict=True):
            batch = self._batch(pixels, changes, draws, at // steps.count)
            if pyramid:
                batch.levels = pyramid.levels(cutter, draws, np.array(list(pixels.unreadable), dtype=np.int64))
            yield batch

    def close(self) -> None:
        """Stop the loader; no batches can be read afterwards."""
        self.loader.close()

    def _batch(self, pixels: Loaded, changes: Sequence[Photometry], draws: Draws, step: int) -> Batch:
        device, ids = self.world.device, pixels.ids
        views = [torch.from_numpy(view).to(device) for view in pixels.views]
        views = colour(changes, views, ids, draws, self.dtype, self.parts)
        labels = torch.from_numpy(self.split.samples.labels[ids]) if self.split.labelled else None
        return Batch(
            views=views,
            ids=torch.from_numpy(ids),
            valid=torch.from_numpy(pixels.valid).to(device),
            labels=labels,
            draws=draws,
            step=step,
            unreadable=pixels.unreadable,
            costs={
                "data_wait_seconds": pixels.wait_seconds,
                "replaced_samples": float((~pixels.valid).sum()),
                **{f"slow_images/{why}": float(pixels.slow.get(why, 0)) for why in SLOW},
                **self.loader.costs(),
            },
        )
