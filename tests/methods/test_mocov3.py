"""MoCo v3: published values, a teacher without gradient, and nothing from samples that could not be read."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.methods.mocov3 import MoCoV3
from dist_ssl.models import norm
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.schedules.warmup_cosine import value

Q1, Q2 = torch.tensor([[1.0, 0], [0, 2]]).double(), torch.tensor([[1.0, 1], [-1, 1]]).double()
K1, K2 = torch.tensor([[1.0, 0.5], [0, 1]]).double(), torch.tensor([[2.0, 1], [-1, 3]]).double()
HYPER = Hyperparameters({})


@dataclass(frozen=True)
class ResultMessage(World):
    """A rank whose gathers return given values."""

    everything: Tensor = field(default_factory=lambda: torch.empty(0))

    def gather_const(self, x: Tensor) -> Tensor:
        return self.everything


def method(world: World | None = None, temperature: float = 0.2) -> MoCoV3:
    """A small one in double precision, always the same."""
    torch.manual_seed(0)
    made = MoCoV3(TinyResNet(2), world=world or World(), hidden=24, dim=8, temperature=temperature, momentum=0.9)
    return made.double().train()


def batch(size: int = 6, valid: list[bool] | None = None, seed: int = 0) -> Batch:
    """Two views of 24 px."""
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(size, 3, 24, 24, generator=generator, dtype=torch.float64) for _ in range(2)]
    kept = torch.tensor(valid if valid is not None else [True] * size)
    return Batch(views, torch.arange(size), kept, None, Draws(0), step=0)


def embeddings(size: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Random queries and keys."""
    generator = torch.Generator().manual_seed(seed)
    names = ("p1", "p2", "t1", "t2")
    return {name: torch.randn(size, 8, generator=generator, dtype=torch.float64) for name in names}


def seen(method: MoCoV3, views: list[Tensor]) -> dict[str, Tensor]:
    """All embeddings of views."""
    return method(views, Draws(0).of(np.arange(len(views[0]))))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.621024), (0.2, 0.069625)])
def test_the_toy_vectors_give_the_published_loss(temperature: float, expected: float) -> None:
    toy = {"p1": Q1, "p2": Q2, "t1": K1, "t2": K2}
    out = method(temperature=temperature).loss(toy, batch(2), HYPER)
    assert float(out.loss) == pytest.approx(expected, abs=5e-7)


def test_keys_that_are_all_alike_give_the_initial_loss() -> None:
    alike = {name: torch.ones(64, 8, dtype=torch.float64) for name in ("p1", "p2", "t1", "t2")}
    out = method(temperature=0.2).loss(alike, batch(64), HYPER)
    assert float(out.loss) == pytest.approx(4 * 0.2 * math.log(64))


def test_momentum_rises_to_one_and_is_that_of_the_following_step() -> None:
    curve = method().curves["momentum"]
    assert list(method().curves) == ["momentum"]
    assert (curve.start, curve.end, curve.for_next_step, curve.warms_up) == (0.9, 1.0, True, False)
    published = MoCoV3(TinyResNet(2), world=World()).curves["momentum"]
    values = [value(published, position, 0, 100) for position in (0, 25, 50, 75, 100)]
    assert values == pytest.approx([0.99, 0.991464, 0.995, 0.998536, 1.0], abs=5e-7)


def test_the_teacher_begins_as_the_student_and_has_no_gradient() -> None:
    m = method()
    own, teacher = dict(m.student.named_parameters()), dict(m.teacher.named_parameters())
    assert own.keys() == teacher.keys()
    assert all(torch.equal(own[name], teacher[name]) and own[name] is not teacher[name] for name in own)
    assert all(p.requires_grad for p in own.values())
    assert not any(p.requires_grad for p in teacher.values())


def test_heads_have_no_biases_and_every_norm_is_the_jobs() -> None:
    m = method()
    linear = [layer for layer in (*m.student.projector, *m.predictor) if isinstance(layer, nn.Linear)]
    assert [layer.bias for layer in linear] == [None] * 4
    assert isinstance(m.student.projector[-1], norm.BatchNorm)
    assert m.student.projector[-1].weight is None
    assert isinstance(m.predictor[-1], nn.Linear)
    assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in m.modules())


def test_the_encoder_is_the_students() -> None:
    m = method()
    assert m.encoder is m.student.encoder
    assert m.num_views == 2


def test_embed_gives_queries_with_and_keys_without_gradient() -> None:
    e = seen(method(), batch().views)
    assert {name: (tuple(x.shape), x.requires_grad) for name, x in e.items()} == {
        "p1": ((6, 8), True),
        "p2": ((6, 8), True),
        "t1": ((6, 8), False),
        "t2": ((6, 8), False),
    }


def test_embedding_twice_gives_the_same_and_changes_no_buffer() -> None:
    m = method()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    first, second = seen(m, batch().views), seen(m, batch().views)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, before[name]) for name, value in m.state_dict().items())


def test_loss_twice_gives_the_same_and_changes_no_buffer() -> None:
    m = method()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    outs = [m.loss(embeddings(), batch(), HYPER) for _ in range(2)]
    assert torch.equal(outs[0].loss, outs[1].loss)
    assert all(torch.equal(value, before[name]) for name, value in m.state_dict().items())


def test_each_view_has_batch_statistics_of_its_own() -> None:
    views = batch().views
    both = seen(method(), views)
    twice = seen(method(), [views[0], views[0]])
    torch.testing.assert_close(both["p1"], twice["p1"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(both["t1"], twice["t1"], rtol=1e-10, atol=1e-10)


def test_swapping_the_views_swaps_the_embeddings_and_keeps_the_loss() -> None:
    one, two = method(), method()
    views = batch().views
    first, second = seen(one, views), seen(two, views[::-1])
    torch.testing.assert_close(first["p1"], second["p2"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        one.loss(first, batch(), HYPER).loss, two.loss(second, batch(), HYPER).loss, rtol=1e-10, atol=1e-10
    )


def test_the_gradient_reaches_student_and_predictor_and_not_the_teacher() -> None:
    m, b = method(), batch()
    out = m.loss(seen(m, b.views), b, HYPER)
    assert out.loss.isfinite()
    out.loss.backward()
    for name, p in (*m.student.named_parameters(), *m.predictor.named_parameters()):
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in m.teacher.parameters())


def test_no_gradient_flows_into_the_keys() -> None:
    e = {name: x.requires_grad_() for name, x in embeddings().items()}
    method().loss(e, batch(), HYPER).loss.backward()
    assert e["p1"].grad.abs().sum() > 0
    assert e["t1"].grad is None
    assert e["t2"].grad is None


def test_an_invalid_sample_contributes_nothing_whatever_it_shows() -> None:
    kept = [True, True, False, True, False, True]
    m, b, e = method(), batch(valid=kept), embeddings()
    other = {name: torch.where(b.valid[:, None], x, 9 * embeddings(seed=5)[name]) for name, x in e.items()}
    first = {name: x.clone().requires_grad_() for name, x in e.items()}
    second = {name: x.clone().requires_grad_() for name, x in other.items()}
    losses = [m.loss(x, b, HYPER).loss for x in (first, second)]
    for loss in losses:
        loss.backward()
    assert torch.equal(losses[0], losses[1])
    for name in ("p1", "p2"):
        assert torch.equal(first[name].grad[b.valid], second[name].grad[b.valid])
        assert first[name].grad[~b.valid].abs().sum() == 0


def test_the_loss_with_invalid_samples_is_that_of_the_batch_without_them() -> None:
    kept = torch.tensor([True, True, False, True, False, True])
    e = embeddings()
    masked = method().loss(e, batch(valid=kept.tolist()), HYPER).loss
    without = method().loss({name: x[kept] for name, x in e.items()}, batch(4), HYPER).loss
    torch.testing.assert_close(masked, without, rtol=1e-13, atol=1e-13)


def test_a_batch_without_any_valid_sample_has_loss_zero() -> None:
    e = {name: x.requires_grad_() for name, x in embeddings().items()}
    loss = method().loss(e, batch(valid=[False] * 6), HYPER).loss
    loss.backward()
    assert loss.item() == 0
    assert e["p1"].grad.isfinite().all()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kept", [[True] * 6, [True, False, False, True, True, True]])
def test_the_mean_over_ranks_is_the_loss_of_one_rank_with_the_same_gradient(size: int, kept: list[bool]) -> None:
    whole = {name: x.requires_grad_() for name, x in embeddings().items()}
    loss = method().loss(whole, batch(valid=kept), HYPER).loss
    loss.backward()
    everything = torch.cat([whole["t1"], whole["t2"], torch.tensor(kept)[:, None].double()], dim=1).detach()
    total = torch.zeros((), dtype=torch.float64)
    for rank in range(size):
        share = {name: x.detach().chunk(size)[rank].clone().requires_grad_() for name, x in whole.items()}
        own = kept[rank * 6 // size : (rank + 1) * 6 // size]
        m = method(ResultMessage(rank=rank, size=size, everything=everything))
        out = m.loss(share, batch(6 // size, valid=own), HYPER).loss / size
        out.backward()
        total += out.detach()
        for name in ("p1", "p2"):
            torch.testing.assert_close(share[name].grad, whole[name].grad.chunk(size)[rank], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(total, loss.detach(), rtol=1e-13, atol=1e-13)


def test_the_signals_of_health_are_single_detached_numbers() -> None:
    e = {name: x.requires_grad_() for name, x in embeddings().items()}
    found = method().loss(e, batch(), HYPER).metrics
    assert set(found) == {"feature_std", "positive_similarity", "negative_similarity", "effective_rank"}
    assert all(x.ndim == 0 and not x.requires_grad for x in found.values())


def test_a_collapsed_student_shows_in_the_signals() -> None:
    alike = {name: torch.ones(6, 8, dtype=torch.float64) for name in ("p1", "p2", "t1", "t2")}
    found = method().loss(alike, batch(), HYPER).metrics
    assert float(found["feature_std"]) == pytest.approx(0, abs=1e-12)
    assert float(found["positive_similarity"]) == pytest.approx(1)


def test_remembering_changes_nothing() -> None:
    m = method()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    m.remember(m.loss(embeddings(), batch(), HYPER), batch(), HYPER)
    assert all(torch.equal(value, before[name]) for name, value in m.state_dict().items())
