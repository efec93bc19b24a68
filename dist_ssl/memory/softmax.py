"""A softmax over rows of which every rank holds some: pure functions of tensors, tile by tile, merged at the end.

For queries z [Q, D] and rows w [n, D], s_j = z . w_j / T. Every rank sums over its own rows, relative to its largest:

    top = max_j s_j        total = sum_j exp(s_j - top)        weighted = sum_j exp(s_j - top) s_j

and these three numbers per query and temperature are all that ranks must tell each other to know, over all rows,

    logsumexp = log sum_j exp(s_j)        mean = sum_j p_j s_j        p_j = exp(s_j - logsumexp)

From the two follow cross entropy, entropy (logsumexp - mean) and the divergences between softmaxes of two temperatures.
Their gradients are exact: d logsumexp / d s_j = p_j and d mean / d s_j = p_j (1 + s_j - mean).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TILE_LOGITS = 1 << 22
"""Most logits held at a time."""

Index = slice | Tensor


def tiles(rows: Tensor, places: Tensor | None, num_queries: int) -> Iterator[tuple[Index, Tensor]]:
    """Parts of rows [n, D] (of those at `places`, where given), each with its index."""
    count = len(rows) if places is None else len(places)
    step = max(1, TILE_LOGITS // max(1, num_queries))
    for start in range(0, count, step):
        end = min(start + step, count)
        index = slice(start, end) if places is None else places[start:end]
        yield index, rows[index]


def products(queries: Tensor, rows: Tensor) -> Tensor:
    """[Q, n] inner products in the queries' precision."""
    return queries @ rows.to(queries.dtype).T


def partial_sums(queries: Tensor, rows: Tensor, places: Tensor | None, temperatures: Sequence[float]) -> Tensor:
    """[3, T, Q]: top, total and weighted of these rows; -inf, 0 and 0 of none."""
    sums = queries.new_zeros((3, len(temperatures), len(queries)))
    top, total, weighted = sums
    top.fill_(float("-inf"))
    for _, tile in tiles(rows, places, len(queries)):
        sims = products(queries, tile)
        for t, temperature in enumerate(temperatures):
            logits = sims / temperature
            new = torch.maximum(top[t], logits.amax(1))
            scale = (top[t] - new).exp()
            weights = (logits - new[:, None]).exp()
            total[t] = total[t] * scale + weights.sum(1)
            weighted[t] = weighted[t] * scale + (weights * logits).sum(1)
            top[t] = new
    return sums


def merge(parts: Tensor) -> tuple[Tensor, Tensor]:
    """[R, 3, T, Q] of all ranks -> logsumexp and mean over all rows, [T, Q] each."""
    tops, totals, weighted = parts.unbind(1)
    top = tops.amax(0)
    scale = (tops - top).exp()
    total = (totals * scale).sum(0)
    return top + total.log(), (weighted * scale).sum(0) / total


def query_gradient(
    queries: Tensor,
    rows: Tensor,
    places: Tensor | None,
    temperatures: Sequence[float],
    found: tuple[Tensor, Tensor],
    wanted: tuple[Tensor, Tensor],
) -> Tensor:
    """[Q, D]: what these rows add to the queries' gradient.

    `found`: logsumexp and mean over all rows; `wanted`: the loss's gradients in them; [T, Q] each.
    """
    out = torch.zeros_like(queries)
    for _, tile in tiles(rows, places, len(queries)):
        sims = products(queries, tile)
        pushed = torch.zeros_like(sims)
        for t, temperature in enumerate(temperatures):
            lse, mean, by_lse, by_mean = (x[t][:, None] for x in (*found, *wanted))
            logits = sims / temperature
            pushed += (logits - lse).exp() * (by_lse + by_mean * (1 + logits - mean)) / temperature
        out += pushed @ tile.to(queries.dtype)
    return out


def target_products(queries: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """[A, Q] inner products with rows number `targets` [A, Q]; 0 where there is no such row here."""
    here, near = _near(rows, targets)
    return (queries * near).sum(2) * here


def target_gradient(queries: Tensor, rows: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
    """[Q, D]: what `target_products` adds to the queries' gradient; `wanted` [A, Q]: the loss's gradients in them."""
    here, near = _near(rows, targets)
    return ((wanted * here)[:, :, None] * near.to(queries.dtype)).sum(0)


def _near(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a target is among the rows [A, Q], and those rows [A, Q, D]."""
    here = (targets >= 0) & (targets < len(rows))
    if len(rows) == 0:
        return here, rows.new_zeros((*targets.shape, rows.shape[1]))
    return here, rows[targets.clamp(0, len(rows) - 1)]


def row_pull(
    queries: Tensor, tile: Tensor, temperature: float, totals: Tensor, shares: Tensor, chosen: tuple[Tensor, Tensor]
) -> Tensor:
    """[t, D] for a tile of rows: sum_b (target_kb - share_b p_kb) z_b, -T times the gradient of cross entropy in them.

    `totals` [Q]: logsumexp over all rows; `shares` [Q]: a query's weight; `chosen`: the places of targets in the tile,
    and what they take in, [m] and [m, D].
    """
    likely = (products(queries, tile) / temperature - totals[:, None]).exp() * shares[:, None]
    out = -(likely.T @ queries)
    return out.index_add_(0, *chosen)
