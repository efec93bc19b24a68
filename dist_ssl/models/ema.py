"""The teacher's move: an exponential moving average of the student, in one fused pass over all parameters."""

import torch
from torch import Tensor, nn


def pairs(teacher: nn.Module, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's parameters and the student's of the same names; every name of the teacher must be the student's."""
    own = dict(student.named_parameters())
    names = [name for name, _ in teacher.named_parameters()]
    return list(teacher.parameters()), [own[name] for name in names]


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameters only: buffers are the teacher's own."""
    to, towards = pairs(teacher, student)
    torch._foreach_lerp_(to, towards, 1.0 - momentum)
