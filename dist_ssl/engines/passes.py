"""Loss and gradients of a batch, at once or in micro-batches (parts) that are held in memory one at a time.

Micro-batches take two passes: first all embeddings are computed without a graph, then the loss over all of them and its
gradient with respect to each; then every part is embedded again and this gradient is back-propagated (Gao et al. 2021,
arXiv 2101.06983). So a contrastive loss sees the whole global batch at any size of the parts.

Random numbers from torch's own generator (drop path) are keyed by step and part, counted over the job: for equal parts
they do not depend on the rank that computes them.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.errors import ConfigError
from dist_ssl.models.norm import BatchNorm
from dist_ssl.protocols.method import Embeddings, LossOutput, Method
from dist_ssl.runtime.step_clock import Lap, no_lap

Loss = Callable[[Embeddings], LossOutput]
Root = Callable[..., Embeddings]
"""A function called like a `Method`."""
Part = tuple[list[Tensor], SampleDraws]
"""Views and draws of consecutive samples of a batch."""
Backward = Callable[[Tensor], None]
"""Runs the backward pass of a loss of a root's outputs, adding to the gradients of the parameters."""


def check_parts(method: Method, parts: int) -> None:
    """Raise ConfigError where a batch of this method cannot be computed in this number of parts."""
    if parts < 1:
        raise ConfigError(
            f"engine.accumulate={parts} is not possible: it must be at least 1.", "Set engine.accumulate=1."
        )
    if parts > 1 and method.needs_whole_batch:
        raise ConfigError(
            f"engine.accumulate={parts} cannot be combined with {method.needs_whole_batch}: it needs the whole batch.",
            "Use one of the two.",
        )
    norms = [child for child in method.modules() if isinstance(child, BatchNorm)]
    if parts > 1 and any(child.scope.samples is None for child in norms):
        raise ConfigError(
            f"engine.accumulate={parts} cannot be combined with batch norm over the whole job: its statistics need all "
            "samples at once.",
            "Set method.norm_group (and aux.norm_group) to a divisor of the samples in a part, or use an encoder "
            "without batch norm.",
        )


def seed(batch: Batch, part: int) -> None:
    """Seed torch's generator by position, the same in both passes; `part`: number of the part, counted over the job."""
    torch.manual_seed((batch.draws.torch_seed(batch.step) + part) % (1 << 63))


def plain(loss: Tensor) -> None:
    """Run torch's backward pass."""
    loss.backward()  # type: ignore[no-untyped-call]


def at_once(
    root: Root, loss: Loss, batch: Batch, rank: int, backward: Backward = plain, lap: Lap = no_lap
) -> LossOutput:
    """Leave the gradients of the whole batch in the parameters, in one pass; return the loss.

    `lap`: is called at the end of each part of the pass.
    """
    ((views, draws),) = batch.parts(1)
    seed(batch, rank)
    embeddings = root(views, draws)
    lap("forward")
    out = loss(embeddings)
    lap("loss")
    backward(out.loss)
    lap("backward")
    return out


def in_parts(
    root: Root,
    loss: Loss,
    batch: Batch,
    rank: int,
    number: int,
    hold: Callable[[], AbstractContextManager[None]],
    backward: Backward = plain,
    lap: Lap = no_lap,
) -> LossOutput:
    """Do the same in `number` equal parts; `hold` defers the exchange of gradients until the last of them."""
    parts, first = batch.parts(number), rank * number
    found = []
    for at, part in enumerate(parts):
        seed(batch, first + at)
        found.append(embedded(root, part))
    lap("forward")
    out, pulls = pulled(loss, *(together(pass_) for pass_ in zip(*found, strict=True)))
    lap("loss")
    pushed = {name: pull.chunk(number) for name, pull in pulls.items()}
    for at, part in enumerate(parts):
        with hold() if at < number - 1 else nullcontext():
            seed(batch, first + at)
            push(root, part, {name: pull[at] for name, pull in pushed.items()}, backward, lap)
    return out


@torch.no_grad()
def embedded(root: Root, part: Part) -> tuple[Embeddings, Embeddings]:
    """Return the student's and the teacher's embeddings of a part."""
    return root(*part, targets=False), root(*part, embed=False)


def pulled(loss: Loss, students: Embeddings, teachers: Embeddings) -> tuple[LossOutput, Mapping[str, Tensor]]:
    """Return the loss of embeddings without a graph, and its gradients by the student's embeddings that it uses."""
    leaves = {name: value.requires_grad_() for name, value in students.items()}
    out = loss({**leaves, **teachers})
    out.loss.backward()  # type: ignore[no-untyped-call]
    return out, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def push(root: Root, part: Part, pulls: Mapping[str, Tensor], backward: Backward = plain, lap: Lap = no_lap) -> None:
    """Embed a part again, with a graph, and back-propagate the gradients of its embeddings."""
    again = root(*part, targets=False)
    lap("forward")
    backward(torch.stack([(again[name] * pull).sum() for name, pull in pulls.items()]).sum())
    lap("backward")


def together(parts: tuple[Embeddings, ...]) -> Embeddings:
    """Return the embeddings of all parts, concatenated in order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
