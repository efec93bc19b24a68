"""Data of which an accuracy says little, or nothing."""

from collections.abc import Iterator

import numpy as np

from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.samples import blocks
from dist_ssl.errors import DataError, plural
from dist_ssl.evaluate.confidence import interval

FEW = 100
"""Images of which an accuracy is uncertain by more than 10 %."""


def doubts(train: Split, val: Split) -> Iterator[str]:
    """Yield in sentences why the accuracy on a split says little of other images, if it does."""
    if val.name == train.name:
        yield f"data.val={val.name} is trained on: the accuracy says nothing of other images."
    if (count := len(val.samples.labels)) < FEW:
        low, high = interval(0.5, count)
        yield (
            f"'{val.name}' has {plural(count, 'image')} only: an accuracy of a half is {100 * low:.0f} to "
            f"{100 * high:.0f} %."
        )
    known = np.unique(np.concatenate([np.unique(own) for own in blocks(train.samples.labels)]))
    lacking = ~np.isin(val.samples.labels, known)
    if lacking.any():
        classes = len(np.unique(val.samples.labels[lacking]))
        yield (
            f"{plural(classes, 'class', 'classes')} of '{val.name}', {int(lacking.sum())} of its "
            f"{plural(len(lacking), 'image')}, {'is' if classes == 1 else 'are'} not in "
            f"'{train.name}': their images always count as wrong."
        )


def check_probed(*splits: Split) -> None:
    """Raise DataError where some samples of a split have a label and others have none: a probe needs all."""
    for split in splits:
        samples = split.samples
        count, first = samples.unlabelled()
        if 0 < count < len(samples):
            raise DataError(
                f"{count} of the {len(samples)} samples of split {split.name} in {split.folder} "
                f"{'has' if count == 1 else 'have'} no label "
                f"(the first: {samples.key(first)}), so there is nothing to probe with.",
                "Add the labels, make the shards with labels=false, or train without a probe: data.val=null.",
            )
