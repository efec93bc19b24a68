"""Bitwise mode: equal bits on 1, 2, 4, ... ranks, because no computation depends on the number of ranks.

The global batch is cut into a fixed number of virtual ranks, runs of consecutive samples. Each is computed separately,
with the same shapes on every rank, and batch norms use its samples only. The loss takes two passes (`passes`): every
rank gathers all embeddings and computes the loss of the whole job, as in a world of one. Gradients and running
statistics are summed over a fixed tree (`tree`). So the method must be built with a world of one: its queue, bank and
sums are then those of the whole job on every rank. Each rank computes with one thread, since threads split sums.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dist_ssl.core.batch import Batch
from dist_ssl.distributed.world import World
from dist_ssl.engines.passes import Loss, Root, embedded, pulled, push, seed, together
from dist_ssl.engines.tree import block, tree_sum
from dist_ssl.errors import ConfigError
from dist_ssl.models import norm
from dist_ssl.protocols.method import LossOutput, Method
from dist_ssl.runtime.step_clock import Lap, no_lap


def check_number(bitwise: bool, number: int | None, batch_size: int, ranks: int) -> None:
    """Raise ConfigError where a batch cannot be cut into `number` virtual ranks, shared equally by `ranks` ranks."""
    fitting = [n for n in range(ranks, batch_size // 2 + 1) if batch_size % n == 0 and n % ranks == 0]
    numbers = ", ".join(map(str, fitting))
    use = f"Use engine.virtual_ranks={numbers}." if len(fitting) == 1 else f"Use one of these: {numbers}."
    use = use if fitting else f"Use a batch_size of which {ranks} or more equal parts have 2 samples or more."
    if bitwise and number is None:
        raise ConfigError("engine.bitwise=true needs engine.virtual_ranks: the parts that a batch is cut into.", use)
    if number is not None and not bitwise:
        raise ConfigError(
            f"engine.virtual_ranks={number} has no effect without engine.bitwise=true.", "Set both, or none of them."
        )
    if number is None or number in fitting:
        return
    if number < 1 or batch_size % number or batch_size // number < 2:
        raise ConfigError(
            f"engine.virtual_ranks={number} does not divide batch_size={batch_size} into equal parts of 2 or more.",
            use,
        )
    sizes = ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
    raise ConfigError(
        f"{ranks} ranks cannot share engine.virtual_ranks={number} equally.",
        f"Use one of these numbers of ranks: {sizes}; or in a new run these virtual ranks: {numbers or 'none fit'}.",
    )


def check_options(compute: torch.dtype | None, accumulate: int, deterministic: bool, compiled: bool) -> None:
    """Raise ConfigError for options of an engine that bitwise mode excludes."""
    excluded = {
        "precision=bf16": (compute is not None, "sums in bf16 are too inexact to compare bits"),
        f"engine.accumulate={accumulate}": (accumulate != 1, "a batch is computed in virtual ranks already"),
        "engine.deterministic=false": (not deterministic, "bits then differ even at the same world size"),
        "engine.compile=true": (compiled, "the compiled code depends on the shapes seen before"),
    }
    for words, (chosen, reason) in excluded.items():
        if chosen:
            raise ConfigError(
                f"engine.bitwise=true cannot be combined with {words}: {reason}.",
                "Leave one of the two out, in a new run.",
            )


def check_method(method: Method) -> None:
    """Raise ConfigError where a method exchanges samples between virtual ranks before the loss."""
    if method.needs_whole_batch:
        raise ConfigError(
            f"engine.bitwise=true cannot be combined with {method.needs_whole_batch}, which exchanges images between "
            "virtual ranks, each of which is computed separately.",
            f"Set {method.needs_whole_batch}=false, in a new run.",
        )


@dataclass(frozen=True)
class VirtualRanks:
    """A fixed number of virtual ranks, divided among the ranks of a world whose size divides it."""

    number: int
    world: World

    @property
    def own(self) -> range:
        """The virtual ranks that this rank computes."""
        return block(self.number, self.world.rank, self.world.size)

    def everyone(self, x: Tensor) -> Tensor:
        """Gather [B, ...] -> [N, ...] of the job, without gradients, into its own memory."""
        return self.world.gather_const(x.to(self.world.device)).clone()

    def whole(self, batch: Batch) -> Batch:
        """Return the batch with the ids and validity of the whole job, as losses use it; the views stay this rank's."""
        own = [batch.ids, batch.ids if batch.uses is None else batch.uses]
        ids, uses, valid = self.everyone(
            torch.stack([*(numbers.to(batch.valid.device) for numbers in own), batch.valid.long()], dim=1)
        ).unbind(1)
        return replace(batch, ids=ids.cpu(), uses=uses.cpu(), valid=valid.bool())

    def each(self, batch: Batch) -> Iterable[Batch]:
        """Yield the batches of all virtual ranks in order, with gathered views."""
        views = [self.everyone(view) for view in batch.views]
        job = self.whole(batch)
        rows = len(job.ids) // self.number
        for start in range(0, len(job.ids), rows):
            own = slice(start, start + rows)
            uses = None if job.uses is None else job.uses[own]
            yield replace(
                job, views=[aligned(v[own]) for v in views], ids=job.ids[own], uses=uses, valid=job.valid[own]
            )

    def gradients(self, root: Root, loss: Loss, batch: Batch, method: Method, lap: Lap = no_lap) -> LossOutput:
        """Leave the gradients of the whole job in the method's parameters, update running statistics, return the loss.

        `loss`: the loss of the embeddings of the whole job.
        """
        parts = {
            number: ([aligned(view) for view in views], draws)
            for number, (views, draws) in zip(self.own, batch.parts(len(self.own)), strict=True)
        }
        found, seen = [], []
        for number, part in parts.items():
            seed(batch, number)
            found.append(embedded(root, part))
            seen.append(norm.taken(method))
        lap("forward")
        self._update_running_statistics(seen)
        students, teachers = (
            {name: self.everyone(x) for name, x in together(pass_).items()} for pass_ in zip(*found, strict=True)
        )
        out, pulls = pulled(loss, students, teachers)
        lap("loss")
        pushed = {name: pull.chunk(self.number) for name, pull in pulls.items()}

        def own_gradient(number: int) -> Tensor:
            seed(batch, number)
            pull = {name: chunks[number] for name, chunks in pushed.items()}
            gradient = flat_gradient(method, lambda: push(root, parts[number], pull, lap=lap))
            norm.taken(method)  # discard: the first pass has recorded the same
            return gradient

        put_back(method, tree_sum(self.world, self.number, own_gradient))
        return out

    def _update_running_statistics(self, seen: Sequence[norm.Seen]) -> None:
        """Update running statistics towards the mean over all virtual ranks."""
        if not seen[0]:
            return
        packed = {number: norm.packed(own) for number, own in zip(self.own, seen, strict=True)}
        total = tree_sum(self.world, self.number, lambda number: packed[number].flatten())
        norm.move(norm.unpacked(seen[0], total.view(2, -1) / self.number))


def aligned(view: Tensor) -> Tensor:
    """Return a copy in its own memory: libraries may compute differently at another memory alignment."""
    return view.clone(memory_format=torch.channels_last)


def flat_gradient(method: nn.Module, backward: Callable[[], None]) -> Tensor:
    """Return [P] the gradients of one backward pass, of all parameters that get one."""
    for parameter in method.parameters():
        parameter.grad = None
    backward()
    return torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


def put_back(method: nn.Module, gradient: Tensor) -> None:
    """Set the gradients of all parameters that have one from `gradient` [P]."""
    own = [p.grad for p in method.parameters() if p.grad is not None]
    for grad, part in zip(own, torch.split(gradient, [grad.numel() for grad in own]), strict=True):
        grad.copy_(part.view(grad.shape))
