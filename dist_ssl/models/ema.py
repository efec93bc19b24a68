"""The EMA update of a teacher in one fused pass, and the distance between teacher and student."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

Named = Mapping[str, Tensor]
"""Parameters by name, or one rank's piece of each."""
AT_ONCE = 1 << 25
"""Elements whose differences are in memory at a time: those of a large model would be a third copy of it."""


def pairs(teacher: Named, student: Named) -> tuple[list[Tensor], list[Tensor]]:
    """Return the teacher's parameters and the student's of the same names; the student must have all of them."""
    return list(teacher.values()), [student[name] for name in teacher]


@torch.no_grad()
def update(teacher: Named, student: Named, momentum: float) -> None:
    """Set teacher <- momentum * teacher + (1 - momentum) * student, parameters only: buffers are the teacher's own."""
    to, towards = pairs(teacher, student)
    torch._foreach_lerp_(to, towards, 1.0 - momentum)


@torch.no_grad()
def distance(teacher: Named, student: Named) -> Tensor:
    """Return [] |teacher - student| / |student| over all parameters; 0 if there are none."""
    to, towards = pairs(teacher, student)
    if not to:
        return torch.zeros(())
    apart: list[Tensor] = []
    for some in parts([x.numel() for x in to]):
        apart += torch._foreach_norm(torch._foreach_sub(to[some], towards[some]))
    size = torch.stack(torch._foreach_norm(towards)).norm()
    share: Tensor = torch.stack(apart).norm() / size.clamp_min(torch.finfo(size.dtype).tiny)
    return share


def parts(sizes: list[int]) -> list[slice]:
    """Neighbours among tensors of these sizes, of together at most AT_ONCE numbers, or a single tensor of more."""
    starts, held = [0], 0
    for place, size in enumerate(sizes):
        if held and held + size > AT_ONCE:
            starts.append(place)
            held = 0
        held += size
    return [slice(first, end) for first, end in pairwise([*starts, len(sizes)])]
