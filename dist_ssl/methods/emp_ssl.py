"""EMP-SSL (Tong et al. 2023, arXiv 2304.03977): many patches of every image, few epochs.

    h = pre(encoder(patch)),  z = norm(projector(h));   loss over groups of `loss_group` images, see losses/coding_rate

The evaluated features are h, as published. Patches are views: `patches` of them are cut from one decoded image. The
coding rate grows with the number of images, so it is computed over groups of consecutive images of the global batch:
the loss is the same at every world size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.config.validation import at_least, positive
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.losses.coding_rate import emp_ssl
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import gather_embeddings
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.patches import drop_tokens
from dist_ssl.protocols.method import Embeddings, LossOutput, Method


class Widened(nn.Module):
    """An encoder and one more layer: [B, 3, S, S] -> [B, `num_features`], the features that EMP-SSL evaluates."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pre = nn.Sequential(nn.Linear(width_of(encoder), width), nn.BatchNorm1d(width), nn.ReLU())
        self.num_features = width
        self.multiple_of: int = getattr(encoder, "multiple_of", 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pre(self.encoder(x))
        return out


class EMPSSL(Method):
    """EMP-SSL around an encoder that carries `num_features`.

    `patches`: number of views of every image, from 2. `hidden`, `dim`: widths of h and of z. `eps2`: epsilon squared of
    the coding rate, more than 0. `weight`: weight of the invariance term, from 0. `loss_group`: number of images of one
    coding rate, a divisor of the batch size; None: the whole batch. `norm_group`: samples that share batch-norm
    statistics, with all their patches; None: all of the job's.
    """

    student: Branch
    teacher = None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        patches: int = 20,
        hidden: int = 4096,
        dim: int = 1024,
        eps2: float = 0.2,
        weight: float = 200.0,
        loss_group: int | None = 100,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 2, patches=patches)
        at_least("method", 1, hidden=hidden, dim=dim, loss_group=1 if loss_group is None else loss_group)
        at_least("method", 0, weight=weight)
        positive("method", eps2=eps2)
        self.world, self.num_views, self.eps2, self.weight = world, patches, eps2, weight
        self.loss_group = loss_group
        student = Branch(Widened(encoder, hidden), mlp([hidden, hidden, dim], last_norm=False, bias=True))
        self.student = norm.convert(student, scope(world, norm_group))

    def check(self, plan: EpochPlan) -> None:
        """Raise ConfigError where the batch size is no multiple of `loss_group`."""
        if self.loss_group and plan.batch_size % self.loss_group:
            near = max(1, round(plan.batch_size / self.loss_group)) * self.loss_group
            raise ConfigError(
                f"batch_size={plan.batch_size} is no multiple of method.loss_group={self.loss_group}.",
                f"Use batch_size={near} with lanes that divide it, or a loss_group that divides {plan.batch_size}.",
            )

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return unit embeddings z of all patches, [B, patches, dim], from one pass with common batch statistics."""
        norm.set_views(self, 1, rows=len(views))
        drop_tokens(self.student, draws, 1, rows=len(views))
        z = F.normalize(self.student(torch.stack(views, dim=1).flatten(0, 1)), dim=1)
        return {"z": z.view(-1, len(views), z.shape[1])}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the mean loss over this rank's groups if it holds whole ones, else over those of the job."""
        z, valid = embeddings["z"], batch.valid
        if self.loss_group is None or len(z) % self.loss_group:
            z, valid = gather_embeddings(self.world.gather, z, valid)
        found = emp_ssl(z.transpose(0, 1), valid, self.loss_group or len(z), eps2=self.eps2, weight=self.weight)
        own = embeddings["z"]
        metrics = {**signs_of_health(own[:, 0], own[:, 1]), "coding_rate": found.coding_rate.detach()}
        return LossOutput(found.loss, metrics)
