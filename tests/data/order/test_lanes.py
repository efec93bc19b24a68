"""The order of an epoch: the same at every world size, nothing twice, resumable anywhere, equal to a slow reference."""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.data.order.lanes import EpochOrder


class Case(NamedTuple):
    """The arguments of an order, and the samples that a step takes from every lane."""

    sizes: list[int]
    seed: int
    epoch: int
    lanes: int
    window: int
    count: int


CASES = st.builds(
    Case,
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 1000),
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    window=st.integers(1, 70),
    count=st.integers(1, 5),
)


def order_of(case: Case) -> EpochOrder:
    """The order under test."""
    return EpochOrder(np.array(case.sizes, dtype=np.int64), Draws(case.seed, case.epoch), case.lanes, case.window)


def divisors(number: int) -> list[int]:
    """All world sizes that share so many lanes equally."""
    return [size for size in range(1, number + 1) if number % size == 0]


def starts(order: EpochOrder, count: int) -> range:
    """The offset within the lanes of every step of an epoch."""
    return range(0, order.lane_length - count + 1, count)


def slow_lanes(case: Case) -> list[list[int]]:
    """The sample numbers of every lane: string the shards, cut the string into runs, shuffle windows."""
    draws = Draws(case.seed, case.epoch)
    first_of = [sum(case.sizes[:shard]) for shard in range(len(case.sizes))]
    string: list[int] = []
    for shard in draws.order(Purpose.SHARD_ORDER, np.arange(len(case.sizes))).tolist():
        string.extend(range(first_of[shard], first_of[shard] + case.sizes[shard]))
    length = len(string) // case.lanes
    lanes = []
    for lane in range(case.lanes):
        own: list[int] = []
        for start in range(0, length, case.window):
            places = [lane * length + place for place in range(start, min(start + case.window, length))]
            shuffled = draws.order(Purpose.WINDOW_ORDER, np.array(places)).tolist()
            own.extend(string[places[position]] for position in shuffled)
        lanes.append(own)
    return lanes


@given(CASES)
def test_lanes_equal_the_slow_reference(case: Case) -> None:
    order = order_of(case)
    lanes = slow_lanes(case)
    assert [order.ids(lane, 0, order.lane_length).tolist() for lane in range(case.lanes)] == lanes
    for start in starts(order, case.count):
        expected = [number for lane in lanes for number in lane[start : start + case.count]]
        assert order.batch(0, 1, start, case.count).tolist() == expected


@given(CASES)
def test_ranks_in_order_hold_the_batch_of_one_rank_at_every_world_size(case: Case) -> None:
    order = order_of(case)
    for start in starts(order, case.count):
        whole = order.batch(0, 1, start, case.count)
        for size in divisors(case.lanes):
            parts = [order.batch(rank, size, start, case.count) for rank in range(size)]
            assert {len(part) for part in parts} == {len(whole) // size}
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(CASES)
def test_an_epoch_repeats_nothing_and_drops_less_than_a_batch(case: Case) -> None:
    order = order_of(case)
    used = [number for start in starts(order, case.count) for number in order.batch(0, 1, start, case.count).tolist()]
    total, batch = sum(case.sizes), case.lanes * case.count
    assert len(set(used)) == len(used) == total // batch * batch
    assert set(used) <= set(range(total))


@given(CASES, st.data())
def test_resuming_at_any_offset_reads_exactly_the_rest(case: Case, data: st.DataObject) -> None:
    order, again = order_of(case), order_of(case)
    lane = data.draw(st.integers(0, case.lanes - 1))
    cut = data.draw(st.integers(0, order.lane_length))
    whole = order.ids(lane, 0, order.lane_length)
    np.testing.assert_array_equal(again.ids(lane, cut, order.lane_length), whole[cut:])
    np.testing.assert_array_equal(again.ids(lane, 0, cut), whole[:cut])


@given(CASES, st.integers(1, 7))
def test_the_order_of_a_lane_does_not_depend_on_the_batch_size(case: Case, other: int) -> None:
    order = order_of(case)
    for lane in range(case.lanes):
        whole = order.ids(lane, 0, order.lane_length).tolist()
        for count in (case.count, other):
            steps = [order.ids(lane, start, start + count).tolist() for start in starts(order, count)]
            assert [number for step in steps for number in step] == whole[: len(steps) * count]


@given(CASES)
def test_a_counts_change_from_epoch_to_epoch_keeps_every_promise(case: Case) -> None:
    for epoch, count in enumerate((case.count, case.count + 2, 1)):
        changed = case._replace(epoch=epoch, count=count)
        order = order_of(changed)
        used = []
        for start in starts(order, count):
            whole = order.batch(0, 1, start, count)
            parts = [order.batch(rank, case.lanes, start, count) for rank in range(case.lanes)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)
            used += whole.tolist()
        batch = case.lanes * count
        assert len(set(used)) == len(used) == sum(case.sizes) // batch * batch


@given(CASES, st.data())
def test_the_window_of_a_place_holds_its_sample_and_lies_in_its_lane(case: Case, data: st.DataObject) -> None:
    order = order_of(case)
    if order.lane_length == 0:
        return
    lane = data.draw(st.integers(0, case.lanes - 1))
    place = data.draw(st.integers(0, order.lane_length - 1))
    window, *others = (found.tolist() for found in order.windows_from(lane, place))
    assert order.ids(lane, place, place + 1)[0] in window
    assert len(window) <= case.window
    whole = order.ids(lane, 0, order.lane_length).tolist()
    assert set(window) <= set(whole)
    assert sorted(sum(others, window)) == sorted(whole), "the other windows come after it, each once"


def test_a_window_that_is_longer_than_the_lane_shuffles_the_whole_lane() -> None:
    order = order_of(Case([40], seed=1, epoch=0, lanes=2, window=1000, count=1))
    for lane, run in ((0, range(20)), (1, range(20, 40))):
        ids = order.ids(lane, 0, 20).tolist()
        assert sorted(ids) == list(run)
        assert ids != list(run)


def test_a_window_of_one_keeps_the_string_in_order() -> None:
    order = order_of(Case([10], seed=5, epoch=2, lanes=2, window=1, count=1))
    assert order.ids(0, 0, 5).tolist() == [0, 1, 2, 3, 4]
    assert order.ids(1, 0, 5).tolist() == [5, 6, 7, 8, 9]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    case = Case([30, 30, 30, 30], seed=0, epoch=0, lanes=4, window=16, count=2)
    orders = [case, case._replace(epoch=1), case._replace(seed=1)]
    assert len({tuple(np.concatenate([order_of(c).ids(lane, 0, 30) for lane in range(4)])) for c in orders}) == 3


def test_an_epoch_has_a_golden_order() -> None:
    order = order_of(Case([5, 3, 4, 6], seed=7, epoch=3, lanes=3, window=4, count=2))
    batches = [order.batch(0, 1, start, 2).tolist() for start in starts(order, 2)]
    assert batches == GOLDEN, f"the order of every run has changed; it was {GOLDEN}"


GOLDEN = [[3, 1, 13, 7, 17, 9], [0, 2, 12, 6, 8, 16], [5, 4, 14, 15, 10, 11]]
