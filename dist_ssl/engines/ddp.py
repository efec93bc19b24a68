"""The engine for models that fit on one device: torch's DistributedDataParallel, or plain modules in a world of one.

With `deterministic` the buckets of the gradient exchange stay as they are built, because the order of summation
inside an exchange depends on them: torch's own rebuilding after the first step would make a resumed run differ from
one that was never stopped.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from dist_ssl.engine import Piece
from dist_ssl.engines.parallel import Parallel, T
from dist_ssl.engines.spread import spread_of
from dist_ssl.lars import local_norms
from dist_ssl.world import World


def average(world: World, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients through the world's own sum, which adds in rank order."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(world.sum_const(bucket.buffer()) / world.size)
    return done


class DDP(Parallel):
    """Every rank holds all parameters, and a copy of their gradients and moments."""

    def wrap(self) -> Mapping[str, nn.Parameter]:
        """Wrap the method, unless it is alone in its world."""
        self.method.to(memory_format=torch.channels_last)
        self.root = self._root()
        return dict(self.method.named_parameters())

    def _root(self) -> nn.Module:
        if self.world.size == 1:
            return self.method
        # torch would overwrite every rank's own piece with rank 0's
        leave_alone: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        leave_alone(self.method, list(spread_of(self.method)))
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        # buffers are equal on all ranks by construction; newer versions of torch have renamed the option
        known = inspect.signature(DistributedDataParallel).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync_buffers: False, "find_unused_parameters": self.deterministic}
        wrapped = DistributedDataParallel(self.method, device_ids=devices, **options)
        if self.world.device.type == "cpu":  # the same order of summation however the ranks are placed
            wrapped.register_comm_hook(self.world, average)
        return wrapped

    def hold(self) -> AbstractContextManager[None]:
        """Keep gradients back."""
        return self.root.no_sync() if isinstance(self.root, DistributedDataParallel) else nullcontext()

    def through(self, part: Callable[..., T], *args: Any) -> T:
        """Every part can be called as it is."""
        return part(*args)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """[n] the norms of tensors that are whole on every rank."""
        return local_norms(tensors)

    def part(self, name: str, value: Tensor) -> Tensor | Piece:
        """All of it."""
        return value
