"""The base class of self-supervised methods: a plain module in two halves, and its memory between steps.

The first half, `embed` and `targets`, works sample by sample (except batch norm), the second, `loss`, on the whole
global batch; so an engine may run the first half in micro-batches and still compute the loss over all of them. The loss
has no parameters: modules with weights belong to the first half. Neither half writes a buffer; `remember` does.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Curve, EpochPlan, Hyperparameters
from dist_ssl.models.patches import set_patch

Embeddings = dict[str, Tensor]
"""Named embeddings of one rank's samples, [B, D] each."""


@dataclass
class LossOutput:
    """The result of a loss: its value, metrics, and tensors for `remember`."""

    loss: Tensor
    """[] this rank's value; the objective is the mean over ranks."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """[] each, detached, still on the device."""
    remember: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of this step that the memory needs, detached."""


class Method(nn.Module, ABC):
    """One self-supervised method. `student` and `teacher` hold an `encoder`; the teacher has no gradients."""

    num_views: int
    """Number of global views of every image."""
    local_views: int = 0
    """Number of smaller (local) views of every image; they come last in a batch."""
    needs_initial_pass: bool = False
    """True if the memory is initialised by a pass over the data, in whole batches, before the first step."""
    unit_rows: tuple[str, ...] = ()
    """Names of parameters whose rows an engine normalises to unit length after every step."""
    student: nn.Module
    teacher: nn.Module | None

    @property
    def encoder(self) -> nn.Module:
        """The network that is evaluated and exported, the student's encoder: [B, 3, S, S] -> [B, D]."""
        return self.student.get_submodule("encoder")

    def encoder_of(self, branch: str) -> nn.Module:
        """Return the teacher's encoder for the branch `teacher`, else the one that is evaluated and exported."""
        if branch != "teacher":
            return self.encoder
        assert self.teacher is not None
        return self.teacher.get_submodule("encoder")

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The hyperparameters that the schedule sets, by name; each name needs a row in the metric table."""
        return {}

    @property
    def needs_whole_batch(self) -> str:
        """The option that keeps `embed` or `targets` from working on micro-batches; empty if they can."""
        return ""

    def check(self, plan: EpochPlan) -> None:
        """Raise ConfigError if this method cannot learn from epochs of this plan."""

    def forward(
        self, views: list[Tensor], draws: SampleDraws, *, embed: bool = True, targets: bool = True
    ) -> Embeddings:
        """Return all embeddings that `loss` needs, or only those of one half's functions; engines wrap this call.

        `draws.tokens` says how transformers cut the views: into patches of this side in student and teacher.
        """
        set_patch(self, draws.tokens.patch)
        embeddings = self.embed(views, draws) if embed else {}
        return {**embeddings, **self.targets(views, draws)} if targets else embeddings

    @abstractmethod
    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the student's embeddings, with gradients, of the views, [B, 3, S, S] each.

        Before every pass of the student's encoder `drop_tokens` draws the tokens that it keeps.
        """

    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the teacher's embeddings, without gradients, under other names, of the views, [B, 3, S, S] each."""
        return {}

    @abstractmethod
    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the loss over the global batch; this is the place for gathers."""

    def initialise_memory(self, batch: Batch) -> None:
        """Initialise the memory from one batch of the pass before the first step, if `needs_initial_pass`."""

    def remember(self, out: LossOutput, batch: Batch, hyper: Hyperparameters) -> None:
        """Update queue, bank or centres, once per weight update. A method without memory does nothing."""
