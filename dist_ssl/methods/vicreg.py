"""VICReg (Bardes, Ponce, LeCun 2022, arXiv 2105.04906): views agree, while dimensions vary and are uncorrelated.

    z_v = projector(encoder(x_v)),  v = 1, 2;   loss = invariance + variance + covariance of the whole job's z

Embeddings are gathered with gradients, and every rank computes the same loss from them.
"""

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import at_least
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import gather_embeddings
from dist_ssl.losses.variance_covariance import vicreg
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.multi_crop import by_size
from dist_ssl.protocols.method import Embeddings, LossOutput, Method


class VICReg(Method):
    """VICReg around an encoder that carries `num_features`.

    `dim`: width of the projector's three layers. `invariance`, `variance`, `covariance`: weights of the terms, from 0.
    `norm_group`: samples that share batch-norm statistics; None: all of the job's.
    """

    num_views = 2
    student: Branch
    teacher = None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        dim: int = 8192,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 1, dim=dim)
        at_least("method", 0, invariance=invariance, variance=variance, covariance=covariance)
        self.world = world
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        student = Branch(encoder, mlp([width_of(encoder), dim, dim, dim], last_norm=False))
        self.student = norm.convert(student, scope(world, norm_group))

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return embeddings z1, z2, [B, dim] each; both views in one pass, each with its own statistics."""
        z1, z2 = by_size(self.student, views, draws)
        return {"z1": z1, "z2": z2}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the weighted sum of the three terms over the valid samples of the global batch."""
        own = torch.stack([embeddings["z1"], embeddings["z2"]], dim=1)
        whole, keep = gather_embeddings(self.world.gather, own, batch.valid)
        found = vicreg(whole[:, 0], whole[:, 1], keep, **self.weights)
        return LossOutput(found.loss, metrics=signs_of_health(own[:, 0], own[:, 1]))
