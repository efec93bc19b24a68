"""MoCo v3's loss: published check values, the same rows at every split of the batch, and nothing from invalid keys."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.contrastive import keyed_cross_entropy

Q1, Q2 = torch.tensor([[1.0, 0], [0, 2]]).double(), torch.tensor([[1.0, 1], [-1, 1]]).double()
K1, K2 = torch.tensor([[1.0, 0.5], [0, 1]]).double(), torch.tensor([[2.0, 1], [-1, 3]]).double()


def normal(rows: int, width: int, seed: int) -> Tensor:
    """[rows, width] float64."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_rows(queries: Tensor, keys: Tensor, first: int, temperature: float, valid: Tensor) -> Tensor:
    """Query by query: 2 T times the negative log share of its own key among the keys that count."""
    rows = []
    for row, query in enumerate(queries):
        own = first + row
        scores = {n: float(F.cosine_similarity(query, key, dim=0)) / temperature for n, key in enumerate(keys)}
        counted = [math.exp(score) for n, score in scores.items() if n == own or valid[n]]
        rows.append(-2 * temperature * math.log(math.exp(scores[own]) / sum(counted)))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.621024), (0.2, 0.069625)])
def test_the_toy_vectors_give_the_published_values(temperature: float, expected: float) -> None:
    loss = keyed_cross_entropy(Q1, K2, 0, temperature).mean() + keyed_cross_entropy(Q2, K1, 0, temperature).mean()
    assert float(loss) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("batch", "temperature", "expected"),
    [(4096, 1.0, 33.271), (1024, 1.0, 27.726), (4096, 0.2, 6.654), (1024, 0.2, 5.545)],
)
def test_keys_that_are_all_alike_give_the_initial_loss(batch: int, temperature: float, expected: float) -> None:
    alike = torch.ones(batch, 4, dtype=torch.float64)
    loss = 2 * keyed_cross_entropy(alike[:8], alike, 0, temperature).mean()
    assert float(loss) == pytest.approx(4 * temperature * math.log(batch), rel=1e-12)
    assert float(loss) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("batch", "temperature", "expected"),
    [(4096, 1.0, 29.273), (1024, 1.0, 23.733), (4096, 0.2, 2.683), (1024, 0.2, 1.653)],
)
def test_perfect_positives_among_orthogonal_negatives_give_the_floor(
    batch: int, temperature: float, expected: float
) -> None:
    keys = torch.eye(batch)
    loss = 2 * keyed_cross_entropy(keys[:8], keys, 0, temperature).mean()
    assert float(loss) == pytest.approx(expected, abs=6e-4)


@given(st.integers(1, 6), st.integers(1, 12), st.data())
def test_rows_equal_the_slow_reference(rows: int, keys: int, data: st.DataObject) -> None:
    keys = max(rows, keys)
    first = data.draw(st.integers(0, keys - rows))
    valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=keys, max_size=keys)))
    temperature = data.draw(st.sampled_from([0.2, 1.0]))
    q, k = normal(rows, 5, 1), normal(keys, 5, 2)
    own = keyed_cross_entropy(q, k, first, temperature, valid)
    torch.testing.assert_close(own, slow_rows(q, k, first, temperature, valid), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_of_a_batch_with_their_first_row_equal_the_whole(parts: int) -> None:
    q, k = normal(12, 8, 0), normal(12, 8, 1)
    valid = torch.arange(12) % 5 != 3
    whole = keyed_cross_entropy(q, k, 0, 0.2, valid)
    size = 12 // parts
    split = [keyed_cross_entropy(part, k, size * rank, 0.2, valid) for rank, part in enumerate(q.chunk(parts))]
    torch.testing.assert_close(torch.cat(split), whole, rtol=1e-14, atol=1e-14)


def test_the_length_of_queries_and_keys_does_not_matter() -> None:
    q, k = normal(6, 4, 0), normal(6, 4, 1)
    torch.testing.assert_close(keyed_cross_entropy(3 * q, 0.1 * k, 0, 0.5), keyed_cross_entropy(q, k, 0, 0.5))


def test_all_keys_valid_is_the_default() -> None:
    q, k = normal(6, 4, 0), normal(6, 4, 1)
    assert torch.equal(keyed_cross_entropy(q, k, 0, 0.5, torch.ones(6).bool()), keyed_cross_entropy(q, k, 0, 0.5))


def test_an_invalid_key_is_no_ones_negative() -> None:
    q, k = normal(6, 4, 0), normal(6, 4, 1)
    valid = torch.tensor([True, True, False, True, True, True])
    other = k.clone()
    other[2] = 100 * normal(1, 4, 7)[0]
    first, second = keyed_cross_entropy(q, k, 0, 0.5, valid), keyed_cross_entropy(q, other, 0, 0.5, valid)
    assert torch.equal(first[valid], second[valid])
    without = [0, 1, 3, 4, 5]
    left = keyed_cross_entropy(q[without], k[without], 0, 0.5)
    torch.testing.assert_close(first[without], left, rtol=1e-14, atol=1e-14)


def test_the_row_of_an_invalid_sample_and_its_gradient_stay_finite() -> None:
    q, k = normal(4, 4, 0).requires_grad_(), normal(4, 4, 1)
    rows = keyed_cross_entropy(q, k, 0, 0.2, torch.zeros(4).bool())
    rows.sum().backward()
    assert rows.detach().tolist() == [0, 0, 0, 0]
    assert q.grad.isfinite().all()


def test_the_gradient_passes_a_numerical_check() -> None:
    q, k = normal(4, 3, 0).requires_grad_(), normal(6, 3, 1)
    assert torch.autograd.gradcheck(lambda q: keyed_cross_entropy(q, k, 1, 0.2), (q,))


def test_small_temperatures_do_not_overflow_in_single_precision() -> None:
    q, k = normal(8, 4, 0).float(), normal(8, 4, 1).float()
    assert keyed_cross_entropy(q, k, 0, 0.001).isfinite().all()
