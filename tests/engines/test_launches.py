"""What a GPU's step asks of host and device, without a GPU: it never waits, and it starts few operations.

Tensors are torch's meta and fake ones, which have no values: whoever asks for one, as the host would have to wait for
a GPU to know it, fails. Batch norms take the way of a GPU.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from dist_ssl.config.meta_device import META
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.methods.mocov3 import MoCoV3
from dist_ssl.models import norm_cuda
from dist_ssl.models.encoders import timm_encoder
from dist_ssl.models.vit import vit
from dist_ssl.optim import lars
from dist_ssl.optim.recipes import LARS, AdamW, OptimizerRecipe
from dist_ssl.protocols.method import Method
from dist_ssl.runtime.finite_check import FiniteCheck
from tests.emulated_norms import emulated
from tests.engines.jobs import CONFIGS, batch, hyper, small_engine, small_method
from tests.launches import Calls

WAITING = {"single_branch": "which rows of the bank are this rank's is asked on the host"}
"""Methods whose steps still wait for the device, and why."""
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))


class Unread(FiniteCheck):
    """A check whose answer is never read: no tensor here has values."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), later=True)

    def _fetch(self, values: Tensor) -> None: ...

    def answer(self) -> None: ...


class Copies(Calls):
    """Notes what is copied from host memory to the device while the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if any(x.is_meta for x in tensors) and any(x.is_cpu and x.ndim for x in tensors):
            waits = not (kwargs or {}).get("non_blocking", False)
            self.blocking += [f"{self.names[-1]} {[tuple(x.shape) for x in tensors]}"] * waits
        return out


@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_the_device(name: str) -> None:
    world = World(device=META)
    with emulated("meta"), patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        method = small_method(world, name)
        engine = small_engine(world, "ddp", method, dtype=torch.float32)
        engine.finite = Unread()
        own = batch(World(), method.num_views, 0, torch.float32, local_views=method.local_views)
        own.views, own.valid = [view.to(META) for view in own.views], own.valid.to(META)
        if name in WAITING:
            with pytest.raises(NotImplementedError):
                engine.step(own, hyper(method))
            return
        with Copies() as calls:
            engine.step(own, hyper(method))
    assert not calls.blocking


def moved(method: Method) -> None:
    """Replace all tensors of a method by fake ones."""
    for module in method.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(like(value), value.requires_grad)
        module._buffers.update({name: like(value) for name, value in module._buffers.items() if value is not None})


def like(value: Tensor) -> Tensor:
    """A tensor of the same shape, in the layout that the engine asks for."""
    own = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return own.to(memory_format=torch.channels_last) if value.ndim == 4 else own


@contextmanager
def faked(numbers: Any) -> Iterator[None]:
    """Inside it nothing that is computed has values; batches are whole, of the samples `numbers`."""
    with ExitStack() as stack:
        stack.enter_context(emulated("meta"))
        stack.enter_context(patch.object(norm_cuda, "DEVICES", ("cpu",)))
        stack.enter_context(patch.object(lars, "ONE_BY_ONE", ()))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(patch.object(nn.Module, "to", lambda self, *_, **__: self))
        stack.enter_context(patch.object(Batch, "parts", lambda self, _: [(self.views, self.draws.of(numbers))]))
        yield


def counted(method: Method, recipe: OptimizerRecipe, samples: int = 256) -> Counter[str]:
    """The launches of the second step in bf16 on views of 224 px, without making the views."""
    ids = torch.arange(samples)
    values = hyper(method)
    with faked(ids.numpy()):
        moved(method)
        engine = DDP(method, recipe, world=World(), compute=torch.bfloat16, deterministic=False)
        engine.finite = Unread()
        views = [torch.randn(samples, 3, 224, 224).to(memory_format=torch.channels_last) for _ in range(2)]
        own = Batch(views, ids, torch.ones(samples, dtype=torch.bool), None, Draws(0), step=0)
        engine.step(own, values)
        with Calls() as calls:
            engine.step(own, values)
    host = {"_local_scalar_dense"}  # hyperparameters: numbers of the host's
    return Counter(name for name in calls.launches if name not in host)


def test_mocov3_with_resnet50_starts_few_operations() -> None:
    method = MoCoV3(timm_encoder("resnet50"), world=World(), hidden=4096, dim=256)
    found = counted(method, LARS(0.6, 1e-6))
    assert found.total() <= 1500, found.most_common(30)


def test_mocov3_with_vit_small_starts_few_operations() -> None:
    encoder = vit(width=384, depth=12, heads=12, patch=16, frozen_patches=True)
    method = MoCoV3(encoder, world=World(), hidden=4096, projector_layers=3, predictor_norm=True, temperature=0.2)
    found = counted(method, AdamW(1.5e-4, 0.1, decay_1d=True))
    assert found.total() <= 1200, found.most_common(30)


@pytest.mark.parametrize("name", ["ddp", "deepspeed", "fsdp"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_on_a_gpu_every_engine_shows_its_network_images_channel_by_channel_last(name: str, device: str) -> None:
    method = small_method(World(), "simsiam")
    engine = small_engine(World(), "deepspeed 2" if name == "deepspeed" else name, method, dtype=torch.float32)
    seen: list[Tensor] = []

    def root(views: list[Tensor], *_: object, **__: object) -> dict[str, Tensor]:
        seen.extend(views)
        return {}

    engine.root, engine.world = root, World(device=torch.device(device))
    engine._embeddings([torch.zeros(2, 3, 4, 4)], Draws(0).of(torch.arange(2).numpy()))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == (device == "cuda")


@pytest.mark.parametrize("deterministic", [True, False])
def test_convolutions_are_tried_out_where_bits_may_differ(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    before = torch.are_deterministic_algorithms_enabled()
    small_engine(World(), "ddp", small_method(World(), "simsiam"), deterministic=deterministic)
    torch.use_deterministic_algorithms(before)
    assert torch.backends.cudnn.benchmark != deterministic
