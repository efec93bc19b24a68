"""The engine for models that do not fit on one device: a rank holds a shard of every parameter, gradient and moment.

It is torch's `fully_shard` (FSDP2; Rajbhandari et al. 2020, arXiv 1910.02054; Zhao et al. 2023, arXiv 2304.11277).
The blocks of a network are units, gathered one at a time just before they compute; what lies outside of blocks belongs
to the root. So nothing may be called but through the root, which `Shell` makes possible for any part of the method.
Optimizer, clipping and the teacher's move see shards as plain tensors. Buffers (batch norm's statistics, queue, bank,
centre) stay as the method made them. In a world of one nothing is wrapped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from dist_ssl.engines.shell import Shell
from dist_ssl.errors import ConfigError
from dist_ssl.protocols.engine import Piece, State
from dist_ssl.protocols.method import Embeddings, LossOutput


def blocks(module: nn.Module, least: int) -> list[nn.Module]:
    """What is sharded as a unit: members of `ModuleList`s and `Sequential`s with at least `least` parameters.

    Innermost first; a parameter counts for the innermost unit that it is in.
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
    """All ranks in a row, or where nodes hold copies: nodes x ranks of a node. Raises ConfigError."""
    kind, per_node = world.device.type, world.local_size
    if replicate is None:
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    placed = world.collect((world.local_rank, per_node))
    if world.size % per_node or placed != [(rank % per_node, per_node) for rank in range(world.size)]:
        raise ConfigError(
            f"engine.replicate=nodes is not possible: {world.size} ranks are spread unevenly over the nodes.",
            "Use as many ranks on every node (another ranks_per_node or number of nodes), or engine.replicate=null.",
        )
    return init_device_mesh(kind, (world.size // per_node, per_node), mesh_dim_names=("copy", "shard"))


def place(shape: tuple[int, ...], shard: Tensor, rank: int, size: int) -> Piece:
    """The piece that rank `rank` of `size` holds of a parameter: torch cuts its rows as evenly as equal runs can be."""
    rows = -(-shape[0] // size)
    first = min(rank * rows, shape[0])
    assert len(shard) == min(rows, shape[0] - first)
    return Piece.of_rows(shard, first, shape[0])


@dataclass(eq=False, repr=False)
class FSDP(Parallel):
    """A rank holds a shard of every parameter, and of its gradient and moments. Raises ConfigError."""

    block_parameters: int = 100_000
    """How many a block has at least that is gathered as a unit."""
    reshard: bool = True
    """Free gathered blocks between forward and backward."""
    cpu_offload: bool = False
    """Keep shards and moments in host memory, where the optimizer then runs."""
    replicate: Literal["nodes"] | None = None
    """`nodes` shards within a node and keeps a copy on each; None shards over all ranks."""

    def __post_init__(self) -> None:
        self.sharded: dict[str, Any] = {}  # DTensors
        self.shards: dict[str, Piece] = {}
        self.copies, self.copy = 1, 0
        self.shell = Shell(self.method)
        super().__post_init__()

    def wrap(self) -> Mapping[str, nn.Parameter]:
        """Shard the method, unless it is alone in its world."""
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
        """Raise ConfigError for what FSDP cannot do."""
        if single := [name for name, p in whole.items() if p.ndim == 0]:
            raise ConfigError(
                f"engine=fsdp cannot shard '{single[0]}': it is a single number, without rows.", "Use engine=ddp."
            )
        if self.block_parameters < 1:
            raise ConfigError(
                f"engine.block_parameters={self.block_parameters} is not possible: it is at least 1.",
                "Set engine.block_parameters=100000, say.",
            )
        kind = self.world.device.type
        if self.cpu_offload and (kind == "cpu" or (kind == "cuda" and self.world.alone)):
            reason = "these ranks compute on the CPU" if kind == "cpu" else "a single rank holds everything"
            raise ConfigError(
                f"engine.cpu_offload=true is not possible: {reason}.", "Set engine.cpu_offload=false, or use more GPUs."
            )

    def _shard(self) -> tuple[int, int]:
        """Wrap blocks and root; over how many ranks a parameter is cut, and which of them this one is."""
        over = mesh(self.world, self.replicate)
        options: dict[str, Any] = {"mesh": over}
        if self.compute is not None:
            # autocast has the last word on what is computed in which precision: inputs are left to it
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
        """What the method answers, in memory of its own: FSDP hangs its gathering for the backward pass on it."""
        return {name: x.clone() for name, x in self.method(*args, **which).items()}

    @property
    def _units(self) -> Iterator[FSDPModule]:
        return (module for module in self.shell.modules() if isinstance(module, FSDPModule))

    def _free(self) -> None:
        """Free what is gathered, so that the next use gathers what shards hold by then."""
        for unit in self._units:
            unit.reshard()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep gradients back."""
        for unit in self._units:
            unit.set_requires_gradient_sync(False, recurse=False)
        yield
        for unit in self._units:
            unit.set_requires_gradient_sync(True, recurse=False)

    def through(self, part: Callable[..., T], *args: Any) -> T:
        """Call the part from the root."""
        found: T = self.shell(part, *args)
        self._free()
        return found

    def gradients(self, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """The loss; the averaged gradients' shards are left in what is held here."""
        out = super().gradients(batch, hyper)
        self._free()
        for name, parameter in self.sharded.items():
            if parameter.grad is not None:
                self.own[name].grad = parameter.grad.to_local()
                parameter.grad = None
        return out

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """[n] the norms of whole tensors, from the squares of all shards in one exchange."""
        own = torch.stack(torch._foreach_norm(list(tensors)))
        if not self.sharded:
            return own
        squares = self.world.sum_const(own.to(self.world.device).double().square())
        return (squares / self.copies).sqrt().to(own)

    def part(self, name: str, value: Tensor) -> Tensor | Piece:
        """Rows of it."""
        shard = self.shards.get(name)
        return value if shard is None else Piece(value, shard.shape, shard.start)

    def piece(self, name: str) -> Piece | None:
        """This rank's piece, of parameters and moments too."""
        return self._shard_of(name) or super().piece(name)

    def _shard_of(self, name: str) -> Piece | None:
        """The shard that a canonical name goes with."""
        kind, _, rest = name.partition("/")
        parameter, _, moment = rest.rpartition("/")
        if kind == "model":
            return self.shards.get(rest)
        return self.shards.get(parameter) if moment != "step" else None

    def state(self) -> State:
        """As any engine's; of several copies the first is the one that counts."""
        found = super().state()
        if self.copy == 0:
            return found
        return {
            name: Piece(value.tensor.flatten()[:0], value.shape, value.start)
            if isinstance(value, Piece) and self._shard_of(name)
            else value
            for name, value in found.items()
        }

    def load(self, state: State) -> None:
        """Copy a canonical state, or the pieces of it that this rank wants, into model and optimizer."""
        self._free()
        super().load(state)
