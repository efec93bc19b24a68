"""The stream: yields the batches of an epoch from any position; it is stateless, the position lives in `Progress`.

Lanes determine the samples (lanes.py; where there are several sources, mixed_order.py), threads decode and crop them
(load.py), photometric augmentation runs on the device (photometric.py), on a GPU beside the training step (feed.py).
All randomness is keyed by sample, so a batch is the same in whichever process it is computed.
"""

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.epoch_views import Colours, Difficulty, EpochViews, Look
from dist_ssl.data.images.decode import SLOW
from dist_ssl.data.images.host_to_device import send
from dist_ssl.data.images.image_rules import RULES, ImageRules
from dist_ssl.data.images.views import Augmentation, Cutter
from dist_ssl.data.loader.feed import Feed, GpuSide, Side
from dist_ssl.data.loader.load import Loaded, SampleLoader
from dist_ssl.data.order.mixed_order import order_of
from dist_ssl.data.order.requests import Steps
from dist_ssl.distributed.world import World
from dist_ssl.runtime.step_clock import StepClock

WAITING = 2
"""Requests that may wait whatever their size: one that is decoded, and one that the threads decode meanwhile."""


class Stream:
    """One rank's batches.

    `window`: number of samples shuffled together within a lane; `dtype`: the views' dtype; `rules`: how bytes become
    pixels; `parts`: number of equal parts in which a batch is augmented on the device. `side`: where batches are made
    beside training; by default a stream of the world's GPU, None on a CPU. `difficulty`: how views are chosen in epochs
    with several candidates; needed for those only. `clock`: the account of the time of a step.
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
        rules: ImageRules = RULES,
        parts: int = 1,
        side: Side | None = None,
        difficulty: Difficulty | None = None,
        clock: StepClock | None = None,
    ) -> None:
        self.loader, self.look, self.difficulty = loader, Look(recipes, colours, dtype, rules, parts), difficulty
        self.world, self.seed, self.window = world, seed, window
        self.split = loader.split
        self.clock = clock or StepClock()
        self.side = side or (GpuSide(world.device) if world.device.type == "cuda" else None)

    def epoch(self, plan: EpochPlan, start: int = 0, before: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch from offset `start` in every lane on; an incomplete last one is left out.

        `before`: samples that the run has used in earlier epochs, from which a mixture of sources continues; None: a
        pass in which no sample is used twice, whatever the weights of the sources are.
        """
        draws = Draws(self.seed, plan.epoch)
        order = order_of(self.split, draws, plan.lanes, self.window, before)
        epoch_views = self._views(plan)
        cutter = epoch_views.cutter
        place = self.world.rank, self.world.size, start, plan.samples_per_lane
        steps = Steps(order, *place, epoch_views.cut_in)

        def make(item: tuple[int, Loaded], views: list[Tensor]) -> Batch:
            at, pixels = item
            batch = self._batch(pixels, views, epoch_views, draws, at // steps.count)
            batch.tokens = plan.tokens
            if pyramid := self.loader.pyramid:
                bad = np.flatnonzero(np.isin(pixels.ids, list(pixels.unreadable)))
                batch.levels = pyramid.levels(cutter, draws, pixels.ids[bad], len(pixels.views), pixels.draw_ids[bad])
            return batch

        items = self._items(steps, cutter, epoch_views.number_cut)
        self.clock.start()
        for batch in Feed(items, self._copied, make, self.side) if self.side else self._in_turn(items, make):
            self.clock.lap("data" if self.side else "copy")
            yield batch
            self.clock.lap("other")

    def close(self) -> None:
        """Stop the loader; no batches can be read afterwards."""
        self.loader.close()

    def _views(self, plan: EpochPlan) -> EpochViews:
        if plan.candidates == 1:
            return EpochViews(plan, self.look)
        assert self.difficulty is not None
        return self.difficulty.views(plan, self.look)

    def _in_turn(
        self, items: Iterator[tuple[int, Loaded]], make: Callable[[tuple[int, Loaded], list[Tensor]], Batch]
    ) -> Iterator[Batch]:
        """Yield the batches of items, each made when it is asked for."""
        for item in items:
            self.clock.lap("data")
            yield make(item, self._copied(item))

    def _items(self, steps: Steps, cutter: Cutter, views: int) -> Generator[tuple[int, Loaded], None, None]:
        """Yield where in the lanes each step begins, and its pixels."""
        pyramid = self.loader.pyramid
        upcoming = steps.shards, pyramid.expected(cutter, steps.order.draws) if pyramid else None
        yield from zip(steps.starts, self.loader.load(steps, cutter, views, upcoming, WAITING), strict=True)

    def _copied(self, item: tuple[int, Loaded]) -> list[Tensor]:
        return [torch.from_numpy(view).to(self.world.device, non_blocking=True) for view in item[1].views]

    def _batch(self, pixels: Loaded, views: list[Tensor], epoch_views: EpochViews, draws: Draws, step: int) -> Batch:
        ids = pixels.ids
        found = epoch_views.finish(views, pixels.draw_ids, draws, step)
        labels = torch.from_numpy(self.split.samples.labels[ids].astype(np.int64)) if self.split.labelled else None
        return Batch(
            views=found.views,
            candidates=found.candidates,
            ids=torch.from_numpy(ids),
            valid=send([pixels.valid], self.world.device)[0],
            labels=labels,
            draws=draws,
            step=step,
            unreadable=pixels.unreadable,
            opened=pixels.opened,
            uses=torch.from_numpy(pixels.draw_ids),
            costs={
                "data_wait_seconds": pixels.wait_seconds,
                "replaced_samples": float((~pixels.valid).sum()),
                **{f"slow_images/{why}": float(pixels.slow.get(why, 0)) for why in SLOW},
                **self.loader.costs(),
                **found.metrics,
            },
        )
