"""Collective steps of losses: gather the embeddings of the job, and take the mean over its valid samples.

The rest of a loss is a pure function of tensors. The objective is the mean over ranks of the value that each of them
returns, and the gradient of a gather or a sum is summed over ranks. So a value that all ranks compute alike, from
gathered tensors or sums, is returned unchanged; values of a rank's own samples are returned as its share of the job's
mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dist_ssl.core.collectives import Sum


def gather_embeddings(gather: Callable[[Tensor], Tensor], own: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings and validity masks of all ranks in global order, [N, ...] and [N] bool.

    `own`: [B, ...] and `valid`: [B] bool, of this rank; both travel in one exchange. `gather`: `World.gather`, with
    gradients, or `World.gather_const`.
    """
    marked = torch.cat([own.flatten(1), valid[:, None].to(own.dtype)], dim=1)
    everyone = gather(marked)
    return everyone[:, :-1].view(-1, *own.shape[1:]), everyone[:, -1] > 0.5


def job_mean(rows: Tensor, valid: Tensor, total: Sum | None = None, *, job_valid: Tensor | None = None) -> Tensor:
    """Return [] this rank's share of the mean over the job's valid samples: the mean of all shares is that mean.

    `rows`: [..., B], averaged over the dimensions before B; `valid`: [B] bool. A job without valid samples has mean 0.
    The number of the job's valid samples is summed by `total`, in one exchange; a loss that has gathered the mask
    already passes it as `job_valid`, [N] bool, instead, and nothing is exchanged.
    """
    rows = full_precision(rows)
    per_sample = rows if rows.dim() == 1 else rows.reshape(-1, len(valid)).mean(0)
    if job_valid is not None:  # the rows of such losses are finite, also those of samples that do not count
        return (per_sample * valid).sum() * (
            len(job_valid) // len(valid) / job_valid.sum(dtype=rows.dtype).clamp_min(1)
        )
    assert total is not None
    with torch.no_grad():
        counts = total(torch.stack([torch.ones_like(valid[0]), valid.sum()]).to(rows.dtype))
    return torch.where(valid, per_sample, 0).sum() * counts[0] / counts[1].clamp_min(1)


def full_precision(x: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if its dtype is wider."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
