"""Softmax statistics over rows that are sharded over the ranks: pure functions, computed in tiles and merged.

For queries z [Q, D] and rows w [n, D], s_j = z . w_j / T. Every rank sums over its own rows, relative to the largest:

    top = max_j s_j        total = sum_j exp(s_j - top)        weighted = sum_j exp(s_j - top) s_j

From these three numbers per query and temperature, exchanged between the ranks, follow those over all rows:

    logsumexp = log sum_j exp(s_j)        mean = sum_j p_j s_j        p_j = exp(s_j - logsumexp)

These two give cross entropy, entropy (logsumexp - mean) and the divergences between softmaxes of two temperatures.
Their gradients are exact: d logsumexp / d s_j = p_j and d mean / d s_j = p_j (1 + s_j - mean).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TILE_LOGITS = 1 << 22
"""Largest number of logits held at a time on a host: as many as stay in its caches."""
TILE_LOGITS_GPU = 1 << 26
"""The same on a GPU, on which a smaller tile does not pay."""
MOST_POWER = 16
"""Highest power of an exponential that is computed by products; its relative rounding error grows with it."""
EXACT = 1e-9
"""Largest difference to a whole number that is due to rounding of the temperatures."""

Index = slice | Tensor


def tiles(rows: Tensor, places: Tensor | None, num_queries: int) -> Iterator[tuple[Index, Tensor]]:
    """Yield tiles of the rows [n, D] (only of those at `places`, if given), each with its index into the rows."""
    count = len(rows) if places is None else len(places)
    step = max(1, most_logits(rows.device) // max(1, num_queries))
    for start in range(0, count, step):
        end = min(start + step, count)
        index = slice(start, end) if places is None else places[start:end]
        yield index, rows[index]


def most_logits(device: torch.device) -> int:
    """Return how many logits a tile has at most on this device."""
    return TILE_LOGITS_GPU if device.type == "cuda" else TILE_LOGITS


def products(queries: Tensor, rows: Tensor) -> Tensor:
    """Return the [Q, n] inner products in the queries' precision."""
    return queries @ rows.to(queries.dtype).T


def partial_sums(queries: Tensor, rows: Tensor, places: Tensor | None, temperatures: Sequence[float]) -> Tensor:
    """Return [3, T, Q]: top, total and weighted of these rows; -inf, 0 and 0 if there are none."""
    sums = queries.new_zeros((3, len(temperatures), len(queries)))
    _, total, weighted = sums
    top = queries.new_full((len(queries),), float("-inf"))
    for _, tile in tiles(rows, places, len(queries)):
        sims = products(queries, tile)
        new = torch.maximum(top, sims.amax(1))
        for t, weights in enumerate(exponentials(sims - new[:, None], temperatures)):
            scale = ((top - new) / temperatures[t]).exp()
            total[t] = total[t] * scale + weights.sum(1)
            weighted[t] = weighted[t] * scale + (weights * sims).sum(1) / temperatures[t]
        top = new
    sums[0] = torch.stack([top / temperature for temperature in temperatures])
    return sums


def exponentials(gaps: Tensor, temperatures: Sequence[float]) -> list[Tensor]:
    """Return exp(gaps / T) for each temperature T.

    Where the highest temperature is a small multiple of each, all are powers of one exponential; a few products cost
    less than an exponential.
    """
    highest = max(temperatures)
    ratios = [highest / temperature for temperature in temperatures]
    if any(abs(ratio - round(ratio)) > EXACT or ratio > MOST_POWER for ratio in ratios):
        return [(gaps / temperature).exp() for temperature in temperatures]
    known = {1: (gaps / highest).exp()}
    return [_power(known, round(ratio)) for ratio in ratios]


def _power(known: dict[int, Tensor], exponent: int) -> Tensor:
    """Return a whole power of `known[1]` by squaring; every power on the way is added to `known`."""
    if exponent not in known:
        root = _power(known, exponent // 2)
        known[exponent] = root * root * known[1] if exponent % 2 else root * root
    return known[exponent]


def merge(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the sums of all ranks [R, 3, T, Q] into logsumexp and mean over all rows, [T, Q] each."""
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
    grads: tuple[Tensor, Tensor],
) -> Tensor:
    """Return these rows' contribution [Q, D] to the gradient of the queries.

    `found`: logsumexp and mean over all rows; `grads`: the loss's gradients with respect to them; [T, Q] each.
    """
    out = torch.zeros_like(queries)
    coldest = min(range(len(temperatures)), key=temperatures.__getitem__)
    bound = temperatures[coldest] * found[0][coldest][:, None]  # at least the largest product, and near it
    for _, tile in tiles(rows, places, len(queries)):
        sims = products(queries, tile)
        pushed = torch.zeros_like(sims)
        for t, weights in enumerate(exponentials(sims - bound, temperatures)):
            temperature, (lse, mean, by_lse, by_mean) = temperatures[t], (x[t][:, None] for x in (*found, *grads))
            share = (bound / temperature - lse).exp() / temperature
            pushed += weights * (sims * (share * by_mean / temperature) + share * (by_lse + by_mean * (1 - mean)))
        out += pushed @ tile.to(queries.dtype)
    return out


def target_products(queries: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Return the [A, Q] inner products with the rows `targets` [A, Q]; 0 where this rank has no such row."""
    here, near = _near(rows, targets)
    return (queries * near).sum(2) * here


def target_gradient(queries: Tensor, rows: Tensor, targets: Tensor, grads: Tensor) -> Tensor:
    """Return the [Q, D] gradient of the queries through `target_products`, of which `grads` [A, Q] is the gradient."""
    here, near = _near(rows, targets)
    return ((grads * here)[:, :, None] * near.to(queries.dtype)).sum(0)


def _near(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each target is among the rows [A, Q], and those rows [A, Q, D]."""
    here = (targets >= 0) & (targets < len(rows))
    if len(rows) == 0:
        return here, rows.new_zeros((*targets.shape, rows.shape[1]))
    return here, rows[targets.clamp(0, len(rows) - 1)]


def row_pull(
    queries: Tensor, tile: Tensor, temperature: float, totals: Tensor, shares: Tensor, chosen: tuple[Tensor, Tensor]
) -> Tensor:
    """Return sum_b (target_kb - share_b p_kb) z_b, [t, D], for a tile of t rows.

    That is -T times the gradient of the cross entropy with respect to the rows. `totals` [Q]: logsumexp over all rows;
    `shares` [Q]: weight of each query; `chosen`: indices [m] of the targets in the tile, and their terms [m, D].
    """
    likely = (products(queries, tile) / temperature - totals[:, None]).exp() * shares[:, None]
    out = -(likely.T @ queries)
    return out.index_add_(0, *chosen)
