"""Data of which an accuracy says little."""

from collections.abc import Iterator

import numpy as np

from dist_ssl.data.storage.manifest import Split


def doubts(train: Split, val: Split) -> Iterator[str]:
    """Yield in sentences why the accuracy on a split says little of other images, if it does."""
    if val.name == train.name:
        yield f"data.val={val.name} is trained on: the accuracy says nothing of other images."
    known = np.unique(train.samples.labels)
    lacking = ~np.isin(val.samples.labels, known)
    if lacking.any():
        classes = len(np.unique(val.samples.labels[lacking]))
        yield (
            f"{classes} classes of '{val.name}', {int(lacking.sum())} of its {len(lacking)} images, are not in "
            f"'{train.name}': their images always count as wrong."
        )
