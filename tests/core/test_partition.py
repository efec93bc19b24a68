"""Every item belongs to exactly one rank, in rank order, and no rank holds more than one item more than another."""

from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.partition import partition


@given(count=st.integers(0, 200), size=st.integers(1, 40))
def test_parts_are_disjoint_cover_everything_in_rank_order_and_are_even(count: int, size: int) -> None:
    parts = [partition(count, rank, size) for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_a_count_that_the_ranks_do_not_divide_has_golden_parts() -> None:
    assert [partition(7, rank, 3) for rank in range(3)] == [range(2), range(2, 4), range(4, 7)]
    assert [partition(2, rank, 3) for rank in range(3)] == [range(0), range(1), range(1, 2)]
