"""Which parameters decay, how knobs reach the optimizer, and that the optimizers are torch's."""

import pytest
import torch
from torch import nn

from dist_ssl.optim import SGD, AdamW, apply_knobs, parameter_groups
from dist_ssl.plan import Knobs


def network() -> nn.Sequential:
    """A convolution, a norm and a linear layer, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).double()


def knobs(lr: float, weight_decay: float) -> Knobs:
    """The two knobs that an optimizer reads."""
    return Knobs({"lr": torch.tensor(lr), "weight_decay": torch.tensor(weight_decay)})


def backward(net: nn.Module, step: int) -> None:
    """Fill the gradients of one step."""
    net.zero_grad()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    net(x).pow(2).sum().backward()


def test_biases_and_norms_do_not_decay() -> None:
    net = network()
    decayed, rest = parameter_groups(net.named_parameters(), decay_1d=False)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in rest["params"]] == [1, 1, 1, 1]
    assert (decayed["decays"], rest["decays"]) == (1.0, 0.0)


def test_decay_1d_makes_all_parameters_decay() -> None:
    (group,) = parameter_groups(network().named_parameters(), decay_1d=True)
    assert len(group["params"]) == 6
    assert group["decays"] == 1.0


def test_frozen_parameters_are_left_out() -> None:
    net = network()
    net[0].requires_grad_(False)
    found = [p for group in parameter_groups(net.named_parameters(), decay_1d=False) for p in group["params"]]
    assert len(found) == 4
    assert all(p.requires_grad for p in found)


def test_knobs_set_every_group_and_decay_only_the_first() -> None:
    optimizer = AdamW(1.0, 0.1).build(network().named_parameters())
    apply_knobs(optimizer, knobs(0.25, 0.5))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_nothing_moves_before_the_knobs_are_set() -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = SGD(1.0, 0.1).build(net.named_parameters())
    backward(net, 0)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(("batch", "peak"), [(256, 0.6), (4096, 9.6), (128, 0.3)])
def test_the_learning_rate_follows_the_linear_rule(batch: int, peak: float) -> None:
    found = SGD(0.6, 1e-6).knobs(batch)
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
        apply_knobs(own, knobs(lr, decay))
        for group in plain.param_groups:
            group.update(lr=float(torch.tensor(lr)), weight_decay=float(torch.tensor(decay)) * group["decayed"])
        for module, optimizer in ((own_net, own), (net, plain)):
            backward(module, step)
            optimizer.step()
    for p, expected in zip(own_net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
