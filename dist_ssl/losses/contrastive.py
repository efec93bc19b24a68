"""Contrastive losses over the batch: pure functions that compare a rank's own rows with those of the whole job.

Samples with `valid` False are negatives of no other sample. Their own rows stay finite, and the caller leaves them out
of the mean (`job.job_mean`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(queries: Tensor, keys: Tensor, first: int, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Return CE(norm(q) norm(k)^T / T, i + first) per row, [..., B].

    `queries`: [..., B, D]; row i belongs to key first + i; `keys`: [N, D] of the whole job in global order;
    `first`: the global number of row 0; `valid`: [N] bool, keys that may be another sample's negative (default: all).
    """
    targets = torch.arange(first, first + queries.shape[-2], device=queries.device)
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=1).T / temperature
    return _cross_entropy(_others(logits, targets, valid), targets)


def keyed_cross_entropy(
    queries: Tensor, keys: Tensor, first: int, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """Return MoCo v3's ctr(q, k) = 2 T CE(norm(q) norm(k)^T / T, i + first) per row, [B] (Chen et al. 2021, alg. 1).

    The arguments are those of `info_nce`.
    """
    return 2 * temperature * info_nce(queries, keys, first, temperature, valid)


def nt_xent(own: Tensor, whole: Tensor, first: int, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Return SimCLR's NT-Xent (Chen et al. 2020, equation 1), [B], the mean of a sample's two directions.

        l(a, b) = -log exp(cos(a, b) / T) / sum over all embeddings c != a of the job of exp(cos(a, c) / T)

    `own`: [2, B, D], both views of this rank's samples; `whole`: [2, N, D], those of the job in global order, with
    gradients; `first`: the global number of this rank's sample 0; `valid`: [N] bool as in `info_nce`.
    """
    num, samples = own.shape[1], whole.shape[1]
    index = torch.arange(first, first + num, device=own.device)
    itself, partner = torch.cat([index, index + samples]), torch.cat([index + samples, index])
    logits = F.normalize(own.flatten(0, 1), dim=1) @ F.normalize(whole.flatten(0, 1), dim=1).T / temperature
    logits = _others(logits, partner, None if valid is None else valid.repeat(2))
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return _cross_entropy(logits, partner).view(2, num).mean(0)


def _others(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Tensor:
    """Return the logits [..., B, N] with -inf in columns that are neither valid nor the target of their row."""
    if valid is None:
        return logits
    target = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
    return logits.masked_fill(~(valid | target), float("-inf"))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits [..., B, N] with target columns [B], [..., B]."""
    wide = targets.expand(logits.shape[:-1]).flatten()
    return F.cross_entropy(logits.flatten(0, -2), wide, reduction="none").view(logits.shape[:-1])
