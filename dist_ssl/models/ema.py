"""The teacher's move, a moving average of the student in one fused pass, and how far it is behind."""

from collections.abc import Mapping

import torch
from torch import Tensor

Named = Mapping[str, Tensor]
"""Parameters by name, or what one rank holds of each."""
AT_ONCE = 32
"""Parameters whose differences are in memory at a time: of all of them they would be a third copy of the model."""


def pairs(teacher: Named, student: Named) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's parameters and the student's of the same names; every name of the teacher must be the student's."""
    return list(teacher.values()), [student[name] for name in teacher]


@torch.no_grad()
def update(teacher: Named, student: Named, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameters only: buffers are the teacher's own."""
    to, towards = pairs(teacher, student)
    torch._foreach_lerp_(to, towards, 1.0 - momentum)


@torch.no_grad()
def distance(teacher: Named, student: Named) -> Tensor:
    """[] how far the teacher's parameters are from the student's, as a share of the student's norm; 0 of none."""
    to, towards = pairs(teacher, student)
    if not to:
        return torch.zeros(())
    apart: list[Tensor] = []
    for start in range(0, len(to), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        apart += torch._foreach_norm(torch._foreach_sub(to[some], towards[some]))
    size = torch.stack(torch._foreach_norm(towards)).norm()
    share: Tensor = torch.stack(apart).norm() / size.clamp_min(torch.finfo(size.dtype).tiny)
    return share
