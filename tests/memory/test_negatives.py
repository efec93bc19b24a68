"""Negatives are different rows that nobody has taken, as many as asked, a function of their key alone, and fair."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.draws import Draws
from dist_ssl.memory.negatives import negatives


@given(data=st.data(), num_rows=st.integers(1, 200), count=st.integers(0, 250), step=st.integers(0, 2**31))
def test_they_are_distinct_free_rows_in_order(data: st.DataObject, num_rows: int, count: int, step: int) -> None:
    taken = np.array(data.draw(st.lists(st.integers(-1, num_rows - 1), max_size=30)), dtype=np.int64)
    found = negatives(Draws(5, 2), step, num_rows, taken, count)
    free = num_rows - len(set(taken.tolist()) - {-1})
    assert len(found) == min(count, free)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(set(found.tolist()) - set(taken.tolist()))
    assert all(0 <= row < num_rows for row in found)
    assert np.array_equal(found, negatives(Draws(5, 2), step, num_rows, taken, count))


def test_other_steps_epochs_and_seeds_draw_others() -> None:
    none = np.empty(0, dtype=np.int64)
    keys = [(Draws(0, 0), 0), (Draws(0, 0), 1), (Draws(0, 1), 0), (Draws(1, 0), 0)]
    drawn = {tuple(negatives(draws, step, 10**6, none, 20).tolist()) for draws, step in keys}
    assert len(drawn) == 4


def test_every_row_comes_as_often() -> None:
    """Both ways of drawing, 2,000 steps: counts stay within five standard deviations."""
    taken = np.array([3, 7], dtype=np.int64)
    for count in (4, 12):
        seen = np.zeros(20)
        for step in range(2000):
            seen[negatives(Draws(1), step, 20, taken, count)] += 1
        share = count / 18
        free = np.delete(seen, taken)
        assert seen[taken].sum() == 0
        assert np.abs(free - 2000 * share).max() < 5 * np.sqrt(2000 * share * (1 - share))
