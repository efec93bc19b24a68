"""What a loss may ask of the other ranks: sums. The rest of a loss is a pure function of tensors.

The objective is the mean over ranks of what each of them returns, and a sum's gradient is summed over ranks: so what
is computed from sums alike on every rank may be returned as it is, and what each rank has of its own is returned as
its share of the job's mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Sum = Callable[[Tensor], Tensor]
"""Adds a tensor up over the ranks; where gradients are wanted, its gradient is summed over ranks too."""


def job_mean(rows: Tensor, valid: Tensor, total: Sum) -> Tensor:
    """[] this rank's share of the mean over the job's valid samples: the mean of all shares is that mean.

    `rows`: [..., B], averaged over what comes before B; `valid`: [B] bool. A job without valid samples has mean 0.
    """
    rows = full_precision(rows)
    with torch.no_grad():
        counts = total(torch.stack([torch.ones_like(valid[0]), valid.sum()]).to(rows.dtype))
    per_sample = rows.reshape(-1, len(valid)).mean(0)
    return torch.where(valid, per_sample, 0).sum() * counts[0] / counts[1].clamp_min(1)


def full_precision(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it has more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
