"""MoCo v2: the queue before and after a step, the loss against it, and keys in groups of another order."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dist_ssl.core.batch import Batch
from dist_ssl.errors import ConfigError
from dist_ssl.models.norm import BatchNorm
from tests.methods import small


def test_against_an_empty_queue_there_is_nothing_to_tell_apart() -> None:
    m, b = small.method("mocov2"), small.batch()
    assert m.loss(small.forward(m, b), b, small.HYPER).loss.item() == 0


def test_the_loss_is_that_against_the_keys_of_earlier_steps_of_other_images() -> None:
    m = small.method("mocov2", slots=16)
    small.step(m, small.batch(first=4, seed=1))
    keys = m.queue.keys[:6].clone()
    b = small.batch(seed=2)  # samples 0 to 5: 4 and 5 are in the queue already
    e = small.forward(m, b)
    q, k = F.normalize(e["q"], dim=1).detach(), F.normalize(e["k"], dim=1)
    rows = []
    for row, sample in enumerate(b.ids.tolist()):
        others = keys[[n for n in range(6) if 4 + n != sample]]
        logits = torch.cat([(q[row] @ k[row])[None], others @ q[row]]) / 0.2
        rows.append(logits.logsumexp(0) - logits[0])
    assert m.loss(e, b, small.HYPER).loss.item() == pytest.approx(torch.stack(rows).mean().item())


def test_the_first_loss_against_a_full_queue_of_random_keys_is_the_published_one() -> None:
    m = small.method("mocov2", dim=128, slots=65536)
    m.queue.keys.copy_(F.normalize(torch.randn(65536, 128, dtype=torch.float64), dim=1))
    m.queue.ids.fill_(1000)
    e = {"q": torch.eye(128, dtype=torch.float64)[:6], "k": torch.eye(128, dtype=torch.float64)[6:12]}
    assert m.loss(e, small.batch(), small.HYPER).loss.item() == pytest.approx(11.19, abs=0.03)
    m.queue.keys.zero_()
    floor = m.loss({"q": e["q"], "k": e["q"]}, small.batch(), small.HYPER).loss.item()
    assert floor == pytest.approx(6.093, abs=1e-3)
    assert floor == pytest.approx(math.log(1 + 65536 * math.exp(-5)))


def test_a_head_may_be_one_linear_map() -> None:
    assert small.layout(small.published("mocov2", hidden=None).student.projector) == "32-128+"
    assert small.layout(small.published("mocov2", head_norm=True).student.projector) == "32-2048+ BN ReLU 2048-128+ bn"
    assert small.layout(small.published("mocov2").student.projector) == "32-2048+ ReLU 2048-128+"


def test_a_step_pushes_unit_keys_of_the_second_view_of_readable_samples() -> None:
    m, b = small.method("mocov2"), small.batch(invalid=(1,), first=30)
    small.step(m, b)
    assert m.queue.ids[:6].tolist() == [30, 32, 33, 34, 35, -1]
    keys = F.normalize(m.teacher(b.views[1]), dim=1)
    assert torch.allclose(m.queue.keys[:5], keys[[0, 2, 3, 4, 5]])


def test_shuffled_keys_are_those_of_other_groups_in_the_old_order() -> None:
    m = small.method("mocov2", norm_group=2, shuffle=True)
    plain = small.method("mocov2", norm_group=2)
    b = small.batch(size=8)
    k, straight = (small.forward(method, b)["k"] for method in (m, plain))
    assert not torch.allclose(k, straight)
    for child in (*m.modules(), *plain.modules()):
        if isinstance(child, BatchNorm):
            child.eval()  # without groups an order makes no difference
    assert torch.allclose(small.forward(m, b)["k"], small.forward(plain, b)["k"])


def swapped(b: Batch) -> Batch:
    """The same batch with the second view first."""
    return replace(b, views=b.views[::-1])


def test_the_symmetric_loss_is_the_sum_of_both_directions_of_one() -> None:
    both, one = (small.method("mocov2", slots=16, symmetric=symmetric) for symmetric in (True, False))
    for m in (both, one):
        m.queue.keys[:9] = F.normalize(torch.randn(9, 64, generator=torch.Generator().manual_seed(1)).double(), dim=1)
        m.queue.ids[:9] = torch.arange(3, 12)
    b = small.batch(seed=2)
    out = both.loss(small.forward(both, b), b, small.HYPER)
    ours = small.gradients(both, b, out)
    parts = [one.loss(small.forward(one, there), there, small.HYPER).loss for there in (b, swapped(b))]
    assert out.loss.item() == pytest.approx(sum(part.item() for part in parts))
    one.zero_grad()
    sum(parts).backward()  # type: ignore[union-attr,no-untyped-call]
    assert all(torch.allclose(ours[n], p.grad, atol=1e-9) for n, p in one.named_parameters() if p.grad is not None)


def test_a_symmetric_step_pushes_the_keys_of_both_views() -> None:
    m, b = small.method("mocov2", symmetric=True), small.batch(invalid=(1,), first=30)
    small.step(m, b)
    assert m.queue.ids[:11].tolist() == [30, 30, 32, 32, 33, 33, 34, 34, 35, 35, -1]
    for place, view in enumerate(reversed(b.views)):
        assert torch.allclose(m.queue.keys[place:10:2], F.normalize(m.teacher(view), dim=1)[[0, 2, 3, 4, 5]])


def test_the_keys_of_both_directions_are_shuffled_differently() -> None:
    m = small.method("mocov2", norm_group=2, shuffle=True, symmetric=True)
    b = small.batch(size=8)
    b.views[1] = b.views[0]
    e = small.forward(m, b)
    assert torch.equal(e["q"], e["q_back"])
    assert not torch.allclose(e["k"], e["k_back"])


def test_shuffling_without_groups_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.shuffle=true changes nothing .*\n.*method.norm_group"):
        small.method("mocov2", shuffle=True)
