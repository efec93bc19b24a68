"""Measures of features that need no labels: effective rank, alignment and uniformity."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4096
"""Rows that are compared at once: 64 MiB of distances in fp32."""
SMALLEST = 1e-7
"""Added to every share of a singular value, as published."""


def effective_rank(features: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023, arXiv 2210.02885), from 1 (all rows are multiples of one) to min(N, D).

    It is exp(-sum p log p) of the shares p = s / sum(s) + 1e-7 of the singular values s of the [N, D] features.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + SMALLEST
    return float((-(shares * shares.log()).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance between the unit features of two views of an image, 0 (equal) to 4.

    Wang and Isola 2020 (arXiv 2005.10242), their exponent 2. Row i of both, [N, D] each, is of the same image.
    """
    distance = F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)
    return float(distance.square().sum(1).mean())


def uniformity(features: Tensor, device: torch.device | None = None) -> float:
    """Return the log of the mean of exp(-2 |a - b|^2) over the pairs of images, -8 to 0 (all are equal).

    Wang and Isola 2020 (arXiv 2005.10242), their t = 2; lower is more uniform. `features`: [N, D] of any norm, of at
    least two images; `device`: where they are compared, by default where they are.
    """
    device, total, count = device or features.device, 0.0, len(features)
    assert count > 1, "one image makes no pair"
    parts = torch.split(features, ROWS)
    for place, rows in enumerate(parts):
        a = F.normalize(rows.to(device), dim=1)
        for other, columns in enumerate(parts[: place + 1]):
            nearness = (4 * (a @ F.normalize(columns.to(device), dim=1).T - 1)).exp()
            nearness = nearness.tril(-1) if other == place else nearness
            total += float(nearness.double().sum())
    return math.log(total / (count * (count - 1) / 2))
