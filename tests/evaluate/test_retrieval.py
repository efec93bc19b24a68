"""Retrieval: the mean average precision is scikit-learn's, whatever is ranked at once."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from dist_ssl.evaluate import retrieval
from dist_ssl.evaluate.retrieval import mean_average_precision


def published(features: Tensor, labels: Tensor) -> float:
    """The mean of scikit-learn's, image by image."""
    unit = F.normalize(features, dim=1)
    precisions = []
    for place in range(len(unit)):
        others = np.arange(len(unit)) != place
        right = (labels == labels[place]).numpy()[others]
        if right.any():
            precisions.append(average_precision_score(right, (unit @ unit[place]).numpy()[others]))
    return float(np.mean(precisions))


@pytest.mark.parametrize(("similarities", "rows"), [(1, 7), (100, 16), (1 << 24, 1000)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_scikit_learn(similarities: int, rows: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SIMILARITIES", similarities)
    monkeypatch.setattr(retrieval, "ROWS", rows)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (60,), generator=generator)
    labels[0] = 9  # the only one of its class: it finds nothing, and is in the way of the others
    features = torch.randn(60, 4, generator=generator, dtype=torch.float64) + labels[:, None] / 4
    assert mean_average_precision(features, labels) == pytest.approx(published(features, labels), abs=1e-9)


def test_images_that_are_equally_near_count_together() -> None:
    """Features of few values have many ties, collapsed ones are all tied: no order of them may flatter."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (40,), generator=generator)
    few = torch.eye(4, dtype=torch.float64)[torch.randint(0, 4, (40,), generator=generator)]
    assert mean_average_precision(few, labels) == pytest.approx(published(few, labels), abs=1e-9)
    collapsed = torch.ones(40, 4, dtype=torch.float64)
    chance = torch.tensor([(int((labels == label).sum()) - 1) / 39 for label in labels]).double().mean()
    assert mean_average_precision(collapsed, labels) == pytest.approx(float(chance), abs=1e-6)


def test_perfect_features_and_features_without_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert mean_average_precision(torch.eye(3)[labels], labels) == 1.0
    assert math.isnan(mean_average_precision(torch.eye(3), torch.arange(3)))
