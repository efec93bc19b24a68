"""What the methods' losses see of the other ranks: embeddings of the whole job, and which samples count."""

from collections.abc import Callable

import torch
from torch import Tensor


def of_the_job(gather: Callable[[Tensor], Tensor], own: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's embeddings [B, ...] and `valid` [B] -> those of the job in global order, [N, ...] and [N] bool.

    `gather`: `World.gather`, with gradients, or `World.gather_const`; both travel in one exchange.
    """
    marked = torch.cat([own.flatten(1), valid[:, None].to(own.dtype)], dim=1)
    everyone = gather(marked)
    return everyone[:, :-1].view(-1, *own.shape[1:]), everyone[:, -1] > 0.5


def share_of_mean(rows: Tensor, valid: Tensor, keep: Tensor, ranks: int) -> Tensor:
    """[] this rank's share of the mean over the job's valid samples, whose number `keep` [N] tells: as `job_mean`.

    `rows`, `valid`: [B] of this rank.
    """
    return (rows * valid).sum() * (ranks / keep.sum(dtype=rows.dtype).clamp_min(1))
