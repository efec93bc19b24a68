"""MoCo's loss against a queue (He et al. 2020, algorithm 1; v2: Chen et al. 2020): a query, its key, K negatives.

The queue holds keys of earlier batches, the same on every rank, so nothing is gathered here. The loss is
computed before the keys of this batch are pushed, so the queue never contains the positive.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def queue_logits(queries: Tensor, keys: Tensor, queue: Tensor, filled: Tensor, temperature: float) -> Tensor:
    """Return [B, 1 + K] cosines divided by the temperature: column 0 is the row's own key, the rest the queue's slots.

    `queries`, `keys`: [B, D]; `queue`: [K, D]; `filled`: [K] or [B, K] bool, slots that hold another image's key; the
    others are -inf.
    """
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    negatives = (q @ F.normalize(queue, dim=1).T).masked_fill(~filled, float("-inf"))
    return torch.cat([(q * k).sum(1, keepdim=True), negatives], dim=1) / temperature


def queue_cross_entropy(queries: Tensor, keys: Tensor, queue: Tensor, filled: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of `queue_logits` towards column 0, [B]; 0 while the queue is empty."""
    logits = queue_logits(queries, keys, queue, filled, temperature)
    return F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long), reduction="none")
