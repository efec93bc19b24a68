"""Which parameters decay, how hyperparameters reach the optimizer, and that the optimizers are torch's."""

import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.methods.rotation import Rotation
from dist_ssl.metrics.table import series_of
from dist_ssl.optim.recipes import LARS, SGD, AdamW, apply_hyperparameters, parameter_groups
from dist_ssl.schedules.warmup_cosine import value
from tests.methods.small import method
from tests.methods.test_contract import NAMES

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "optim").glob("*.yaml"))


def network() -> nn.Sequential:
    """A student of a convolution and a norm, and a predictor of a linear layer, always the same."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    return nn.Sequential(OrderedDict(student=student, predictor=nn.Linear(16, 2))).double()


def hyper(lr: float, weight_decay: float, **more: float) -> Hyperparameters:
    """The hyperparameters that an optimizer reads; `more` are rates of parts."""
    values = {"lr": lr, "weight_decay": weight_decay, **{f"lr/{part}": rate for part, rate in more.items()}}
    return Hyperparameters({name: torch.tensor(value) for name, value in values.items()})


def backward(net: nn.Module, step: int) -> None:
    """Fill the gradients of one step."""
    net.zero_grad()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    net(x).pow(2).sum().backward()


def test_biases_and_norms_do_not_decay() -> None:
    net = network()
    groups = parameter_groups(net.named_parameters(), decay_1d=False)
    assert [(g["part"], g["decays"], [p.ndim for p in g["params"]]) for g in groups] == [
        ("student", 1.0, [4]),
        ("student", 0.0, [1, 1, 1]),
        ("predictor", 1.0, [2]),
        ("predictor", 0.0, [1]),
    ]


def test_decay_1d_makes_all_parameters_decay() -> None:
    groups = parameter_groups(network().named_parameters(), decay_1d=True)
    assert [(g["part"], g["decays"], len(g["params"])) for g in groups] == [("student", 1.0, 4), ("predictor", 1.0, 2)]


@pytest.mark.parametrize(
    ("recipe", "own", "message"),
    [
        (
            AdamW,
            {"betas": (0.9, 1.0)},
            "optim.betas=1 is not possible: it must be two numbers, each from 0 to less than 1.",
        ),
        (AdamW, {"eps": 0.0}, "optim.eps=0 is not possible: it must be more than 0."),
        (SGD, {"momentum": 1.0}, "optim.momentum=1 is not possible: it must be from 0 to less than 1."),
        (SGD, {"momentum": 0.0, "nesterov": True}, "optim.nesterov=true is not possible with optim.momentum=0"),
    ],
)
def test_what_an_optimizer_cannot_work_with_is_refused(recipe: Any, own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        recipe(0.1, 0.0, **own)


def test_frozen_parameters_are_left_out() -> None:
    net = network()
    net.student[0].requires_grad_(False)
    found = [p for group in parameter_groups(net.named_parameters(), decay_1d=False) for p in group["params"]]
    assert len(found) == 4
    assert all(p.requires_grad for p in found)


def test_hyperparameters_set_every_group_and_decay_only_where_it_is_due() -> None:
    optimizer = AdamW(1.0, 0.1).build(network().named_parameters())
    apply_hyperparameters(optimizer, hyper(0.25, 0.5))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25] * 4
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0, 0.5, 0.0]


def test_a_part_with_a_hyperparameter_of_its_own_learns_at_that_rate() -> None:
    optimizer = AdamW(1.0, 0.1).build(network().named_parameters())
    apply_hyperparameters(optimizer, hyper(0.25, 0.5, predictor=0.75))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25, 0.75, 0.75]


def test_a_constant_part_declares_the_peak_as_its_hyperparameter() -> None:
    found = SGD(0.05, 1e-4, rises_from=0.25, constant=["predictor"]).curves(512)
    assert set(found) == {"lr", "weight_decay", "lr/predictor"}
    assert [value(found["lr/predictor"], position, 10, 100) for position in (0, 5, 50, 100)] == pytest.approx([0.1] * 4)
    assert value(found["lr"], 0, 10, 100) == pytest.approx(0.025)


def test_the_predictor_may_learn_at_a_multiple_of_the_rate() -> None:
    found = SGD(0.05, 1e-4, rises_from=0.25, falls_to=0.1, predictor_rate=10.0).curves(512)
    assert set(found) == {"lr", "weight_decay", "lr/predictor"}
    for position in (0, 5, 10, 50, 100):
        own, other = (value(found[name], position, 10, 100) for name in ("lr/predictor", "lr"))
        assert own == pytest.approx(10 * other)
    constant = SGD(0.05, 1e-4, constant=["predictor"], predictor_rate=10.0).curves(512)["lr/predictor"]
    assert [value(constant, position, 10, 100) for position in (0, 50, 100)] == pytest.approx([1.0] * 3)


def test_a_rate_for_a_predictor_that_is_not_there_is_refused() -> None:
    SGD(1.0, 0.1, predictor_rate=10.0).build(network().named_parameters())
    with pytest.raises(ConfigError, match=r"optim\.predictor_rate=10 changes nothing: this method has no predictor"):
        SGD(1.0, 0.1, predictor_rate=10.0).build(network().student.named_parameters())


def test_a_constant_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.constant names 'predictr'") as caught:
        SGD(1.0, 0.1, constant=["predictr"]).build(network().named_parameters())
    assert "'predictor'" in caught.value.remedy


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        *[(SGD, key, value) for key in ("rises_from", "falls_to") for value in (-0.1, 1.5)],
        *[(AdamW, key, -1.0) for key in ("base_lr", "weight_decay", "predictor_rate")],
        *[(recipe, "momentum", value) for recipe in (SGD, LARS) for value in (-0.1, 1.0)],
        *[(LARS, "trust", value) for value in (-1.0, 0.0)],
        (AdamW, "eps", 0.0),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(recipe, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"optim\.{key}={value:g} is not possible: it must be .+\."):
        recipe(**{"base_lr": 1.0, "weight_decay": 0.1, key: value})


@pytest.mark.parametrize("name", NAMES)
def test_the_rates_of_a_methods_parts_stand_in_the_metric_table(name: str) -> None:
    # a rate that shared a series with another would hide it
    own = Rotation(method(name), world=World(), hidden=4)
    parts = {group["part"] for group in parameter_groups(own.named_parameters(), decay_1d=False)}
    assert {"student", "rotation"} <= parts
    curves = SGD(1.0, 0.1, constant=sorted(parts)).curves(256)
    assert len({series_of(key) for key in curves}) == len(curves) == 2 + len(parts)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_builds_an_optimizer_that_moves_every_parameter(path: Path) -> None:
    recipe, net = instantiate(yaml.safe_load(path.read_text()), "optim"), network()
    optimizer = recipe.build(net.named_parameters())
    before = [p.detach().clone() for p in net.parameters()]
    backward(net, 0)
    apply_hyperparameters(
        optimizer, Hyperparameters({name: torch.tensor(curve.start) for name, curve in recipe.curves(256).items()})
    )
    optimizer.step()
    assert all(p.isfinite().all() and not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_nothing_moves_before_the_hyperparameters_are_set() -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = SGD(1.0, 0.1).build(net.named_parameters())
    backward(net, 0)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(("batch", "peak"), [(256, 0.6), (4096, 9.6), (128, 0.3)])
def test_the_learning_rate_follows_the_linear_rule(batch: int, peak: float) -> None:
    found = SGD(0.6, 1e-6).curves(batch)
    assert found["lr"].start == pytest.approx(peak)
    assert (found["lr"].end, found["lr"].warms_up) == (0.0, True)
    assert (found["weight_decay"].start, found["weight_decay"].end) == (1e-6, 1e-6)
    assert not found["weight_decay"].warms_up


@pytest.mark.parametrize("decay_1d", [True, False])
@pytest.mark.parametrize(
    ("recipe", "theirs", "options"),
    [
        (AdamW(1, 0.1, betas=(0.8, 0.95), eps=1e-6), torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-6}),
        (SGD(1, 0.1, momentum=0.8, nesterov=True), torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        (SGD(1, 0.1, momentum=0.8), torch.optim.SGD, {"momentum": 0.8}),
    ],
)
def test_updates_equal_torch(recipe, theirs, options, decay_1d: bool) -> None:
    own_net, net = network(), network()
    recipe = type(recipe)(**{**vars(recipe), "decay_1d": decay_1d})
    own = recipe.build(own_net.named_parameters())
    groups = [{"params": [p], "decayed": p.ndim > 1 or decay_1d} for p in net.parameters()]
    plain = theirs(groups, lr=0.0, foreach=False, **options)
    for step in range(4):
        lr, decay = 0.1 / (step + 1), 0.05 * (step + 1)
        apply_hyperparameters(own, hyper(lr, decay))
        for group in plain.param_groups:
            group.update(lr=float(torch.tensor(lr)), weight_decay=float(torch.tensor(decay)) * group["decayed"])
        for module, optimizer in ((own_net, own), (net, plain)):
            backward(module, step)
            optimizer.step()
    for p, expected in zip(own_net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_optimizer_keeps_as_many_moments_as_it_says(path: Path) -> None:
    recipe, net = instantiate(yaml.safe_load(path.read_text()), "optim"), network().float()
    if recipe.constant or recipe.predictor_rate != 1:
        recipe = replace(recipe, constant=[], predictor_rate=1.0)
    optimizer = recipe.build(net.named_parameters())
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    net(x).pow(2).sum().backward()
    apply_hyperparameters(optimizer, hyper(0.1, 0.0))
    optimizer.step()
    for parameter in net.parameters():
        kept = [value for value in optimizer.state[parameter].values() if value is not None and value.ndim]
        assert [value.shape for value in kept] == [parameter.shape] * recipe.moments(parameter)


def test_without_momentum_nothing_is_kept() -> None:
    assert SGD(0.1, 0.0, momentum=0.0).moments(nn.Parameter(torch.zeros(2))) == 0
