"""The kNN classifier on frozen features: top-1 accuracy of votes weighted by the cosine similarity.

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
from dist_ssl.protocols.engine import Branch, Engine

QUERIES, ROWS = 1024, 16384
"""Largest number of queries and of rows of the bank that are compared at once: 64 MiB of similarities in fp32."""


def nearest(bank: Tensor, queries: Tensor, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cosine similarities of the k nearest of `bank` [N, D] and their rows, [Q, k] each, nearest first.

    Bank and queries are compared on `device` in parts, so neither they nor all similarities need fit there at once.
    The result is exact: the nearest of the rows so far are compared with those of the next part.
    """
    k = min(k, len(bank))
    found = [_nearest(bank, F.normalize(part.to(device), dim=1), k) for part in torch.split(queries, QUERIES)]
    return torch.cat([best for best, _ in found]), torch.cat([rows for _, rows in found])


def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return `nearest` for unit queries that are on the device."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), ROWS):
        part = F.normalize(bank[start : start + ROWS].to(queries.device), dim=1)
        near, at = (queries @ part.T).topk(min(k, len(part)), dim=1)
        best, rows = torch.cat([best, near], dim=1), torch.cat([rows, at + start], dim=1)
        best, at = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, at)
    return best, rows


def class_votes(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float, device: torch.device | None = None
) -> Tensor:
    """Return each class's share of the votes, [Q, classes], on the device of the queries.

    `bank`: [N, D], `bank_labels`: [N] int64 >= 0, `queries`: [Q, D]; any norms. `device`: where they are compared, by
    default where the queries are.
    """
    near, rows = nearest(bank, queries, k, device or queries.device)
    near, rows = near.to(queries.device), rows.to(queries.device)
    weights = ((near - near[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(queries), int(bank_labels.max()) + 1)
    votes.scatter_add_(1, bank_labels.to(rows.device)[rows], weights)
    return votes / weights.sum(1, keepdim=True)


def knn_votes(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float, device: torch.device | None = None
) -> Tensor:
    """Return the [Q] predicted classes; the arguments are those of `class_votes`.

    Memory follows the number of classes that the bank has, not the largest of their numbers.
    """
    classes, dense = torch.unique(bank_labels, return_inverse=True)
    parts = torch.split(queries, QUERIES)
    found = [class_votes(bank, dense, part, k, temperature, device).argmax(1) for part in parts]
    predicted: Tensor = classes.to(queries.device)[torch.cat(found)]
    return predicted


class KNN:
    """A probe between epochs: a fixed part of the training split votes on a fixed part of another split.

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
        branch: Branch = "student",
    ) -> None:
        self.bank, self.queries, self.every = bank, queries, every
        self.k, self.temperature, self.branch = k, temperature, branch

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """Return `knn_accuracy` (0 to 1) and `probe_seconds` if the probe is due, else nothing."""
        if not self.every.due(progress):
            return {}
        started = time.monotonic()
        known, known_labels = self.bank[0].features(engine, self.bank[1], self.branch)
        asked, asked_labels = self.queries[0].features(engine, self.queries[1], self.branch)
        device = self.bank[0].world.device
        predicted = knn_votes(known, known_labels, asked, self.k, self.temperature, device)
        accuracy = float((predicted == asked_labels).double().mean())
        return {"knn_accuracy": accuracy, "probe_seconds": time.monotonic() - started}


class NoProbe:
    """The probe for data without labels or without a held-out split: it measures nothing."""

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """Return no metrics."""
        return {}
