"""MoCo's loss against a queue: published check values, unfilled slots, and the slow reference with gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.queued import queue_cross_entropy, queue_logits
from tests.losses.tensors import close, normal, with_gradients


def slow(q: Tensor, k: Tensor, queue: Tensor, filled: Tensor, temperature: float) -> Tensor:
    """Row by row: minus the log share of the own key among it and the filled slots."""
    rows = []
    for query, key in zip(q, k, strict=True):
        own = F.cosine_similarity(query, key, dim=0) / temperature
        others = [F.cosine_similarity(query, slot, dim=0) / temperature for slot in queue[filled]]
        rows.append(torch.stack([own, *others]).exp().sum().log() - own)
    return torch.stack(rows)


@given(st.lists(st.booleans(), max_size=9), st.sampled_from([0.07, 0.2, 1.0]))
def test_rows_and_gradients_equal_the_slow_reference(slots: list[bool], temperature: float) -> None:
    filled = torch.tensor(slots, dtype=torch.bool)
    q, k, queue = normal(3, 4, seed=1), normal(3, 4, seed=2), normal(len(slots), 4, seed=3)
    own = with_gradients(lambda q, k: queue_cross_entropy(q, k, queue, filled, temperature), q, k)
    close(own, with_gradients(lambda q, k: slow(q, k, queue, filled, temperature), q, k))


@pytest.mark.parametrize(("temperature", "start", "floor"), [(0.07, 11.89, None), (0.2, 11.19, 6.093)])
def test_a_queue_of_65536_gives_the_published_start_and_floor(
    temperature: float, start: float, floor: float | None
) -> None:
    num = 65536
    q, queue = normal(16, 128, seed=1).float(), normal(num, 128, seed=2).float()
    unlike = F.normalize(normal(16, 128, seed=3).float(), dim=1)
    found = queue_cross_entropy(q, unlike, queue, torch.ones(num).bool(), temperature)
    # the expectation over unit vectors of 128 numbers, of which a negative's cosine has variance 1/128
    assert math.log(1 + num * math.exp(1 / (2 * 128 * temperature**2))) == pytest.approx(start, abs=0.08)
    positive = (F.normalize(q, dim=1) * unlike).sum(1) / temperature
    assert float((found + positive).mean()) == pytest.approx(start, abs=0.08)
    if floor is not None:
        e = torch.eye(2)[:1]
        away = torch.eye(2)[1:].expand(num, 2)
        assert float(queue_cross_entropy(e, e, away, torch.ones(num).bool(), temperature)) == pytest.approx(
            floor, abs=6e-4
        )


def test_no_similarity_at_all_gives_the_loss_of_chance() -> None:
    q, k, queue = torch.eye(3)[:1], torch.eye(3)[1:2], torch.eye(3)[2:].expand(65536, 3)
    found = queue_cross_entropy(q, k, queue, torch.ones(65536).bool(), 0.2)
    assert float(found) == pytest.approx(math.log(65537), abs=1e-4)


def test_an_empty_queue_teaches_nothing() -> None:
    q, k, queue = normal(3, 4, seed=1), normal(3, 4, seed=2), normal(5, 4, seed=3)
    loss, gradient = with_gradients(lambda q: queue_cross_entropy(q, k, queue, torch.zeros(5).bool(), 0.2), q)
    assert float(loss) == 0
    assert gradient.abs().max() == 0


def test_the_logits_have_the_positive_first_and_then_the_slots() -> None:
    q, k, queue = normal(2, 4, seed=1), normal(2, 4, seed=2), normal(3, 4, seed=3)
    logits = queue_logits(q, k, queue, torch.tensor([True, False, True]), 0.5)
    assert logits.shape == (2, 4)
    assert float(logits[1, 0]) == pytest.approx(2 * float(F.cosine_similarity(q[1], k[1], dim=0)))
    assert float(logits[0, 3]) == pytest.approx(2 * float(F.cosine_similarity(q[0], queue[2], dim=0)))
    assert logits[:, 2].tolist() == [-math.inf] * 2
