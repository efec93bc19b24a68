"""The order in which each rank reads samples: a pure function of (shard sizes, seed, epoch, lanes, window).

The shards are put in a random order and their samples concatenated; this sequence is cut into `lanes` equal runs (fewer
than `lanes` samples are left over). Inside a lane the samples are shuffled within windows, so that reading stays local.
A step takes the same number of samples from every lane, and rank r of W holds lanes [r * lanes // W, (r + 1) * lanes
// W): a batch is lane-major, so rank order is global sample order. Hence the sequence of global batches is the same
at every world size, and resuming needs two integers, the epoch and the offset within the lanes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.core.partition import partition


class SampleOrder(ABC):
    """The order of the samples of one epoch. A step takes `count` samples of every lane, from offset `start` on."""

    draws: Draws
    """Random numbers of the epoch."""
    lanes: int
    lane_length: int
    """Samples of every lane in the epoch."""

    def batch(self, rank: int, size: int, start: int, count: int) -> Ints:
        """Return the sample numbers of the part of a step of rank `rank` of `size`, [lanes * count / size]."""
        return self.uses(rank, size, start, count)[0]

    @abstractmethod
    def uses(self, rank: int, size: int, start: int, count: int) -> tuple[Ints, Ints]:
        """Return `batch`, and the number that keys the random numbers of each row: another one for each use."""

    @abstractmethod
    def windows(self, rank: int, size: int, start: int, count: int, row: int) -> Iterator[Ints]:
        """Yield the sample numbers near to that of a row of a part, window by window, to find a replacement sample."""

    @abstractmethod
    def shards_from(self, rank: int, size: int, start: int) -> Ints:
        """Return the shards that a rank reads from offset `start` of its lanes on, in the order of their first use."""


class EpochOrder(SampleOrder):
    """The order of one epoch's samples.

    `sizes` [number of shards]: samples per shard; `window`: number of samples shuffled together within a lane. `slot`:
    keys the order, beside seed and epoch; 0 but for the sources of a mixture.
    """

    def __init__(self, sizes: Ints, draws: Draws, lanes: int, window: int, slot: int = 0) -> None:
        self.sizes, self.draws, self.lanes, self.window, self.slot = sizes, draws, lanes, window, slot
        self.shards = draws.order(Purpose.SHARD_ORDER, np.arange(len(sizes), dtype=np.int64), slot)
        self.string_starts = np.concatenate([[0], np.cumsum(sizes[self.shards])])
        self.id_starts = np.concatenate([[0], np.cumsum(sizes)])
        self.lane_length = int(sizes.sum()) // lanes
        self._window_order = lru_cache(maxsize=4 * lanes)(self._shuffle_window)

    def __reduce__(self) -> tuple[type["EpochOrder"], tuple[Ints, Draws, int, int, int]]:
        """Pickle the arguments only: another process recomputes the order from them."""
        return EpochOrder, (self.sizes, self.draws, self.lanes, self.window, self.slot)

    def ids(self, lane: int, start: int, stop: int) -> Ints:
        """Return the sample numbers [stop - start] at places [start, stop) of a lane.

        0 <= start <= stop <= lane_length.
        """
        assert 0 <= start <= stop <= self.lane_length
        first, last = start // self.window, max(stop - 1, start) // self.window
        windows = [self._window_order(lane, number) for number in range(first, last + 1)]
        return np.concatenate(windows)[start - first * self.window : stop - first * self.window]

    def uses(self, rank: int, size: int, start: int, count: int) -> tuple[Ints, Ints]:
        """See `SampleOrder`. A part is lane-major; a sample is used once in an epoch, so its number keys the use."""
        own = np.concatenate([self.ids(lane, start, start + count) for lane in partition(self.lanes, rank, size)])
        return own, own

    def windows(self, rank: int, size: int, start: int, count: int, row: int) -> Iterator[Ints]:
        """See `SampleOrder`; the windows are of the same lane."""
        return self.windows_from(partition(self.lanes, rank, size).start + row // count, start + row % count)

    def shards_from(self, rank: int, size: int, start: int) -> Ints:
        """See `SampleOrder`."""
        shards, windows = [], []
        for lane in partition(self.lanes, rank, size):
            begin = lane * self.lane_length
            # A window is shuffled, so any of its samples may come first: count from its beginning.
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
        """Yield the sample numbers of the window that holds a place of a lane, then of every other window of the lane.

        The windows come in descending order, from the last one after the first: replacement samples are searched in
        this order. One window is not enough, as the last window of a lane may hold a single sample.
        """
        windows = -(-self.lane_length // self.window)
        for back in range(windows):
            yield self._window_order(lane, (place // self.window - back) % windows)

    def _shuffle_window(self, lane: int, number: int) -> Ints:
        start = number * self.window
        stop = min(start + self.window, self.lane_length)
        places = np.arange(lane * self.lane_length + start, lane * self.lane_length + stop, dtype=np.int64)
        return self.sample_numbers(places[self.draws.order(Purpose.WINDOW_ORDER, places, self.slot)])

    def sample_numbers(self, places: Ints) -> Ints:
        """Convert places in the concatenated sequence of all samples to sample numbers of the manifest."""
        position_of_shard = np.searchsorted(self.string_starts, places, side="right") - 1
        within = places - self.string_starts[position_of_shard]
        numbers: Ints = self.id_starts[self.shards[position_of_shard]] + within
        return numbers
