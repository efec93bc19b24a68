"""The teacher's move: an exponential moving average of the student, in one fused pass over all parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

Named = Mapping[str, Tensor]
"""Parameters by name, or what one rank holds of each."""


def pairs(teacher: Named, student: Named) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's parameters and the student's of the same names; every name of the teacher must be the student's."""
    return list(teacher.values()), [student[name] for name in teacher]


@torch.no_grad()
def follow(teacher: Named, student: Named, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameters only: buffers are the teacher's own."""
    to, towards = pairs(teacher, student)
    torch._foreach_lerp_(to, towards, 1.0 - momentum)
