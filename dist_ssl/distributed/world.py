"""The only word for "the other ranks": who they are, and the few collectives that we use.

A `World` of size 1 needs no process group, so whatever is handed one runs and is tested alone. `joined` makes groups
and destroys them. Gathers and sums carry gradients that add up over the ranks; engines average gradients, so the
objective is the mean over ranks of what each rank's loss returns.
"""

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.rendezvous import (
    LOOPBACK,
    Meeting,
    await_value,
    interface_of,
    machine_id,
    own_addresses,
    own_end,
)
from dist_ssl.distributed.shared_memory import SharedMemory, create
from dist_ssl.errors import UserError

T = TypeVar("T")
SHARED_MEMORY = Path("/dev/shm")
MESSAGES_BYTES = 1 << 25
"""Of shared memory for the letters of all ranks."""


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
    """An agreement under way: `result()` waits for it."""

    value: Tensor
    work: "dist.Work | None"

    def result(self) -> list[int]:
        """The largest value that any rank put in, of each."""
        if self.work is not None:
            self.work.wait()
        return [int(value) for value in self.value]


@dataclass(frozen=True)
class World:
    """All ranks of an attempt, as one of them sees them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: "dist.ProcessGroup | None" = None
    """A gloo group beside the device's own: agreeing never waits for the device."""
    shared_memory: SharedMemory | None = None
    """Shared memory for small exchanges, where all ranks are on one machine and compute on its CPU."""

    @property
    def alone(self) -> bool:
        """Whether there are no others and no process group: nothing is exchanged then, and engines wrap nothing."""
        return self.size == 1 and self.host is None

    def gather_const(self, x: Tensor) -> Tensor:
        """[B, ...] -> [size * B, ...] in rank order, which is global sample order; without gradients."""
        x = x.detach().contiguous()
        if self.alone:
            return x
        if self.shared_memory and self.shared_memory.fits(x.nbytes):
            return self._exchange(self.shared_memory, x).flatten(0, 1)
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(out, x)
        return out

    def gather(self, x: Tensor) -> Tensor:
        """The same with gradients, which are summed back over the ranks."""
        if self.alone:
            return x
        out: Tensor = _Gather.apply(x, self)
        return out

    def sum_const(self, x: Tensor) -> Tensor:
        """The sum over ranks, without gradients; x stays as it is."""
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
        """[...] -> [size, ...], every rank's, through shared memory."""
        got = torch.from_numpy(shared_memory.exchange(x.view(-1).view(torch.uint8).numpy()))
        return got.view(x.dtype).view(self.size, *x.shape)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks; its gradient is summed over ranks too."""
        if self.alone:
            return x
        out: Tensor = _Sum.apply(x, self)
        return out

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks, with gradients like `sum`."""
        return self.sum(x) / self.size

    def agree_later(self, *values: int) -> Pending:
        """Begin to agree on the largest of each value over all ranks; the answer may be read a step later."""
        offer = torch.tensor(values, dtype=torch.int64)
        if self.alone:
            return Pending(offer, None)
        if self.shared_memory:
            return Pending(self._exchange(self.shared_memory, offer).amax(0), None)
        return Pending(offer, dist.all_reduce(offer, op=dist.ReduceOp.MAX, group=self.host, async_op=True))

    def agree(self, value: int) -> int:
        """The largest value of all ranks, host side: the device is not waited for."""
        return self.agree_later(value).result()[0]

    def share(self, obj: T | None) -> T:
        """Rank 0's object, on every rank."""
        box: list[Any] = [obj]
        if not self.alone:
            dist.broadcast_object_list(box, src=0, group=self.host)
        shared: T = box[0]
        return shared

    def collect(self, obj: T) -> list[T]:
        """Every rank's object, on every rank, in rank order."""
        if self.alone:
            return [obj]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, obj, group=self.host)
        return boxes


@contextmanager
def joined(meeting: Path | None, seconds: float = 300.0, *, grouped: bool = False) -> Iterator[World]:
    """The world that RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE describe, for as long as the block runs.

    `meeting` is a file that all ranks see and only this attempt uses; None takes torch's own rendezvous (MASTER_ADDR,
    MASTER_PORT), as under torchrun. `seconds` bounds every wait. `grouped`: a world of one has groups too, so that one
    device can prove what engines do on several. Whoever fails in the block is to end its process: the groups stay then.
    Raises UserError that names the ranks that did not come.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = own_device(local_rank)
    os.environ["DS_ACCELERATOR"] = device.type  # DeepSpeed would look for devices of its own
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it no product of a GPU is deterministic
    if size == 1 and not grouped:
        yield World(device=device)
        return
    wait = timedelta(seconds=seconds)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if meeting is None:
        dist.init_process_group(backend, timeout=wait)
    else:
        store = meet(meeting, rank, size, seconds)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    host = dist.new_group(backend="gloo", timeout=wait)
    assert isinstance(host, dist.ProcessGroup)
    world = World(rank, size, local_rank, local_size, device, host)
    yield replace(world, shared_memory=open_shared_memory(world, seconds) if size > 1 else None)
    dist.destroy_process_group()  # not after a failure: NCCL would wait for ranks that wait for this one


def message_capacity(size: int) -> int:
    """Most bytes of a letter in a world of this size."""
    return MESSAGES_BYTES // (2 * size)


def open_shared_memory(world: World, seconds: float) -> SharedMemory | None:
    """SharedMemory for all ranks, where they share one machine and its CPU; None elsewhere, the same on every rank."""
    machines = set(world.collect((machine_id(), world.device.type)))
    if len(machines) > 1 or world.device.type != "cpu":
        return None
    path: Path | None = None
    found: SharedMemory | None = None
    capacity = message_capacity(world.size)
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):  # no room or no right there: sockets do as well, only slower
        path = create(folder, f"dist_ssl-{uuid.uuid4().hex}", world.size, capacity) if world.rank == 0 else None
    path = world.share(path)
    with contextlib.suppress(OSError):
        found = SharedMemory(path, world.rank, world.size, capacity, seconds) if path else None
    lacking, unseen = world.agree_later(int(not found), int(not (found and found.liveness.shown))).result()
    if world.rank == 0 and path:
        path.unlink()
    if found:
        found.all_shown = not unseen
    return None if lacking else found


def meet(meeting: Path, rank: int, size: int, seconds: float) -> Store:
    """A store that all ranks of this attempt share, each of them known to be there."""
    if rank == 0:
        store, route = _open_store(meeting, seconds), ("", "")
    else:
        store, route = await_value(
            lambda: _find_store(meeting, seconds), seconds, lambda: _no_show("rank 0", seconds, meeting)
        )
    store.set(f"here/{rank}", json.dumps([machine_id(), *route]))

    def present() -> bool | None:
        return True if store.check([f"here/{other}" for other in range(size)]) else None

    def absent() -> UserError:
        late = [str(other) for other in range(size) if not store.check([f"here/{other}"])]
        return _no_show(f"rank {', '.join(late)} of {size}", seconds, meeting)

    await_value(present, seconds, absent)
    _choose_interface([json.loads(store.get(f"here/{other}")) for other in range(size)], rank)
    return PrefixStore("groups", store)


def _no_show(who: str, seconds: float, meeting: Path) -> UserError:
    return UserError(
        f"After {seconds:.0f} s {who} had not come to the rendezvous.",
        f"Logs are in {meeting.parent / 'logs'}; a firewall between the nodes looks the same.",
    )


def _open_store(meeting: Path, seconds: float) -> Store:
    token = uuid.uuid4().hex
    store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    store.set("token", token)
    Meeting(own_addresses(), store.port, token).write(meeting)
    kept: Store = store
    return kept


def _find_store(meeting: Path, seconds: float) -> "tuple[Store, tuple[str, str]] | None":
    """Rank 0's store and the route to it, as this end's and that end's address."""
    found = Meeting.read(meeting)
    for address in found.addresses if found else ():
        own = own_end(address, found.port) if found else None
        if found is None or own is None:
            continue
        store = TCPStore(address, found.port, is_master=False, timeout=timedelta(seconds=seconds))
        if store.get("token").decode() == found.token:
            return store, (own, address)
    return None


def _choose_interface(here: list[list[str]], rank: int) -> None:
    """Tell gloo and NCCL which interface reaches the others, since node names may not resolve."""
    remote = [own_and_peer for machine, *own_and_peer in here if machine != here[0][0]]
    if not remote:
        address = LOOPBACK
    elif here[rank][0] == here[0][0]:
        address = remote[0][1]
    else:
        address = here[rank][1]
    name = interface_of(address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if name and variable not in os.environ:
            os.environ[variable] = name
