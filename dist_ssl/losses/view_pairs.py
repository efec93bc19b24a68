"""Cross-entropy between views: the target of one view is predicted from every other view (SwAV, DINO)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def crossed_entropy(targets: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Return [B] the mean of -sum_k q_k log softmax(s)_k over all pairs of a target and the logits of another view.

    `targets`: [B, K] probabilities for each of the first views; `logits`: [B, K] for each view, in the same order, at
    least two.
    """
    logs = [F.log_softmax(scores, dim=1) for scores in logits]
    pairs = [(q, log) for i, q in enumerate(targets) for v, log in enumerate(logs) if v != i]
    return -torch.stack([(q * log).sum(1) for q, log in pairs]).mean(0)
