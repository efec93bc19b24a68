"""What a self-supervised method is: a plain module in two halves, and what it keeps between steps.

`embed` and `targets` work sample by sample (batch norm excepted), `loss` over the whole global batch; so an engine may
run the first half in micro-batches and still take the loss over all of them. The loss has no parameters of its own:
what has weights belongs to the first half. Neither half writes a buffer; memory is written by `remember`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Curve, EpochPlan, Hyperparameters

Embeddings = dict[str, Tensor]
"""Named embeddings of one rank's samples, [B, D] each."""


@dataclass
class LossOutput:
    """What a loss leaves behind."""

    loss: Tensor
    """[] this rank's share; the objective is the mean over ranks."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """[] each, detached, still on the device."""
    remember: dict[str, Tensor] = field(default_factory=dict)
    """What memory needs of this step, detached."""


class Method(nn.Module, ABC):
    """One self-supervised method. `student` and `teacher` hold an `encoder`; the teacher has no gradients."""

    num_views: int
    """Global views that it takes of every image."""
    local_views: int = 0
    """Smaller views beside them; they come last in a batch."""
    needs_initial_pass: bool = False
    """Whether a pass over the data, in whole batches, comes before the first step."""
    unit_rows: tuple[str, ...] = ()
    """Names of parameters whose rows an engine brings back to length 1 after every step."""
    student: nn.Module
    teacher: nn.Module | None

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """What is evaluated and exported: [B, 3, S, S] -> [B, D]."""

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The numbers that follow the schedule, by name."""
        return {}

    @property
    def needs_whole_batch(self) -> str:
        """The option because of which `embed` or `targets` cannot work on parts of a batch; empty where they can."""
        return ""

    def check(self, plan: EpochPlan) -> None:
        """Raise ConfigError where this method cannot learn from epochs of this plan."""

    def forward(
        self, views: list[Tensor], draws: SampleDraws, *, embed: bool = True, targets: bool = True
    ) -> Embeddings:
        """The root that engines wrap: everything that `loss` asks for, or one of its two sources."""
        carrying = self.embed(views, draws) if embed else {}
        return {**carrying, **self.targets(views, draws)} if targets else carrying

    @abstractmethod
    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """[B, 3, S, S] per view -> what carries gradients: the student's embeddings."""

    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """[B, 3, S, S] per view -> what carries none: the teacher's embeddings, by other names."""
        return {}

    @abstractmethod
    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """The loss over the global batch; gathers live here."""

    def initialise_memory(self, batch: Batch) -> None:
        """Begin a memory with one batch of a pass over the data, where `needs_initial_pass`; before the first step."""

    def remember(self, out: LossOutput, batch: Batch, hyper: Hyperparameters) -> None:
        """Update queue, bank or centres, once per weight update. A method without memory has nothing to do."""
