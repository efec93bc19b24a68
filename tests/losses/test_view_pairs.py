"""Cross-entropy between views, pair by pair."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.losses.view_pairs import crossed_entropy
from tests.losses.tensors import close, normal, with_gradients


@given(st.integers(1, 3), st.integers(0, 3))
def test_it_is_the_mean_over_pairs_of_different_views(num_targets: int, more: int) -> None:
    num = max(2, num_targets + more)
    targets, logits = normal(num_targets, 3, 5, seed=1).softmax(2), normal(num, 3, 5, seed=2)
    own = with_gradients(lambda s: crossed_entropy(list(targets), list(s)), logits)

    def slow(scores):
        rows = []
        for b in range(3):
            pairs = [(i, v) for i in range(num_targets) for v in range(num) if i != v]
            terms = [
                -sum(targets[i, b, k] * (scores[v, b, k] - scores[v, b].exp().sum().log()) for k in range(5))
                for i, v in pairs
            ]
            rows.append(sum(terms) / len(pairs))
        return torch.stack(rows)

    close(own, with_gradients(slow, logits))


def test_a_view_does_not_predict_itself() -> None:
    targets, logits = normal(1, 2, 4, seed=1).softmax(2), normal(3, 2, 4, seed=2).requires_grad_()
    crossed_entropy(list(targets), list(logits)).sum().backward()
    assert logits.grad[0].abs().max() == 0
    assert logits.grad[1:].abs().amax((1, 2)).min() > 0


def test_flat_logits_give_the_loss_of_chance_and_the_targets_entropy_is_the_floor() -> None:
    q = normal(1, 4, 7, seed=1).softmax(2)
    entropy = -(q[0] * q[0].log()).sum(1)
    flat = crossed_entropy(list(q), [torch.zeros(4, 7).double()] * 2)
    assert flat.tolist() == pytest.approx([math.log(7)] * 4)
    assert crossed_entropy(list(q), [q[0], q[0].log() + 3]).tolist() == pytest.approx(entropy.tolist())
