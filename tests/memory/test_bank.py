"""A bank that is spread over ranks computes and moves what one process would with all rows and plain autograd."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.core.draws import Draws
from dist_ssl.distributed.world import World
from dist_ssl.memory import softmax
from dist_ssl.memory.bank import Bank
from dist_ssl.memory.negatives import negatives
from tests.ranks import Ranks, collect_tensors

WIDTH = 5
BATCH = 8
TEMPERATURES = (0.2, 1.0, 2.0)


@dataclass(frozen=True)
class Case:
    """A global batch before a bank; `tile`: logits held at a time, so that few rows fill one."""

    rows: int
    seed: int
    sampled: bool
    tile: int = 24
    twice: bool = False

    @property
    def draw(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def unit(self, count: int, shift: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + shift)
        return F.normalize(torch.randn(count, WIDTH, dtype=torch.float64, generator=generator), dim=1)

    @property
    def table(self) -> Tensor:
        """[N, D] the rows."""
        return self.unit(self.rows, 0)

    @property
    def queries(self) -> Tensor:
        return self.unit(BATCH, 1)

    @property
    def targets(self) -> Tensor:
        """[2, B] rows of the batch, and of what it is mixed with."""
        ids = torch.randint(self.rows, (BATCH,), generator=self.draw)
        if not self.twice and self.rows >= BATCH:
            ids = torch.randperm(self.rows, generator=self.draw)[:BATCH]
        return torch.stack([ids, ids.flip(0)])

    @property
    def weights(self) -> Tensor:
        """[2, B]; the third sample is a replacement."""
        share = torch.full((BATCH,), 0.7, dtype=torch.float64)
        share[2] = 0
        return torch.stack([share, torch.where(share > 0, 1 - share, 0)])

    @property
    def among(self) -> Tensor | None:
        if not self.sampled:
            return None
        others = negatives(Draws(self.seed), 3, self.rows, self.targets[0].numpy(), 6)
        return torch.from_numpy(np.union1d(others, self.targets[0].numpy()))


def bank_of(case: Case, world: World) -> Bank:
    bank = Bank(case.rows, WIDTH, world=world).double()
    bank.rows.copy_(case.table[bank.own.start : bank.own.stop])
    return bank


def own(x: Tensor, world: World) -> Tensor:
    """This rank's samples of what lies along the last dimension, or the first of a matrix of queries."""
    return x.chunk(world.size, dim=-1 if x.shape[-1] == BATCH else 0)[world.rank].clone()


def objective(lse: Tensor, mean: Tensor, near: Tensor, weights: Tensor) -> Tensor:
    """[B] something of everything: mixed cross entropy, entropies, a second temperature."""
    cross = weights.sum(0) * lse[0] - (weights * near).sum(0) / TEMPERATURES[0]
    return cross + 0.3 * (lse[1] - mean[1]) + 0.1 * mean[2] * lse[0]


Rule = Callable[[Bank, dict[str, Tensor]], None]


def ema(bank: Bank, kept: dict[str, Tensor]) -> None:
    bank.update_by_ema(kept["targets"][0], kept["queries"], kept["weights"][0] > 0, 0.5)


def pull(bank: Bank, kept: dict[str, Tensor]) -> None:
    bank.pull(kept, TEMPERATURES[0], 0.5)


def descend(bank: Bank, kept: dict[str, Tensor]) -> None:
    bank.descend(kept, TEMPERATURES[0], 0.3)


def stepped(world: World, case: Case, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Of one step on this rank: the job's loss, the gradient of this rank's queries, all rows afterwards."""
    bank = bank_of(case, world)
    whole = softmax.TILE_LOGITS
    softmax.TILE_LOGITS = case.tile
    try:
        queries = own(case.queries, world).requires_grad_()
        weights = own(case.weights, world)
        found = bank.compare(queries, own(case.targets, world), TEMPERATURES, weights=weights, among=case.among)
        loss = objective(found.logsumexp, found.mean, found.own, weights).sum()
        loss.backward()
        rule(bank, found.kept)
    finally:
        softmax.TILE_LOGITS = whole
    assert queries.grad is not None
    rows = torch.cat(collect_tensors(world, bank.rows))
    return world.sum_const(loss.detach()), queries.grad, rows


def plainly(case: Case, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """The same by plain autograd over all rows."""
    queries, table = case.queries.requires_grad_(), case.table.requires_grad_()
    places = torch.arange(case.rows) if case.among is None else case.among
    sims = queries @ table[places].T
    near = (queries * table[case.targets]).sum(2)
    lse = torch.stack([(sims / t).logsumexp(1) for t in TEMPERATURES])
    mean = torch.stack([((sims / t).softmax(1) * sims / t).sum(1) for t in TEMPERATURES])
    loss = objective(lse, mean, near, case.weights).sum()
    (gradient,) = torch.autograd.grad(loss, queries, retain_graph=True)
    crosses = case.weights.sum(0) * lse[0] - (case.weights * near).sum(0) / TEMPERATURES[0]
    (descent,) = torch.autograd.grad(crosses.sum(), table)
    rows = case.table
    if rule is ema:
        for b in range(BATCH):
            if case.weights[0, b] > 0:
                i = case.targets[0, b]
                rows[i] = F.normalize(0.5 * case.table[i] + 0.5 * case.queries[b], dim=0)
        return loss.detach(), gradient, rows
    if rule is pull:
        rows[places] = F.normalize(0.5 * rows - 0.5 * TEMPERATURES[0] * descent, dim=1)[places]
    if rule is descend:
        rows[places] = F.normalize(rows - 0.3 * descent, dim=1)[places]
    return loss.detach(), gradient, rows


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


RULES = pytest.mark.parametrize("rule", [ema, pull, descend])
CASES = st.builds(
    Case,
    rows=st.integers(1, 40),
    seed=st.integers(0, 1000),
    sampled=st.booleans(),
    tile=st.sampled_from([1, 24, 1 << 22]),
    twice=st.booleans(),
)


@RULES
@settings(max_examples=30)
@given(case=CASES)
def test_loss_gradients_and_moves_are_those_of_plain_autograd(rule: Rule, case: Case) -> None:
    for found, wanted in zip(stepped(World(), case, rule), plainly(case, rule), strict=True):
        assert_close(found, wanted)


@RULES
@pytest.mark.parametrize("size", [2, 4])
@settings(max_examples=6)
@given(case=CASES)
def test_many_ranks_do_what_one_does(ranks: Ranks, size: int, rule: Rule, case: Case) -> None:
    loss, gradient, rows = plainly(case, rule)
    found = ranks.run(stepped, size, case, rule)
    for other_loss, _, other_rows in found:
        assert_close(other_loss, loss)
        assert_close(other_rows, rows)
    assert_close(torch.cat([own_gradient for _, own_gradient, _ in found]), gradient)


@given(count=st.integers(1, 50), size=st.integers(1, 9))
def test_blocks_follow_one_another_and_are_even(count: int, size: int) -> None:
    with torch.device("meta"):
        blocks = [Bank(count, 2, world=World(rank=rank, size=size)).own for rank in range(size)]
    assert [row for own_rows in blocks for row in own_rows] == list(range(count))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_four_ranks_hold_a_quarter_each() -> None:
    with torch.device("meta"):
        held = [Bank(1_281_167, 128, world=World(rank=rank, size=4)).rows.nbytes for rank in range(4)]
        half = [Bank(1_281_167, 128, world=World(rank=rank, size=4), half=True).rows.nbytes for rank in range(4)]
    assert sum(held) == 1_281_167 * 128 * 4
    assert max(held) - min(held) <= 128 * 4
    assert [2 * own_bytes for own_bytes in half] == held


def written_and_read(world: World) -> tuple[Tensor, Tensor]:
    """All rows after a write by every rank, and what this rank reads of the others'."""
    bank = Bank(11, WIDTH, world=world).double()
    values = 3 * Case(11, 0, False).table[:8]
    ids = torch.tensor([4, 10, 0, 4, 7, 8, 9, 2])
    keep = torch.tensor([True, True, True, True, True, False, True, True])
    bank.write(own(ids, world), own(values, world), own(keep, world))
    return torch.cat(collect_tensors(world, bank.rows)), bank.read(torch.tensor([4, world.rank, 10]))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_are_written_and_read_by_number(ranks: Ranks, size: int) -> None:
    table = Case(11, 0, False).table
    wanted = torch.zeros(11, WIDTH, dtype=torch.float64)
    for place, row in enumerate([None, 10, 0, 4, 7, None, 9, 2]):  # the first is overtaken, the sixth a replacement
        if row is not None:
            wanted[row] = table[place]
    for rank, (rows, read) in enumerate(ranks.run(written_and_read, size)):
        assert_close(rows, wanted)
        assert_close(read, wanted[[4, rank, 10]])


@pytest.mark.parametrize("rule", ["pull", "descend"])
def test_a_row_without_an_image_stays_like_nothing_until_its_image_is_seen(rule: str) -> None:
    bank, generator = Bank(6, WIDTH, world=World()).double(), torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(4, WIDTH, dtype=torch.float64, generator=generator), dim=1)
    bank.write(torch.arange(4), z, torch.ones(4).bool())
    targets, weights = (
        torch.tensor([[0, 4, 5]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
    )  # 4 is new; for 5 there is a replacement
    kept = bank.compare(z[:3].flip(1), targets, (0.2,), weights=weights).kept
    getattr(bank, rule)(kept, 0.2, 0.5)
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.tensor([1.0, 1, 1, 1, 1, 0]).double())
    assert not torch.equal(bank.rows[:4], z)


def test_half_rows_stay_half_and_compare_in_full_precision() -> None:
    case = Case(20, 1, False)
    bank = Bank(20, WIDTH, world=World(), half=True).double()
    assert bank.rows.dtype == torch.bfloat16
    bank.write(torch.arange(20), case.table, torch.ones(20, dtype=torch.bool))
    found = bank.compare(case.queries, case.targets[:1], (0.2,))
    wanted = (case.queries @ bank.rows.double().T / 0.2).logsumexp(1)
    assert_close(found.logsumexp[0], wanted)
    ema(bank, found.kept)
    assert bank.rows.dtype == torch.bfloat16
    torch.testing.assert_close(bank.rows.double().norm(dim=1), torch.ones(20).double(), rtol=0, atol=0.01)
    assert bank.read(torch.tensor([3])).dtype == torch.float32


def test_rows_written_in_half_precision_have_unit_length_in_full() -> None:
    case, bank = Case(20, 1, False), Bank(20, WIDTH, world=World())
    bank.write(torch.arange(20), 3 * case.table.bfloat16(), torch.ones(20, dtype=torch.bool))
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(20), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", [pull, descend])
def test_rows_that_were_never_written_are_like_nothing_until_an_image_comes(rule: Rule) -> None:
    case = Case(20, 1, False)
    bank = bank_of(case, World())
    bank.rows[::2] = 0
    before, keep = bank.rows.clone(), case.weights.sum(0) > 0
    found = bank.compare(case.queries, case.targets, TEMPERATURES, weights=case.weights)
    rule(bank, found.kept)
    visited = {int(row) for row in case.targets[:, keep].flatten()}
    for row in range(20):
        nothing = row % 2 == 0 and row not in visited
        assert bank.rows[row].norm().item() == pytest.approx(0 if nothing else 1)
        assert torch.equal(bank.rows[row], before[row]) == nothing


def test_queries_in_half_precision_are_compared_in_single() -> None:
    case = Case(20, 1, False)
    bank = bank_of(case, World()).float()
    queries = case.queries.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = bank.compare(queries, case.targets[:1], (0.2,))
    found.logsumexp.sum().backward()
    assert found.logsumexp.dtype == torch.float32
    wanted = (queries.detach().double() @ bank.rows.double().T / 0.2).logsumexp(1)
    torch.testing.assert_close(found.logsumexp[0].double(), wanted, rtol=0, atol=1e-5)
    assert queries.grad is not None
    assert queries.grad.dtype == torch.bfloat16


def test_moving_rows_before_the_backward_pass_is_refused() -> None:
    case = Case(20, 1, False)
    bank = bank_of(case, World())
    found = bank.compare(case.queries.requires_grad_(), case.targets[:1], (0.2,))
    ema(bank, found.kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.logsumexp.sum().backward()


def test_a_gpu_takes_larger_tiles() -> None:
    assert (
        softmax.most_logits(torch.device("cuda")) == softmax.TILE_LOGITS_GPU > softmax.most_logits(torch.device("cpu"))
    )
