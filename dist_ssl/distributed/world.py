"""The `World`: rank, size and device of a rank, and the few collectives that this package uses.

A `World` of size 1 needs no process group, so every module that takes one also runs and is tested on a single rank.
`joined` creates the process groups and destroys them. The gradients of gathers and sums are summed over the ranks;
engines average gradients, so the objective is the mean over ranks of what each rank's loss returns.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.place_variables import LOCAL_RANK, LOCAL_SIZE, RANK, RESTARTS, SIZE
from dist_ssl.distributed.rendezvous import NETWORK, Network, machine_id, use_interface
from dist_ssl.distributed.shared_memory import SharedFile, SharedMemory, remove_left_over, shared_path
from dist_ssl.distributed.store import meet
from dist_ssl.runtime.open_files import allow_open_files

SHARED_MEMORY = Path("/dev/shm")
MESSAGES_BYTES = 1 << 25
"""Size of the shared memory for the messages of all ranks."""


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: "World") -> Tensor:
        ctx.world, ctx.rows = world, x.shape[0]
        return world.gather_const(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = ctx.world.sum_const(grads[0])
        start = ctx.world.rank * ctx.rows
        return total[start : start + ctx.rows], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: "World") -> Tensor:
        ctx.world = world
        return world.sum_const(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.world.sum_const(grads[0]), None


@dataclass(frozen=True)
class Pending:
    """An agreement in progress: `result()` waits for it."""

    value: Tensor
    work: "dist.Work | None"

    def result(self) -> list[int]:
        """Return, for each value, the largest that any rank gave."""
        if self.work is not None:
            self.work.wait()
        return [int(value) for value in self.value]


@dataclass(frozen=True)
class World:
    """All ranks of an attempt, seen from one of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: "dist.ProcessGroup | None" = None
    """A gloo group beside the device's own, so that agreements never wait for the device."""
    shared_memory: SharedMemory | None = None
    """Carrier of small messages where all ranks are on one machine and compute on its CPU; None elsewhere."""

    @property
    def alone(self) -> bool:
        """Return whether there is one rank and no process group: then nothing is exchanged and engines wrap nothing."""
        return self.size == 1 and self.host is None

    def gather_const(self, x: Tensor) -> Tensor:
        """Gather [B, ...] -> [size * B, ...] in rank order, which is global sample order; without gradients."""
        x = x.detach().contiguous()
        if self.alone:
            return x
        if self.shared_memory and self.shared_memory.fits(x.nbytes):
            return self._exchange(self.shared_memory, x).flatten(0, 1)
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(out, x)
        return out

    def gather(self, x: Tensor) -> Tensor:
        """Gather like `gather_const`, with gradients, which are summed over the ranks."""
        if self.alone:
            return x
        out: Tensor = _Gather.apply(x, self)
        return out

    def sum_const(self, x: Tensor) -> Tensor:
        """Return the sum over ranks, without gradients; x is not changed."""
        if self.alone:
            return x.detach()
        if self.device.type == "cpu" and x.nbytes <= message_capacity(self.size):
            parts = self.gather_const(x[None]).unbind()  # summed in rank order, so the carrier makes no difference
            for part in parts[1:]:
                parts[0].add_(part)
            return parts[0]
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def _exchange(self, shared_memory: SharedMemory, x: Tensor) -> Tensor:
        """Gather [...] -> [size, ...] through shared memory."""
        got = torch.from_numpy(shared_memory.exchange(x.view(-1).view(torch.uint8).numpy()))
        return got.view(x.dtype).view(self.size, *x.shape)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks; its gradient is summed over the ranks too."""
        if self.alone:
            return x
        out: Tensor = _Sum.apply(x, self)
        return out

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over ranks, with gradients like `sum`."""
        return self.sum(x) / self.size

    def agree_later(self, *values: int) -> Pending:
        """Start an all-reduce (maximum) of each value over all ranks; the result may be read a step later."""
        offer = torch.tensor(values, dtype=torch.int64)
        if self.alone:
            return Pending(offer, None)
        if self.shared_memory:
            return Pending(self._exchange(self.shared_memory, offer).amax(0), None)
        return Pending(offer, dist.all_reduce(offer, op=dist.ReduceOp.MAX, group=self.host, async_op=True))

    def agree(self, value: int) -> int:
        """Return the largest value of all ranks; runs on the host and does not wait for the device."""
        return self.agree_later(value).result()[0]

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank (broadcast).

        Values are JSON's, here and in `collect`: None, bool, int, float, str, and lists and dicts of these; a tuple
        arrives as a list. Nothing that a rank receives from another one is ever unpickled.
        """
        if self.alone:
            return value
        text = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, src=0, group=self.host)
        data = _as_bytes(text, int(length))
        dist.broadcast(data, src=0, group=self.host)
        return json.loads(data.numpy().tobytes())

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on every rank, in rank order (all-gather); see `share`."""
        if self.alone:
            return [value]
        text = json.dumps(value).encode()
        lengths = torch.empty(self.size, dtype=torch.int64)
        dist.all_gather_into_tensor(lengths, torch.tensor([len(text)]), group=self.host)
        own = _as_bytes(text, int(lengths.max()))
        data = torch.empty(self.size * len(own), dtype=torch.uint8)
        dist.all_gather_into_tensor(data, own, group=self.host)
        rows = data.view(self.size, -1).numpy()
        return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths.tolist(), strict=True)]

    def collect_on_first(self, value: Any) -> list[Any]:
        """Return the values of all ranks on rank 0, in rank order, and an empty list on the others; see `share`.

        Rank 0 receives as many bytes as there are, and no other rank any.
        """
        if self.alone:
            return [value]
        text = json.dumps(value).encode()
        own = torch.tensor([len(text)])
        lengths = [torch.empty_like(own) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(own, lengths, dst=0, group=self.host)
        if lengths is None:
            dist.send(_as_bytes(text, len(text)), dst=0, group=self.host)
            return []
        found = [json.loads(text)]
        for rank in range(1, self.size):
            data = torch.empty(int(lengths[rank]), dtype=torch.uint8)
            dist.recv(data, src=rank, group=self.host)
            found.append(json.loads(data.numpy().tobytes()))
        return found


def _as_bytes(text: bytes, length: int) -> Tensor:
    """Return [length] uint8 that begins with `text`."""
    data = torch.zeros(length, dtype=torch.uint8)
    data.numpy()[: len(text)] = np.frombuffer(text, dtype=np.uint8)
    return data


class Waits(NamedTuple):
    """How long ranks wait, s: `start` until all have come, `exchange` for the others in every exchange."""

    start: float = 600.0
    exchange: float = 300.0


WAITS = Waits()


@contextmanager
def joined(
    meeting: Path | None, waits: Waits = WAITS, *, grouped: bool = False, gpus: int = 0, network: Network = NETWORK
) -> Iterator[World]:
    """Yield the world that RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE describe, with its process groups.

    `meeting`: a file that all ranks see and only this attempt uses; None takes torch's own rendezvous (MASTER_ADDR,
    MASTER_PORT), as under torchrun. `grouped`: create groups for a world of one too, so that engines can be tested with
    groups on one device. `gpus`: number that every node must show. A process that fails inside the block must end, as
    the groups are not destroyed then. Raises UserError that names the ranks that did not arrive, or the node that lacks
    GPUs or the interface.
    """
    rank, size = int(os.environ.get(RANK, "0")), int(os.environ.get(SIZE, "1"))
    local_rank, local_size = int(os.environ.get(LOCAL_RANK, "0")), int(os.environ.get(LOCAL_SIZE, "1"))
    allow_open_files()  # torchrun has not
    device = own_device(local_rank, gpus)
    os.environ["DS_ACCELERATOR"] = device.type  # DeepSpeed would detect another device
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")  # ranks connect where they exchange, not each with every other
    if size == 1 and not grouped:
        yield World(device=device)
        return
    wait = timedelta(seconds=waits.exchange)
    # with its device NCCL connects at once: a rank that cannot is known now, and later groups share connections
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if meeting is None:
        use_interface(network.interface)
        store = torchrun_store(timedelta(seconds=waits.start))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait, device_id=own)
    else:
        signed = meet(meeting, rank, size, waits.start, network)
        store = PrefixStore("groups", signed if own is None else signed.inner)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait, device_id=own)
    host = dist.new_group(backend="gloo", timeout=wait)
    assert isinstance(host, dist.ProcessGroup)
    world = World(rank, size, local_rank, local_size, device, host)
    yield replace(world, shared_memory=open_shared_memory(world, waits.exchange) if size > 1 else None)
    dist.destroy_process_group()  # not after a failure: NCCL would wait for ranks that wait for this one


def torchrun_store(wait: timedelta) -> PrefixStore:
    """Return the store at MASTER_ADDR and MASTER_PORT, from which this start of the ranks sees its own values alone.

    torchrun keeps it when it starts the ranks again: they would find the addresses of those that have ended.
    """
    store, *_ = next(rendezvous("env://", timeout=wait))
    return PrefixStore(f"start {os.environ.get(RESTARTS, '0')}", store)


def message_capacity(size: int) -> int:
    """Return the most bytes of a shared-memory message in a world of this size."""
    return MESSAGES_BYTES // (2 * size)


def open_shared_memory(world: World, seconds: float) -> SharedMemory | None:
    """Return shared memory for all ranks, None on every rank unless all of them compute on the CPU of one machine."""
    machines = world.collect(machine_id() + world.device.type)
    if len(set(machines)) > 1 or world.device.type != "cpu":
        return None
    own: SharedFile | None = None
    found: SharedMemory | None = None
    capacity = message_capacity(world.size)
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):  # no space or permission: sockets work too, only slower
        if world.rank == 0:
            remove_left_over(folder)
            own = SharedFile(folder, world.size, capacity)
    try:
        name = world.share(own.path.name if own else None)
        with contextlib.suppress(OSError, ValueError):
            found = SharedMemory(shared_path(folder, name), world.rank, world.size, capacity, seconds)
        lacking, unlocked = world.agree_later(int(not found), int(not (found and found.liveness.locked))).result()
    finally:
        if own:
            own.remove()
    if found:
        found.all_locked = not unlocked
    return None if lacking else found
