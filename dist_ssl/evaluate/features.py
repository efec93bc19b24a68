"""Features of chosen samples, computed by all ranks together: each computes a part, and the results are gathered."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.data.images.decode import MAX_PIXELS
from dist_ssl.data.images.photometric import normalise
from dist_ssl.data.images.views import Whole
from dist_ssl.data.loader.load import SampleLoader
from dist_ssl.data.order.requests import Chosen
from dist_ssl.data.stream import Colours
from dist_ssl.distributed.world import World
from dist_ssl.protocols.engine import Branch, Engine

log = logging.getLogger(__name__)
KEPT_BYTES = 1 << 28
"""Most bytes of decoded pixels that a rank keeps: the probe reads the same images after every epoch."""


def subset(size: int, count: int, seed: int) -> Ints:
    """Return at most `count` of the sample numbers 0 .. size - 1, chosen by a hash of the number, ascending."""
    numbers = np.arange(size, dtype=np.int64)
    return np.sort(Draws(seed).order(Purpose.PROBE, numbers)[:count])


class Extractor:
    """Features of whole images of one split. `size`: side to which they are resized, px; `batch`: images at a time."""

    def __init__(
        self,
        loader: SampleLoader,
        colours: Colours,
        *,
        world: World,
        size: int,
        dtype: torch.dtype,
        batch: int = 256,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.loader, self.colours, self.world = loader, colours, world
        self.dtype, self.batch = dtype, batch
        self.size, self.max_pixels = size, max_pixels
        self.kept: tuple[Ints, list[tuple[Tensor, Tensor]]] | None = None

    def features(self, engine: Engine, numbers: Ints, branch: Branch = "student") -> tuple[Tensor, Tensor]:
        """Return [N, D] fp32 features and [N] int64 labels of the readable samples, in the same order on every rank."""
        own = np.array_split(numbers, self.world.size)[self.world.rank]
        rows = -(-len(numbers) // self.world.size)
        parts = list(self._parts(engine, numbers, own, branch))
        # computing may gather weights from all ranks, so each takes as many turns as the rank with the most samples
        turns = max(1, -(-rows // self.batch))
        parts += [self._nothing(engine, branch) for _ in range(turns - len(parts))]
        feats, labels = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        room = rows - len(feats)
        feats = self.world.gather_const(torch.cat([feats, feats.new_zeros(room, feats.shape[1])]))
        labels = self.world.gather_const(torch.cat([labels, labels.new_full((room,), -1)]))
        known = labels >= 0
        return feats[known], labels[known]

    def _parts(self, engine: Engine, numbers: Ints, own: Ints, branch: Branch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of features and labels; an unreadable sample gets the label -1."""
        device = self.world.device
        for pixels, labels in self._images(numbers, own):
            x = pixels.to(device).permute(0, 3, 1, 2).to(self.dtype) / 255
            yield engine.embed(normalise(x, self.colours.mean, self.colours.std), branch), labels.to(device)

    def _images(self, numbers: Ints, own: Ints) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of [B, S, S, 3] uint8 pixels and labels, on the host; those kept by the last call if any."""
        if self.kept is None or not np.array_equal(self.kept[0], numbers):
            decoded = self._decode(numbers, own)
            if len(own) * self.size**2 * 3 > KEPT_BYTES:
                yield from decoded
                return
            self.kept = (numbers, [(pixels.clone(), labels) for pixels, labels in decoded])  # buffers are reused
        yield from self.kept[1]

    def _decode(self, numbers: Ints, own: Ints) -> Iterator[tuple[Tensor, Tensor]]:
        requests = Chosen(numbers, own, self.batch)
        for loaded in self.loader.load(requests, Whole(self.size, self.max_pixels), 1):
            split = self.loader.split
            for number, reason in loaded.unreadable.items():
                log.warning(
                    "The probe leaves sample %s of '%s' out: %s.", split.samples.key(number), split.name, reason
                )
            labels = torch.from_numpy(split.samples.labels[loaded.ids])
            yield torch.from_numpy(loaded.views[0]), labels.masked_fill(~torch.from_numpy(loaded.valid), -1)

    def _nothing(self, engine: Engine, branch: Branch) -> tuple[Tensor, Tensor]:
        blank = torch.zeros(1, 3, self.size, self.size, dtype=self.dtype, device=self.world.device)
        return engine.embed(blank, branch)[:0], torch.empty(0, dtype=torch.int64, device=self.world.device)
