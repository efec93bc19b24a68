"""Instance discrimination against a bank (Cao and Wu 2024, arXiv 2404.19289): every image is a class of its own.

The bank's rows lie on their owners. Each rank has the queries of the whole job and their cosines with its own rows;
the softmax over the rows of all ranks takes sums only. What these functions return is the same on every rank.

`largest` stands for the element-wise maximum over ranks, without gradients.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.losses.job import Sum, full_precision

Divergence = Literal["p||u", "u||p"]


def log_shares(logits: Tensor, total: Sum, largest: Sum) -> Tensor:
    """Log-softmax of [M, N_r] over the columns of all ranks: this rank's part of it.

    A rank may have no columns (N_r = 0). A column of -inf has no share.
    """
    logits = full_precision(logits)
    top = largest(F.pad(logits.detach(), (0, 1), value=float("-inf")).amax(1))[:, None]
    return logits - top - total((logits - top).exp().sum(1)).log()[:, None]


def instance_cross_entropy(log_p: Tensor, columns: Tensor, total: Sum) -> Tensor:
    """-log p of every query's own column, [M].

    `log_p`: [M, N_r] of `log_shares` at the loss's temperature; `columns`: [M] int64, where among this rank's columns
    the query's own is, -1 where another rank has it. CutMix takes lam CE(columns a) + (1 - lam) CE(columns b).
    """
    if log_p.shape[1] == 0:
        return -total(log_p.sum(1))  # a rank without columns takes part in the sum and in its gradient
    here = log_p.gather(1, columns.clamp_min(0)[:, None])[:, 0]
    return -total(here.where(columns >= 0, 0))


def self_distillation(
    log_p: Tensor,
    total: Sum,
    *,
    exponent: float = 0.5,
    divergence: Divergence = "p||u",
    through_target: bool = False,
) -> Tensor:
    """KL(p || u) or KL(u || p) with u = p^exponent / sum p^exponent, [M]; at exponent 1/2 the paper's L_SqrtKL.

    `log_p`: [M, N_r] of `log_shares` at `kl_temperature`, which is 1 in the released code: no temperature at all.
    `exponent` > 0. u is constant unless the gradient goes `through_target`.
    """
    powers = exponent * log_p
    log_u = powers - total(powers.exp().sum(1)).log()[:, None]
    log_u = log_u if through_target else log_u.detach()
    log_a, log_b = (log_p, log_u) if divergence == "p||u" else (log_u, log_p)
    gap = (log_a - log_b).where(log_p.isfinite(), 0)
    return total((log_a.exp() * gap).sum(1))


@torch.no_grad()
def row_pulls(log_p: Tensor, columns: Tensor, queries: Tensor, valid: Tensor) -> Tensor:
    """Where instance discrimination draws this rank's rows: sum over queries b of (1[k = b] - p_k(b)) z_b, [N_r, D].

    It is minus the temperature times the gradient of the summed cross-entropy with respect to the rows.
    `queries`: [M, D] unit vectors; `valid`: [M] bool, queries that count; `log_p` and `columns` as above.
    """
    counted = queries * valid[:, None]
    pulls = -(log_p.exp().to(queries.dtype).T @ counted)
    if len(pulls):
        pulls.index_add_(0, columns.clamp_min(0), counted * (columns >= 0)[:, None])
    return pulls
