"""The engine for models that fit on one device: torch's DistributedDataParallel, or plain modules in a world of one.

With `deterministic` the buckets of the gradient all-reduce are never rebuilt, because the order of summation depends on
them: torch's rebuilding after the first step would make a resumed run differ from one that was never stopped.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel, T
from dist_ssl.engines.passes import seed
from dist_ssl.engines.shares import Shares
from dist_ssl.engines.spread import spread_of
from dist_ssl.engines.virtual import VirtualRanks, check_method, check_options
from dist_ssl.models import norm
from dist_ssl.optim.lars import local_norms
from dist_ssl.protocols.engine import Piece
from dist_ssl.protocols.method import LossOutput


def average(world: World, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients by the world's own sum, which adds in rank order; a communication hook."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(world.sum_const(bucket.buffer()) / world.size)
    return done


@dataclass(eq=False, repr=False)
class DDP(Parallel):
    """Data parallel training in which every rank holds all parameters, gradients and moments. Raises ConfigError."""

    bitwise: bool = False
    """Equal bits at every world size that divides `virtual_ranks`; the method must be built with a world of one."""
    virtual_ranks: int | None = None
    """Number of parts of the global batch in bitwise mode (see `virtual`); None without `bitwise`."""

    def __post_init__(self) -> None:
        assert self.bitwise == (self.virtual_ranks is not None)
        self.virtual = None if self.virtual_ranks is None else VirtualRanks(self.virtual_ranks, self.world)
        if self.bitwise:
            check_options(self.compute, self.accumulate, self.deterministic, self.compile)
            check_method(self.method)
            if self.world.device.type != "meta":
                torch.set_num_threads(1)  # threads split sums among them
        super().__post_init__()

    def wrap(self) -> Mapping[str, nn.Parameter]:
        """Wrap the method, unless the world has one rank or virtual ranks are used."""
        self.method.to(memory_format=torch.channels_last)
        self.root = self._root()
        return dict(self.method.named_parameters())

    def _root(self) -> nn.Module:
        if self.world.alone or self.virtual:
            return self.method
        # torch would overwrite every rank's own piece of a sharded buffer with rank 0's
        leave_alone: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        leave_alone(self.method, list(spread_of(self.method)))
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        # buffers are equal on all ranks by construction; newer versions of torch have renamed the option
        known = inspect.signature(DistributedDataParallel).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync_buffers: False, "find_unused_parameters": self.deterministic}
        wrapped = DistributedDataParallel(self.method, device_ids=devices, **options)
        if self.world.device.type == "cpu":  # the same order of summation at any placement of the ranks
            wrapped.register_comm_hook(self.world, average)
        return wrapped

    def shares(self, ranks: int, per_node: int) -> Shares:
        """Return that every rank holds all; gradients are exchanged in buckets, except in bitwise mode."""
        if self.virtual is None:
            return replace(super().shares(ranks, per_node), buckets=ranks > 1)
        return Shares(parts=self.virtual.number // ranks, two_passes=True)

    def initialise_memory(self, batch: Batch) -> None:
        """Initialise the memory; in bitwise mode each rank uses the whole job's batch, one virtual rank at a time."""
        if self.virtual is None:
            return super().initialise_memory(batch)
        for number, part in enumerate(self.virtual.each(batch)):
            seed(batch, number)
            self.method.initialise_memory(part)
        norm.update_running_statistics(self.method)
        return None

    def gradients(self, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the loss; leave its gradients, averaged over the ranks, in the parameters."""
        if self.virtual is None:
            return super().gradients(batch, hyper)
        job = self.seen(batch)
        self.await_copies()  # it updates running statistics between its passes
        return self.virtual.gradients(
            self._embeddings, lambda e: self.method.loss(e, job, hyper), batch, self.method, self.clock.lap
        )

    def seen(self, batch: Batch) -> Batch:
        """Return the batch of the whole job in bitwise mode, else this rank's."""
        return self.virtual.whole(batch) if self.virtual else batch

    def spread(self) -> Mapping[str, Piece]:
        """Return this rank's pieces of sharded buffers; in bitwise mode there are none."""
        return {} if self.virtual else super().spread()

    def hold(self) -> AbstractContextManager[None]:
        """Return a context in which gradients are accumulated without an all-reduce."""
        return self.root.no_sync() if isinstance(self.root, DistributedDataParallel) else nullcontext()

    def refresh(self) -> None:
        """Do nothing: weights are used where they are."""

    def through(self, part: Callable[..., T], *args: Any) -> T:
        """Call the part directly: weights are whole on every rank."""
        return part(*args)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the norms, [n], of tensors that are whole on every rank."""
        return local_norms(tensors)

    def part(self, name: str, value: Tensor) -> Tensor | Piece:
        """Return the value unchanged: every rank holds all of it."""
        return value
