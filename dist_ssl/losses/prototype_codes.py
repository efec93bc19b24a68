"""SwAV (Caron et al. 2020): codes by Sinkhorn and Knopp over the whole job, each predicted from the other crops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dist_ssl.losses.job import Sum, full_precision
from dist_ssl.losses.view_pairs import crossed_entropy

LARGEST = 1.0
"""No cosine is larger; subtracted before the exponential, which the normalisation forgets."""
SMALLEST_EPS = 0.003
"""Down to here exp(-2 / eps), the smallest there is of a cosine, is more than 0 in double precision."""


@torch.no_grad()
def sinkhorn(scores: Tensor, valid: Tensor, total: Sum, *, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """The codes of this rank's samples, [B, K], rows of sum 1: prototypes share the job's samples nearly equally.

        Q = exp(scores / eps) / sum;  repeated: every prototype to 1 / K, every sample to 1 / N;  Q * N

    `scores`: [B, K] cosines with the prototypes; `valid`: [B] bool, samples that take their share; the others have
    codes of zeros. `total` adds [K] up over the ranks, once per iteration. `eps`: from SMALLEST_EPS. Computed in double
    precision, because exp(-2 / eps) is 0 in single precision for eps of less than 0.02.
    """
    codes = ((scores.double() - LARGEST) / eps).exp() * valid[:, None]
    tiny = torch.finfo(codes.dtype).tiny  # what has no weight at all stays without
    for _ in range(iterations):
        codes = codes / total(codes.sum(0)).clamp_min(tiny)
        codes = codes / codes.sum(1, keepdim=True).clamp_min(tiny)
    return codes.to(full_precision(scores).dtype)


def swapped_cross_entropy(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """The mean over code crops of the mean over all other crops of -sum q log softmax(scores / T), [B].

    `scores`: [B, K] per crop; `codes`: [B, K] of the first crops, at least one.
    """
    return crossed_entropy(codes, [crop / temperature for crop in scores])
