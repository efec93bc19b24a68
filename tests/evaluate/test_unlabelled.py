"""Measures without labels: the papers' formulas, value by value."""

import math

import pytest
import torch
from torch import Tensor

from dist_ssl.evaluate import unlabelled
from dist_ssl.evaluate.unlabelled import alignment, effective_rank, uniformity


def features(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (5, 9), (30, 30)])
def test_the_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values(rows: int, width: int) -> None:
    found = features(rows, width)
    values = torch.linalg.eigvalsh(found.T @ found).clamp_min(0).sqrt().tolist()
    shares = [value / math.fsum(values) + 1e-7 for value in values]
    slow = math.exp(-math.fsum(p * math.log(p) for p in shares))
    assert effective_rank(found) == pytest.approx(slow, rel=1e-4)


def test_the_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(8).repeat(3, 1)) == pytest.approx(8, rel=1e-4)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1, rel=1e-4)
    assert effective_rank(features(200, 8)) > effective_rank(features(200, 8) * torch.arange(1, 9) ** 2)


def test_the_alignment_is_the_mean_squared_distance_of_unit_features() -> None:
    first, second = features(7, 5), features(7, 5, 1)
    slow = []
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        lengths = math.hypot(*a), math.hypot(*b)
        slow.append(math.fsum((x / lengths[0] - y / lengths[1]) ** 2 for x, y in zip(a, b, strict=True)))
    assert alignment(first, second) == pytest.approx(math.fsum(slow) / 7, rel=1e-12)
    assert alignment(first, 3 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4)


@pytest.mark.parametrize("rows", [1, 4, 9, 100])
def test_the_uniformity_is_over_all_pairs_of_images(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabelled, "ROWS", rows)
    found = features(19, 5).tolist()
    unit = [[x / math.hypot(*row) for x in row] for row in found]
    pairs = [(a, b) for place, a in enumerate(unit) for b in unit[:place]]
    near = [math.exp(-2 * math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for a, b in pairs]
    assert uniformity(features(19, 5)) == pytest.approx(math.log(math.fsum(near) / len(near)), rel=1e-9)


def test_the_bounds_of_the_uniformity() -> None:
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)
