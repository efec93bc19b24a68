"""Instance discrimination with self-distillation (Cao and Wu 2024, arXiv 2404.19289): every image is its own class.

Two numbers per query suffice for the losses of a softmax over the bank's rows; both are sums over the rows, whichever
rank holds them. For the similarities s of a query with all rows, temperature T, a_j = s_j / T and p = softmax(a):

    logsumexp = log sum_j exp(a_j)        mean = sum_j p_j a_j
"""

from typing import Literal

from torch import Tensor

Divergence = Literal["p||u", "u||p"]


def instance_cross_entropy(logsumexp: Tensor, own: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return the weighted sum of -log p over a query's own rows, [B]; with CutMix two rows, weighted lam and 1 - lam.

    `logsumexp`: [B] at this temperature; `own`: [A, B] similarities with the query's own rows; `weights`: [A, B].
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
    """Return KL(p || u) or KL(u || p) with u = p^exponent / sum p^exponent, [B]; at exponent 1/2 the paper's L_SqrtKL.

    `logsumexp`, `mean`: [B] each, of p at a temperature T, which is 1 in the released code, and of u at T / exponent.
    `exponent` > 0. The gradient treats u as constant unless `through_target`.

    log p = a - log sum exp a and log u = e a - log sum exp(e a). With u constant the gradient of KL(p || u) is
    (1 - e) p_j (a_j - mean), where p_j (a_j - mean) is the gradient of mean - log sum exp a; the gradient of KL(u || p)
    is p_j - u_j, where u_j is the gradient of log sum exp(e a) / e.
    """
    e, (of_p, of_u) = exponent, logsumexp
    if divergence == "p||u":
        value = (1 - e) * mean[0] - of_p + of_u
        along = (1 - e) * (mean[0] - of_p)
    else:
        value = (1 - 1 / e) * mean[1] - of_u + of_p
        along = of_p - of_u / e
    return value if through_target else along + (value - along).detach()
