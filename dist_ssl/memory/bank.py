"""A memory bank with one row per image of the data set, sharded over the ranks: a rank holds only its block of rows.

Instance discrimination (Wu et al. 2018, arXiv 1805.01978; Cao and Wu 2024, arXiv 2404.19289) takes the rows as the
weights of a classifier with one class per image. Queries are gathered, every rank compares them with its own rows
(`softmax.py`), and partial sums are exchanged. Rows are updated by the rank that owns them. So the traffic of a step is
queries and sums, independent of the number of images; only `read` and `write` transfer rows.

The rules of `pull` and `descend` are reconstructions: the paper's gradient-based update is in no released code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.core.partition import partition
from dist_ssl.distributed.world import World
from dist_ssl.losses.job import full_precision
from dist_ssl.memory import softmax
from dist_ssl.protocols.engine import Piece, Spread


@dataclass(frozen=True)
class Comparison:
    """Similarity of queries to the rows, for the temperatures T in the order given; all but `kept` with gradients."""

    logsumexp: Tensor
    """[T, B] log sum_j exp(z . w_j / T)."""
    mean: Tensor
    """[T, B] sum_j p_j z . w_j / T, with p the softmax."""
    own: Tensor
    """[A, B] z . w of the targets' rows, without temperature."""
    kept: dict[str, Tensor]
    """Tensors that the update of the rows needs, of the whole job, without gradients; goes to `LossOutput.remember`."""


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, rows: Tensor, kept: dict[str, Tensor], own: "_Query"
    ) -> tuple[Tensor, Tensor, Tensor]:
        everyone, num = kept["queries"], len(own.temperatures)
        sums = softmax.partial_sums(everyone, rows, own.places, own.temperatures)
        near = softmax.target_products(everyone, rows, own.targets)
        parts = own.world.gather_const(torch.cat([sums.flatten(0, 1), near])[None])
        lse, mean = softmax.merge(parts[:, : 3 * num].reshape(len(parts), 3, num, -1))
        kept["totals"] = lse[0].clone()
        ctx.save_for_backward(rows, everyone, lse, mean)
        ctx.own = own
        mine = own.mine(len(queries))
        return lse[:, mine].clone(), mean[:, mine].clone(), parts[:, 3 * num :, mine].sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        rows, everyone, lse, mean = ctx.saved_tensors
        own: _Query = ctx.own
        num = len(own.temperatures)
        grad = own.world.gather_const(torch.cat(grads).T.contiguous()).T
        by_lse, by_mean, by_own = grad[:num], grad[num : 2 * num], grad[2 * num :]
        out = softmax.query_gradient(everyone, rows, own.places, own.temperatures, (lse, mean), (by_lse, by_mean))
        out += softmax.target_gradient(everyone, rows, own.targets, by_own)
        return own.world.sum_const(out)[own.mine(grads[0].shape[1])], None, None, None


@dataclass(frozen=True)
class _Query:
    """The arguments of a comparison on this rank: `targets` [A, N] and `places` [k] are indices within its block."""

    world: World
    targets: Tensor
    places: Tensor | None
    temperatures: Sequence[float]

    def mine(self, batch: int) -> slice:
        return slice(self.world.rank * batch, (self.world.rank + 1) * batch)


class Bank(nn.Module, Spread):
    """`num_rows` rows of width `dim` and unit length; zero, and so similar to no query, until they are written.

    `half`: rows in bfloat16, which halves the memory; an update of less than 1/256 of a row is then mostly rounded
    away, so keep the momentum well below 0.99. Otherwise rows have the precision that the module is moved to.
    """

    rows: Tensor
    """[n, D], this rank's rows: numbers `own` of the bank."""

    def __init__(self, num_rows: int, dim: int, *, world: World, half: bool = False) -> None:
        super().__init__()
        assert num_rows >= 1
        self.num_rows, self.world, self.half_rows = num_rows, world, half
        self.own = partition(num_rows, world.rank, world.size)
        self.register_buffer("rows", torch.zeros(len(self.own), dim, dtype=torch.bfloat16 if half else None))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Bank":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.half_rows:
            self.rows = self.rows.bfloat16()  # .to(dtype) is meant for parameters only
        return self

    def pieces(self) -> Mapping[str, Piece]:
        """Return the rows of this rank."""
        return {"rows": Piece.of_rows(self.rows, self.own.start, self.num_rows)}

    def compare(
        self,
        queries: Tensor,
        targets: Tensor,
        temperatures: Sequence[float],
        *,
        weights: Tensor | None = None,
        among: Tensor | None = None,
    ) -> Comparison:
        """Compare this rank's queries [B, D] with all rows, or those `among` [k] (ascending, the same on every rank).

        A collective, forward and backward. `targets` [A, B]: numbers of the rows whose inner products are returned too
        (A = 1; 2 where images are mixed). `weights` [A, B]: weight of each target in the update of the rows, 0 for
        replacement samples (default: 1). The first of the `temperatures`, each > 0, is that of the update.
        """
        with torch.autocast(queries.device.type, enabled=False):
            wide = queries.float() if queries.dtype in (torch.bfloat16, torch.float16) else queries
            targets = targets.to(wide.device)
            weights = torch.ones_like(targets, dtype=wide.dtype) if weights is None else weights.to(wide)
            gathered = self.world.gather_const(torch.cat([wide.detach(), weights.T], dim=1))
            width = wide.shape[1]
            job_targets = self.world.gather_const(targets.T.contiguous()).T
            kept = {"queries": gathered[:, :width], "weights": gathered[:, width:].T, "targets": job_targets}
            if among is not None:
                kept["among"] = among.to(wide.device)
            asked = _Query(self.world, job_targets - self.own.start, self._places(kept), temperatures)
            lse, mean, own = _Compare.apply(wide, self.rows, kept, asked)
            return Comparison(lse, mean, own, kept)

    def _places(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return the indices within this rank's block of the rows to compare with; None for all of them."""
        if "among" not in kept:
            return None
        places = kept["among"] - self.own.start
        return places[(places >= 0) & (places < len(self.own))]

    @torch.no_grad()
    def update_by_ema(self, ids: Tensor, z: Tensor, keep: Tensor, momentum: float) -> None:
        """w_i <- norm(m w_i + (1 - m) z_i) for the rows `ids` [Q] where `keep` [Q]: the released code's update.

        `z`: [Q, D]; all three of the whole job, in global order and equal on every rank, so nothing is exchanged. A row
        that occurs twice is updated once, by its last occurrence.
        """
        at, last = self._owned(ids, keep)
        moved = momentum * self.rows[at].to(z.dtype) + (1 - momentum) * z[last]
        self.rows[at] = F.normalize(moved, dim=1).to(self.rows.dtype)

    @torch.no_grad()
    def pull(self, kept: Mapping[str, Tensor], temperature: float, momentum: float) -> None:
        """w_k <- norm(m w_k + (1 - m) sum_b (1[k = b] - p_k(b)) z_b) for every row that was compared [reconstruction].

        `kept`: from the comparison, of which `temperature` is the first. Nothing is exchanged. Rows of zeros stay zero
        until their image occurs in a batch.
        """
        self._move(kept, temperature, momentum, 1 - momentum)

    @torch.no_grad()
    def descend(self, kept: Mapping[str, Tensor], temperature: float, rate: float) -> None:
        """w_k <- norm(w_k - rate dL/dw_k) for every row that was compared, L the sum over the job's queries of
        their cross entropy (weighted) [reconstruction]; otherwise like `pull`.
        """
        self._move(kept, temperature, 1.0, rate / temperature)

    def _move(self, kept: Mapping[str, Tensor], temperature: float, stay: float, go: float) -> None:
        z, weights, targets = kept["queries"], kept["weights"], kept["targets"].flatten() - self.own.start
        taken = (weights[:, :, None] * z).flatten(0, 1)
        counts = weights.flatten() > 0
        for index, tile in softmax.tiles(self.rows, self._places(kept), len(z)):
            if isinstance(index, slice):
                at, here = targets - index.start, (targets >= index.start) & (targets < index.stop)
            else:
                at = torch.searchsorted(index, targets).clamp_max(len(index) - 1)
                here = index[at] == targets
            pull = softmax.row_pull(z, tile, temperature, kept["totals"], weights.sum(0), (at[here], taken[here]))
            moved = F.normalize(stay * tile.to(z.dtype) + go * pull, dim=1)
            stands = tile.any(dim=1)  # a zero row that is pushed away from the queries would become similar to others
            stands[at[here & counts]] = True
            self.rows[index] = (moved * stands[:, None]).to(self.rows.dtype)

    def _owned(self, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices within this rank's block of its rows among `ids`, and the last position of each, [m] each."""
        at = ids.to(self.rows.device) - self.own.start
        named = ((at >= 0) & (at < len(self.own)) & keep.to(at.device)).nonzero().flatten()
        at = at[named]
        ordered, order = at.sort(stable=True)
        return at, named[order[torch.searchsorted(ordered, at, right=True) - 1]]

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` [B], which may differ between ranks, as [B, D], fp32 or wider; a collective."""
        asked = self.world.gather_const(ids.to(self.rows.device)) - self.own.start
        here = (asked >= 0) & (asked < len(self.own))
        dtype = torch.float32 if self.half_rows else self.rows.dtype
        found = torch.zeros(len(asked), self.rows.shape[1], dtype=dtype, device=self.rows.device)
        found[here] = self.rows[asked[here]].to(found.dtype)
        mine = slice(self.world.rank * len(ids), (self.world.rank + 1) * len(ids))
        return self.world.sum_const(found)[mine]

    @torch.no_grad()
    def write(self, ids: Tensor, values: Tensor, keep: Tensor) -> None:
        """Set the rows `ids` [B] to `values` [B, D], normalised to unit length, where `keep` [B].

        A collective: every rank gives the same number, its part of a global batch (pad the last one with `keep` False).
        Among several values for one row, the last in global order is stored.
        """
        device = self.rows.device
        kept = self.world.gather_const(keep.to(device).to(torch.uint8)).bool()
        everyone = self.world.gather_const(values)
        at, last = self._owned(self.world.gather_const(ids.to(device)), kept)
        self.rows[at] = F.normalize(full_precision(everyone[last]), dim=1).to(self.rows.dtype)
