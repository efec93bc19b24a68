"""Positions of epochs and durations in samples, compared with a count step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.config.durations import Duration
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.timeline import Cycle, Timeline

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def timeline(sizes: list[int], num_samples: int) -> Timeline:
    return Timeline.of([EpochPlan(n, 32, 1.0, 2, size, 1) for n, size in enumerate(sizes)], num_samples)


def steps_of(sizes: list[int], num_samples: int) -> list[int]:
    """The batch size of every step of the run, one after the other."""
    return [size for size in sizes for _ in range(num_samples // size)]


@given(SIZES, st.integers(9, 60))
def test_epochs_begin_where_a_count_step_by_step_finds_them(sizes: list[int], num_samples: int) -> None:
    found = timeline(sizes, num_samples)
    assert found.total == sum(steps_of(sizes, num_samples))
    assert list(found.starts) == [sum(steps_of(sizes[:n], num_samples)) for n in range(len(sizes) + 1)]


@given(SIZES, st.integers(9, 60), st.data())
def test_a_number_of_steps_is_that_many_batches(sizes: list[int], num_samples: int, data: st.DataObject) -> None:
    every = steps_of(sizes, num_samples)
    amount = data.draw(st.integers(1, len(every) + 5))
    expected = sum(every[:amount]) + max(0, amount - len(every)) * sizes[-1]
    assert timeline(sizes, num_samples).samples(Duration(amount, "steps")) == expected


@pytest.mark.parametrize(("epochs", "samples"), [(1, 20), (2, 38), (3, 56), (5, 92)])
def test_epochs_of_different_lengths_add_up_and_the_last_one_repeats(epochs: int, samples: int) -> None:
    assert timeline([5, 6, 9], 20).samples(Duration(epochs, "epochs")) == samples


def test_no_duration_is_no_sample() -> None:
    assert timeline([4], 20).samples(None) == 0


@given(SIZES, st.integers(9, 60))
def test_the_steps_of_the_run_are_counted(sizes: list[int], num_samples: int) -> None:
    assert timeline(sizes, num_samples).steps == len(steps_of(sizes, num_samples))


def test_cycles_are_counted_from_their_own_start() -> None:
    plans = [EpochPlan(n, 32, 1.0, 2, size, 1) for n, size in enumerate([5, 6, 9, 5])]
    found = Timeline.of(plans, 20, [1, 3])
    assert found.cycles == [Cycle(0, 0, 20, 5), Cycle(1, 20, 76, 5)]
    assert [cycle.total for cycle in found.cycles] == [20, 56]
    assert [found.samples(Duration(amount, "epochs"), 1) for amount in (1, 2, 3, 4)] == [18, 36, 56, 76]
    assert [found.samples(Duration(amount, "steps"), 1) for amount in (3, 4, 5)] == [18, 27, 36]


def test_a_duration_of_the_first_cycle_does_not_depend_on_later_ones() -> None:
    plans = [EpochPlan(n, 32, 1.0, 2, size, 1) for n, size in enumerate([5, 9])]
    alone, longer = Timeline.of(plans[:1], 20), Timeline.of(plans, 20, [1, 1])
    for amount in (1, 2, 7):
        for unit in ("epochs", "steps"):
            assert longer.samples(Duration(amount, unit)) == alone.samples(Duration(amount, unit))


def test_a_duration_before_the_end_of_a_cycle_is_counted_backwards() -> None:
    plans = [EpochPlan(n, 32, 1.0, 2, size, 1) for n, size in enumerate([5, 6, 9, 5])]
    found = Timeline.of(plans, 20, [1, 3])
    assert [found.last_samples(Duration(amount, "epochs"), 1) for amount in (1, 2, 3, 4)] == [20, 38, 56, 74]
    assert [found.last_samples(Duration(amount, "steps"), 1) for amount in (1, 4, 5, 7, 9, 10)] == [
        5,
        20,
        29,
        44,
        56,
        62,
    ]
