"""LARS: the toys of three papers, a slow reference over many steps, what is left out, and norms of sharded tensors."""

import itertools
import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws, SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.optim import lars
from dist_ssl.optim.lars import local_norms
from dist_ssl.optim.recipes import LARS, apply_hyperparameters
from dist_ssl.protocols.method import LossOutput, Method

EMP = LARS(1.0, 1e-4, nesterov=True, trust=5e-3, ratio="parts", clip=True)
SWAV = LARS(1.0, 1e-6, trust=1e-3, ratio="parts")
MOCO = LARS(1.0, 1e-6, trust=1e-3, ratio="update")
PUBLISHED = {"emp_ssl": EMP, "swav": SWAV, "mocov3": MOCO}


def hyper(lr: float, weight_decay: float, **more: float) -> Hyperparameters:
    values = {"lr": lr, "weight_decay": weight_decay, **{f"lr/{part}": rate for part, rate in more.items()}}
    return Hyperparameters({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


def moved(recipe: LARS, p: list[float], g: list[float], lr: float, decay: float | None = None, ndim: int = 2) -> Tensor:
    """By how much one step moves a parameter, over the learning rate."""
    start = torch.tensor(p, dtype=torch.float64).view(*[1] * (ndim - 1), -1)
    parameter = nn.Parameter(start.clone())
    optimizer = recipe.build([("student.weight", parameter)])
    apply_hyperparameters(optimizer, hyper(lr, recipe.weight_decay if decay is None else decay))
    parameter.grad = torch.tensor(g, dtype=torch.float64).view_as(start)
    optimizer.step()
    return ((start - parameter.detach()) / lr).flatten()


def test_the_toy_of_emp_ssl() -> None:
    plain = LARS(1.0, 1e-4, trust=5e-3, ratio="parts", clip=True)
    update = moved(plain, [3, 4], [0.6, 0.8], 0.3)
    assert update.tolist() == pytest.approx([0.0500, 0.0667], abs=5e-5)
    factor = update / (torch.tensor([0.6, 0.8]) + 1e-4 * torch.tensor([3, 4]))
    assert factor.tolist() == pytest.approx([0.0832917] * 2, abs=5e-8)
    nesterov = moved(EMP, [3, 4], [0.6, 0.8], 0.3)
    assert nesterov.tolist() == pytest.approx((1.9 * update).tolist(), rel=1e-12)


def test_the_toy_of_moco_v3() -> None:
    assert moved(MOCO, [3, 4], [0.6, 0.8], 9.6).tolist() == pytest.approx([0.003, 0.004], abs=1e-9)


def test_the_form_of_swav_depends_on_the_learning_rate_no_more() -> None:
    expected = 1e-3 * 5 / (1 + 1e-6 * 5 + 1e-8)
    for lr in (0.3, 4.8):
        update = moved(SWAV, [3, 4], [0.6, 0.8], lr)
        assert update.tolist() == pytest.approx([expected * (0.6 + 3e-6), expected * (0.8 + 4e-6)], rel=1e-9)


def test_a_clipped_layer_is_never_sped_up() -> None:
    update = moved(LARS(1.0, 0.0, trust=1e3, ratio="parts", clip=True), [3, 4], [0.6, 0.8], 0.3)
    assert update.tolist() == pytest.approx([0.6, 0.8], rel=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_biases_and_norms_take_plain_steps(name: str) -> None:
    recipe = PUBLISHED[name]
    scale = 1 + recipe.momentum if recipe.nesterov else 1
    assert moved(recipe, [3, 4], [0.6, 0.8], 0.1, ndim=1).tolist() == pytest.approx([0.6 * scale, 0.8 * scale])


def test_decay_1d_scales_biases_too() -> None:
    recipe = LARS(1.0, 1e-6, decay_1d=True)
    assert moved(recipe, [3, 4], [0.6, 0.8], 0.1, ndim=1).tolist() == pytest.approx([0.003, 0.004], abs=1e-8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_and_gradients_of_zeros(name: str) -> None:
    recipe = PUBLISHED[name]
    scale = 1 + recipe.momentum if recipe.nesterov else 1
    from_zero = moved(recipe, [0, 0], [0.6, 0.8], 0.1)
    assert from_zero.tolist() == pytest.approx([0.6 * scale, 0.8 * scale])
    assert moved(recipe, [0, 0], [0, 0], 0.1).tolist() == [0, 0]
    still = moved(recipe, [3, 4], [0, 0], 0.1, decay=0.0)
    assert still.tolist() == [0, 0]
    decayed = moved(recipe, [3, 4], [0, 0], 0.1, decay=0.5)
    expected = [0.003, 0.004] if recipe.ratio == "update" else [0, 0]
    assert decayed.tolist() == pytest.approx(expected)


def network() -> nn.Sequential:
    """A student of a convolution and a norm, and a predictor without gradients in its last layer."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    layers = OrderedDict(student=student, predictor=nn.Linear(16, 2), idle=nn.Linear(2, 2))
    return nn.Sequential(layers).double()


def backward(net: nn.Sequential, step: int) -> None:
    net.zero_grad()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    net.predictor(net.student(x)).pow(2).sum().backward()


def slow_step(net: nn.Module, buffers: dict[str, Tensor], recipe: LARS, rates: dict[str, float], decay: float) -> None:
    """Parameter by parameter, in Python."""
    for name, p in net.named_parameters():
        if p.grad is None:
            continue
        lr, update = rates[name.partition(".")[0]], p.grad.clone()
        layer, slope = math.sqrt(float((p.detach() ** 2).sum())), math.sqrt(float((p.grad**2).sum()))
        if (p.ndim > 1 or recipe.decay_1d) and layer > 0 and slope > 0:
            update = update + decay * p.detach()
            below = math.sqrt(float((update**2).sum())) if recipe.ratio == "update" else slope + decay * layer + 1e-8
            local = recipe.trust * layer / below
            update = update * (min(local / lr, 1) if recipe.clip else local)
        buffers[name] = recipe.momentum * buffers[name] + update if name in buffers else update.clone()
        step = update + recipe.momentum * buffers[name] if recipe.nesterov else buffers[name]
        p.data -= lr * step


@pytest.mark.parametrize(
    ("ratio", "clip", "nesterov", "decay_1d"),
    [*itertools.product(["update", "parts"], [True, False], [True, False], [True, False])],
)
def test_many_steps_equal_the_slow_reference(ratio, clip: bool, nesterov: bool, decay_1d: bool) -> None:
    recipe = LARS(1.0, 0.1, decay_1d, nesterov=nesterov, momentum=0.8, trust=0.02, ratio=ratio, clip=clip)
    own_net, net, buffers = network(), network(), {}
    own = recipe.build(own_net.named_parameters())
    for step in range(5):
        lr, decay = 0.1 / (step + 1), 0.05 * (step + 1)
        rates = {"student": lr, "predictor": 0.03}
        backward(own_net, step)
        backward(net, step)
        apply_hyperparameters(own, hyper(lr, decay, predictor=0.03))
        own.step()
        slow_step(net, buffers, recipe, rates, decay)
    for p, expected in zip(own_net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-11, atol=1e-13)
    for name, p in own_net.named_parameters():
        assert own.state.get(p, {}).keys() == ({"momentum_buffer"} if name in buffers else set())
        if name in buffers:
            torch.testing.assert_close(own.state[p]["momentum_buffer"], buffers[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", PUBLISHED)
def test_gradients_are_left_as_they_are(name: str) -> None:
    net = network()
    optimizer = PUBLISHED[name].build(net.named_parameters())
    backward(net, 0)
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    apply_hyperparameters(optimizer, hyper(0.1, 0.1))
    optimizer.step()
    after = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_learning_rate_of_0_moves_nothing_but_the_momentum(name: str) -> None:
    net = network()
    optimizer = PUBLISHED[name].build(net.named_parameters())
    before = [p.detach().clone() for p in net.parameters()]
    backward(net, 0)
    apply_hyperparameters(optimizer, hyper(0.0, 0.1))
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(v["momentum_buffer"].isfinite().all() for v in optimizer.state.values())


def test_nothing_happens_without_gradients() -> None:
    net = network()
    optimizer = MOCO.build(net.named_parameters())
    apply_hyperparameters(optimizer, hyper(0.1, 0.1))
    optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("name", ["swav", "mocov3"])
def test_norms_are_asked_for_once_a_step_and_may_come_from_elsewhere(name: str) -> None:
    """Two owners with half of every layer each, whose norms cover both halves, move it as one owner would."""
    calls: list[int] = []
    whole, halves = nn.Parameter(torch.arange(8.0).view(2, 4)), [nn.Parameter(torch.arange(8.0).view(2, 4)[:1])]
    halves.append(nn.Parameter(torch.arange(8.0).view(2, 4)[1:].clone()))
    halves[0] = nn.Parameter(halves[0].detach().clone())

    def over_both(tensors) -> Tensor:
        calls.append(len(tensors))
        squares = local_norms(tensors).square().view(2, 2).sum(1)  # [params, measured] x [first half, second half]
        return squares.sqrt().repeat_interleave(2)

    gradient = torch.linspace(-1, 1, 8).view(2, 4)
    whole.grad = gradient.clone()
    halves[0].grad, halves[1].grad = gradient[:1].clone(), gradient[1:].clone()
    recipe = PUBLISHED[name]
    one = recipe.build([("student.weight", whole)])
    two = recipe.build([("student.a", halves[0]), ("student.b", halves[1])], norms=over_both)
    for optimizer in (one, two):
        apply_hyperparameters(optimizer, hyper(0.5, 0.1))
        optimizer.step()
    torch.testing.assert_close(torch.cat([h.detach() for h in halves]), whole.detach())
    assert calls == [4]


class Fit(Method):
    """Draws a linear layer's outputs towards 1."""

    num_views = 1
    teacher = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(OrderedDict(encoder=nn.Conv2d(3, 4, 3)))

    @property
    def encoder(self) -> nn.Module:
        return self.student.encoder

    def embed(self, views: list[Tensor], draws: SampleDraws) -> dict[str, Tensor]:
        return {"z": self.student(views[0])}

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, hyper: Hyperparameters) -> LossOutput:
        return LossOutput((embeddings["z"] - 1).square().mean())


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_engine_saves_its_momentum_and_goes_on_with_the_same_bits(name: str) -> None:
    def engine() -> DDP:
        return DDP(Fit(), PUBLISHED[name], world=World(), dtype=torch.float64)

    def step(engine: DDP, number: int) -> None:
        views = [torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(number), dtype=torch.float64)]
        batch = Batch(views, torch.arange(2), torch.ones(2).bool(), None, Draws(0), step=number)
        engine.step(batch, hyper(0.5, 0.1))

    whole, first, second = engine(), engine(), engine()
    for number in range(4):
        step(whole, number)
    for number in range(2):
        step(first, number)
    saved = {key: value.clone() for key, value in first.state().items()}
    assert {key for key in saved if key.startswith("optim/")} == {
        f"optim/student.encoder.{kind}/momentum_buffer" for kind in ("weight", "bias")
    }
    second.load(saved)
    for number in range(2, 4):
        step(second, number)
    assert all(torch.equal(value, second.state()[key]) for key, value in whole.state().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_scaling_all_layers_at_once_has_the_bits_of_scaling_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(0)
        shapes = [(7, 3, 3, 3), (5, 300), (1, 1), (2000, 2), (6,)]
        own = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        own[0].data = own[0].data.contiguous(memory_format=torch.channels_last)
        optimizer = PUBLISHED[name].build([(f"student.{n}", p) for n, p in enumerate(own)])
        for step in range(4):
            for place, p in enumerate(own):
                p.grad = torch.randn_like(p) if step != 1 or place else None  # a layer that does not learn yet
            apply_hyperparameters(optimizer, hyper(0.3, 1e-4))
            optimizer.step()
        return own

    wanted = trained()
    monkeypatch.setattr(lars, "ONE_BY_ONE", ())
    for found, expected in zip(trained(), wanted, strict=True):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
