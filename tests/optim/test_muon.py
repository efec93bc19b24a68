"""Muon: that it is torch's for matrices and AdamW for the rest, its checkpoints, and the engines that cannot run it."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.optim.kernel_muon import ITERATION, orthogonal
from dist_ssl.optim.recipes import Muon, apply_hyperparameters
from tests.engines.jobs import small_engine, small_method, trained, whole_state
from tests.engines.test_contract import assert_same_bits, batch, hyper, kept, tiny_method
from tests.optim.test_recipes import backward, network
from tests.optim.test_recipes import hyper as rates
from tests.ranks import Ranks

RECIPE = Muon(1e-2, 0.1, betas=(0.8, 0.95), momentum=0.9, newton_schulz=4)


def test_matrices_are_torchs_muon_and_all_else_is_adamw() -> None:
    own_net, net = network(), network()
    own = RECIPE.build(own_net.named_parameters())
    matrices = [p for p in net.parameters() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=0.0, momentum=0.9, ns_steps=4, adjust_lr_fn="match_rms_adamw")
    rest = [{"params": [p], "decays": float(p.ndim > 1)} for p in net.parameters() if p.ndim != 2]
    adamw = torch.optim.AdamW(rest, lr=0.0, betas=(0.8, 0.95), foreach=False)
    for step in range(3):
        lr, decay = 0.1 / (step + 1), 0.05 * (step + 1)
        apply_hyperparameters(own, rates(lr, decay))
        for group in (*muon.param_groups, *adamw.param_groups):
            group.update(lr=float(torch.tensor(lr)), weight_decay=float(torch.tensor(decay)) * group.get("decays", 1.0))
        for module, optimizers in ((own_net, [own]), (net, [muon, adamw])):
            backward(module, step)
            for optimizer in optimizers:
                optimizer.step()
    for p, expected in zip(own_net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
    assert {frozenset(own.state[p]) for p in own_net.parameters() if p.ndim == 2} == {frozenset({"momentum_buffer"})}


def test_an_update_of_a_matrix_has_the_size_of_an_update_of_adamw() -> None:
    layer = nn.Linear(64, 32, bias=False)
    layer.weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    before = layer.weight.detach().clone()
    optimizer = Muon(1.0, 0.0).build([("student.weight", layer.weight)])
    apply_hyperparameters(optimizer, rates(1.0, 0.0))
    optimizer.step()
    assert 0.1 < (layer.weight.detach() - before).square().mean().sqrt() < 0.3


def test_kernels_are_updated_as_torch_updates_the_same_matrices() -> None:
    conv, linear = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(27, 8, bias=False)
    conv.to(memory_format=torch.channels_last)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
    own = replace(RECIPE, convolutions=True).build([("student.weight", conv.weight)])
    torchs = RECIPE.build([("student.weight", linear.weight)])
    for step in range(3):
        conv.weight.grad = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(step))
        linear.weight.grad = conv.weight.grad.flatten(1)
        for optimizer in (own, torchs):
            apply_hyperparameters(optimizer, rates(0.1, 0.1))
            optimizer.step()
    # torch's iteration is in bf16
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight, rtol=0.02, atol=2e-3)
    assert {*own.state[conv.weight]} == {"momentum_buffer"}
    assert replace(RECIPE, convolutions=True).moments(conv.weight) == 1
    assert RECIPE.moments(conv.weight) == 2


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (1, 5), (6, 6)])
def test_an_orthogonal_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonal(matrix, 8))
    assert ((values > 0.6) & (values < 1.3)).all()
    assert not orthogonal(torch.zeros(shape), 5).any()


def test_an_orthogonal_update_is_what_the_iteration_of_the_whole_matrix_gives() -> None:
    matrix = torch.randn(6, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, c = ITERATION
    x = matrix / matrix.norm()
    for _ in range(5):
        x = a * x + (b * x @ x.mT + c * (x @ x.mT) @ (x @ x.mT)) @ x
    torch.testing.assert_close(orthogonal(matrix, 5), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"momentum": 1.0}, "optim.momentum=1 is not possible: it must be from 0 to less than 1."),
        ({"newton_schulz": 0}, "optim.newton_schulz=0 is not possible: it must be from 1 to 99."),
        ({"newton_schulz": 100}, "optim.newton_schulz=100 is not possible: it must be from 1 to 99."),
    ],
)
def test_what_muon_cannot_work_with_is_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Muon(0.1, 0.0, **own)


def test_a_network_without_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter is a matrix"):
        RECIPE.build(nn.Conv2d(3, 4, 3).named_parameters())


def engine(name: str, seed: int = 0) -> Any:
    """A small engine that trains with Muon, in single precision."""
    return small_engine(World(), name, small_method(World(), "mocov3", seed, vit=True), RECIPE, dtype=torch.float32)


@pytest.mark.parametrize("reader", ["ddp", "deepspeed 0"])
@pytest.mark.parametrize("writer", ["ddp", "deepspeed 0"])
def test_a_state_moves_between_engines_and_goes_on_bit_for_bit(writer: str, reader: str) -> None:
    whole, resumed = engine(writer), engine(reader, seed=1)
    trained(whole, range(2))
    state = whole_state(whole)
    shapes = {name.removeprefix("model/"): value.shape for name, value in state.items() if name.startswith("model/")}
    moments = {name for name in state if name.startswith("optim/") and name.endswith("/momentum_buffer")}
    assert {len(shapes[name.split("/")[1]]) for name in moments} == {2}
    resumed.load(state)
    assert_same_bits(whole_state(resumed), state)
    assert trained(resumed, range(2, 4)) == trained(whole, range(2, 4))
    assert_same_bits(whole_state(resumed), whole_state(whole))


def on_two_ranks(world: World) -> tuple[list[float], list[float], bool]:
    """Losses of a run and of one that continues it, and whether their weights and moments are the same bits."""
    made = [
        small_engine(world, "ddp", small_method(world, "mocov3", seed, vit=True), RECIPE, dtype=torch.float32)
        for seed in (0, 1)
    ]
    trained(made[0], range(2))
    made[1].load(whole_state(made[0]))
    losses = [trained(each, range(2, 4)) for each in made]
    states = [whole_state(each) for each in made]
    return losses[0], losses[1], all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_two_ranks_continue_bit_for_bit_and_train_alike(ranks: Ranks) -> None:
    answers = ranks.run(on_two_ranks, 2)
    for losses, resumed, same in answers:
        assert losses == resumed
        assert same
    assert answers[0] == answers[1]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_from_stage_1_on_is_refused(stage: int) -> None:
    with pytest.raises(ConfigError, match=rf"optim=muon cannot be combined with engine\.stage={stage}") as caught:
        engine(f"deepspeed {stage}")
    assert caught.value.remedy == "Use engine=ddp, or engine.stage=0."


def test_fsdp_is_refused_because_it_shards_the_rows_of_matrices() -> None:
    with pytest.raises(ConfigError, match="optim=muon cannot be combined with engine=fsdp, which shards rows of"):
        engine("fsdp")


def test_a_part_without_gradients_keeps_weights_and_moments() -> None:
    made = small_engine(World(), "ddp", tiny_method(), RECIPE)
    made.step(batch(0), hyper())
    before = kept(made.state())
    made.optimizer.zero_grad()
    made.optimizer.step()
    assert_same_bits(kept(made.state()), before)
