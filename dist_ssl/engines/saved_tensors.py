"""Bytes that a forward pass keeps for the backward pass, counted on fake tensors: nothing is computed or allocated.

Torch's fake tensors have a shape, a dtype and a storage of the right size, but no memory. A method made of them runs
its own forward code, autocast and recomputation included, and autograd says which tensors it keeps. A storage counts
once, however many views of it are kept. Parameters, buffers and the views of the batch are not counted here.

The count is a lower bound. Batch norms, attention and dropout keep what the most economical of their implementations
on any device keeps. What fails on fake tensors, as a search for rows or a kernel for GPUs does, is left out.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from dist_ssl.config.bounds import RGB
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.models.norm import BatchNorm
from dist_ssl.protocols.method import Method

log = logging.getLogger(__name__)


class AbsentRanks(World):
    """Rank 0 of a world without its other ranks: they answer at once, with this rank's own values."""

    def gather_const(self, x: Tensor) -> Tensor:
        """Return [B, ...] -> [size * B, ...], without gradients."""
        return super().gather_const(x) if self.alone else self.gather(x.detach())

    def gather(self, x: Tensor) -> Tensor:
        """Return [B, ...] -> [size * B, ...]."""
        return x if self.alone else x.repeat(self.size, *[1] * (x.dim() - 1))

    def sum_const(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape, without gradients."""
        return self.sum(x.detach())

    def sum(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return x if self.alone else x.clone()


class _KeepsInput(torch.autograd.Function):
    """x -> a tensor of its shape and dtype; x is kept for the backward pass, which does not exist."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)


class _KeepsMask(torch.autograd.Function):
    """x -> a tensor of its shape and dtype; a byte for each of its numbers is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(x, dtype=torch.bool))
        return torch.empty_like(x)


class _KeepsRows(torch.autograd.Function):
    """Queries, keys, values -> [..., queries, width of values]; inputs and output are kept, no product of two rows."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, *_: Any, **__: Any) -> Tensor:
    found: Tensor = _KeepsMask.apply(x) if training and p else x
    return found


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    found: Tensor = _KeepsRows.apply(query, key, value, attn_mask)
    return found


@contextmanager
def _counting() -> Iterator[None]:
    """Let functions of torch that keep less on a GPU than on a CPU keep that; leave torch's generator as it is."""
    attention = patch.object(F, "scaled_dot_product_attention", _attention)
    with patch.object(F, "dropout", _dropout), attention, torch.random.fork_rng(devices=[]):
        yield


@dataclass(frozen=True)
class _CountedNorm:
    """The forward pass of a batch norm by shapes alone."""

    norm: BatchNorm

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm.then(_KeepsInput.apply(x, self.norm.weight))
        return out


class _Kept:
    """A tensor that autograd keeps; it lives as long as the node of the graph that needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class FakeMethod:
    """A method whose tensors have been replaced by fake ones, to count what its passes keep; it cannot be trained.

    `dtype`: of the loss. `compute`: of matrix products and convolutions, None for that of the weights. `gathered`: the
    weights are gathered for each use, so that neither they nor copies of them in `compute` are kept. `channels`: of an
    image.
    """

    def __init__(
        self,
        method: Method,
        *,
        dtype: torch.dtype,
        compute: torch.dtype | None = None,
        gathered: bool = False,
        channels: int = RGB,
    ) -> None:
        self.method, self.dtype, self.compute, self.channels = method, dtype, compute, channels
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.mode._allow_unsafe_data_ptr_access = False  # else a kernel is given address 0, and ends the process
        with self.mode:
            method.to_empty(device="cpu")
        for child in method.modules():
            if isinstance(child, BatchNorm):
                child.forward = _CountedNorm(child)  # type: ignore[method-assign]
        self.left_out = {_form(p, compute) for p in method.parameters() if gathered and compute}
        values = {name: torch.tensor(curve.start, device="cpu") for name, curve in method.curves.items()}
        self.hyper = Hyperparameters(values)

    def kept(self, plan: EpochPlan, rows: int, *, loss: bool) -> int:
        """Return the bytes kept at the end of a forward pass of `rows` samples of this plan.

        `loss`: the graph goes to the loss; otherwise it ends in the student's embeddings. They are 0 where the encoder
        cannot be run on fake tensors.
        """
        batch = self._batch(plan, rows)
        kept: WeakSet[_Kept] = WeakSet()

        def pack(tensor: Tensor) -> _Kept:
            held = _Kept(tensor)
            kept.add(held)
            return held

        with _counting(), saved_tensors_hooks(pack, lambda held: held.tensor):
            graph = self._embeddings(batch, loss)  # holds the nodes of the graph
            out = self._loss(graph, batch) if loss else None
        own = sized((*self.method.parameters(), *self.method.buffers(), *batch.views))
        found = sized(held.tensor for held in kept if _form(held.tensor, held.tensor.dtype) not in self.left_out)
        del graph, out
        return sum(size for storage, size in found.items() if storage not in own)

    def _batch(self, plan: EpochPlan, rows: int) -> Batch:
        sides = [plan.image_size] * plan.views + [plan.local_size] * plan.local_views
        with self.mode:
            views = [torch.empty(rows, self.channels, side, side, dtype=self.compute or self.dtype) for side in sides]
            valid = torch.ones(rows, dtype=torch.bool)
        return Batch(views, torch.arange(rows), valid, None, Draws(0), step=0, tokens=plan.tokens)

    def _embeddings(self, batch: Batch, targets: bool) -> dict[str, Tensor]:
        ((views, draws),) = batch.parts(1)
        with torch.autocast("cpu", self.compute) if self.compute else nullcontext():
            found = _or_none(lambda: self.method(views, draws, targets=targets)) or {}
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in found.items()}

    def _loss(self, embeddings: dict[str, Tensor], batch: Batch) -> Tensor | None:
        found = _or_none(lambda: self.method.loss(embeddings, batch, self.hyper)) if embeddings else None
        return found.loss if found else None


def _or_none(call: Callable[[], Any]) -> Any:
    """Return the result of a call, None where it fails on fake tensors: nobody knows how code of others does."""
    try:
        return call()
    except Exception as error:
        log.info("Memory: what a method keeps that fails on tensors without values is not counted: %r", error)
        return None


def sized(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the bytes of the storages of these tensors, each storage once; a sparse tensor has none."""
    storages = [x.untyped_storage() for x in tensors if x.layout is torch.strided]
    return {int(storage._cdata): storage.nbytes() for storage in storages}


def _form(x: Tensor, dtype: torch.dtype | None) -> tuple[tuple[int, ...], torch.dtype | None]:
    """Return the sides of a tensor, transposed or not, with a dtype."""
    return tuple(sorted(x.shape)), dtype
