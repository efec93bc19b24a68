"""MoCo v3 (Chen, Xie, He 2021, arXiv 2104.02057): two views, a momentum teacher, no queue.

    q_v = predictor(student(x_v)),  k_v = teacher(x_v) without gradient,  v = 1, 2
    loss = ctr(q_1, k_2) + ctr(q_2, k_1)

The keys are those of the whole job. The EMA update ends a step and uses the momentum of the next step, which equals the
published update before the keys are computed, from the weights before the step; the teacher's batch-norm buffers are
updated by its own forward passes. Heads have no biases; the projector ends in a batch norm without scale and shift. As
published a ResNet's projector has two layers and its predictor no last norm; a ViT's projector has three layers, and
its predictor ends in a batch norm too.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import at_least, positive, shares
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Curve, Hyperparameters
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.losses.contrastive import keyed_cross_entropy
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import gather_embeddings, job_mean
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.patches import drop_tokens
from dist_ssl.protocols.method import Embeddings, LossOutput, Method


class MoCoV3(Method):
    """MoCo v3 around an encoder that carries `num_features`.

    `hidden`, `dim`: widths of the heads. `projector_layers`: from 1; `predictor_norm`: end the predictor in a batch
    norm. `temperature` > 0. `momentum`, `momentum_end`: EMA momentum of the teacher at the start and at the end, 0 to
    1, half a cosine between them. `norm_group`: samples that share batch-norm statistics; None: all of the job's.
    Raises ConfigError.
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
        projector_layers: int = 2,
        predictor_norm: bool = False,
        temperature: float = 1.0,
        momentum: float = 0.99,
        momentum_end: float = 1.0,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 1, hidden=hidden, dim=dim, projector_layers=projector_layers)
        positive("method", temperature=temperature)
        shares("method", momentum=momentum, momentum_end=momentum_end)
        self.world = world
        self.temperature = temperature
        self.momentum, self.momentum_end = momentum, momentum_end
        widths = [width_of(encoder), *[hidden] * (projector_layers - 1), dim]
        student = Branch(encoder, mlp(widths, last_norm=True))
        teacher = copy.deepcopy(student).requires_grad_(False)
        statistics = scope(world, norm_group)
        self.student = norm.convert(student, statistics)
        self.teacher = norm.convert(teacher, statistics)
        self.predictor = norm.convert(mlp([dim, hidden, dim], last_norm=predictor_norm), statistics)

    @property
    def encoder(self) -> nn.Module:
        """The student's encoder."""
        return self.student.encoder

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The EMA momentum of the teacher."""
        return {"momentum": Curve(self.momentum, self.momentum_end, for_next_step=True)}

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return queries q1, q2, [B, dim] each; both views in one pass, each with its own statistics."""
        norm.set_views(self, len(views))
        drop_tokens(self.student, draws, len(views))
        q1, q2 = self.predictor(self.student(torch.cat(views))).chunk(2)
        return {"q1": q1, "q2": q2}

    @torch.no_grad()
    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return keys k1, k2, [B, dim] each."""
        norm.set_views(self, len(views))
        k1, k2 = self.teacher(torch.cat(views)).chunk(2)
        return {"k1": k1, "k2": k2}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the symmetric loss over the valid samples of the global batch."""
        e = embeddings
        keys, keep = gather_embeddings(self.world.gather_const, torch.cat([e["k1"], e["k2"]], dim=1), batch.valid)
        k1, k2 = keys.chunk(2, dim=1)
        first = self.world.rank * len(batch.valid)
        rows = keyed_cross_entropy(e["q1"], k2, first, self.temperature, keep)
        rows = rows + keyed_cross_entropy(e["q2"], k1, first, self.temperature, keep)
        loss = job_mean(rows, batch.valid, job_valid=keep)
        return LossOutput(loss, metrics=signs_of_health(e["q1"], e["k2"]))
