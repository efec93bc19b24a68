"""Base classes of methods whose teacher is an exponential moving average (EMA) of the student's weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import shares
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Curve
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch
from dist_ssl.models.multi_crop import in_one_pass
from dist_ssl.protocols.method import Embeddings, Method


class MomentumTeacher(Method):
    """A student, and a teacher without gradients that starts as its copy.

    `momentum`, `momentum_end`: EMA momentum of the teacher at the start and at the end, 0 to 1, half a cosine between
    them; with None at the end it is constant. `norm_group`: samples that share batch-norm statistics; None: all of the
    job's. Raises ConfigError.
    """

    student: Branch
    teacher: Branch

    def __init__(
        self,
        student: Branch,
        *,
        world: World,
        momentum: float,
        momentum_end: float | None = None,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        last = momentum if momentum_end is None else momentum_end
        shares("method", momentum=momentum, momentum_end=last)
        self.world, self.momentum = world, Curve(momentum, last, for_next_step=last != momentum)
        teacher = copy.deepcopy(student).requires_grad_(False)
        statistics = scope(world, norm_group)
        self.student = norm.convert(student, statistics)
        self.teacher = norm.convert(teacher, statistics)

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The EMA momentum of the teacher."""
        return {"momentum": self.momentum}


class PredictedTeacher(MomentumTeacher):
    """Two views: a predictor on top of the student predicts the teacher's embedding of the other view.

    `predictor`: [B, D] -> [B, D]; the other arguments are those of `MomentumTeacher`.
    """

    num_views = 2

    def __init__(
        self,
        student: Branch,
        predictor: nn.Module,
        *,
        world: World,
        momentum: float,
        momentum_end: float | None = None,
        norm_group: int | None = None,
    ) -> None:
        super().__init__(student, world=world, momentum=momentum, momentum_end=momentum_end, norm_group=norm_group)
        self.predictor = norm.convert(predictor, scope(world, norm_group))

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return predictions p1, p2, [B, D] each; both views in one pass, each with its own statistics."""
        norm.set_views(self.predictor, len(views))
        p1, p2 = self.predictor(in_one_pass(self.student, views, draws)).chunk(2)
        return {"p1": p1, "p2": p2}

    @torch.no_grad()
    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the teacher's embeddings t1, t2, [B, D] each."""
        t1, t2 = in_one_pass(self.teacher, views).chunk(2)
        return {"t1": t1, "t2": t2}
