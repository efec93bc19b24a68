"""VICReg: each term against a slow reference with gradients, its zero, and samples that do not count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.variance_covariance import spread, vicreg
from tests.losses.tensors import close, normal, with_gradients


def slow(z1: Tensor, z2: Tensor) -> Tensor:
    """The three terms, entry by entry."""
    n, width = z1.shape
    alike = sum((a - b) ** 2 for a, b in zip(z1.flatten(), z2.flatten(), strict=True)) / (n * width)
    short, squares = 0, 0
    for z in (z1, z2):
        centred = [z[:, j] - z[:, j].sum() / n for j in range(width)]
        for i in range(width):
            short += (1 - ((centred[i] ** 2).sum() / (n - 1) + 1e-4).sqrt()).clamp_min(0) / width / 2
            squares += sum(((centred[i] * centred[j]).sum() / (n - 1)) ** 2 for j in range(width) if i != j) / width
    return 25 * alike + 25 * short + squares


@given(st.lists(st.booleans(), max_size=5), st.floats(0.2, 2))
def test_the_loss_and_its_gradients_equal_the_slow_reference(counts: list[bool], scale: float) -> None:
    valid = torch.tensor([True, *counts, True])
    z1, z2 = scale * normal(len(valid), 3, seed=1), scale * normal(len(valid), 3, seed=2) + 5
    own = with_gradients(lambda a, b: vicreg(a, b, valid).loss, z1, z2)
    close(own, with_gradients(lambda a, b: slow(a[valid], b[valid]), z1, z2), 1e-10)


def test_equal_decorrelated_embeddings_of_deviation_1_cost_nothing() -> None:
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double() * 0.9
    found = vicreg(z, z, torch.ones(4).bool())
    assert [float(v) for v in (found.invariance, found.variance, found.covariance)] == pytest.approx([0, 0, 0])
    assert float(found.loss) == pytest.approx(0, abs=1e-12)


def test_a_collapse_costs_the_variance_term() -> None:
    found = vicreg(torch.ones(6, 4).double(), torch.ones(6, 4).double(), torch.ones(6).bool())
    assert float(found.variance) == pytest.approx(1 - 0.01)  # eps 1e-4 under the root
    assert float(found.loss) == pytest.approx(25 * 0.99)


def test_perfect_correlation_costs_the_covariance_term() -> None:
    z = normal(200, 1).expand(200, 5)
    _, squares = spread(z, torch.ones(200).bool())
    assert float(squares) == pytest.approx(4 * float(z[:, 0].var()) ** 2)


def test_the_weights_weigh() -> None:
    z1, z2, valid = normal(6, 3, seed=1), normal(6, 3, seed=2), torch.ones(6).bool()
    found = vicreg(z1, z2, valid, invariance=2, variance=3, covariance=5)
    assert float(found.loss) == pytest.approx(
        float(2 * found.invariance + 3 * found.variance + 5 * found.covariance), rel=1e-12
    )


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_valid_sample_is_finite(count: int) -> None:
    valid = torch.arange(3) < count
    own = with_gradients(lambda a, b: vicreg(a, b, valid).loss, normal(3, 2, seed=1), normal(3, 2, seed=2))
    assert all(value.isfinite().all() for value in own)
