"""DINO (Caron et al. 2021, arXiv 2104.14294): the student matches the centred, sharpened outputs of a teacher.

    s_v = head(encoder(x_v)) of all views,  t_i = teacher(x_i) of the global views, without gradient
    loss = mean over pairs of views i != v of CE(softmax((t_i - c) / T_t), softmax(s_v / T_s))
    c <- m_c c + (1 - m_c) mean(t)

Only the student sees local views (small crops), and has stochastic depth (`drop_path`). The head's last layer uses
normalised rows of its weights, so only their directions matter. As published T_t rises at first, and the last layer is
frozen for the first epoch.

Nearly equal outputs grow apart only if the views share more than T_t / T_s of the outputs' variation, and collapse
otherwise: strong augmentation needs a small T_t / T_s. Such sharp targets of centred outputs are unevenly distributed
over the outputs, and the student learns only this imbalance. `sinkhorn` balances them in place of the centre; it comes
from DINOv2 (arXiv 2304.07193), not from this paper.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.config.durations import Duration
from dist_ssl.config.validation import at_least, counted, positive, shares
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import Curve, Hyperparameters, freeze
from dist_ssl.distributed.world import World
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import job_mean
from dist_ssl.losses.prototype_codes import SMALLEST_EPS
from dist_ssl.losses.teacher_cross_entropy import balanced_cross_entropy, batch_centre, dino_cross_entropy
from dist_ssl.models import drop_path as stochastic_depth
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.multi_crop import by_size
from dist_ssl.protocols.method import Embeddings, LossOutput
from dist_ssl.protocols.momentum_teacher import MomentumTeacher


class Head(nn.Module):
    """Three layers to a narrow unit vector, then its cosines with `outputs` directions: [B, D] -> [B, outputs]."""

    def __init__(self, width: int, hidden: int, narrow: int, outputs: int, hidden_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in in (width, hidden):
            layers += [nn.Linear(fan_in, hidden), *([nn.BatchNorm1d(hidden)] if hidden_norm else []), nn.GELU()]
        layers.append(nn.Linear(hidden, narrow))
        self.mlp = nn.Sequential(*layers)
        self.last = nn.Linear(narrow, outputs, bias=False)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.mlp(x), dim=1), F.normalize(self.last.weight, dim=1))


class Centre(nn.Module):
    """The running mean of the teacher's outputs, [K], equal on every rank."""

    value: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(width))


def check_teacher(sinkhorn: int, **temperatures: float) -> None:
    """Raise ConfigError where targets cannot be computed from the teacher's outputs at these temperatures."""
    positive("method", **temperatures)
    if sinkhorn:
        at_least("method", SMALLEST_EPS, **temperatures)


def rising(temperature: float, rises_from: float, warmup: Duration | None) -> Curve:
    """Return the curve of the teacher's temperature: it rises during `warmup`, and is constant without one."""
    if warmup is None:
        return Curve(temperature, temperature)
    return Curve(temperature, temperature, warms_up=True, rises_from=rises_from, warmup=warmup)


class DINO(MomentumTeacher):
    """DINO around an encoder that carries `num_features`.

    `hidden`, `narrow`, `outputs`: widths of the head; `head_norm`: use batch norm between its layers.
    `student_temperature`, `teacher_temperature` > 0; the latter rises from `teacher_rises_from` > 0 during
    `teacher_warmup`, if that is set. `freeze_last`: time for which the head's last layer is frozen, or None.
    `centre_momentum`: EMA momentum of the centre, 0 to 1. `momentum`, `momentum_end`: EMA momentum of the teacher at
    the start and at the end, 0 to 1, half a cosine between them. `drop_path`: share of samples, 0 to less than 1, for
    which the student leaves out a residual branch of its last transformer block; it falls to 0 towards the first block.
    `sinkhorn`: number of iterations that balance the targets over the job in place of the centre (the teacher's
    temperatures are then at least 0.003); 0: the targets are centred. `num_views`: number of global views, from 2;
    `local_views`: number of smaller views, from 0. `norm_group`: samples that share batch-norm statistics; None: all of
    the job's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        hidden: int = 2048,
        narrow: int = 256,
        outputs: int = 65536,
        head_norm: bool = False,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        teacher_rises_from: float = 0.04,
        teacher_warmup: Duration | None = None,
        freeze_last: Duration | None = None,
        centre_momentum: float = 0.9,
        sinkhorn: int = 0,
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        drop_path: float = 0.0,
        num_views: int = 2,
        local_views: int = 0,
        norm_group: int | None = None,
    ) -> None:
        at_least("method", 1, hidden=hidden, narrow=narrow, outputs=outputs)
        at_least("method", 2, num_views=num_views)
        at_least("method", 0, local_views=local_views, sinkhorn=sinkhorn)
        positive("method", student_temperature=student_temperature)
        check_teacher(sinkhorn, teacher_temperature=teacher_temperature, teacher_rises_from=teacher_rises_from)
        counted("method", teacher_warmup=teacher_warmup, freeze_last=freeze_last)
        shares("method", centre_momentum=centre_momentum)
        student = Branch(encoder, Head(width_of(encoder), hidden, narrow, outputs, head_norm))
        super().__init__(student, world=world, momentum=momentum, momentum_end=momentum_end, norm_group=norm_group)
        self.student_temperature, self.freeze_last, self.sinkhorn = student_temperature, freeze_last, sinkhorn
        self.teacher_temperature = rising(teacher_temperature, teacher_rises_from, teacher_warmup)
        self.num_views, self.local_views, self.centre_momentum = num_views, local_views, centre_momentum
        stochastic_depth.install(self.student.encoder, drop_path)
        self.centre = Centre(outputs)

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The teacher's EMA momentum and temperature, and the freeze of the head's last layer."""
        return {
            **super().curves,
            "teacher_temperature": self.teacher_temperature,
            **freeze("student.projector.last", self.freeze_last),
        }

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the student's outputs `s0`, `s1`, ..., [B, outputs] each; each view with its own statistics."""
        return {f"s{number}": s for number, s in enumerate(by_size(self.student, views, draws))}

    @torch.no_grad()
    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return the teacher's outputs of the global views, `t0`, `t1`, ..., [B, outputs] each."""
        return {f"t{number}": t for number, t in enumerate(by_size(self.teacher, views[: self.num_views]))}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the cross-entropy between different views, averaged over the job's valid samples."""
        students = [embeddings[f"s{number}"] for number in range(sum(name[0] == "s" for name in embeddings))]
        teachers = [embeddings[f"t{number}"] for number in range(self.num_views)]
        temperatures = {
            "student_temperature": self.student_temperature,
            "teacher_temperature": hyper.number("teacher_temperature"),
        }
        remember = {}
        if self.sinkhorn == 0:
            rows = dino_cross_entropy(students, teachers, self.centre.value, **temperatures)
            remember["centre"] = batch_centre(teachers, batch.valid, self.world.sum_const)
        else:
            rows = balanced_cross_entropy(
                students, teachers, batch.valid, self.world.sum_const, iterations=self.sinkhorn, **temperatures
            )
        metrics = signs_of_health(students[0], teachers[1])
        return LossOutput(job_mean(rows, batch.valid, self.world.sum), metrics=metrics, remember=remember)

    @torch.no_grad()
    def remember(self, out: LossOutput, batch: Batch, hyper: Hyperparameters) -> None:
        """Update the centre if targets are centred."""
        if "centre" in out.remember:
            centre = out.remember["centre"].to(self.centre.value.dtype)
            self.centre.value.lerp_(centre, 1 - self.centre_momentum)
