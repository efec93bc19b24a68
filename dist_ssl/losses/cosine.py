"""Losses without negatives: the cosine between a prediction and a target without gradient."""

import torch.nn.functional as F
from torch import Tensor


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return SimSiam's D(p, z) = -cos(p, stop_gradient(z)) (Chen and He 2021, equation 1), [..., D] twice -> [...]."""
    return -(F.normalize(predictions, dim=-1) * F.normalize(targets.detach(), dim=-1)).sum(-1)


def cosine_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return BYOL's |norm(p) - norm(z)|^2 = 2 - 2 cos(p, z) (Grill et al. 2020, eq. 2), [..., D] twice -> [...]."""
    return 2 + 2 * negative_cosine(predictions, targets)
