"""Random negatives that are equal on all ranks without communication, keyed by seed, epoch and step."""

import numpy as np

from dist_ssl.core.draws import Draws, Ints, Purpose

STEP_BITS = 32
"""Bits of the number of a draw within its step; the step's number is in the bits above."""


def negatives(draws: Draws, step: int, num_rows: int, taken: Ints, count: int) -> Ints:
    """Draw `count` distinct row numbers below `num_rows` that are not in `taken`, in ascending order; int64.

    Returns all free rows if there are fewer. `taken`: row numbers; negative ones are ignored.
    """
    taken = np.unique(taken[taken >= 0])
    free = num_rows - len(taken)
    if count >= free:
        return np.setdiff1d(np.arange(num_rows), taken, assume_unique=True)
    if 2 * count > free:  # draw the few rows to leave out instead
        return np.setdiff1d(np.arange(num_rows), np.union1d(taken, _drawn(draws, step, num_rows, taken, free - count)))
    return _drawn(draws, step, num_rows, taken, count)


def _drawn(draws: Draws, step: int, num_rows: int, taken: Ints, count: int) -> Ints:
    """Draw rows with rejection until `count` are found: at most half of the free ones, so few rounds are needed."""
    found = np.empty(0, dtype=np.int64)
    started = 0
    while len(found) < count:
        numbers = (step << STEP_BITS) + np.arange(started, started + 2 * count + 16)
        words = draws.words(Purpose.NEGATIVE, numbers, 0, 2)
        rows = ((words[:, 0] << np.uint64(32) | words[:, 1]) % np.uint64(num_rows)).astype(np.int64)
        found = np.concatenate([found, rows[~np.isin(rows, taken)]])
        found = found[np.sort(np.unique(found, return_index=True)[1])]  # the first of each, in the order drawn
        started += len(numbers)
    return np.sort(found[:count])
