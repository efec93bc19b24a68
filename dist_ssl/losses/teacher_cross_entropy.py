"""DINO (Caron et al. 2021, algorithm 1): the student's views predict the teacher's centred and sharpened outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dist_ssl.core.collectives import Sum
from dist_ssl.losses.job import full_precision
from dist_ssl.losses.prototype_codes import sinkhorn
from dist_ssl.losses.view_pairs import crossed_entropy


def dino_cross_entropy(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    centre: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Return the mean over pairs of different views of CE(softmax((t - centre) / T_t), softmax(s / T_s)), [B].

    `student`: [B, K] per view, first those of the `teacher`'s views; `centre`: [K].
    """
    targets = [((full_precision(t).detach() - centre) / teacher_temperature).softmax(1) for t in teacher]
    return crossed_entropy(targets, [full_precision(s) / student_temperature for s in student])


def balanced_cross_entropy(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    valid: Tensor,
    total: Sum,
    *,
    iterations: int = 3,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Return [B] the same mean for Sinkhorn-Knopp targets, computed over all teacher views together, without a centre.

    `student`: [B, K] cosines per view, first those of the `teacher`'s views; `valid`: [B] bool, `total`, `iterations`:
    as in `sinkhorn`, which gives targets of zeros to samples that are not valid.
    """
    shared = sinkhorn(
        torch.cat(list(teacher)), valid.repeat(len(teacher)), total, eps=teacher_temperature, iterations=iterations
    )
    return crossed_entropy(shared.chunk(len(teacher)), [full_precision(s) / student_temperature for s in student])


@torch.no_grad()
def batch_centre(teacher: Sequence[Tensor], valid: Tensor, total: Sum) -> Tensor:
    """Return [K] the mean of the teacher's outputs over its views and the job's valid samples, the centre's update.

    `teacher`: [B, K] per view; `valid`: [B] bool. Zeros if the job has no valid sample.
    """
    mean = full_precision(torch.stack(list(teacher))).mean(0)
    sums = torch.cat([(mean * valid[:, None]).sum(0), valid.sum()[None].to(mean.dtype)])
    summed = total(sums)
    return summed[:-1] / summed[-1].clamp_min(1)
