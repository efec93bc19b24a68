"""Who reads what: a pure function of (shard sizes, seed, epoch, lanes, window).

A random order of the shards strings their samples together; the string is cut into `lanes` equal runs (fewer than
`lanes` samples are left over). Inside a lane the samples are shuffled within windows, so that reading stays local.
A step takes the same number of samples from every lane, and rank r of W holds lanes [r * lanes // W, (r + 1) * lanes
// W): a batch is lane-major, so rank order is global sample order. Hence the sequence of global batches is the same
at every world size, and resuming needs two integers, the epoch and the offset within the lanes.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Draws, Purpose

Ints = npt.NDArray[np.int64]


class EpochOrder:
    """The order of one epoch. `sizes`: samples per shard; `window`: samples shuffled together within a lane."""

    def __init__(self, sizes: Ints, draws: Draws, lanes: int, window: int) -> None:
        self.sizes, self.draws, self.lanes, self.window = sizes, draws, lanes, window
        self.shards = draws.order(Purpose.SHARD_ORDER, np.arange(len(sizes), dtype=np.int64))
        self.string_starts = np.concatenate([[0], np.cumsum(sizes[self.shards])])
        self.id_starts = np.concatenate([[0], np.cumsum(sizes)])
        self.lane_length = int(sizes.sum()) // lanes
        self._window_order = lru_cache(maxsize=4 * lanes)(self._shuffle_window)

    def __reduce__(self) -> tuple[type["EpochOrder"], tuple[Ints, Draws, int, int]]:
        """In another process it is made anew: it is a pure function of these."""
        return EpochOrder, (self.sizes, self.draws, self.lanes, self.window)

    def ids(self, lane: int, start: int, stop: int) -> Ints:
        """The sample numbers at places [start, stop) of a lane, 0 <= start <= stop <= lane_length."""
        assert 0 <= start <= stop <= self.lane_length
        first, last = start // self.window, max(stop - 1, start) // self.window
        windows = [self._window_order(lane, number) for number in range(first, last + 1)]
        return np.concatenate(windows)[start - first * self.window : stop - first * self.window]

    def batch(self, rank: int, size: int, start: int, count: int) -> Ints:
        """One rank's part of the step that takes `count` samples of every lane from `start` on, lane-major."""
        first, end = rank * self.lanes // size, (rank + 1) * self.lanes // size
        return np.concatenate([self.ids(lane, start, start + count) for lane in range(first, end)])

    def shards_from(self, rank: int, size: int, start: int) -> Ints:
        """The shards that one rank reads from place `start` of its lanes on, in the order in which it comes to them."""
        first, end = rank * self.lanes // size, (rank + 1) * self.lanes // size
        shards, windows = [], []
        for lane in range(first, end):
            begin = lane * self.lane_length
            # a window is read in any order, from its first sample on
            place = begin + start // self.window * self.window
            if place >= begin + self.lane_length:
                continue
            low = int(np.searchsorted(self.string_starts, place, side="right")) - 1
            high = int(np.searchsorted(self.string_starts, begin + self.lane_length, side="left"))
            shards.append(self.shards[low:high])
            windows.append((np.maximum(self.string_starts[low:high], place) - begin) // self.window)
        if not shards:
            return np.empty(0, dtype=np.int64)
        found = np.concatenate(shards)[np.argsort(np.concatenate(windows), kind="stable")]
        return found[np.sort(np.unique(found, return_index=True)[1])]

    def windows_from(self, lane: int, place: int) -> Iterator[Ints]:
        """The sample numbers of the window around a place of a lane, then of those before it, round to the one after.

        Where replacements are looked for: the last window of a lane may hold a single sample.
        """
        windows = -(-self.lane_length // self.window)
        for back in range(windows):
            yield self._window_order(lane, (place // self.window - back) % windows)

    def _shuffle_window(self, lane: int, number: int) -> Ints:
        start = number * self.window
        stop = min(start + self.window, self.lane_length)
        places = np.arange(lane * self.lane_length + start, lane * self.lane_length + stop, dtype=np.int64)
        return self._sample_numbers(places[self.draws.order(Purpose.WINDOW_ORDER, places)])

    def _sample_numbers(self, places: Ints) -> Ints:
        """Places in the string of all samples -> numbers in the manifest."""
        rank_of_shard = np.searchsorted(self.string_starts, places, side="right") - 1
        within = places - self.string_starts[rank_of_shard]
        numbers: Ints = self.id_starts[self.shards[rank_of_shard]] + within
        return numbers
