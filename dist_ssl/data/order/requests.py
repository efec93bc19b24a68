"""What is asked of a loader, as values that may go to another process: it makes no difference who reads them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.data.loader.load import Request
from dist_ssl.data.order.lanes import EpochOrder

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """The requests of an epoch's steps, from `start` samples into every lane on, for rank `rank` of `size`.

    `count`: samples of every lane in a step; the last incomplete step is left out.
    """

    order: EpochOrder
    rank: int
    size: int
    start: int
    count: int

    @property
    def starts(self) -> range:
        """Where in the lanes each step begins."""
        return range(self.start, self.order.lane_length - self.count + 1, self.count)

    @property
    def shards(self) -> Ints:
        """The shards that they need, in the order in which they come to them."""
        return self.order.shards_from(self.rank, self.size, self.start)

    def __iter__(self) -> Iterator[Request]:
        return map(self._request, self.starts)

    def _request(self, start: int) -> Request:
        """This rank's samples of one step, and where a replacement for each of them is looked for."""
        order, count = self.order, self.count
        ids = order.batch(self.rank, self.size, start, count)
        first_lane = self.rank * order.lanes // self.size

        def replacements(row: int) -> Iterator[int]:
            turn = order.draws.uniform(Purpose.REPLACEMENT, ids[row : row + 1], 0, 1)
            for window in order.windows_from(first_lane + row // count, start + row % count):
                yield from (int(n) for n in np.roll(window, -int(turn[0, 0] * len(window))) if n != ids[row])

        return Request(ids, order.draws, replacements)


@dataclass(frozen=True)
class Chosen:
    """The requests for `own` samples out of `numbers`, which are in ascending order, so many at a time."""

    numbers: Ints
    own: Ints
    batch: int

    def __iter__(self) -> Iterator[Request]:
        for start in range(0, len(self.own), self.batch):
            yield self._request(self.own[start : start + self.batch])

    def _request(self, ids: Ints) -> Request:
        """Any of the others may fill the place of an unreadable image: who looks at labels must see that it did."""

        def replacements(row: int) -> Iterator[int]:
            place = int(np.searchsorted(self.numbers, ids[row]))
            return (int(n) for n in np.roll(self.numbers, -place)[1:])

        return Request(ids, Draws(0), replacements)
