"""Retrieval by cosine similarity: every image searches all others for those of its own class."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = 1 << 24
"""Most similarities that are ranked at once, of as many queries as that makes."""
ROWS = 16384
"""Rows of the bank that are on the device at once."""


def mean_average_precision(features: Tensor, labels: Tensor, device: torch.device | None = None) -> float:
    """Return the mean over images of the average precision with which an image finds those of its label, 0 to 1.

    An image does not find itself. The average precision is the mean, over the other images of its label, of the share
    of images of that label among those that are at least as near; images that are equally near count together. An
    image without another one of its label is left out; NaN where that leaves none. `features`: [N, D] of any norm,
    `labels`: [N] int64; `device`: where they are compared, by default where they are.
    """
    device = device or features.device
    total, count, at_once = 0.0, 0, max(1, SIMILARITIES // max(1, len(features)))
    for start in range(0, len(features), at_once):
        queries = F.normalize(features[start : start + at_once].to(device), dim=1)
        similarity = torch.cat(
            [queries @ F.normalize(part.to(device), dim=1).T for part in torch.split(features, ROWS)], 1
        )
        similarity[torch.arange(len(queries)), torch.arange(start, start + len(queries))] = -torch.inf  # itself: last
        same = labels[start : start + at_once, None].to(device) == labels[None].to(device)
        found = _average_precision(similarity, same)
        known = found.isfinite()
        total, count = total + float(found[known].sum()), count + int(known.sum())
    return total / count if count else float("nan")


def _average_precision(similarity: Tensor, same: Tensor) -> Tensor:
    """Return the [Q] average precisions; NaN without anything to find. The query itself has a similarity of -inf."""
    ranked, order = similarity.sort(dim=1, descending=True)
    ranked, right = ranked[:, :-1], same.gather(1, order)[:, :-1]
    places = torch.arange(ranked.shape[1], device=ranked.device)
    ends = torch.ones_like(right)
    ends[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    last = torch.where(ends, places, ranked.shape[1]).flip(1).cummin(1).values.flip(1)  # of those equally near
    precision = right.long().cumsum(1).gather(1, last).double() / (last + 1)
    return (precision * right).sum(1) / right.sum(1)
