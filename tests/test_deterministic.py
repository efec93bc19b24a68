"""No step reaches an operation that torch refuses on a GPU while only deterministic algorithms are allowed.

Operations are the same on every device, so a step on the CPU that calls none of them calls none on a GPU. The table
names what the documentation of `torch.use_deterministic_algorithms` lists, of torch 2.11 and of the one installed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.data.images.photometric import Photometry
from dist_ssl.data.images.resize import SMALLEST_LOOPED
from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.evaluate.knn import knn_votes
from dist_ssl.evaluate.retrieval import mean_average_precision
from dist_ssl.evaluate.unlabelled import uniformity
from dist_ssl.methods.rotation import Rotation
from dist_ssl.models import norm
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.protocols.method import Method
from tests.colours import MOCO

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS, ENCODERS, OPTIMIZERS = (
    sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) for group in ("method", "encoder", "optim")
)
SAMPLES = 8

REFUSED: dict[str, tuple[str, ...]] = {
    "torch.nn.AvgPool3d": ("avg_pool3d_backward",),
    "torch.nn.AdaptiveAvgPool2d": ("_adaptive_avg_pool2d_backward",),
    "torch.nn.AdaptiveAvgPool3d": ("_adaptive_avg_pool3d_backward",),
    "torch.nn.MaxPool3d": ("max_pool3d_with_indices_backward",),
    "torch.nn.AdaptiveMaxPool2d": ("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward"),
    "torch.nn.FractionalMaxPool2d": ("fractional_max_pool2d_backward",),
    "torch.nn.FractionalMaxPool3d": ("fractional_max_pool3d_backward",),
    "torch.nn.MaxUnpool1d": ("max_unpool2d",),
    "torch.nn.MaxUnpool2d": ("max_unpool2d",),
    "torch.nn.MaxUnpool3d": ("max_unpool3d",),
    "torch.nn.functional.interpolate": (
        *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_trilinear3d_backward"),
        *("upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
    ),
    "torch.nn.ReflectionPad1d": ("reflection_pad1d_backward",),
    "torch.nn.ReflectionPad2d": ("reflection_pad2d_backward",),
    "torch.nn.ReflectionPad3d": ("reflection_pad3d_backward",),
    "torch.nn.ReplicationPad1d": ("replication_pad1d_backward",),
    "torch.nn.ReplicationPad2d": ("replication_pad2d_backward",),
    "torch.nn.ReplicationPad3d": ("replication_pad3d_backward",),
    "torch.nn.NLLLoss": ("nll_loss2d_forward",),  # that of images alone: [N, C] has one row per thread
    "torch.nn.CTCLoss": ("_ctc_loss_backward",),
    "torch.nn.EmbeddingBag": ("_embedding_bag_backward", "_embedding_bag_dense_backward"),
    "torch.Tensor.put_": ("put_", "put"),
    "torch.histc": ("histc",),
    "torch.bincount": ("bincount",),
    "torch.kthvalue": ("kthvalue",),
    "torch.median": ("median.dim", "nanmedian.dim"),
    "torch.nn.functional.grid_sample": ("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    "torch.cumsum": ("cumsum", "cumsum_"),
    "torch.Tensor.scatter_reduce": ("scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_"),
}
"""By the name in the documentation, the operations of aten (`name`, or `name.overload`) that are refused."""
UNREACHABLE = {"torch.Tensor.resize_"}
"""Of quantized tensors, which have no gradients."""
OPERATIONS = {operation for operations in REFUSED.values() for operation in operations}


class Watch(TorchDispatchMode):
    """Inside it, `seen` collects the operations that would be refused; `calls` counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        names = {func.overloadpacket.__name__, f"{func.overloadpacket.__name__}.{func._overloadname}"}
        whole_numbers = "cumsum" in func.__name__ and not args[0].is_floating_point()  # their sums have one order
        if not whole_numbers:
            self.seen |= names & OPERATIONS
        return func(*args, **(kwargs or {}))


def learn(function: Callable[[Tensor], Tensor], *shape: int) -> None:
    """Differentiate a function of random numbers."""
    function(torch.rand(shape, requires_grad=True)).sum().backward()


def unpooled(pool: Any, unpool: Any, x: Tensor) -> Tensor:
    """Pool and put the largest back into their places."""
    found: Tensor = unpool(2)(*pool(2, return_indices=True)(x))
    return found


def resized(mode: str) -> Callable[[], None]:
    """Differentiate a resize of this mode."""
    sides = {"linear": (5,), "bilinear": (5, 5), "bicubic": (5, 5), "trilinear": (5, 5, 5)}[mode]
    return lambda: learn(lambda x: F.interpolate(x, scale_factor=2.0, mode=mode), 1, 2, *sides)


def shrunk(mode: str) -> Callable[[], None]:
    """Differentiate an antialiased resize."""
    return lambda: learn(lambda x: F.interpolate(x, (3, 3), mode=mode, antialias=True), 1, 2, 6, 6)


INDEX = torch.tensor([0, 1, 1])
CALLS: list[tuple[str, Callable[[], Any]]] = [
    ("torch.nn.AvgPool3d", lambda: learn(nn.AvgPool3d(2), 1, 2, 4, 4, 4)),
    ("torch.nn.AdaptiveAvgPool2d", lambda: learn(nn.AdaptiveAvgPool2d(2), 1, 2, 4, 4)),
    ("torch.nn.AdaptiveAvgPool3d", lambda: learn(nn.AdaptiveAvgPool3d(2), 1, 2, 4, 4, 4)),
    ("torch.nn.MaxPool3d", lambda: learn(nn.MaxPool3d(2), 1, 2, 4, 4, 4)),
    ("torch.nn.AdaptiveMaxPool2d", lambda: learn(nn.AdaptiveMaxPool2d(2), 1, 2, 4, 4)),
    ("torch.nn.FractionalMaxPool2d", lambda: learn(nn.FractionalMaxPool2d(2, output_size=2), 1, 2, 5, 5)),
    ("torch.nn.FractionalMaxPool3d", lambda: learn(nn.FractionalMaxPool3d(2, output_size=2), 1, 2, 5, 5, 5)),
    ("torch.nn.MaxUnpool1d", lambda: unpooled(nn.MaxPool1d, nn.MaxUnpool1d, torch.rand(1, 2, 4))),
    ("torch.nn.MaxUnpool2d", lambda: unpooled(nn.MaxPool2d, nn.MaxUnpool2d, torch.rand(1, 2, 4, 4))),
    ("torch.nn.MaxUnpool3d", lambda: unpooled(nn.MaxPool3d, nn.MaxUnpool3d, torch.rand(1, 2, 4, 4, 4))),
    *(("torch.nn.functional.interpolate", resized(mode)) for mode in ("linear", "bilinear", "bicubic", "trilinear")),
    *(("torch.nn.functional.interpolate", shrunk(mode)) for mode in ("bilinear", "bicubic")),
    ("torch.nn.ReflectionPad1d", lambda: learn(nn.ReflectionPad1d(1), 1, 2, 4)),
    ("torch.nn.ReflectionPad2d", lambda: learn(nn.ReflectionPad2d(1), 1, 2, 4, 4)),
    ("torch.nn.ReflectionPad3d", lambda: learn(nn.ReflectionPad3d(1), 1, 2, 4, 4, 4)),
    ("torch.nn.ReplicationPad1d", lambda: learn(nn.ReplicationPad1d(1), 1, 2, 4)),
    ("torch.nn.ReplicationPad2d", lambda: learn(nn.ReplicationPad2d(1), 1, 2, 4, 4)),
    ("torch.nn.ReplicationPad3d", lambda: learn(nn.ReplicationPad3d(1), 1, 2, 4, 4, 4)),
    ("torch.nn.NLLLoss", lambda: F.nll_loss(torch.rand(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))),
    ("torch.nn.CTCLoss", lambda: learn(lambda x: F.ctc_loss(x.log(), INDEX[None, 1:2], (4,), (1,)), 4, 1, 3)),
    ("torch.nn.EmbeddingBag", lambda: learn(lambda w: F.embedding_bag(INDEX[None], w, mode="max"), 4, 3)),
    ("torch.Tensor.put_", lambda: torch.zeros(4).put_(INDEX, torch.ones(3))),
    ("torch.histc", lambda: torch.histc(torch.rand(4))),
    ("torch.bincount", lambda: torch.bincount(INDEX, torch.rand(3))),
    ("torch.kthvalue", lambda: torch.kthvalue(torch.rand(4), 2)),
    ("torch.median", lambda: torch.rand(4).median(0)),
    ("torch.nn.functional.grid_sample", lambda: learn(lambda x: grid_sampled(x), 1, 1, 4, 4)),
    ("torch.cumsum", lambda: torch.rand(4).cumsum(0)),
    ("torch.Tensor.scatter_reduce", lambda: torch.zeros(4).scatter_reduce(0, INDEX, torch.ones(3), "prod")),
]
"""Of every name in the table, calls that torch refuses on a GPU."""


def grid_sampled(x: Tensor) -> Tensor:
    """An image looked up at random places."""
    return F.grid_sample(x, torch.rand(1, 3, 3, 2), align_corners=False)


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[f"{n} {name}" for n, (name, _) in enumerate(CALLS)])
def test_the_watch_sees_what_torch_refuses(name: str, call: Callable[[], Any]) -> None:
    with Watch() as watch:
        call()
    assert watch.seen & set(REFUSED[name])


def test_the_watch_lets_through_what_torch_makes_deterministic() -> None:
    with Watch() as watch:
        learn(nn.AdaptiveAvgPool2d(1), 1, 2, 4, 4)  # a mean
        learn(nn.MaxPool2d(2), 1, 2, 4, 4)
        learn(lambda x: F.cross_entropy(x, INDEX), 3, 4)
        learn(lambda x: x[INDEX].amax(0), 4, 3)
        INDEX.cumsum(0)
    assert watch.calls > 10
    assert not watch.seen


def test_the_table_holds_all_that_the_installed_torch_documents() -> None:
    text = torch.use_deterministic_algorithms.__doc__
    assert text
    listed = text[re.search(r"operations will throw a\s", text).end() : text.index("In addition")]  # type: ignore[union-attr]
    names = set(re.findall(r"\* :\w+:`([\w.]+)`", listed))
    assert len(names) > 15, "the list was not found"
    assert names - UNREACHABLE <= REFUSED.keys(), "Add the operations of the new names to the table."
    assert {name for name, _ in CALLS} == REFUSED.keys()


def node(group: str, name: str) -> dict[str, Any]:
    """What a config of the tree says."""
    found: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    return found


def small(values: dict[str, Any]) -> dict[str, Any]:
    """A method's node with widths of a few units, and what it can do with local views."""
    sizes = {"hidden": 16, "dim": 8, "narrow": 6, "outputs": 12, "prototypes": 6, "slots": 24, "patches": 3}
    sizes |= {"loss_group": 8, "local_views": 2}
    return {**values, **{key: value for key, value in sizes.items() if key in values}}


def small_encoder(name: str) -> nn.Module:
    """An encoder of the tree with few blocks."""
    values = node("encoder", name)
    if "depth" in values:
        values |= {"depth": 1, "width": 16, "heads": 2, "patch": 4}
    elif values.get("name", "").startswith("vit"):
        values |= {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 4, "img_size": 32}
    encoder: nn.Module = instantiate(values, "encoder")
    return encoder


def trained(
    method: str, encoder: nn.Module, optim: str = "adamw", aux: bool = False, tokens: Tokens = ALL_TOKENS
) -> Watch:
    """Take two steps, the first of which shows a method that wants it all images; what was called meanwhile."""
    world, made = (
        World(),
        instantiate(
            small(node("method", method)), "method", offered={"num_samples": 40}, encoder=encoder, world=World()
        ),
    )
    whole: Method = Rotation(made, world=world, hidden=8, side=16) if aux else made
    engine = DDP(whole, instantiate(node("optim", optim), "optim"), world=world, clip=1.0, deterministic=False)
    values = {name: curve.start for name, curve in whole.curves.items()} | {"lr": 0.1, "weight_decay": 0.1}
    hyper = Hyperparameters({name: torch.tensor(value) for name, value in values.items()})
    with Watch() as watch:
        if engine.needs_initial_pass:
            engine.initialise_memory(batch(whole, 0))
        for step in range(2):
            engine.step(replace(batch(whole, step), tokens=tokens), hyper)
        engine.embed(batch(whole, 0).views[0], "student")
    assert watch.calls > 100
    return watch


def batch(method: Method, step: int) -> Batch:
    """Views of 32 px, local ones of 16; one sample could not be read."""
    generator = torch.Generator().manual_seed(step)
    sides = [32] * method.num_views + [16] * method.local_views
    views = [torch.randn(SAMPLES, 3, side, side, generator=generator) for side in sides]
    return Batch(views, torch.arange(SAMPLES), torch.arange(SAMPLES) != 1, None, Draws(0), step=step)


@pytest.fixture(autouse=True)
def algorithms_as_torch_has_them() -> Iterator[None]:
    """Other tests of the process may have asked for deterministic algorithms, under which torch itself refuses."""
    asked = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(asked)


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms as on devices that are no CPU."""
    monkeypatch.setattr(norm, "NormaliseCPU", norm.Normalise)


@pytest.mark.parametrize("aux", [False, True], ids=["", "rotation"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("any_device")
def test_a_step_of_a_method_calls_none_of_them(method: str, aux: bool) -> None:
    assert not trained(method, TinyResNet(4), aux=aux).seen


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.usefixtures("any_device")
def test_a_step_with_an_encoder_and_views_of_two_sizes_calls_none_of_them(encoder: str) -> None:
    assert not trained("dino", small_encoder(encoder)).seen


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name.startswith("vit")])
@pytest.mark.usefixtures("any_device")
def test_a_step_with_few_tokens_of_large_patches_calls_none_of_them(encoder: str) -> None:
    assert not trained("dino", small_encoder(encoder), tokens=Tokens(0.5, 8)).seen


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_step_of_an_optimizer_calls_none_of_them(optim: str) -> None:
    assert not trained("mocov3", TinyResNet(4), optim).seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_colours_call_none_of_them(dtype: torch.dtype) -> None:
    recipe = replace(MOCO, gray_p=0.5, solarize_p=0.5, invert_p=0.5, turn_p=0.5)
    pixels, ids = torch.randint(0, 256, (32, 12, 12, 3), dtype=torch.uint8), np.arange(32)
    assert pixels.shape[1] < SMALLEST_LOOPED, "torch's operations are the GPU's"
    with Watch() as watch:
        Photometry(recipe, 0, (0.5,) * 3, (0.25,) * 3)(pixels, ids, Draws(0), dtype)
    assert watch.calls > 50
    assert not watch.seen


def test_the_probe_and_other_measures_call_none_of_them() -> None:
    features = F.normalize(torch.rand(24, 8), dim=1)
    with Watch() as watch:
        knn_votes(features, torch.arange(24) % 3, features[:6], k=4, temperature=0.1)
        mean_average_precision(features, torch.arange(24) % 3)
        uniformity(features)
    assert watch.calls > 3
    assert not watch.seen
