"""NT-Xent: its floor, its start, the slow reference with gradients, and samples that do not count."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.contrastive import nt_xent
from tests.losses.tensors import close, normal, with_gradients


def slow(whole: Tensor, temperature: float, valid: Tensor) -> Tensor:
    """The mean of l(a, b) over valid samples and both directions, embedding by embedding."""
    places = [(view, n) for n in range(whole.shape[1]) if valid[n] for view in (0, 1)]
    losses = []
    for view, n in places:
        like = {p: F.cosine_similarity(whole[view, n], whole[p], dim=0) / temperature for p in places if p != (view, n)}
        losses.append(-like[1 - view, n] + torch.stack(list(like.values())).exp().sum().log())
    return torch.stack(losses).mean()


def mean(whole: Tensor, temperature: float, valid: Tensor) -> Tensor:
    return nt_xent(whole, whole, 0, temperature, valid)[valid].mean()


@given(st.lists(st.booleans(), min_size=2, max_size=7), st.sampled_from([0.1, 0.5, 2.0]))
def test_the_loss_and_its_gradient_equal_the_slow_reference(counts: list[bool], temperature: float) -> None:
    valid = torch.tensor([True, *counts])
    whole = normal(2, len(valid), 4)
    own = with_gradients(lambda z: mean(z, temperature, valid), whole)
    close(own, with_gradients(lambda z: slow(z, temperature, valid), whole))


@pytest.mark.parametrize(("samples", "temperature"), [(256, 0.5), (64, 0.1), (2, 1.0)])
def test_perfect_positives_among_orthogonal_negatives_give_the_floor(samples: int, temperature: float) -> None:
    whole = torch.eye(samples, dtype=torch.float64).expand(2, -1, -1)
    expected = math.log(1 + (2 * samples - 2) * math.exp(-1 / temperature))
    assert nt_xent(whole, whole, 0, temperature).tolist() == pytest.approx([expected] * samples, rel=1e-12)


@pytest.mark.parametrize("samples", [2, 50])
def test_embeddings_that_are_all_alike_give_the_loss_of_chance(samples: int) -> None:
    whole = torch.ones(2, samples, 3, dtype=torch.float64)
    assert nt_xent(whole, whole, 0, 0.5).tolist() == pytest.approx([math.log(2 * samples - 1)] * samples)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_with_their_first_row_equal_the_whole(parts: int) -> None:
    whole, valid = normal(2, 8, 5), torch.arange(8) % 3 != 1
    size = 8 // parts
    split = [nt_xent(own, whole, size * n, 0.2, valid) for n, own in enumerate(whole.chunk(parts, dim=1))]
    torch.testing.assert_close(torch.cat(split), nt_xent(whole, whole, 0, 0.2, valid), rtol=1e-14, atol=1e-14)


def test_a_sample_that_does_not_count_gets_no_gradient() -> None:
    valid = torch.tensor([True, False, True])
    gradient = with_gradients(lambda z: mean(z, 0.5, valid), normal(2, 3, 4))[1]
    assert gradient[:, 1].abs().max() == 0
    assert gradient[:, 0].abs().max() > 0


def test_rows_stay_finite_where_nothing_counts() -> None:
    whole = normal(2, 3, 4)
    _, gradient = with_gradients(lambda z: nt_xent(z, z, 0, 0.5, torch.zeros(3).bool()), whole)
    assert gradient.isfinite().all()
