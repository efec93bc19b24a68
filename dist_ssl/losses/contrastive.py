"""Contrastive losses: pure functions of tensors, each rank its own rows against the keys of the whole job."""

import torch
import torch.nn.functional as F
from torch import Tensor


def keyed_cross_entropy(
    queries: Tensor, keys: Tensor, first: int, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """MoCo v3's ctr(q, k) = 2 T CE(norm(q) norm(k)^T / T, i + first) (Chen et al. 2021, algorithm 1), [B] per row.

    `queries`: [B, D]; `keys`: [N, D] of the whole job in global order; `first`: the global number of row 0, so that
    query i belongs to key first + i; `valid`: [N] bool, keys that may be another sample's negative (default: all).
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    targets = torch.arange(first, first + len(queries), device=queries.device)
    if valid is not None:
        own = torch.arange(len(keys), device=keys.device) == targets[:, None]
        logits = logits.masked_fill(~(valid | own), float("-inf"))
    return 2 * temperature * F.cross_entropy(logits, targets, reduction="none")
