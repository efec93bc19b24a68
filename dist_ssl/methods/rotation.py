"""Rotation as an auxiliary task (Addepalli et al. 2022, arXiv 2210.09866), on top of any method.

    the first `turned` views are copied, each copy is rotated by a random number of quarter turns per sample and passes
    the student's encoder only; a head classifies the four rotations
    loss = the method's loss + weight * sum over turned views of CE(head(encoder(turned)), turn)

The rotated copies are positives of no view, and the teacher never sees them. The task is published for SwAV only; with
other methods it is our extension.
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
from dist_ssl.models import drop_path, norm
from dist_ssl.models.branch import width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.patches import check_side, drop_tokens
from dist_ssl.protocols.method import Embeddings, LossOutput, Method

OWN = "turned"
"""Prefix of the names of this task's embeddings."""


class Rotation(Method):
    """A method with the rotation task added.

    `weight`: weight of the task's loss, from 0. `turned`: number of views that get a rotated copy, from 1; at most the
    method's views. `hidden`: width of the head. `side`: side in px to which rotated copies are shrunk to save time;
    None: that of the views. `norm_group`: samples that share the head's batch-norm statistics; None: all of the job's.

    The method's modules keep their names, so checkpoints name the encoder as without the task.
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
        assert not loose, f"{loose} lie in no module of the method: they would not be registered here"
        object.__setattr__(self, "method", method)  # not registered as a child: its children are registered here
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
        """The method's encoder."""
        return self.method.encoder

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The method's curves."""
        return self.method.curves

    @property
    def needs_whole_batch(self) -> str:
        """The option of the method that needs the whole batch, or an empty string."""
        return self.method.needs_whole_batch

    def check(self, plan: EpochPlan) -> None:
        """Raise ConfigError like the method, and where rotated copies would be enlarged or do not fit the encoder."""
        self.method.check(plan)
        check_side(self.method.encoder, self.side, "aux.side", plan.tokens)
        if self.side is not None and self.side > plan.image_size:
            raise ConfigError(
                f"aux.side={self.side} is not possible: turned views of {plan.image_size} px are shrunk to it.",
                f"Use aux.side={plan.image_size // 2}, or null.",
            )

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the method's embeddings, and per rotated view the head's logits, [B, 4]."""
        found = dict(self.method.embed(views, draws))
        turns = [self._turns(draws, slot, views[0]) for slot in range(self.turned)]
        images = torch.cat([rotate(self._shrunk(view), turn) for view, turn in zip(views, turns, strict=False)])
        norm.set_views(self.encoder, self.turned)
        drop_path.draw(self.encoder, draws, range(len(views), len(views) + self.turned), images.device)
        drop_tokens(self.encoder, draws, self.turned, first=len(views))
        norm.set_views(self.rotation, self.turned)
        answers = self.rotation(self.encoder(images)).chunk(self.turned)
        return {**found, **{f"{OWN}{slot}": answer for slot, answer in enumerate(answers)}}

    def _shrunk(self, view: Tensor) -> Tensor:
        """Return the view resized to `side` px, [B, 3, S, S] -> [B, 3, side, side]."""
        if self.side is None or self.side == view.shape[-1]:
            return view
        return F.interpolate(view, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)

    def _turns(self, draws: SampleDraws, slot: int, like: Tensor) -> Tensor:
        """Return [B] the number of quarter turns of each sample for this slot, 0 to 3."""
        turns = (draws.uniform(Purpose.ROTATION, slot, 1)[:, 0] * TURNS).astype("int64")
        return torch.from_numpy(turns).to(like.device)

    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the method's targets."""
        return self.method.targets(views, draws)

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the method's loss plus the weighted loss of the task, over the job's valid samples."""
        own = {name: value for name, value in embeddings.items() if not name.startswith(OWN)}
        out = self.method.loss(own, batch, hyper)
        draws = batch.draws.of(batch.draw_ids)
        rows = [
            rotation_cross_entropy(embeddings[f"{OWN}{slot}"], self._turns(draws, slot, batch.views[0]))
            for slot in range(self.turned)
        ]
        task = job_mean(torch.stack(rows).sum(0), batch.valid, self.world.sum)
        metrics = {**out.metrics, "rotation_loss": task.detach()}
        return LossOutput(out.loss + self.weight * task, metrics, out.remember)

    def initialise_memory(self, batch: Batch) -> None:
        """Initialise the method's memory."""
        self.method.initialise_memory(batch)

    def remember(self, out: LossOutput, batch: Batch, hyper: Hyperparameters) -> None:
        """Update the method's memory."""
        self.method.remember(out, batch, hyper)
