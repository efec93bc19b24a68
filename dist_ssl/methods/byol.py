"""BYOL (Grill et al. 2020, arXiv 2006.07733): the student predicts the teacher's embedding of the other view.

    p_v = predictor(student(x_v)),  t_v = teacher(x_v) without gradient;   loss = |p_1 - t_2|^2 + |p_2 - t_1|^2

with all vectors normalised to unit length. There are no negatives: batch norm, the predictor and the slowly moving
teacher prevent collapse. As published the heads end without a batch norm. The outputs of an untrained teacher then
share a large common component, and a short run learns to predict that and little else; `projector_norm` removes it.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import at_least, shares
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Curve, Hyperparameters
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.losses.cosine import cosine_distance
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import job_mean
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.patches import drop_tokens
from dist_ssl.protocols.method import Embeddings, LossOutput, Method


class BYOL(Method):
    """BYOL around an encoder that carries `num_features`.

    `hidden`, `dim`: widths of projector and predictor. `momentum`, `momentum_end`: EMA momentum of the teacher at the
    start and at the end, 0 to 1, half a cosine between them. `projector_norm`: end the projector in a batch norm
    without scale and shift. `norm_group`: samples that share batch-norm statistics; None: all of the job's.
    """

    num_views = 2
    student: Branch
    teacher: Branch

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        hidden: int = 4096,
        dim: int = 256,
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        projector_norm: bool = False,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 1, hidden=hidden, dim=dim)
        shares("method", momentum=momentum, momentum_end=momentum_end)
        self.world, self.momentum, self.momentum_end = world, momentum, momentum_end
        statistics = scope(world, norm_group)
        student = Branch(encoder, mlp([width_of(encoder), hidden, dim], last_norm=projector_norm, bias=True))
        teacher = copy.deepcopy(student).requires_grad_(False)
        self.student = norm.convert(student, statistics)
        self.teacher = norm.convert(teacher, statistics)
        self.predictor = norm.convert(mlp([dim, hidden, dim], last_norm=False, bias=True), statistics)

    @property
    def encoder(self) -> nn.Module:
        """The student's encoder."""
        return self.student.encoder

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The EMA momentum of the teacher."""
        return {"momentum": Curve(self.momentum, self.momentum_end, for_next_step=True)}

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return predictions p1, p2, [B, dim] each; both views in one pass, each with its own statistics."""
        norm.set_views(self, len(views))
        drop_tokens(self.student, draws, len(views))
        p1, p2 = self.predictor(self.student(torch.cat(views))).chunk(2)
        return {"p1": p1, "p2": p2}

    @torch.no_grad()
    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the teacher's embeddings t1, t2, [B, dim] each."""
        norm.set_views(self, len(views))
        t1, t2 = self.teacher(torch.cat(views)).chunk(2)
        return {"t1": t1, "t2": t2}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the symmetric distance, averaged over the valid samples of the global batch."""
        e = embeddings
        rows = cosine_distance(e["p1"], e["t2"]) + cosine_distance(e["p2"], e["t1"])
        return LossOutput(job_mean(rows, batch.valid, self.world.sum), metrics=signs_of_health(e["p1"], e["t2"]))
