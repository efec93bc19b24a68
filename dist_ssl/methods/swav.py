"""SwAV (Caron et al. 2020, arXiv 2006.09882): views agree on their assignment to prototypes.

    s_v = cosines of projector(encoder(x_v)) with the prototypes;   q_v = Sinkhorn(s_v) over the job, no gradient
    loss = mean over global views i and all other views v of -sum q_i log softmax(s_v / T)

Local views (small crops) predict codes but have none. Only the directions of the prototypes matter: they are normalised
after every step, and where they are used, so that gradients only rotate them. The queue of embeddings that the authors
use with small batches is left out.

Nearly equal scores grow apart only if the views share more than eps / T of the scores' variation, and collapse
otherwise: strong augmentation needs a small eps / T.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.config.durations import Duration
from dist_ssl.config.validation import at_least, counted, positive
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Curve, Hyperparameters, freeze
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import job_mean
from dist_ssl.losses.prototype_codes import SMALLEST_EPS, sinkhorn, swapped_cross_entropy
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.multi_crop import by_size, with_common_statistics
from dist_ssl.protocols.method import Embeddings, LossOutput, Method


class SwAV(Method):
    """SwAV around an encoder that carries `num_features`.

    `hidden`, `dim`: widths of the projector. `prototypes`: number of prototypes. `temperature`: temperature of the
    softmax, more than 0. `eps`: temperature of the codes, from 0.003; `iterations`: Sinkhorn-Knopp iterations.
    `freeze_prototypes`: time from the start of a run for which the prototypes are frozen, or None. `num_views`: number
    of global views, from 2; `local_views`: number of smaller views, from 0. `share_statistics`: views of one size have
    common batch-norm statistics in the encoder, and all views in the projector, as published; False: every view has its
    own. `norm_group`: samples that share batch-norm statistics; None: all of the job's.
    """

    unit_rows = ("prototypes.weight",)
    student: Branch
    teacher = None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        hidden: int = 2048,
        dim: int = 128,
        prototypes: int = 3000,
        temperature: float = 0.1,
        eps: float = 0.05,
        iterations: int = 3,
        num_views: int = 2,
        local_views: int = 0,
        freeze_prototypes: Duration | None = None,
        share_statistics: bool = False,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 1, hidden=hidden, dim=dim, prototypes=prototypes, iterations=iterations)
        at_least("method", 2, num_views=num_views)
        at_least("method", 0, local_views=local_views)
        counted("method", freeze_prototypes=freeze_prototypes)
        positive("method", temperature=temperature)
        at_least("method", SMALLEST_EPS, eps=eps)
        self.world, self.temperature, self.eps, self.iterations = world, temperature, eps, iterations
        self.num_views, self.local_views, self.share_statistics = num_views, local_views, share_statistics
        student = Branch(encoder, mlp([width_of(encoder), hidden, dim], last_norm=False, bias=True))
        self.student = norm.convert(student, scope(world, norm_group))
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self.freeze_prototypes = freeze_prototypes

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The freeze of the prototypes at the start of a run."""
        return freeze("prototypes", self.freeze_prototypes)

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return cosines with prototypes, `s0`, `s1`, ..., [B, prototypes] each."""
        directions = F.normalize(self.prototypes.weight, dim=1)
        found = (with_common_statistics if self.share_statistics else by_size)(self.student, views, draws)
        return {f"s{number}": F.linear(F.normalize(z, dim=1), directions) for number, z in enumerate(found)}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the loss of predicting each global view's codes from all other views, averaged over valid samples."""
        scores = [embeddings[f"s{number}"] for number in range(len(embeddings))]
        codes = [
            sinkhorn(s.detach(), batch.valid, self.world.sum_const, eps=self.eps, iterations=self.iterations)
            for s in scores[: self.num_views]
        ]
        rows = swapped_cross_entropy(scores, [code.to(scores[0].dtype) for code in codes], self.temperature)
        return LossOutput(job_mean(rows, batch.valid, self.world.sum), metrics=signs_of_health(scores[0], scores[1]))
