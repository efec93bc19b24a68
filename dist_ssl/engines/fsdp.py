"""The engine for models that do not fit on one device: every rank holds a shard of each parameter, gradient and moment.

It is torch's `fully_shard` (FSDP2; Rajbhandari et al. 2020, arXiv 1910.02054; Zhao et al. 2023, arXiv 2304.11277).
The blocks of a network are units, gathered one at a time just before they compute; parameters outside of blocks belong
to the root. So every call must go through the root module; `Shell` allows this for any part of the method. Optimizer,
clipping and EMA update see shards as plain tensors. Buffers (batch-norm statistics, queue, bank, centre) stay as the
method made them. In a world of one nothing is wrapped.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel, T
from dist_ssl.engines.shares import Shares
from dist_ssl.engines.shell import Shell
from dist_ssl.engines.spread import place_of
from dist_ssl.errors import ConfigError
from dist_ssl.optim.recipes import Muon
from dist_ssl.protocols.engine import Piece, State
from dist_ssl.protocols.method import Embeddings, LossOutput


def blocks(module: nn.Module, least: int) -> list[nn.Module]:
    """Return the modules to shard as units: members of `ModuleList`s and `Sequential`s of at least `least` parameters.

    Innermost modules come first; a parameter counts for the innermost unit that contains it.
    """
    found: list[nn.Module] = []

    def outside_of_units(part: nn.Module, listed: bool) -> int:
        lists = isinstance(part, nn.ModuleList | nn.Sequential)
        count = sum(p.numel() for p in part.parameters(recurse=False))
        count += sum(outside_of_units(child, lists) for child in part.children())
        if not listed or lists or count < max(least, 1):
            return count
        found.append(part)
        return 0

    outside_of_units(module, False)
    return found


def mesh(world: World, replicate: Literal["nodes"] | None) -> DeviceMesh:
    """Return the mesh of all ranks, [ranks], or [nodes, ranks of a node] if nodes hold copies. Raises ConfigError."""
    kind, per_node = world.device.type, world.local_size
    if replicate is None:
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    placed = world.collect([world.local_rank, per_node])
    if world.size % per_node or placed != [[rank % per_node, per_node] for rank in range(world.size)]:
        raise ConfigError(
            f"engine.replicate=nodes is not possible: {world.size} ranks are spread unevenly over the nodes.",
            "Use as many ranks on every node (another ranks_per_node or number of nodes), or engine.replicate=null.",
        )
    return init_device_mesh(kind, (world.size // per_node, per_node), mesh_dim_names=("copy", "shard"))


def place(shape: tuple[int, ...], shard: Tensor, rank: int, size: int) -> Piece:
    """Return the piece of a parameter on rank `rank` of `size`: torch gives each ceil(rows / size) rows or fewer."""
    rows = -(-shape[0] // size)
    first = min(rank * rows, shape[0])
    assert len(shard) == min(rows, shape[0] - first)
    return Piece.of_rows(shard, first, shape[0])


def shared_out(counts: Mapping[str, int], copies: int) -> dict[str, int]:
    """Return the copy that saves each tensor, the same on all ranks. `counts`: the tensors' elements.

    The copies take turns, the largest tensors first: none saves more than the largest tensor above another one.
    """
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: number % copies for number, name in enumerate(ordered)}


@dataclass(eq=False, repr=False)
class FSDP(Parallel):
    """Training in which a rank holds a shard of every parameter, gradient and moment. Raises ConfigError."""

    block_parameters: int = 100_000
    """Smallest number of parameters of a block that is gathered as a unit, at least 1."""
    reshard: bool = True
    """Free gathered blocks between forward and backward pass."""
    cpu_offload: bool = False
    """Keep shards and moments in host memory; the optimizer then runs there."""
    replicate: Literal["nodes"] | None = None
    """`nodes` shards within a node and keeps a copy on each; None shards over all ranks."""

    def __post_init__(self) -> None:
        self.sharded: dict[str, Any] = {}  # DTensors
        self.shards: dict[str, Piece] = {}
        self.copies, self.copy = 1, 0
        self.shell = Shell(self.method)
        super().__post_init__()

    def wrap(self) -> Mapping[str, nn.Parameter]:
        """Shard the method, unless the world has one rank; return this rank's shards by parameter name."""
        self.root = partial(self.shell, self._apart)
        whole = dict(self.method.named_parameters())
        self._check(whole)
        if self.world.alone:
            return whole
        shapes = {name: tuple(p.shape) for name, p in whole.items()}
        size, rank = self._shard()
        self.sharded = dict(self.method.named_parameters())
        held = {name: p.detach().to_local() for name, p in self.sharded.items()}
        self.shards = {name: place(shapes[name], shard, rank, size) for name, shard in held.items()}
        return {name: nn.Parameter(shard, self.sharded[name].requires_grad) for name, shard in held.items()}

    def _check(self, whole: Mapping[str, nn.Parameter]) -> None:
        """Raise ConfigError for options and methods that FSDP cannot run."""
        if single := [name for name, p in whole.items() if p.ndim == 0]:
            raise ConfigError(
                f"engine=fsdp cannot shard '{single[0]}': it is a single number, without rows.", "Use engine=ddp."
            )
        if isinstance(self.recipe, Muon):
            raise ConfigError(
                "optim=muon cannot be combined with engine=fsdp, which shards rows of matrices: Muon needs whole ones.",
                "Use engine=ddp, or another optimizer.",
            )
        if self.block_parameters < 1:
            raise ConfigError(
                f"engine.block_parameters={self.block_parameters} is not possible: it must be at least 1.",
                "Set engine.block_parameters=100000, say.",
            )
        kind = self.world.device.type
        if self.cpu_offload and (kind == "cpu" or (kind == "cuda" and self.world.alone)):
            reason = "these ranks compute on the CPU" if kind == "cpu" else "a single rank holds everything"
            raise ConfigError(
                f"engine.cpu_offload=true is not possible: {reason}.", "Set engine.cpu_offload=false, or use more GPUs."
            )

    def shares(self, ranks: int, per_node: int) -> Shares:
        """Return that all ranks, or those of a node, share everything."""
        over = per_node if self.replicate else ranks
        alike = replace(super().shares(ranks, per_node), on_device=not self.cpu_offload)
        return replace(alike, weights=over, gradients=over, moments=over)

    def _shard(self) -> tuple[int, int]:
        """Wrap blocks and root; return the number of shards of a parameter, and the index of this rank's shard."""
        over = mesh(self.world, self.replicate)
        options: dict[str, Any] = {"mesh": over}
        if self.compute is not None:
            # autocast decides the precision of each operation, so FSDP does not cast inputs
            options["mp_policy"] = MixedPrecisionPolicy(self.compute, self.dtype, cast_forward_inputs=False)
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy()
        for block in blocks(self.method, self.block_parameters):
            fully_shard(block, reshard_after_forward=self.reshard, **options)
        fully_shard(self.shell, **options)
        if over.ndim == 2:
            self.copies, self.copy = over.size(0), over.get_local_rank("copy")
        return over.size(over.ndim - 1), over.get_local_rank("shard")

    def _apart(self, *args: Any, **which: bool) -> Embeddings:
        """Return copies of the method's outputs: FSDP attaches its gathers for the backward pass to them."""
        return {name: x.clone() for name, x in self.method(*args, **which).items()}

    @property
    def _units(self) -> Iterator[FSDPModule]:
        return (module for module in self.shell.modules() if isinstance(module, FSDPModule))

    def _free(self) -> None:
        """Free gathered parameters, so that the next use gathers the updated shards."""
        for unit in self._units:
            unit.reshard()

    def refresh(self) -> None:
        """Free gathered parameters."""
        self._free()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Accumulate gradients without reducing them over the ranks."""
        for unit in self._units:
            unit.set_requires_gradient_sync(False, recurse=False)
        yield
        for unit in self._units:
            unit.set_requires_gradient_sync(True, recurse=False)

    def through(self, part: Callable[..., T], *args: Any) -> T:
        """Call the part through the root module."""
        found: T = self.shell(part, *args)
        self._free()
        return found

    def gradients(self, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the loss; leave the shards of its averaged gradients in the local parameters."""
        out = super().gradients(batch, hyper)
        self._free()
        for name, parameter in self.sharded.items():
            if parameter.grad is not None:
                self.own[name].grad = parameter.grad.to_local()
                parameter.grad = None
        return out

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the norms, [n], of whole tensors, from the squares of all shards in one exchange."""
        own = torch.stack(torch._foreach_norm(list(tensors)))
        if not self.sharded:
            return own
        squares = self.world.sum_const(own.to(self.world.device).double().square())
        return (squares / self.copies).sqrt().to(own)

    def part(self, name: str, value: Tensor) -> Tensor | Piece:
        """Return this rank's rows as a piece."""
        shard = self.shards.get(name)
        return value if shard is None else Piece(value, shard.shape, shard.start)

    def piece(self, name: str) -> Piece | None:
        """Return this rank's piece of a canonical tensor, parameters and moments included; None if it is whole."""
        return self._shard_of(name) or super().piece(name)

    def _shard_of(self, name: str) -> Piece | None:
        """Return the shard with the layout of a canonical tensor; None if the tensor is not sharded."""
        _, parameter, moment = place_of(name)
        return self.shards.get(parameter) if moment != "step" else None

    def state(self) -> State:
        """Return the canonical state; of several copies each returns the elements of its share of what is sharded."""
        found = super().state()
        sharded = {name: value for name, value in found.items() if isinstance(value, Piece) and self._shard_of(name)}
        counts = {name: math.prod(piece.shape) for name, piece in sharded.items()}
        elsewhere = [name for name, copy in shared_out(counts, self.copies).items() if copy != self.copy]
        empty = {name: Piece(sharded[name].tensor.flatten()[:0], sharded[name].shape, 0) for name in elsewhere}
        return {**found, **empty}

    def load(self, state: State) -> None:
        """Load a canonical state that contains at least the elements this rank `wants`. Raises CheckpointError."""
        self._free()
        super().load(state)
