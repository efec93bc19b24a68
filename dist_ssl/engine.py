"""What an engine is: it wraps a method, turns a loss into a weight update, and knows its state in one canonical form.

The canonical state names every tensor of a run: `model/<parameter or buffer>`, `optim/<parameter>/<moment>`. Any
engine reads what any other wrote, at any world size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from dist_ssl.batch import Batch
from dist_ssl.plan import Knobs

State = Mapping[str, Tensor]
"""Canonical names to whole tensors."""

Who = Literal["student", "teacher"]


@dataclass(frozen=True)
class StepOutput:
    """What one weight update leaves for the meter: [] tensors, detached, on the device, this rank's share."""

    metrics: dict[str, Tensor]


class Engine(Protocol):
    """Owns wrapping, precision, optimizer and teacher."""

    def step(self, batch: Batch, knobs: Knobs) -> StepOutput:
        """One weight update: embed, loss, backward, guard, clip, update, follow, remember."""
        ...

    def embed(self, view: Tensor, who: Who) -> Tensor:
        """[B, 3, S, S] -> pooled features [B, D] fp32, in eval mode, without gradients."""
        ...

    def state(self) -> State:
        """The canonical state; the same on every rank."""
        ...

    def load(self, state: State) -> None:
        """Take over a canonical state. Raises CheckpointError where names or shapes differ."""
        ...
