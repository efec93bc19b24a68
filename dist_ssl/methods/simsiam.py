"""SimSiam (Chen and He 2021, arXiv 2011.10566): each view predicts the embedding of the other, without gradient.

    z_v = projector(encoder(x_v)),  p_v = predictor(z_v);   loss = -cos(p_1, sg z_2) / 2 - cos(p_2, sg z_1) / 2

`sg` stops the gradient. The projector has three layers and ends in a batch norm without scale and shift; the predictor
is a bottleneck, with a constant learning rate as published (`optim.constant=[predictor]`).
"""

from torch import Tensor, nn

from dist_ssl.config.validation import at_least
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.losses.cosine import negative_cosine
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import job_mean
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.multi_crop import in_one_pass
from dist_ssl.protocols.method import Embeddings, LossOutput, Method


class SimSiam(Method):
    """SimSiam around an encoder that carries `num_features`.

    `dim`: width of the projector; `hidden`: width of the predictor's bottleneck. `norm_group`: samples that share
    batch-norm statistics; None: all of the job's.
    """

    num_views = 2
    student: Branch
    teacher = None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        dim: int = 2048,
        hidden: int = 512,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 1, hidden=hidden, dim=dim)
        self.world = world
        statistics = scope(world, norm_group)
        student = Branch(encoder, mlp([width_of(encoder), dim, dim, dim], last_norm=True))
        self.student = norm.convert(student, statistics)
        self.predictor = norm.convert(mlp([dim, hidden, dim], last_norm=False, bias=True), statistics)

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return embeddings z1, z2 and predictions p1, p2, [B, dim] each; each view with its own statistics."""
        norm.set_views(self.predictor, len(views))
        z = in_one_pass(self.student, views, draws)
        (z1, z2), (p1, p2) = z.chunk(2), self.predictor(z).chunk(2)
        return {"z1": z1, "z2": z2, "p1": p1, "p2": p2}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the symmetric negative cosine, averaged over the valid samples of the global batch."""
        e = embeddings
        rows = (negative_cosine(e["p1"], e["z2"]) + negative_cosine(e["p2"], e["z1"])) / 2
        return LossOutput(job_mean(rows, batch.valid, self.world.sum), metrics=signs_of_health(e["z1"], e["z2"]))
