"""Instance discrimination with self-distillation (Cao and Wu 2024, arXiv 2404.19289): every image is its own class.

What a softmax over the rows of a bank comes to is given by sums over them, whoever holds the rows: for similarities s
of a query with all rows, at a temperature T, a_j = s_j / T and p = softmax(a),

    logsumexp = log sum_j exp(a_j)        mean = sum_j p_j a_j
"""

from typing import Literal

from torch import Tensor

Divergence = Literal["p||u", "u||p"]


def instance_cross_entropy(logsumexp: Tensor, own: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """-log p of a query's own rows, [B], each with its weight; CutMix takes lam of one row and 1 - lam of another.

    `logsumexp`: [B] at this temperature; `own`: [A, B] similarities with the rows that a query belongs to; `weights`:
    [A, B].
    """
    return logsumexp * weights.sum(0) - (weights * own).sum(0) / temperature


def self_distillation(
    logsumexp: tuple[Tensor, Tensor],
    mean: tuple[Tensor, Tensor],
    *,
    exponent: float = 0.5,
    divergence: Divergence = "p||u",
    through_target: bool = False,
) -> Tensor:
    """KL(p || u) or KL(u || p) with u = p^exponent / sum p^exponent, [B]; at exponent 1/2 the paper's L_SqrtKL.

    `logsumexp`, `mean`: [B] each, of p and of u: at a temperature T, which is 1 in the released code, and at
    T / exponent. `exponent` > 0. u is constant unless the gradient goes `through_target`.

    log p = a - log sum exp a and log u = e a - log sum exp(e a). With u constant the gradient of KL(p || u) is
    (1 - e) p_j (a_j - mean), and p_j (a_j - mean) is that of mean - log sum exp; of KL(u || p) it is p_j - u_j, and u_j
    is that of log sum exp(e a) / e.
    """
    e, (of_p, of_u) = exponent, logsumexp
    if divergence == "p||u":
        value = (1 - e) * mean[0] - of_p + of_u
        along = (1 - e) * (mean[0] - of_p)
    else:
        value = (1 - 1 / e) * mean[1] - of_u + of_p
        along = of_p - of_u / e
    return value if through_target else along + (value - along).detach()
