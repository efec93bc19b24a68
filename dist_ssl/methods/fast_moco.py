"""Fast-MoCo (Ci et al. 2022, arXiv 2207.08220): many embeddings per view, from combinations of its tiles.

    every view is split into parts x parts tiles, which the student's encoder encodes separately; for every subset of
    `combined` tiles   p_s = predictor(projector(mean of its features));   k = teacher(whole view) without gradient
    loss = mean over both views and all subsets of CE(p_s, keys of the other view / T), without MoCo v3's factor 2T

As published the EMA momentum and the predictor's learning rate are constant (`optim=sgd_fast_moco`), and the heads are
those of SimSiam. The published code starts, by mistake, with a teacher of different random weights (`own_teacher`);
here the teacher starts as a copy of the student by default.
"""

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import at_least, positive, require
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.losses.combined_patches import combine, combined_cross_entropy, split
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import gather_embeddings, job_mean
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.patches import check_side, drop_tokens
from dist_ssl.protocols.method import Embeddings, LossOutput
from dist_ssl.protocols.momentum_teacher import PredictedTeacher


class FastMoCo(PredictedTeacher):
    """Fast-MoCo around an encoder that carries `num_features` and takes tiles as well as whole views.

    `parts`: number of tiles along a side, a divisor of the view's side. `combined`: number of tiles in a combination,
    1 to parts^2. `hidden`, `dim`: widths of the predictor's bottleneck and of the projector. `temperature` > 0.
    `momentum`: EMA momentum of the teacher, 0 to 1, constant. `own_teacher`: start the teacher from different random
    weights than the student. `norm_group`: samples that share batch-norm statistics; None: all of the job's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        parts: int = 2,
        combined: int = 2,
        hidden: int = 512,
        dim: int = 2048,
        temperature: float = 1.0,
        momentum: float = 0.99,
        own_teacher: bool = False,
        norm_group: int | None = None,
    ) -> None:
        at_least("method", 1, parts=parts, hidden=hidden, dim=dim)
        require("method", f"from 1 to {parts**2}, the tiles of a view", lambda n: 1 <= n <= parts**2, combined=combined)
        positive("method", temperature=temperature)
        super().__init__(
            Branch(encoder, mlp([width_of(encoder), dim, dim, dim], last_norm=True, bias=True, affine=True)),
            mlp([dim, hidden, dim], last_norm=False, bias=True),
            world=world,
            momentum=momentum,
            norm_group=norm_group,
        )
        self.temperature, self.parts, self.combined = temperature, parts, combined
        if own_teacher:
            reset(self.teacher)

    def check(self, plan: EpochPlan) -> None:
        """Raise ConfigError where views cannot be split into tiles, or tiles do not fit the encoder."""
        if plan.image_size % self.parts:
            near = max(1, round(plan.image_size / self.parts)) * self.parts
            raise ConfigError(
                f"Views of {plan.image_size} px cannot be split into method.parts={self.parts} tiles along a side.",
                f"Use schedule.image_size={near}, or parts that divide {plan.image_size}.",
            )
        key = "The side of a tile, schedule.image_size/method.parts"
        check_side(self.encoder, plan.image_size // self.parts, key, plan.tokens)

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return predictions `p1`, `p2` of the two views, [B, C, dim] each, C the number of combinations."""
        tiles = self.parts**2
        split_views = torch.cat([by_sample(split(view, self.parts), tiles) for view in views])
        norm.set_views(self.student.encoder, len(views), rows=tiles)
        drop_tokens(self.student, draws, len(views), rows=tiles)
        features = self.student.encoder(split_views).chunk(len(views))
        mixed = [combine(by_tile(f, tiles), tiles, self.combined) for f in features]
        combinations = len(mixed[0]) // len(views[0])
        norm.set_views(self.student.projector, len(views), rows=combinations)
        norm.set_views(self.predictor, len(views), rows=combinations)
        rows = torch.cat([by_sample(m, combinations) for m in mixed])
        p1, p2 = self.predictor(self.student.projector(rows)).unflatten(0, (-1, combinations)).chunk(2)
        return {"p1": p1, "p2": p2}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the cross-entropy of all combinations against the other view's keys, averaged over valid samples."""
        e = embeddings
        own = torch.stack([e["t1"], e["t2"]], dim=1)
        keys, keep = gather_embeddings(self.world.gather_const, own, batch.valid)
        predictions = torch.stack([e["p1"], e["p2"]]).transpose(1, 2)
        first = self.world.rank * len(batch.valid)
        rows = combined_cross_entropy(predictions, keys.transpose(0, 1), first, self.temperature, keep)
        loss = job_mean(rows, batch.valid, job_valid=keep)
        return LossOutput(loss, metrics=signs_of_health(e["p1"].mean(1), e["t2"]))


def by_sample(rows: Tensor, parts: int) -> Tensor:
    """Reorder rows from part-major to sample-major: [parts * B, ...] -> [B * parts, ...]."""
    return rows.reshape(parts, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def by_tile(rows: Tensor, parts: int) -> Tensor:
    """Reorder rows from sample-major to part-major: [B * parts, ...] -> [parts * B, ...]."""
    return rows.reshape(-1, parts, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def reset(module: nn.Module) -> None:
    """Draw new random weights for all convolutions and linear layers."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            child.reset_parameters()
