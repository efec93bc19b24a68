"""Cheap metrics of one rank's embeddings that show a collapse."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def signs_of_health(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return metrics of two embeddings [B, D] of the same samples, by the keys of the metric table; [] each.

    `feature_std`: standard deviation of the normalised vectors, 1 / sqrt(D) if evenly spread, 0 if all are equal;
    `positive_similarity`: mean cosine of a sample's two embeddings; `negative_similarity`: mean cosine of embeddings of
    different samples (0 for one sample); `effective_rank`: (sum of eigenvalues)^2 / (sum of squared eigenvalues) of the
    covariance, 1 to min(B, D), the participation ratio, which needs no decomposition.
    """
    one, other = F.normalize(first.detach(), dim=1), F.normalize(second.detach(), dim=1)
    pairs = max(1, len(one) * (len(one) - 1))
    centred = one - one.mean(0)
    covariance = centred.T @ centred if one.shape[1] < len(one) else centred @ centred.T
    squares = covariance.square().sum().clamp_min(torch.finfo(one.dtype).tiny)
    return {
        "feature_std": one.std(0, correction=0).mean(),
        "positive_similarity": (one * other).sum(1).mean(),
        "negative_similarity": (one.sum(0).square().sum() - one.square().sum()) / pairs,
        "effective_rank": covariance.trace().square() / squares,
    }
