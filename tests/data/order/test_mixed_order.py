"""The order of several sources: every sample once per pass, the same at every world size and from any place."""

import pickle
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_ssl.core.draws import Draws
from dist_ssl.data.order.interleaving import Interleaving
from dist_ssl.data.order.mixed_order import MixedOrder, SourcePass, stride

FEW = settings(max_examples=10)


class Case(NamedTuple):
    """Sizes of the shards of every source, and the other arguments of an order; steps take `count` from a lane."""

    sizes: list[list[int]]
    weights: list[int]
    seed: int
    lanes: int
    window: int
    count: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small sources of any sizes, of one sample too."""
    shards = st.lists(st.integers(0, 14), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0)
    sizes = draw(st.lists(shards, min_size=2, max_size=4))
    lanes = draw(st.sampled_from([1, 4, 6, 10, 14, 24]))
    return Case(
        sizes,
        draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes))),
        draw(st.integers(0, 2**64 - 1)),
        lanes,
        draw(st.integers(1, 20)),
        draw(st.integers(1, 3)),
    )


def order_of(case: Case, epoch: int = 0, before: int = 0) -> MixedOrder:
    """The order under test."""
    sizes = [np.array(own, dtype=np.int64) for own in case.sizes]
    return MixedOrder(sizes, case.weights, Draws(case.seed, epoch), case.lanes, case.window, before)


def of_run(case: Case, batches: int) -> list[list[int]]:
    """The first batches of a run without epochs, by an order of its own for each."""
    batch = case.lanes * case.count
    return [order_of(case, before=n * batch).batch(0, 1, 0, case.count).tolist() for n in range(batches)]


def sources_of(case: Case, ids: list[int]) -> list[int]:
    """The source of each sample."""
    ends = np.cumsum([sum(own) for own in case.sizes])
    return np.searchsorted(ends, ids, side="right").tolist()


@FEW
@given(cases())
def test_every_sample_of_a_source_is_used_once_per_pass(case: Case) -> None:
    used = np.concatenate(of_run(case, 12))
    sources = np.array(sources_of(case, used.tolist()))
    firsts = np.cumsum([0, *(sum(own) for own in case.sizes)])
    for source, own_sizes in enumerate(case.sizes):
        samples = sum(own_sizes)
        own = used[sources == source] - firsts[source]
        times = np.bincount(own, minlength=samples)
        assert times.max() - times.min() <= 1, "a pass begins where the one before has ended"
        whole = Interleaving(case.weights).counts(len(used))[source]
        assert len(own) == whole, "the share is that of the interleaving"


@FEW
@given(cases())
def test_a_pass_has_every_sample_once(case: Case) -> None:
    for source, sizes in enumerate(case.sizes):
        own = SourcePass(np.array(sizes), Draws(case.seed, 3), case.lanes, case.window, source)
        uses = np.arange(sum(sizes))
        ids = own.ids(uses)
        assert sorted(ids.tolist()) == uses.tolist()
        for use in uses.tolist():
            assert own.ids(np.array([use])).tolist() == ids[use : use + 1].tolist(), "each use is found by itself"
            first, *others = own.windows(use)
            assert ids[use] in first
            assert sorted(np.concatenate([first, *others]).tolist()) == uses.tolist(), "any other one may replace it"


@FEW
@given(cases())
def test_the_counts_of_every_step_are_exact_to_one_batch(case: Case) -> None:
    batch = case.lanes * case.count
    if batch < len(case.weights):
        return
    counts = np.zeros(len(case.weights))
    for step, ids in enumerate(of_run(case, 12), start=1):
        counts += np.bincount(sources_of(case, ids), minlength=len(case.weights))
        share = step * batch * np.array(case.weights) / sum(case.weights)
        assert (np.abs(counts - share) < batch).all()


@FEW
@given(cases(), st.integers(0, 5000), st.integers(0, 7))
def test_ranks_in_order_hold_the_batch_of_one_rank_at_every_world_size(case: Case, before: int, start: int) -> None:
    ids, keys = order_of(case, before=before).uses(0, 1, start, case.count)
    for size in (n for n in range(1, 9) if case.lanes % n == 0):
        parts = [order_of(case, before=before).uses(rank, size, start, case.count) for rank in range(size)]
        assert {len(part) for part, _ in parts} == {len(ids) // size}
        np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), ids)
        np.testing.assert_array_equal(np.concatenate([own for _, own in parts]), keys)


@FEW
@given(cases(), st.integers(1, 4))
def test_an_order_continues_where_the_epoch_before_has_ended(case: Case, steps: int) -> None:
    batch = case.lanes * case.count
    first, second = order_of(case), order_of(case, epoch=1, before=steps * batch)
    whole = [first.batch(0, 1, n * case.count, case.count).tolist() for n in range(2 * steps)]
    later = [second.batch(0, 1, n * case.count, case.count).tolist() for n in range(steps)]
    assert whole[steps:] == later


@FEW
@given(cases(), st.integers(0, 1000))
def test_each_use_of_a_sample_has_random_numbers_of_its_own(case: Case, before: int) -> None:
    order = order_of(case, before=before)
    found = [order.uses(0, 1, n * case.count, case.count) for n in range(8)]
    ids, keys = (np.concatenate(each) for each in zip(*found, strict=True))
    assert len(set(keys.tolist())) == len(keys)
    np.testing.assert_array_equal(keys % order.total, ids)


@FEW
@given(cases())
def test_replacements_come_from_the_source_and_near_the_sample(case: Case) -> None:
    order = order_of(case)
    for size in (1, case.lanes):
        ids = order.batch(size - 1, size, case.count, case.count)
        for row, number in enumerate(ids.tolist()):
            found = [window.tolist() for window in order.windows(size - 1, size, case.count, case.count, row)]
            assert number in found[0]
            near = [other for window in found for other in window]
            assert {*sources_of(case, near)} == {*sources_of(case, [number])}


@FEW
@given(cases())
def test_what_is_prefetched_are_shards_that_exist_once_each_and_the_order_can_be_sent_to_a_process(case: Case) -> None:
    order = order_of(case, before=37)
    shards = order.shards_from(0, 1, 0).tolist()
    assert len(set(shards)) == len(shards)
    assert set(shards) <= set(range(sum(len(own) for own in case.sizes)))
    again = pickle.loads(pickle.dumps(order))
    assert again.shards_from(0, 1, 0).tolist() == shards
    assert again.batch(0, 1, 0, case.count).tolist() == order.batch(0, 1, 0, case.count).tolist()


def test_a_rank_reads_from_its_own_stretch_of_every_source() -> None:
    case = Case([[500] * 8, [250] * 8, [100] * 6], [5, 3, 2], seed=4, lanes=48, window=16, count=4)
    for size in (2, 4):
        read = [set(order_of(case).shards_from(rank, size, 0).tolist()) for rank in range(size)]
        order, inside, total = order_of(case), 0, 0
        ends = np.cumsum(np.concatenate(order.sizes))
        for rank in range(size):
            for step in range(20):
                ids = order.batch(rank, size, 4 * step, 4)
                inside += sum(shard in read[rank] for shard in np.searchsorted(ends, ids, side="right").tolist())
                total += len(ids)
        assert inside / total > 0.9, "what a rank prefetches is what it reads"


def test_lanes_come_in_turn_and_far_apart() -> None:
    for lanes in (1, 2, 3, 4, 12, 48, 96, 1000):
        step = stride(lanes)
        assert sorted(n * step % lanes for n in range(lanes)) == list(range(lanes))
    assert 24 < stride(48) < 36


def test_sources_of_equal_shards_have_orders_of_their_own() -> None:
    sizes = np.array([20, 20, 20, 20])
    passes = [SourcePass(sizes, Draws(1, number), 4, 8, source) for source in (0, 1) for number in (0, 1)]
    assert len({tuple(own.ids(np.arange(80)).tolist()) for own in passes}) == 4


def test_a_mixture_has_a_golden_order() -> None:
    case = Case([[5, 3], [4], [6, 2, 1]], [3, 1, 2], seed=7, lanes=3, window=4, count=2)
    found = of_run(case, 4)
    assert found == GOLDEN, f"the order of every run over several sources has changed; it was {found}"


GOLDEN = [[1, 18, 8, 2, 5, 16], [0, 19, 13, 3, 4, 10], [6, 6, 9, 14, 15, 7], [20, 11, 5, 0, 1, 17]]
