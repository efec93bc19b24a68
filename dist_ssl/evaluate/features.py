"""Features of chosen samples, computed by all ranks together: every sample once, with the same bits at any world size.

The samples are cut into the same batches whatever the number of ranks, and the ranks take turns at whole batches. So
every sample is computed in the same batch, and its features have the same bits wherever the same device, library and
number of threads compute them.
"""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.data.loader.load import SampleLoader
from dist_ssl.data.order.requests import Chosen
from dist_ssl.distributed.world import World
from dist_ssl.evaluate.inputs import Inputs
from dist_ssl.protocols.engine import Branch, Engine

log = logging.getLogger(__name__)
KEPT_BYTES = 1 << 28
"""Most bytes of decoded pixels that a rank keeps: the probe reads the same images after every epoch."""
AT_ONCE = 128
"""Number of views that the encoder computes at once; a smaller number leaves fewer ranks idle in the last turn."""

Cut = tuple[list[Tensor], Ints]
"""Pixels of every view, [B, S, S, C] uint8, and [B] sample numbers, -1 where an image was unreadable."""


def subset(size: int, count: int, seed: int) -> Ints:
    """Return at most `count` of the sample numbers 0 .. size - 1, chosen by a hash of the number, ascending."""
    numbers = np.arange(size, dtype=np.int64)
    return np.sort(Draws(seed).order(Purpose.PROBE, numbers)[:count])


def uncounted(images: int) -> None:
    """Count nothing."""


class Extractor:
    """Features of the images of one split. `batch`: images at a time, by default as many as make `AT_ONCE` views.

    `passed`: counts the images whose features are computed, for a person who waits.
    """

    def __init__(
        self,
        loader: SampleLoader,
        inputs: Inputs,
        *,
        world: World,
        batch: int | None = None,
        passed: Callable[[int], None] = uncounted,
    ) -> None:
        self.loader, self.inputs, self.world, self.passed = loader, inputs, world, passed
        self.batch = batch or max(1, AT_ONCE // inputs.views)
        self.kept: tuple[Ints, list[Cut]] | None = None

    def features(self, engine: Engine, numbers: Ints, branch: Branch = "student") -> tuple[Tensor, Tensor]:
        """Return the features of the readable samples, and their labels, on the host, alike on every rank.

        `numbers`: ascending. The features are the mean over the views, [N, D] fp32; labels are [N] int64.
        """
        found, known = self.known(engine, numbers, branch)
        return found, self.labels(known)

    def known(self, engine: Engine, numbers: Ints, branch: Branch = "student") -> tuple[Tensor, Tensor]:
        """Return the same as `features` with the readable samples' numbers, [N] int64, in place of their labels."""
        found, known = self._gathered(engine, numbers, branch, mean=True)
        return found[:, 0], known

    def views(self, engine: Engine, numbers: Ints, branch: Branch = "student") -> tuple[Tensor, Tensor]:
        """Return the same as `features` with the features of every view by itself, [N, views, D]."""
        found, known = self._gathered(engine, numbers, branch, mean=False)
        return found, self.labels(known)

    def stream(self, engine: Engine, order: Ints, branch: Branch = "student") -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features of the readable samples in this order, [n, D] on the device, and their numbers, [n].

        Nothing is kept. The parts depend on the world size, the features and their order do not.
        """
        cuts = self._decode(np.sort(order), self._own(order))
        for found, ids in self._turns(engine, cuts, len(order), branch, mean=True):
            yield found[:, 0], ids

    def images(self, numbers: Ints) -> Tensor:
        """Return the first view of readable samples before it is finished, [N, S, S, C] uint8, in ascending order."""
        cuts = [(views[0].clone(), ids) for views, ids in self._decode(numbers, numbers)]  # buffers are reused
        assert all((ids >= 0).all() for _, ids in cuts), "an image has become unreadable"
        return torch.cat([pixels for pixels, _ in cuts])

    def labels(self, ids: Tensor) -> Tensor:
        """Return the labels of samples, [N] int64, given by their numbers."""
        return torch.from_numpy(self.loader.split.samples.labels[ids.numpy()].astype(np.int64))

    def _gathered(self, engine: Engine, numbers: Ints, branch: Branch, mean: bool) -> tuple[Tensor, Tensor]:
        """Return [N, views or 1, D] features and [N] sample numbers, on the host."""
        cuts = self._images(numbers, self._own(numbers))
        parts = [(found.cpu(), ids) for found, ids in self._turns(engine, cuts, len(numbers), branch, mean)]
        return torch.cat([found for found, _ in parts]), torch.cat([ids for _, ids in parts])

    def _turns(
        self, engine: Engine, cuts: Iterator[Cut], count: int, branch: Branch, mean: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features, [n, views or 1, D] on the device, and [n] numbers on the host, of the readable samples.

        In each turn the ranks compute consecutive batches of the `count` samples; `cuts`: those of this rank.
        """
        turns = -(-count // (self.batch * self.world.size))
        for turn in range(max(1, turns)):  # computing may gather weights from all ranks: each takes every turn
            cut = next(cuts, None)
            feats, ids = self._computed(engine, *cut, branch) if cut else self._nothing(engine, branch)
            feats = feats.mean(1, keepdim=True) if mean else feats
            room = self.batch - len(feats)
            ids = torch.cat([ids, ids.new_full((room,), -1)])
            feats = torch.cat([feats, feats.new_zeros(room, *feats.shape[1:])])
            ids = self.world.gather_const(ids.to(self.world.device)).cpu()
            readable = (ids >= 0).nonzero()[:, 0]
            yield self.world.gather_const(feats)[readable.to(self.world.device)], ids[readable]
            at_once = self.batch * self.world.size
            self.passed(min(at_once, count - turn * at_once))

    def _own(self, numbers: Ints) -> Ints:
        """Return this rank's samples: of the batches in order, those from number `rank` on in steps of `size`."""
        starts = range(self.world.rank * self.batch, len(numbers), self.world.size * self.batch)
        return np.concatenate([numbers[start : start + self.batch] for start in starts] or [numbers[:0]])

    def _computed(self, engine: Engine, pixels: list[Tensor], ids: Ints, branch: Branch) -> tuple[Tensor, Tensor]:
        """Return the features, [B, views, D], and [B] sample numbers."""
        views = self.inputs.finish([view.to(self.world.device) for view in pixels], np.maximum(ids, 0))
        found = engine.embed(torch.cat(views), branch)
        return found.view(len(views), len(ids), -1).transpose(0, 1), torch.from_numpy(ids)

    def _nothing(self, engine: Engine, branch: Branch) -> tuple[Tensor, Tensor]:
        side, channels = self.inputs.side, self.inputs.cutter.rules.channels
        blank = torch.zeros(1, channels, side, side, dtype=self.inputs.dtype, device=self.world.device)
        empty = engine.embed(blank, branch)[:0]
        return empty[:, None].expand(0, self.inputs.views, -1), torch.empty(0, dtype=torch.int64)

    def _images(self, numbers: Ints, own: Ints) -> Iterator[Cut]:
        """Yield batches of pixels and sample numbers, on the host; those kept by the last call if any."""
        if self.kept is None or not np.array_equal(self.kept[0], numbers):
            decoded = self._decode(numbers, own)
            rules = self.inputs.cutter.rules
            pixels = self.inputs.views * self.inputs.side**2 * rules.channels * rules.dtype.itemsize
            if len(own) * pixels > KEPT_BYTES:
                yield from decoded
                return
            self.kept = (numbers, [([v.clone() for v in views], ids) for views, ids in decoded])  # buffers are reused
        yield from self.kept[1]

    def _decode(self, numbers: Ints, own: Ints) -> Iterator[Cut]:
        requests = Chosen(numbers, own, self.batch, self.inputs.draws)
        for loaded in self.loader.load(requests, self.inputs.cutter, self.inputs.views):
            split = self.loader.split
            for number, reason in loaded.unreadable.items():
                log.warning(
                    "The evaluation leaves sample %s of '%s' out: %s.", split.samples.key(number), split.name, reason
                )
            yield [torch.from_numpy(view) for view in loaded.views], np.where(loaded.valid, loaded.ids, -1)
