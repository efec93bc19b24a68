"""BYOL (Grill et al. 2020, arXiv 2006.07733): the student predicts the teacher's embedding of the other view.

    p_v = predictor(student(x_v)),  t_v = teacher(x_v) without gradient;   loss = |p_1 - t_2|^2 + |p_2 - t_1|^2

with all vectors normalised to unit length. There are no negatives: batch norm, the predictor and the slowly moving
teacher prevent collapse. As published the heads end without a batch norm. The outputs of an untrained teacher then
share a large common component, and a short run learns to predict that and little else; `projector_norm` removes it.
"""

from torch import nn

from dist_ssl.config.validation import at_least
from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.losses.cosine import cosine_distance
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import job_mean
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.protocols.method import Embeddings, LossOutput
from dist_ssl.protocols.momentum_teacher import PredictedTeacher


class BYOL(PredictedTeacher):
    """BYOL around an encoder that carries `num_features`.

    `hidden`, `dim`: widths of projector and predictor. `momentum`, `momentum_end`: EMA momentum of the teacher at the
    start and at the end, 0 to 1, half a cosine between them. `projector_norm`: end the projector in a batch norm
    without scale and shift. `norm_group`: samples that share batch-norm statistics; None: all of the job's.
    """

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
        at_least("method", 1, hidden=hidden, dim=dim)
        super().__init__(
            Branch(encoder, mlp([width_of(encoder), hidden, dim], last_norm=projector_norm, bias=True)),
            mlp([dim, hidden, dim], last_norm=False, bias=True),
            world=world,
            momentum=momentum,
            momentum_end=momentum_end,
            norm_group=norm_group,
        )

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the symmetric distance, averaged over the valid samples of the global batch."""
        e = embeddings
        rows = cosine_distance(e["p1"], e["t2"]) + cosine_distance(e["p2"], e["t1"])
        return LossOutput(job_mean(rows, batch.valid, self.world.sum), metrics=signs_of_health(e["p1"], e["t2"]))
