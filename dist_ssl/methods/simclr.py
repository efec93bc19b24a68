"""SimCLR (Chen et al. 2020, arXiv 2002.05709): two views of an image attract, all other views of the batch repel.

    z_v = projector(encoder(x_v)),  v = 1, 2;   loss = NT-Xent(z_1, z_2) over the whole job

Embeddings are gathered with gradients, so those of a rank receive gradients from the loss rows of all ranks.
"""

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import at_least, positive
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.losses.contrastive import nt_xent
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import gather_embeddings, job_mean
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.multi_crop import by_size
from dist_ssl.protocols.method import Embeddings, LossOutput, Method


class SimCLR(Method):
    """SimCLR around an encoder that carries `num_features`.

    `hidden`, `dim`: widths of the projector. `temperature` > 0. `norm_group`: samples that share batch-norm
    statistics; None: all of the job's.
    """

    num_views = 2
    student: Branch
    teacher = None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        hidden: int = 2048,
        dim: int = 128,
        temperature: float = 0.1,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 1, hidden=hidden, dim=dim)
        positive("method", temperature=temperature)
        self.world, self.temperature = world, temperature
        student = Branch(encoder, mlp([width_of(encoder), hidden, dim], last_norm=True))
        self.student = norm.convert(student, scope(world, norm_group))

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return embeddings z1, z2, [B, dim] each; both views in one pass, each with its own statistics."""
        z1, z2 = by_size(self.student, views, draws)
        return {"z1": z1, "z2": z2}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return NT-Xent over the valid samples of the global batch."""
        own = torch.stack([embeddings["z1"], embeddings["z2"]])
        whole, keep = gather_embeddings(self.world.gather, own.transpose(0, 1), batch.valid)
        first = self.world.rank * len(batch.valid)
        rows = nt_xent(own, whole.transpose(0, 1), first, self.temperature, keep)
        loss = job_mean(rows, batch.valid, job_valid=keep)
        return LossOutput(loss, metrics=signs_of_health(own[0], own[1]))
