"""The kNN probe: top-1 accuracy of a weighted kNN classifier (cosine similarity of features) on held-out images.

Each of the k nearest votes for its class with weight exp(similarity / T) (Wu et al. 2018, arXiv 1805.01978).
"""

import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.config.durations import Duration
from dist_ssl.core.draws import Ints
from dist_ssl.core.progress import Progress
from dist_ssl.evaluate.features import Extractor
from dist_ssl.protocols.engine import Engine


def knn_votes(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """Return the [Q] predicted classes. `bank`: [N, D], `bank_labels`: [N] int64 >= 0, `queries`: [Q, D]; any norms."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    nearest, at = similarity.topk(min(k, len(bank)), dim=1)
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    classes = int(bank_labels.max()) + 1
    votes = torch.zeros(len(queries), classes, dtype=weights.dtype, device=weights.device)
    votes.scatter_add_(1, bank_labels[at], weights)
    return votes.argmax(1)


class KNN:
    """A probe of the student between epochs: a fixed part of the training split votes on a fixed part of another split.

    `bank` and `queries`: the extractor of the features and the sample numbers; `every`: in epochs.
    """

    def __init__(
        self,
        bank: tuple[Extractor, Ints],
        queries: tuple[Extractor, Ints],
        *,
        every: Duration,
        k: int = 20,
        temperature: float = 0.07,
    ) -> None:
        self.bank, self.queries, self.every = bank, queries, every
        self.k, self.temperature = k, temperature

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """Return `knn_accuracy` (0 to 1) and `probe_seconds` if the probe is due, else nothing."""
        if not self.every.due(progress):
            return {}
        started = time.monotonic()
        known, known_labels = self.bank[0].features(engine, self.bank[1])
        asked, asked_labels = self.queries[0].features(engine, self.queries[1])
        predicted = knn_votes(known, known_labels, asked, self.k, self.temperature)
        accuracy = float((predicted == asked_labels).double().mean())
        return {"knn_accuracy": accuracy, "probe_seconds": time.monotonic() - started}


class NoProbe:
    """The probe for data without labels or without a held-out split: it measures nothing."""

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """Return no metrics."""
        return {}
