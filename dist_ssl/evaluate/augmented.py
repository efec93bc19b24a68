"""The training set of a linear classifier whose images are augmented anew in every epoch, as the papers have it.

The features of an epoch are computed while the classifier trains on them, and none is kept. All ranks compute features
and all make the same steps, so the classifier has the same bits at any world size, as `features.py` says it.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from dist_ssl.core.draws import Ints
from dist_ssl.data.images.views import Augmentation
from dist_ssl.evaluate.features import Extractor
from dist_ssl.evaluate.linear import Classifiers, TrainingSet
from dist_ssl.protocols.engine import Branch, Engine

CROPS = Augmentation(crop_min=0.08)
"""The augmentation of the published protocols: RandomResizedCrop of torchvision as it is by default, and a flip."""


class AugmentedSet(TrainingSet):
    """The images `numbers`, [N] ascending, of the split that the extractors read; row i is image `numbers[i]`.

    `crops`: returns the extractor of an epoch's features, the epoch counted from 0; `centre`: the extractor for a test;
    `targets`: [N] on the device; `width`: of the features. The last batch of an epoch may be smaller.
    """

    def __init__(
        self,
        engine: Engine,
        branch: Branch,
        numbers: Ints,
        *,
        crops: Callable[[int], Extractor],
        centre: Extractor,
        targets: Tensor,
        classes: int,
        width: int,
    ) -> None:
        super().__init__(targets, classes, width, Tensor.float)
        self.engine, self.branch, self.numbers = engine, branch, numbers
        self.crops, self.centre = crops, centre

    def batches(self, order: Ints, batch: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `TrainingSet`; an unreadable image is left out."""
        parts = self.crops(epoch).stream(self.engine, self.numbers[order], self.branch)
        yield from regrouped(((features, self.targets_of(ids)) for features, ids in parts), batch)

    def scored(self, classifiers: Classifiers, rows: Ints) -> list[float]:
        """See `TrainingSet`: the accuracies are those on the centres of the images."""
        parts = list(self.centre.stream(self.engine, self.numbers[rows], self.branch))
        features, ids = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        return self.accuracies(classifiers, features, self.targets_of(ids), np.arange(len(ids), dtype=np.int64))

    def targets_of(self, ids: Tensor) -> Tensor:
        """Return the targets of images, given by their numbers, [B] on the host, on the device."""
        rows = torch.from_numpy(np.searchsorted(self.numbers, ids.numpy()))
        return self.targets[rows.to(self.targets.device)]


def regrouped(parts: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same rows, [n, ...] of both tensors, in groups of `size`; the last group may have fewer."""
    held: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        held.append(part)
        while sum(len(rows) for rows, _ in held) >= size:
            first, second = (torch.cat(column) for column in zip(*held, strict=True))
            yield first[:size], second[:size]
            held = [(first[size:], second[size:])]
    if sum(len(rows) for rows, _ in held):
        first, second = (torch.cat(column) for column in zip(*held, strict=True))
        yield first, second
