"""MoCo v3 (Chen, Xie, He 2021, arXiv 2104.02057): two views, a momentum teacher, no queue.

    p_v = predictor(student(x_v)),  t_v = teacher(x_v) without gradient,  v = 1, 2
    loss = ctr(p_1, t_2) + ctr(p_2, t_1)

The paper calls p the queries and t the keys, which are those of the whole job. The EMA update ends a step and uses the
momentum of the next step, which equals the published update before the keys are computed, from the weights before the
step; the teacher's batch-norm buffers are updated by its own forward passes. Heads have no biases; the projector ends
in a batch norm without scale and shift. As published a ResNet's projector has two layers and its predictor no last
norm; a ViT's projector has three layers, and its predictor ends in a batch norm too.
"""

import torch
from torch import nn

from dist_ssl.config.validation import at_least, positive
from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.losses.contrastive import keyed_cross_entropy
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import gather_embeddings, job_mean
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.protocols.method import Embeddings, LossOutput
from dist_ssl.protocols.momentum_teacher import PredictedTeacher


class MoCoV3(PredictedTeacher):
    """MoCo v3 around an encoder that carries `num_features`.

    `hidden`, `dim`: widths of the heads. `projector_layers`: from 1; `predictor_norm`: end the predictor in a batch
    norm. `temperature` > 0. `momentum`, `momentum_end`: EMA momentum of the teacher at the start and at the end, 0 to
    1, half a cosine between them. `norm_group`: samples that share batch-norm statistics; None: all of the job's.
    Raises ConfigError.
    """

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
        at_least("method", 1, hidden=hidden, dim=dim, projector_layers=projector_layers)
        positive("method", temperature=temperature)
        widths = [width_of(encoder), *[hidden] * (projector_layers - 1), dim]
        super().__init__(
            Branch(encoder, mlp(widths, last_norm=True)),
            mlp([dim, hidden, dim], last_norm=predictor_norm),
            world=world,
            momentum=momentum,
            momentum_end=momentum_end,
            norm_group=norm_group,
        )
        self.temperature = temperature

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the symmetric loss over the valid samples of the global batch."""
        e = embeddings
        keys, keep = gather_embeddings(self.world.gather_const, torch.cat([e["t1"], e["t2"]], dim=1), batch.valid)
        t1, t2 = keys.chunk(2, dim=1)
        first = self.world.rank * len(batch.valid)
        rows = keyed_cross_entropy(e["p1"], t2, first, self.temperature, keep)
        rows = rows + keyed_cross_entropy(e["p2"], t1, first, self.temperature, keep)
        loss = job_mean(rows, batch.valid, job_valid=keep)
        return LossOutput(loss, metrics=signs_of_health(e["p1"], e["t2"]))
