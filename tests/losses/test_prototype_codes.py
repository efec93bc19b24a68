"""Sinkhorn's codes and SwAV's loss: the published order of steps, shares of prototypes, samples that do not count."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.prototype_codes import sinkhorn, swapped_cross_entropy
from tests.losses.tensors import agreeing, alone, growth, normal


def cosines(rows: int, prototypes: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(rows, 6, seed=seed), dim=1) @ F.normalize(normal(prototypes, 6, seed=seed + 1), dim=1).T


def slow(scores: Tensor, eps: float, iterations: int) -> Tensor:
    """In the published order, with all factors."""
    samples, prototypes = scores.shape
    q = (scores / eps).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).T


@given(st.lists(st.booleans(), max_size=8), st.integers(1, 6), st.sampled_from([0.05, 0.5]), st.integers(1, 4))
def test_the_codes_equal_the_published_steps(counts: list[bool], prototypes: int, eps: float, iterations: int) -> None:
    valid = torch.tensor([True, *counts])
    scores = cosines(len(valid), prototypes)
    codes = sinkhorn(scores, valid, alone, eps=eps, iterations=iterations)
    torch.testing.assert_close(codes[valid], slow(scores[valid], eps, iterations), rtol=1e-11, atol=1e-12)
    assert codes[~valid].abs().sum() == 0


def test_codes_are_probabilities_and_prototypes_come_to_equal_shares() -> None:
    codes = sinkhorn(cosines(60, 4), torch.ones(60).bool(), alone, iterations=200)
    assert codes.sum(1).tolist() == pytest.approx([1] * 60)
    assert codes.sum(0).tolist() == pytest.approx([15] * 4, rel=1e-6)


def test_single_precision_suffices_at_the_published_sharpness() -> None:
    scores, valid = cosines(50, 9), torch.ones(50).bool()
    single = sinkhorn(scores.float(), valid, alone)
    torch.testing.assert_close(single.double(), sinkhorn(scores, valid, alone), rtol=1e-3, atol=1e-5)
    assert sinkhorn(scores.bfloat16(), valid, alone).dtype == torch.float32


@pytest.mark.parametrize("eps", [0.05, 0.005])
def test_a_prototype_that_no_sample_likes_leaves_the_codes_finite(eps: float) -> None:
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    codes = sinkhorn(scores, torch.ones(2).bool(), alone, eps=eps)
    assert codes.isfinite().all()


def test_without_valid_samples_codes_are_zeros() -> None:
    assert sinkhorn(cosines(3, 4), torch.zeros(3).bool(), alone).abs().sum() == 0


def test_codes_carry_no_gradient() -> None:
    assert not sinkhorn(cosines(3, 4).requires_grad_(), torch.ones(3).bool(), alone).requires_grad


def test_the_loss_is_the_mean_over_code_crops_of_the_mean_over_other_crops() -> None:
    scores = [cosines(3, 5, seed=10 * n) for n in range(8)]
    codes = [sinkhorn(crop, torch.ones(3).bool(), alone) for crop in scores[:2]]
    per_crop = []
    for i in range(2):
        terms = [-(codes[i] * F.log_softmax(scores[v] / 0.1, dim=1)).sum(1) for v in range(8) if v != i]
        per_crop.append(sum(terms) / 7)
    torch.testing.assert_close(swapped_cross_entropy(scores, codes), sum(per_crop) / 2)


def test_flat_scores_start_at_the_log_of_the_prototypes() -> None:
    flat = [torch.zeros(4, 3000)] * 3
    codes = [sinkhorn(flat[0], torch.ones(4).bool(), alone)] * 2
    assert swapped_cross_entropy(flat, codes).tolist() == pytest.approx([math.log(3000)] * 4, rel=1e-5)


def test_samples_unlike_every_prototype_have_codes_however_sharp() -> None:
    scores = torch.full((4, 6), -1.0) + 0.01 * torch.eye(4, 6)
    codes = sinkhorn(scores, torch.ones(4).bool(), alone, eps=0.01)
    assert codes.sum(1).tolist() == pytest.approx([1] * 4)
    assert codes.argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("temperature", "eps"), [(0.1, 0.05), (0.3, 0.02)])
def test_small_scores_grow_where_views_agree_in_more_than_the_ratio(temperature: float, eps: float) -> None:
    valid = torch.ones(64).bool()

    def loss(*scores: Tensor) -> Tensor:
        codes = [sinkhorn(s.detach(), valid, alone, eps=eps) for s in scores]
        return swapped_cross_entropy(scores, codes, temperature)

    assert growth(loss, *agreeing(1.2 * eps / temperature)) > 0
    assert growth(loss, *agreeing(0.8 * eps / temperature)) < 0
