"""Shards are fetched in the order of need, no further ahead than the bound, and never what is already read."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.draws import Draws
from dist_ssl.data.order.lanes import EpochOrder
from dist_ssl.data.storage.prefetch import Prefetcher
from dist_ssl.errors import DataError


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something holds within seconds."""
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.002)
    return holds()


def test_the_order_is_kept_and_the_bound_too() -> None:
    fetched: list[int] = []
    ahead = Prefetcher(fetched.append, [10] * 6, most=25, threads=1)
    ahead.expect([3, 1, 5, 0, 2])
    assert eventually(lambda: fetched == [3, 1])
    time.sleep(0.02)
    assert fetched == [3, 1]
    ahead.begin(3)
    assert eventually(lambda: fetched == [3, 1, 5])
    ahead.begin(0)  # read before it could be fetched ahead
    ahead.begin(1)
    assert eventually(lambda: fetched == [3, 1, 5, 2])
    ahead.close()


def test_one_shard_is_always_fetched_ahead_even_if_it_is_larger_than_the_bound() -> None:
    fetched: list[int] = []
    ahead = Prefetcher(fetched.append, [100, 100], most=1)
    ahead.expect([0, 1])
    assert eventually(lambda: fetched == [0])
    ahead.begin(0)
    assert eventually(lambda: fetched == [0, 1])


def test_a_new_expectation_replaces_the_old_one_and_an_error_ends_nothing() -> None:
    fetched: list[int] = []

    def fetch(shard: int) -> None:
        fetched.append(shard)
        if shard == 4:
            raise DataError("gone", "put it back")

    ahead = Prefetcher(fetch, [10] * 6, most=10, threads=2)
    ahead.expect([0, 1, 2])
    assert eventually(lambda: fetched == [0])
    ahead.expect([4, 5])
    ahead.begin(4)
    assert eventually(lambda: fetched in ([0, 4, 5], [0, 5]))
    ahead.close()


def test_threads_end_when_all_is_fetched_or_the_reader_is_closed() -> None:
    def alive() -> int:
        return sum(thread.name == "prefetch" for thread in threading.enumerate())

    assert eventually(lambda: alive() == 0)
    ahead = Prefetcher(lambda shard: None, [10] * 6, most=10)
    ahead.expect(range(6))
    assert eventually(lambda: alive() > 0)
    ahead.close()
    assert eventually(lambda: alive() == 0)
    ahead.expect([0])
    assert eventually(lambda: alive() == 0)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    lanes=st.sampled_from([1, 2, 4]),
    size=st.sampled_from([1, 2]),
    window=st.integers(1, 9),
    data=st.data(),
)
def test_the_lanes_determine_which_shards_are_read_and_in_which_order(
    sizes: list[int], lanes: int, size: int, window: int, data: st.DataObject
) -> None:
    if sum(sizes) < lanes or size > lanes:
        return
    order = EpochOrder(np.array(sizes), Draws(3, 1), lanes, window)
    rank, start = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, order.lane_length))
    ends = np.cumsum(sizes)
    first, end = rank * lanes // size, (rank + 1) * lanes // size
    known: dict[int, int] = {}
    for lane in range(first, end):
        begin = start // window * window
        whole = [n for at in range(begin, order.lane_length, window) for n in next(order.windows_from(lane, at))]
        for place, number in enumerate(whole):
            shard = int(np.searchsorted(ends, number, side="right"))
            known[shard] = min(known.get(shard, place // window), place // window)
    found = [int(shard) for shard in order.shards_from(rank, size, start)]
    assert sorted(shard for shard in found if sizes[shard]) == sorted(known)
    windows = [known[shard] for shard in found if sizes[shard]]
    assert windows == sorted(windows)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("rank", range(4))
def test_ranks_expect_what_they_read(rank: int) -> None:
    sizes = np.random.default_rng(2).integers(1, 50, size=40)
    order = EpochOrder(sizes, Draws(9, 0), 8, 16)
    ids = order.batch(rank, 4, 32, order.lane_length - 32)
    read = set(np.searchsorted(np.cumsum(sizes), ids, side="right").tolist())
    assert read <= set(order.shards_from(rank, 4, 32).tolist())
