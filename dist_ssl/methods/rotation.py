"""Rotation as an auxiliary task (Addepalli et al. 2022, arXiv 2210.09866), on top of any method.

    turned copies of the first `turned` views, by a random number of quarter turns each, pass the student's encoder
    only; a head tells the four turns apart
    loss = the method's loss + weight * sum over turned views of CE(head(encoder(turned)), turn)

The turned copies are nobody's positives and the teacher never sees them. Published for SwAV alone; for other methods
it is a reconstruction.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.config.validation import at_least
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Purpose, SampleDraws
from dist_ssl.core.plan import Curve, EpochPlan, Hyperparameters
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.losses.job import job_mean
from dist_ssl.losses.rotation_classes import TURNS, rotate, rotation_cross_entropy
from dist_ssl.models import norm
from dist_ssl.models.branch import width_of
from dist_ssl.models.encoders import check_side
from dist_ssl.models.heads import mlp
from dist_ssl.protocols.method import Embeddings, LossOutput, Method

OWN = "turned"
"""Begins the names of this task's embeddings."""


class Rotation(Method):
    """A method with the task added. `weight` from 0; `turned`: views that are turned, 1 up to the method's; `hidden`:
    width of the head. `side`: px that turned copies are shrunk to, which saves time; None: those of the views.
    `norm_group`: samples that share the head's batch-norm statistics; None: all of the job's.

    The method's modules keep their names, so an encoder is found where it is without the task.
    """

    def __init__(
        self,
        method: Method,
        *,
        world: World,
        weight: float = 0.1,
        turned: int = 2,
        hidden: int = 2048,
        side: int | None = None,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("aux", 0, weight=weight)
        at_least("aux", 1, turned=turned, hidden=hidden, side=1 if side is None else side)
        self.world, self.weight, self.side = world, weight, side
        self.turned = min(turned, method.num_views)
        loose = [name for name, _ in (*method.named_parameters(recurse=False), *method.named_buffers(recurse=False))]
        assert not loose, f"{loose} lie in no module of the method: a step or a move of one would miss the other's"
        object.__setattr__(self, "method", method)  # not a child of its own: its children are ours
        for name, child in method.named_children():
            self.add_module(name, child)
        head = mlp([width_of(method.encoder), hidden, TURNS], last_norm=False, bias=True)
        self.rotation = norm.convert(head, scope(world, norm_group))
        self.num_views, self.local_views = method.num_views, method.local_views
        self.teacher, self.needs_initial_pass, self.unit_rows = (
            method.teacher,
            method.needs_initial_pass,
            method.unit_rows,
        )

    method: Method

    @property
    def encoder(self) -> nn.Module:
        """The method's."""
        return self.method.encoder

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The method's."""
        return self.method.curves

    @property
    def needs_whole_batch(self) -> str:
        """As the method."""
        return self.method.needs_whole_batch

    def check(self, plan: EpochPlan) -> None:
        """Raise ConfigError where turned copies would not shrink or do not fit the encoder; beside it as the method."""
        self.method.check(plan)
        check_side(self.method.encoder, self.side, "aux.side")
        if self.side is not None and self.side > plan.image_size:
            raise ConfigError(
                f"aux.side={self.side} is not possible: turned views of {plan.image_size} px are shrunk to it.",
                f"Use aux.side={plan.image_size // 2}, or null.",
            )

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """The method's embeddings, and per turned view the head's answers [B, 4]."""
        found = dict(self.method.embed(views, draws))
        turns = [self._turns(draws, slot, views[0]) for slot in range(self.turned)]
        images = torch.cat([rotate(self._shrunk(view), turn) for view, turn in zip(views, turns, strict=False)])
        norm.set_views(self.encoder, self.turned)
        norm.set_views(self.rotation, self.turned)
        answers = self.rotation(self.encoder(images)).chunk(self.turned)
        return {**found, **{f"{OWN}{slot}": answer for slot, answer in enumerate(answers)}}

    def _shrunk(self, view: Tensor) -> Tensor:
        """[B, 3, S, S] -> of `side` px."""
        if self.side is None or self.side == view.shape[-1]:
            return view
        return F.interpolate(view, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)

    def _turns(self, draws: SampleDraws, slot: int, like: Tensor) -> Tensor:
        """[B] how often the samples are turned in this slot."""
        turns = (draws.uniform(Purpose.ROTATION, slot, 1)[:, 0] * TURNS).astype("int64")
        return torch.from_numpy(turns).to(like.device)

    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """The method's."""
        return self.method.targets(views, draws)

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """The method's loss and the weighted task's, over the job's valid samples."""
        own = {name: value for name, value in embeddings.items() if not name.startswith(OWN)}
        out = self.method.loss(own, batch, hyper)
        draws = batch.draws.of(batch.ids.numpy())
        rows = [
            rotation_cross_entropy(embeddings[f"{OWN}{slot}"], self._turns(draws, slot, batch.views[0]))
            for slot in range(self.turned)
        ]
        task = job_mean(torch.stack(rows).sum(0), batch.valid, self.world.sum)
        metrics = {**out.metrics, "rotation_loss": task.detach()}
        return LossOutput(out.loss + self.weight * task, metrics, out.remember)

    def initialise_memory(self, batch: Batch) -> None:
        """As the method."""
        self.method.initialise_memory(batch)

    def remember(self, out: LossOutput, batch: Batch, hyper: Hyperparameters) -> None:
        """As the method."""
        self.method.remember(out, batch, hyper)
