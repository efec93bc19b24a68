"""Signs of health: their values where all embeddings are one, where they are spread evenly, and in between."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.losses.health import signs_of_health


def signs(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in signs_of_health(first, second).items()}


def test_a_collapse() -> None:
    one = torch.ones(6, 4, dtype=torch.float64)
    assert signs(one, 3 * one) == pytest.approx(
        {"feature_std": 0, "positive_similarity": 1, "negative_similarity": 1, "effective_rank": 0}, abs=1e-6
    )


def test_an_even_spread() -> None:
    axes = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    assert signs(axes, -axes) == pytest.approx(
        {"feature_std": 0.5, "positive_similarity": -1, "negative_similarity": -1 / 7, "effective_rank": 4}
    )


def test_one_sample_has_no_negatives() -> None:
    assert signs(torch.ones(1, 4), torch.ones(1, 4))["negative_similarity"] == pytest.approx(0, abs=1e-6)


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 99))
def test_they_are_those_of_plain_sums(size: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, size, width, dtype=torch.float64, generator=generator)
    unit = torch.nn.functional.normalize(x, dim=1)
    found = signs(x, y)
    pairs = [float(unit[i] @ unit[j]) for i in range(size) for j in range(size) if i != j]
    assert found["negative_similarity"] == pytest.approx(sum(pairs) / len(pairs))
    values = torch.linalg.eigvalsh(torch.cov(unit.T, correction=0).reshape(width, width)).clamp_min(0)
    if values.sum() > 1e-9:
        assert found["effective_rank"] == pytest.approx((values.sum() ** 2 / values.square().sum()).item())
