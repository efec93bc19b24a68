"""VICReg (Bardes, Ponce, LeCun 2022, equations 1 to 6): invariance, variance and covariance of the whole batch.

The loss takes the embeddings of the whole job, gathered with gradients, and is computed alike on every rank.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class VICRegTerms:
    """The three terms without their weights, and the loss; [] each."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor
    loss: Tensor


def spread(z: Tensor, valid: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Return the variance and covariance penalties of z [N, D]; [] each.

    They are mean_j max(0, 1 - sqrt(var_j + eps)) and sum_{i != j} cov_ij^2 / D, both unbiased over the valid samples.
    """
    keep = valid[:, None].to(z.dtype)
    count = keep.sum()
    centred = (z - (z * keep).sum(0) / count.clamp_min(1)) * keep
    covariance = centred.T @ centred / (count - 1).clamp_min(1)
    variances = covariance.diagonal()
    squares = covariance.square().sum() - variances.square().sum()
    return F.relu(1 - (variances + eps).sqrt()).mean(), squares / z.shape[1]


def vicreg(
    z1: Tensor,
    z2: Tensor,
    valid: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
) -> VICRegTerms:
    """Return the loss of two views z1, z2 [N, D] of the job's samples; `valid`: [N] bool, the others are left out.

    `invariance`, `variance`, `covariance`: weights of the terms. The variance term is the mean over both views, the
    covariance term their sum, as in the authors' code.
    """
    apart = (z1 - z2).square().mean(1)
    alike = apart.where(valid, 0).sum() / valid.sum().clamp_min(1)
    (short1, squares1), (short2, squares2) = spread(z1, valid, eps), spread(z2, valid, eps)
    short, squares = (short1 + short2) / 2, squares1 + squares2
    return VICRegTerms(alike, short, squares, invariance * alike + variance * short + covariance * squares)
