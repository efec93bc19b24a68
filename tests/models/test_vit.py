"""Vision transformers: positions and weights by slow formulas, frozen patches, any side, the class token's features."""

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.errors import ConfigError
from dist_ssl.methods.mocov3 import MoCoV3
from dist_ssl.models.fixed_positions import positions
from dist_ssl.models.norm import BatchNorm
from dist_ssl.models.vit import vit
from dist_ssl.optim.recipes import LARS, SGD, AdamW, OptimizerRecipe
from tests.ranks import Ranks

CPU = torch.device("cpu")
OPTIMIZERS = {"adamw": AdamW(1e-3, 0.1, decay_1d=True), "lars": LARS(0.3, 1e-6), "sgd": SGD(0.1, 1e-4)}


def small(**own: object) -> nn.Module:
    """A transformer of a few thousand weights."""
    torch.manual_seed(0)
    return vit(**{"width": 16, "depth": 2, "heads": 4, "patch": 4, **own})


def slow_position(h: int, w: int, width: int) -> list[float]:
    """One patch's position, number by number."""
    quarter = width // 4
    rates = [1 / 10000 ** (i / quarter) for i in range(quarter)]
    return [f(place * rate) for place in (w, h) for f in (math.sin, math.cos) for rate in rates]


@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 1, 4), (2, 3, 8), (14, 14, 384)])
def test_positions_are_those_of_the_slow_formula(rows: int, columns: int, width: int) -> None:
    found = positions(rows, columns, width, torch.float64, CPU)
    wanted = [slow_position(h, w, width) for h in range(rows) for w in range(columns)]
    assert found.shape == (rows * columns, width)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


def test_positions_are_kept_per_grid_width_and_type() -> None:
    first = positions(3, 3, 8, torch.float32, CPU)
    assert positions(3, 3, 8, torch.float32, CPU) is first
    assert positions(3, 4, 8, torch.float32, CPU).shape == (12, 8)
    assert positions(3, 3, 8, torch.float64, CPU).dtype == torch.float64


def test_positions_that_a_probe_asked_for_first_serve_training() -> None:
    encoder, x = small(), torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        encoder(x)
    encoder(x).sum().backward()
    assert encoder.cls_token.grad is not None


def tokens_before_the_blocks(encoder: nn.Module, x: Tensor) -> Tensor:
    caught = []
    hook = encoder.blocks[0].register_forward_pre_hook(lambda _, args: caught.append(args[0].detach()))
    encoder(x)
    hook.remove()
    return caught[0]


def test_a_token_is_its_projected_patch_plus_its_position_and_the_class_token_has_none() -> None:
    encoder, x = small().double(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    found = tokens_before_the_blocks(encoder, x)
    assert found.shape == (2, 1 + 9, 16)
    assert torch.equal(found[:, 0], encoder.cls_token[0].expand(2, -1))
    weight, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
    for h in range(3):
        for w in range(3):
            patch = x[:, :, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
            wanted = torch.einsum("bchw,dchw->bd", patch, weight) + bias
            wanted = wanted + torch.tensor(slow_position(h, w, 16), dtype=torch.float64)
            torch.testing.assert_close(found[:, 1 + 3 * h + w], wanted, rtol=0, atol=1e-12)


def test_positions_are_no_parameters_and_no_buffers() -> None:
    encoder = small()
    assert not dict(encoder.named_buffers())
    assert "pos_embed" not in dict(encoder.named_parameters())


@pytest.mark.parametrize("side", [4, 12, 20, 32])
def test_the_output_is_the_normed_class_token_at_every_side(side: int) -> None:
    encoder, x = small().eval(), torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert encoder(x).shape == (2, encoder.num_features) == (2, 16)
        assert torch.equal(encoder(x), encoder.forward_features(x)[:, 0])
    assert encoder.norm.eps == 1e-6


def test_a_side_that_patches_do_not_cover_is_refused() -> None:
    with pytest.raises(ConfigError, match="=18 does not fit the encoder, which cuts images into patches of 4 px"):
        small()(torch.randn(1, 3, 18, 18))


def test_initial_weights_keep_their_bounds_and_fill_them() -> None:
    encoder = small(width=64, depth=2, heads=4, patch=8)
    bounds = {
        "attn.qkv": math.sqrt(6 / (64 + 64)),  # fan out of one of the three
        "attn.proj": math.sqrt(6 / (64 + 64)),
        "mlp.fc1": math.sqrt(6 / (64 + 256)),
        "mlp.fc2": math.sqrt(6 / (256 + 64)),
        "patch_embed.proj": math.sqrt(6 / (3 * 8 * 8 + 64)),
    }
    seen = set()
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            key = next(key for key in bounds if name.endswith(key))
            seen.add(key)
            assert 0.98 * bounds[key] < layer.weight.abs().max() <= bounds[key], name
            assert float(layer.weight.detach().mean()) == pytest.approx(0, abs=0.05 * bounds[key]), name
            assert layer.bias.abs().max() == 0, name
    assert seen == bounds.keys()
    assert 0 < encoder.cls_token.abs().max() < 1e-5


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = small().state_dict(), small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_names_and_shapes_are_timms_but_for_learnt_positions() -> None:
    ours = {name: p.shape for name, p in vit(width=192, depth=12, heads=3).named_parameters()}
    theirs = {n: p.shape for n, p in timm.create_model("vit_tiny_patch16_224", num_classes=0).named_parameters()}
    assert ours == {name: shape for name, shape in theirs.items() if name != "pos_embed"}


def test_a_transformer_can_be_built_without_its_memory() -> None:
    with torch.device("meta"):
        encoder = vit(width=384, depth=12, heads=12)
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    assert sum(p.numel() for p in encoder.parameters()) == 21_590_016


def method(world: World, frozen: bool = True) -> MoCoV3:
    """MoCo v3 with the heads of ViTs."""
    own = {"hidden": 16, "dim": 8, "projector_layers": 3, "predictor_norm": True, "temperature": 0.2}
    return MoCoV3(small(frozen_patches=frozen), world=world, **own)


def test_the_heads_are_those_of_vits() -> None:
    made = method(World())
    widths = [layer.weight.shape for layer in made.student.projector if isinstance(layer, nn.Linear)]
    assert widths == [(16, 16), (16, 16), (8, 16)]
    for head in (made.student.projector, made.predictor):
        assert isinstance(head[-1], BatchNorm)
        assert head[-1].weight is None


def batch(world: World, step: int) -> Batch:
    """This rank's part of one global batch of 8."""
    own = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
    generator = torch.Generator().manual_seed(step)
    views = [torch.randn(8, 3, 12, 12, dtype=torch.float64, generator=generator)[own] for _ in range(2)]
    valid = torch.ones(len(views[0]), dtype=torch.bool)
    return Batch(views, torch.arange(8)[own], valid, None, Draws(0), step=step)


def trained(world: World, optimizer: OptimizerRecipe, deterministic: bool = True, steps: int = 3) -> tuple[DDP, dict]:
    """The engine after some steps, and the state before them."""
    engine = DDP(method(world), optimizer, world=world, dtype=torch.float64, deterministic=deterministic)
    before = {name: value.clone() for name, value in engine.state().items()}
    values = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    hyper = Hyperparameters({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})
    for step in range(steps):
        engine.step(batch(world, step), hyper)
    return engine, before


@pytest.fixture(autouse=True)
def torch_as_before() -> object:
    """An engine may ask torch for determinism; tests after these are not to notice."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_patches_have_no_gradient_no_moments_and_never_move(optimizer: str) -> None:
    engine, before = trained(World(), OPTIMIZERS[optimizer])
    after = engine.state()
    for name in ("weight", "bias"):
        frozen = f"student.encoder.patch_embed.proj.{name}"
        assert engine.method.get_parameter(frozen).grad is None
        assert torch.equal(after[f"model/{frozen}"], before[f"model/{frozen}"])
        assert torch.equal(after[f"model/{frozen}"], after[f"model/{frozen.replace('student', 'teacher')}"])
        assert not [key for key in after if key.startswith(f"optim/{frozen}")]
    moved = [n for n, p in engine.method.named_parameters() if p.requires_grad]
    assert all(not torch.equal(after[f"model/{n}"], before[f"model/{n}"]) for n in moved if "patch_embed" not in n)


def test_a_saved_state_goes_on_with_the_same_bits() -> None:
    engine, _ = trained(World(), OPTIMIZERS["adamw"])
    other = DDP(method(World()), OPTIMIZERS["adamw"], world=World(), dtype=torch.float64)
    other.load({name: value.clone() for name, value in engine.state().items()})
    for each in (engine, other):
        each.step(
            batch(World(), 7), Hyperparameters({n: torch.tensor(0.1) for n in ("lr", "weight_decay", "momentum")})
        )
    first, second = engine.state(), other.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_patches_that_are_not_frozen_move() -> None:
    made = method(World(), frozen=False)
    engine = DDP(copy.deepcopy(made), OPTIMIZERS["adamw"], world=World(), dtype=torch.float64)
    engine.step(batch(World(), 0), Hyperparameters({n: torch.tensor(0.1) for n in ("lr", "weight_decay", "momentum")}))
    name = "student.encoder.patch_embed.proj.weight"
    assert not torch.equal(engine.method.get_parameter(name), made.double().get_parameter(name))


def test_decay_reaches_every_trained_parameter() -> None:
    groups = OPTIMIZERS["adamw"].groups(method(World()).named_parameters())
    assert all(group["decays"] == 1 for group in groups)
    assert any(p.ndim == 1 for group in groups for p in group["params"])


def state_after(world: World, deterministic: bool) -> dict[str, Tensor]:
    """What three steps leave behind."""
    engine, _ = trained(world, OPTIMIZERS["adamw"], deterministic)
    return {name: value.clone() for name, value in engine.state().items()}


@pytest.mark.parametrize("deterministic", [True, False])
def test_two_ranks_train_it_as_one_does(ranks: Ranks, deterministic: bool) -> None:
    wanted = state_after(World(), deterministic)
    for found in ranks.run(state_after, 2, deterministic):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-8, msg=name)
