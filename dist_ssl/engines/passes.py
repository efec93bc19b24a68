"""Loss and gradients of a batch, at once or in parts that are held in memory one at a time.

In parts it takes two passes: first all embeddings without a graph; then the loss over all of them, and its gradient in
each; then every part is embedded again and that gradient is pushed through (Gao et al. 2021, arXiv 2101.06983). So a
contrastive loss sees the whole global batch however small the parts are.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from dist_ssl.batch import Batch
from dist_ssl.errors import ConfigError
from dist_ssl.method import Embeddings, LossOutput, Method
from dist_ssl.models.norm import BatchNorm

Loss = Callable[[Embeddings], LossOutput]
Root = Callable[..., Embeddings]
"""Called like a `Method`."""


def check_parts(method: Method, parts: int) -> None:
    """Raise ConfigError where a batch of this method cannot be computed in so many parts."""
    if parts < 1:
        raise ConfigError(f"engine.accumulate={parts} is not possible: it is at least 1.", "Set engine.accumulate=1.")
    if parts > 1 and method.needs_whole_batch:
        raise ConfigError(
            f"engine.accumulate={parts} cannot be had with {method.needs_whole_batch}: it needs all samples at once.",
            "Use one of the two.",
        )
    norms = [child for child in method.modules() if isinstance(child, BatchNorm)]
    if parts > 1 and any(child.scope.samples is None for child in norms):
        raise ConfigError(
            f"engine.accumulate={parts} cannot be had with batch norm over the whole job: its statistics need all "
            "samples at once.",
            "Set method.norm_group (and aux.norm_group) to a divisor of the samples in a part, or use an encoder "
            "without batch norm.",
        )


def seed(batch: Batch, rank: int, part: int) -> None:
    """Key torch's own generator by position, the same in both passes."""
    torch.manual_seed((batch.draws.torch_seed(batch.step) + (part << 32) + rank) % (1 << 63))


def at_once(root: Root, loss: Loss, batch: Batch, rank: int) -> LossOutput:
    """Leave the gradients of the whole batch in the parameters, in one pass."""
    ((views, draws),) = batch.parts(1)
    seed(batch, rank, 0)
    out = loss(root(views, draws))
    out.loss.backward()  # type: ignore[no-untyped-call]
    return out


def in_parts(
    root: Root, loss: Loss, batch: Batch, rank: int, number: int, hold: Callable[[], AbstractContextManager[None]]
) -> LossOutput:
    """The same in `number` equal parts; `hold` keeps gradients from being exchanged before the last of them."""
    parts = batch.parts(number)
    students, teachers = [], []
    with torch.no_grad():
        for at, (views, draws) in enumerate(parts):
            seed(batch, rank, at)
            students.append(root(views, draws, targets=False))
            teachers.append(root(views, draws, embed=False))
    leaves = {name: value.requires_grad_() for name, value in _together(students).items()}
    out = loss({**leaves, **_together(teachers)})
    out.loss.backward()  # type: ignore[no-untyped-call]
    pushed = {name: leaf.grad.chunk(number) for name, leaf in leaves.items() if leaf.grad is not None}
    for at, (views, draws) in enumerate(parts):
        with hold() if at < number - 1 else nullcontext():
            seed(batch, rank, at)
            again = root(views, draws, targets=False)
            along = torch.stack([(again[name] * gradient[at]).sum() for name, gradient in pushed.items()]).sum()
            along.backward()  # type: ignore[no-untyped-call]
    return out


def _together(parts: list[Embeddings]) -> Embeddings:
    """The embeddings of all parts, in order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
