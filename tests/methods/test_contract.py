"""What every method must keep, at every world size; parametrised over configs/method, so a new file is tested too."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
import yaml
from torch import Tensor, nn

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.distributed.world import World
from dist_ssl.engines.passes import at_once, in_parts
from dist_ssl.methods.rotation import Rotation
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.models.vit import vit
from dist_ssl.protocols.method import Embeddings, LossOutput, Method
from tests.ranks import Ranks, collect_tensors

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "method").glob("*.yaml"))
NAMES = [path.stem for path in CONFIGS]
SAMPLES = 16
SMALL = {"hidden": 16, "dim": 8, "narrow": 6, "outputs": 12, "prototypes": 6}
SMALL |= {"slots": 24, "patches": 3, "loss_group": 8}
"""Values of keys that many methods have, for nets of a few thousand weights."""
UNMIXED_ROWS = "single_branch, rows of unmixed images"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    "mocov2 in shuffled groups": ("mocov2", {"norm_group": 4, "shuffle": True}),
    "mocov2, symmetric": ("mocov2", {"symmetric": True}),
    "mocov2, symmetric, in shuffled groups": ("mocov2", {"symmetric": True, "norm_group": 4, "shuffle": True}),
    "mocov3 in groups over ranks": ("mocov3", {"norm_group": 8}),
    "mocov3 of a ViT": ("mocov3", {"vit": True, "projector_layers": 3, "predictor_norm": True}),
    "mocov3 of a ViT in groups": ("mocov3", {"vit": True, "norm_group": 4, "projector_layers": 3}),
    "byol, normed targets": ("byol", {"projector_norm": True}),
    "fast_moco in groups": ("fast_moco", {"norm_group": 4, "combined": 3}),
    "emp_ssl in groups": ("emp_ssl", {"norm_group": 8, "loss_group": 4}),
    "single_branch, few negatives": ("single_branch", {"negatives": 30, "update": "descend"}),
    "single_branch, unmixed": ("single_branch", {"mix": False, "update": "pull"}),
    "single_branch, rows of zeros": ("single_branch", {"calibrate": False, "update": "pull"}),
    UNMIXED_ROWS: ("single_branch", {"update_on_mixed": False}),
    "mocov3 + rotation": ("mocov3", {"aux": True}),
    "emp_ssl + rotation": ("emp_ssl", {"aux": True}),
    "dino + rotation": ("dino", {"aux": True}),
    "dino, local views": ("dino", {"local_views": 3, "head_norm": True}),
    "dino, shared targets, local views": ("dino", {"local_views": 2, "sinkhorn": 3}),
    "dino of a ViT, local views": ("dino", {"vit": True, "local_views": 2}),
    "dino of a ViT, drop path, + rotation": ("dino", {"vit": True, "local_views": 2, "drop_path": 0.5, "aux": True}),
    "swav, local views, in groups": ("swav", {"local_views": 2, "num_views": 3, "norm_group": 4}),
    "swav, common statistics": ("swav", {"local_views": 3, "share_statistics": True}),
    "swav, common statistics, in groups": ("swav", {"local_views": 2, "share_statistics": True, "norm_group": 4}),
    "swav, local views, + rotation": ("swav", {"local_views": 2, "aux": True}),
    "mocov3 of a ViT, few large tokens": ("mocov3", {"vit": True, "projector_layers": 3, "tokens": Tokens(0.6, 6)}),
    "dino of a ViT, few small tokens, + rotation": (
        "dino",
        {"vit": True, "local_views": 2, "drop_path": 0.5, "aux": True, "tokens": Tokens(0.3, 2)},
    ),
    "swav of a ViT, few tokens": (
        "swav",
        {"vit": True, "local_views": 2, "share_statistics": True, "tokens": Tokens(0.5)},
    ),
    "fast_moco of a ViT, few small tokens": ("fast_moco", {"vit": True, "tokens": Tokens(0.5, 3)}),
}
CUTS: WeakKeyDictionary[Method, Tokens] = WeakKeyDictionary()
"""How the views of a method's batches are cut into tokens."""
cases = pytest.mark.parametrize("case", CASES)


def small_method(case: str, world: World, **more: Any) -> Method:
    """The method around a net of a few thousand weights in the middle of a run, the same on every rank."""
    name, own = CASES[case]
    node: dict[str, Any] = yaml.safe_load(next(p for p in CONFIGS if p.stem == name).read_text())
    small = {key: value for key, value in SMALL.items() if key in node}
    keys = {key: value for key, value in {**own, **more}.items() if key in node}
    torch.manual_seed(0)
    encoder = vit(width=8, depth=2, heads=2, patch=4) if "vit" in own else TinyResNet(4)
    method: Method = instantiate(
        {**node, **small, **keys}, "method", offered={"num_samples": 120}, encoder=encoder, world=world
    )
    if "aux" in own:
        method = Rotation(method, world=world, hidden=8, norm_group=keys.get("norm_group"))
    method.double().train()
    CUTS[method] = own.get("tokens", ALL_TOKENS)
    if method.teacher is not None:  # it has drifted from its student
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    remember_something(method, world)
    return method


def remember_something(method: Method, world: World) -> None:
    """Fill the memory that a method has, and let it remember one step."""
    batch = small_batch(world, method, first=60)
    if method.needs_initial_pass:
        for first in (0, 16, 60, 92):
            method.initialise_memory(small_batch(world, method, first=first))
    out = method.loss(forward(method, batch), batch, hyper(method))
    method.remember(out, batch, hyper(method))


def small_batch(world: World, method: Method, invalid: tuple[int, ...] = (), first: int = 100) -> Batch:
    """This rank's part of one global batch of the method's views, random; `first`: the number of its first sample."""
    generator = torch.Generator().manual_seed(first)
    valid = torch.ones(SAMPLES, dtype=torch.bool)
    valid[list(invalid)] = False
    own = slice(world.rank * SAMPLES // world.size, (world.rank + 1) * SAMPLES // world.size)
    sides = [12] * method.num_views + [8] * method.local_views
    views = [torch.randn(SAMPLES, 3, side, side, dtype=torch.float64, generator=generator) for side in sides]
    ids = torch.arange(first, first + SAMPLES)
    return Batch([v[own] for v in views], ids[own], valid[own], None, Draws(0), step=0, tokens=CUTS[method])


def forward(method: Method, batch: Batch) -> Embeddings:
    """All embeddings of the batch's views."""
    return method(*batch.parts(1)[0])


def hyper(method: Method) -> Hyperparameters:
    return Hyperparameters(
        {name: torch.tensor(curve.start, dtype=torch.float64) for name, curve in method.curves.items()}
    )


def loss_and_gradients(world: World, case: str, invalid: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The job's loss and its gradients, averaged over ranks as every engine does."""
    method = small_method(case, world)
    batch = small_batch(world, method, invalid)
    out = method.loss(forward(method, batch), batch, hyper(method))
    out.loss.backward()
    gradients = {n: world.mean(p.grad) for n, p in method.named_parameters() if p.grad is not None}
    return world.mean(out.loss.detach()), gradients


def gradients_in_parts(world: World, case: str, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a batch whose samples are computed in parts, or at once where `parts` is 1."""
    method = small_method(case, world, norm_group=2, shuffle=False, mix=False)
    batch = small_batch(world, method, invalid=(3,))

    def loss(embeddings: Embeddings) -> LossOutput:
        return method.loss(embeddings, batch, hyper(method))

    if parts == 1:
        out = at_once(method, loss, batch, world.rank)
    else:
        out = in_parts(method, loss, batch, world.rank, parts, nullcontext)
    gradients = {n: world.mean(p.grad) for n, p in method.named_parameters() if p.grad is not None}
    return world.mean(out.loss.detach()), gradients


@pytest.mark.parametrize(("size", "parts"), [(1, 2), (1, 8), (2, 2), (4, 2)])
@pytest.mark.parametrize("case", [case for case in CASES if case != UNMIXED_ROWS])  # images cannot be mixed in parts
def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_whole(
    ranks: Ranks, case: str, size: int, parts: int
) -> None:
    loss, gradients = gradients_in_parts(World(), case, 1)
    for other_loss, other_gradients in ranks.run(gradients_in_parts, size, case, parts):
        assert other_loss.item() == pytest.approx(loss.item(), abs=1e-9)
        assert other_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert torch.allclose(other_gradients[key], gradient, rtol=0, atol=1e-9), key


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("invalid", [(), (3, 9)], ids=["all valid", "two replacements"])
@pytest.mark.parametrize("size", [2, 4])
@cases
def test_many_ranks_compute_the_loss_and_gradients_of_one(
    ranks: Ranks, case: str, size: int, invalid: tuple[int, ...]
) -> None:
    loss, gradients = loss_and_gradients(World(), case, invalid)
    for other_loss, other_gradients in ranks.run(loss_and_gradients, size, case, invalid):
        assert other_loss.item() == pytest.approx(loss.item(), abs=1e-9)
        assert other_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert torch.allclose(other_gradients[key], gradient, rtol=0, atol=1e-9), key


@cases
def test_the_loss_is_finite_and_reaches_the_encoder_but_not_the_teacher(case: str) -> None:
    method = small_method(case, World())
    batch = small_batch(World(), method)
    out = method.loss(forward(method, batch), batch, hyper(method))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    moved = [p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder.parameters() if p.requires_grad]
    assert moved
    assert all(moved)
    if method.teacher is not None:
        assert all(p.grad is None for p in method.teacher.parameters())


@cases
def test_embed_and_loss_twice_give_the_same_and_change_no_buffer(case: str) -> None:
    method = small_method(case, World())
    batch = small_batch(World(), method)
    before = buffers(method)
    first = method.loss(forward(method, batch), batch, hyper(method))
    second = method.loss(forward(method, batch), batch, hyper(method))
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(value, before[key]) for key, value in buffers(method).items())


def remembered(world: World, case: str) -> dict[str, Tensor]:
    """The memory after a step with a replacement, spread tensors whole."""
    method = small_method(case, world)
    batch = small_batch(world, method, invalid=(5,))
    out = method.loss(forward(method, batch), batch, hyper(method))
    method.remember(out, batch, hyper(method))
    found = {name: value for name, value in buffers(method).items() if "running_" not in name}
    return {name: torch.cat(collect_tensors(world, v)) if name == "bank.rows" else v for name, v in found.items()}


@pytest.mark.parametrize("size", [2, 4])
@cases
def test_many_ranks_remember_what_one_does(ranks: Ranks, case: str, size: int) -> None:
    expected = remembered(World(), case)
    for found in ranks.run(remembered, size, case):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=1e-9), name


@cases
def test_remember_changes_no_parameter(case: str) -> None:
    method = small_method(case, World())
    batch = small_batch(World(), method)
    out = method.loss(forward(method, batch), batch, hyper(method))
    before = {key: value.clone() for key, value in method.named_parameters()}
    method.remember(out, batch, hyper(method))
    assert all(torch.equal(value, before[key]) for key, value in method.named_parameters())


@cases
def test_every_metric_stands_in_the_table(case: str) -> None:
    from dist_ssl.metrics.table import BY_KEY

    method = small_method(case, World())
    batch = small_batch(World(), method)
    out = method.loss(forward(method, batch), batch, hyper(method))
    assert out.metrics.keys() <= BY_KEY.keys()
    keys = {*out.metrics, *(name.partition("/")[0] for name in method.curves)}
    others = [key for key in keys if BY_KEY[key].methods and CASES[case][0] not in BY_KEY[key].methods]
    assert not others, "a row says whose it is: the bound of a run's series counts on it"
    assert all(not value.requires_grad and value.dim() == 0 for value in out.metrics.values())


def lengths(module: nn.Module, passes: Callable[[], object]) -> list[int]:
    """Return the number of tokens, the class token too, in every pass of a transformer."""
    found: list[int] = []
    transformer: Any = next(child for child in module.modules() if hasattr(child, "blocks"))
    hook = transformer.blocks[0].register_forward_pre_hook(lambda _, args: found.append(args[0].shape[1]))
    passes()
    hook.remove()
    return found


@pytest.mark.parametrize("aux", [False, True], ids=["", "rotation"])
@pytest.mark.parametrize("name", NAMES)
def test_the_student_of_every_method_sees_few_tokens_and_the_teacher_all(name: str, aux: bool) -> None:
    world = World()
    node = yaml.safe_load(next(p for p in CONFIGS if p.stem == name).read_text())
    keys = {key: value for key, value in {**SMALL, "parts": 1, "combined": 1}.items() if key in node}
    encoder = vit(width=8, depth=1, heads=2, patch=4)
    method: Method = instantiate({**node, **keys}, "method", offered={"num_samples": 120}, encoder=encoder, world=world)
    whole = Rotation(method, world=world, hidden=8) if aux else method
    CUTS[whole] = Tokens(0.5, 6)
    batch = small_batch(world, whole)
    whole.double()
    student = lengths(method.encoder, lambda: whole(*batch.parts(1)[0], targets=False))
    assert student
    assert set(student) == {1 + 2}, "2 of the 4 tokens: embed() calls drop_tokens before every pass"
    if method.teacher is not None:
        teacher = method.teacher.encoder
        assert set(lengths(teacher, lambda: whole(*batch.parts(1)[0], embed=False))) == {1 + 4}
