"""The kNN probe: how often the nearest neighbours of a held-out image, by cosine of its features, know its class.

Each of the k nearest votes for its class with weight exp(similarity / T) (Wu et al. 2018, arXiv 1805.01978).
"""

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.evaluate.features import Extractor
from dist_ssl.protocols.engine import Engine


def knn_votes(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """[Q] predicted classes. `bank`: [N, D], `bank_labels`: [N] int64 >= 0, `queries`: [Q, D]; any norms."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    nearest, at = similarity.topk(min(k, len(bank)), dim=1)
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    classes = int(bank_labels.max()) + 1
    votes = torch.zeros(len(queries), classes, dtype=weights.dtype, device=weights.device)
    votes.scatter_add_(1, bank_labels[at], weights)
    return votes.argmax(1)


class KNN:
    """Probes the student between epochs: a fixed part of the training split votes on a fixed part of another.

    `bank` and `queries`: where the features come from and the sample numbers; `every`: in epochs.
    """

    def __init__(
        self,
        bank: tuple[Extractor, npt.NDArray[np.int64]],
        queries: tuple[Extractor, npt.NDArray[np.int64]],
        *,
        every: Duration,
        k: int = 20,
        temperature: float = 0.07,
    ) -> None:
        self.bank, self.queries, self.every = bank, queries, every
        self.k, self.temperature = k, temperature

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """`knn_accuracy`, 0 to 1, where the probe is due."""
        if not self.every.due(progress):
            return {}
        started = time.monotonic()
        known, known_labels = self.bank[0].features(engine, self.bank[1])
        asked, asked_labels = self.queries[0].features(engine, self.queries[1])
        predicted = knn_votes(known, known_labels, asked, self.k, self.temperature)
        accuracy = float((predicted == asked_labels).double().mean())
        return {"knn_accuracy": accuracy, "probe_seconds": time.monotonic() - started}


class NoProbe:
    """For data without labels or without a held-out split."""

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """Nothing to measure."""
        return {}
