"""SwAV (Caron et al. 2020): Sinkhorn-Knopp codes over the whole job, each predicted from the other crops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dist_ssl.core.collectives import Sum
from dist_ssl.losses.job import full_precision
from dist_ssl.losses.view_pairs import crossed_entropy

LARGEST = 1.0
"""Largest cosine; it is subtracted before the exponential, and the normalisation cancels it."""
SMALLEST_EPS = 0.003
"""Smallest eps for which exp(-2 / eps), the value of the smallest cosine, is more than 0 in double precision."""


@torch.no_grad()
def sinkhorn(scores: Tensor, valid: Tensor, total: Sum, *, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Return the codes of this rank's samples, [B, K], rows of sum 1; prototypes get nearly equal shares of the job.

        Q = exp(scores / eps) / sum;  repeat: scale every prototype to 1 / K, every sample to 1 / N;  return Q * N

    `scores`: [B, K] cosines with the prototypes; `valid`: [B] bool; samples that are not valid have codes of zeros.
    `total` sums [K] over the ranks, once per iteration. `eps`: from SMALLEST_EPS. Computed in double precision,
    because exp(-2 / eps) is 0 in single precision for eps below 0.02.
    """
    codes = ((scores.double() - LARGEST) / eps).exp() * valid[:, None]
    tiny = torch.finfo(codes.dtype).tiny  # rows and columns of zeros stay zeros
    for _ in range(iterations):
        codes = codes / total(codes.sum(0)).clamp_min(tiny)
        codes = codes / codes.sum(1, keepdim=True).clamp_min(tiny)
    return codes.to(full_precision(scores).dtype)


def swapped_cross_entropy(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """Return [B] the mean over code crops of the mean over all other crops of -sum q log softmax(scores / T).

    `scores`: [B, K] per crop; `codes`: [B, K] for each of the first crops, at least one.
    """
    return crossed_entropy(codes, [crop / temperature for crop in scores])
