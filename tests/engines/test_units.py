"""Blocks that are compiled, or computed again in the backward pass, learn what plain ones learn."""

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_ssl.distributed.world import World
from dist_ssl.engines import units as module
from dist_ssl.engines.parallel import Parallel
from dist_ssl.engines.units import checkpointed, compiled, units
from dist_ssl.errors import ConfigError
from dist_ssl.methods.dino import DINO
from dist_ssl.methods.mocov3 import MoCoV3
from dist_ssl.methods.rotation import Rotation
from dist_ssl.models.encoders import ResidualBlock, TinyResNet, timm_encoder
from dist_ssl.models.vit import vit
from dist_ssl.optim.recipes import SGD
from dist_ssl.protocols.method import Method
from tests.engines.jobs import batch, hyper, small_engine, small_method, trained, whole_state
from tests.ranks import Ranks

CASES: dict[str, dict[str, Any]] = {
    "mocov3": {},
    "rotation of one view": {"rotation": True, "turned": 1},
    "in parts": {"norm_group": 2, "accumulate": 2},
    "fast_moco": {"name": "fast_moco"},
}


def transformer(world: World) -> MoCoV3:
    """MoCo v3 around a transformer of two blocks."""
    torch.manual_seed(0)
    encoder = vit(width=8, depth=2, heads=2, patch=4)
    return MoCoV3(encoder, world=world, hidden=10, dim=6, temperature=0.2)


def deep(world: World) -> Rotation:
    """DINO with stochastic depth and rotation: one more pass comes between that of the views and its backward pass."""
    torch.manual_seed(0)
    encoder = vit(width=8, depth=2, heads=2, patch=4)
    dino = DINO(encoder, world=world, hidden=8, narrow=4, outputs=12, drop_path=0.5)
    return Rotation(dino, world=world, hidden=8)


def made(world: World, engine: str, case: str, **options: Any) -> Parallel:
    own = dict(CASES.get(case, {}))
    accumulate = own.pop("accumulate", 1)
    if case == "vit, drop path":
        method: Method = deep(world)
    else:
        method = transformer(world) if case == "vit" else small_method(world, own.pop("name", "mocov3"), **own)
    return small_engine(world, engine, method, SGD(1e-2, 5e-4), accumulate=accumulate, **options)


def furthest(world: World, engine: str, cases: list[str], **options: Any) -> dict[str, float]:
    """By how much losses and states with these options differ from those without, after a few steps."""
    found = {}
    for case in cases:
        plain, other = made(world, engine, case), made(world, engine, case, **options)
        losses = torch.tensor([trained(plain, range(3)), trained(other, range(3))])
        wanted, state = whole_state(plain), whole_state(other)
        assert wanted.keys() == state.keys()
        apart = [(wanted[name] - state[name]).abs().max() for name in wanted if wanted[name].is_floating_point()]
        found[case] = float(max([*apart, (losses[0] - losses[1]).abs().max()]))
    return found


def again(world: World, engine: str, cases: list[str]) -> dict[str, float]:
    return furthest(world, engine, cases, activation_checkpointing=True)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_what_is_computed_again_has_the_same_gradients_and_statistics(engine: str, ranks: Ranks) -> None:
    cases = [*CASES, "vit", "vit, drop path"]
    assert max(again(World(), engine, cases).values()) <= 1e-12
    for found in ranks.run(again, 2, engine, ["mocov3", "vit"]):
        assert max(found.values()) <= 1e-12


class Counted(nn.Module):
    """A block that counts how often it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x).tanh().exp()


def test_a_block_computes_twice_only_where_gradients_are_wanted() -> None:
    net = nn.Sequential(Counted(), Counted())
    checkpointed(net)
    net(torch.randn(2, 4)).sum().backward()
    assert [block.calls for block in net] == [2, 2]
    with torch.no_grad():
        net(torch.randn(2, 4))
    assert [block.calls for block in net] == [3, 3]


def test_a_block_keeps_only_what_goes_into_it() -> None:
    def kept(twice: bool) -> int:
        torch.manual_seed(0)
        net = vit(width=32, depth=4, heads=2, patch=4)
        if twice:
            checkpointed(net)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            net(torch.randn(2, 3, 32, 32))
        return sum(sizes)

    assert kept(True) < kept(False) / 4


@pytest.mark.parametrize(
    ("encoder", "kind", "number"),
    [
        (lambda: TinyResNet(4), "ResidualBlock", 3),
        (lambda: vit(width=8, depth=2, heads=2, patch=4), "Block", 2),
        (lambda: timm_encoder("resnet50"), "Bottleneck", 16),
        (lambda: timm_encoder("convnext_atto"), "ConvNeXtBlock", 12),
    ],
    ids=["tiny", "vit", "resnet", "convnext"],
)
def test_units_are_the_blocks_of_a_network(encoder: Any, kind: str, number: int) -> None:
    with torch.device("meta"):
        found = units(encoder())
    assert [type(unit).__name__ for unit in found] == [kind] * number


def test_nothing_else_of_a_method_is_a_unit() -> None:
    assert [type(unit).__name__ for unit in units(small_method(World(), "mocov3", rotation=True))] == [
        "ResidualBlock",
        "ResidualBlock",
    ]


@pytest.mark.parametrize("option", ["activation_checkpointing", "compile"])
def test_a_network_without_blocks_is_refused(option: str) -> None:
    method = MoCoV3(Plain(), world=World(), hidden=4, dim=4)
    with pytest.raises(ConfigError, match=f"engine.{option}=true has nothing to work on"):
        small_engine(World(), "ddp", method, **{option: True})


class Plain(nn.Module):
    """An encoder in one piece."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def eagerly(world: World, engine: str, cases: list[str]) -> dict[str, float]:
    """As `again`, of blocks that torch traces but does not compile."""
    torch.compile, before = functools.partial(torch.compile, backend="eager"), torch.compile  # type: ignore[assignment]
    try:
        return furthest(world, engine, cases, compile=True, activation_checkpointing=True)
    finally:
        torch.compile = before  # type: ignore[assignment]


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_traced_blocks_learn_what_plain_ones_learn(engine: str, ranks: Ranks) -> None:
    assert max(eagerly(World(), engine, ["mocov3", "in parts", "vit"]).values()) <= 1e-12
    for found in ranks.run(eagerly, 2, engine, ["mocov3", "vit"]):
        assert max(found.values()) <= 1e-12


def test_neither_hyperparameters_nor_a_third_side_make_a_block_be_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    engine = made(World(), "ddp", "vit", compile=True)
    counts = []
    for step, side in enumerate([12, 12, 12, 16, 20, 24, 12]):
        views = [torch.randn(8, 3, side, side, dtype=torch.float64) for _ in range(2)]
        engine.step(replace(batch(World(), 2, step), views=views), hyper(engine.method, lr=0.01 / (1 + step)))
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[2] < counts[3] == counts[6]


def test_a_compiled_block_has_the_gradients_of_a_plain_one() -> None:
    plain = nn.Sequential(Pooled())
    other = copy.deepcopy(plain)
    compiled(other, torch.device("cpu"))
    x = torch.randn(2, 3, 5, 5)
    for net in (plain, other):
        net(x).sum().backward()
    torch.testing.assert_close(other(x), plain(x))
    for one, same in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(same.grad, one.grad)


class Pooled(nn.Module):
    """The shortcut of a residual block, after a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.block = nn.Conv2d(3, 3, 1), ResidualBlock(3, 4, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block._shortcut(self.before(x)).square()


def test_without_a_compiler_compiling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine.compile=true needs a C\+\+ compiler.*\n.*engine.compile"):
        compiled(TinyResNet(4), torch.device("cpu"))
