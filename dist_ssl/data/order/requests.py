"""The batches that a loader is asked for, as picklable values: the result is the same in whichever process it runs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.data.order.lanes import SampleOrder


@dataclass(frozen=True)
class Request:
    """Samples that are loaded together as one batch.

    `ids`: [B] sample numbers in the manifest; `draws`: random numbers for the crops; `replacements`: the replacement
    candidates for a row of the batch, as sample numbers in the order in which they are tried; `views`: number of views
    to cut, the first ones; None: all. `uses`: [B] numbers that key the random numbers of the rows; None: the sample
    numbers.
    """

    ids: Ints
    draws: Draws
    replacements: Callable[[int], Iterable[int]]
    views: int | None = None
    uses: Ints | None = None

    @property
    def draw_ids(self) -> Ints:
        """Return the numbers that key the random numbers of the rows, [B]."""
        return self.ids if self.uses is None else self.uses


@dataclass(frozen=True)
class Steps:
    """The requests for an epoch's steps of rank `rank` of `size`, from offset `start` in every lane on.

    `count`: samples that a step takes from every lane; an incomplete last step is left out. `views`: returns the number
    of views to cut for a step, by its number within the epoch; None: all for every step.
    """

    order: SampleOrder
    rank: int
    size: int
    start: int
    count: int
    views: Callable[[int], int] | None = None

    @property
    def starts(self) -> range:
        """Return the offset within the lanes at which each step begins."""
        return range(self.start, self.order.lane_length - self.count + 1, self.count)

    @property
    def shards(self) -> Ints:
        """Return the shards that the steps read, in the order of their first use."""
        return self.order.shards_from(self.rank, self.size, self.start)

    def __iter__(self) -> Iterator[Request]:
        return map(self._request, self.starts)

    def _request(self, start: int) -> Request:
        """Return the request for one step: this rank's samples, and the replacement candidates of each."""
        order, count = self.order, self.count
        ids, uses = order.uses(self.rank, self.size, start, count)

        def replacements(row: int) -> Iterator[int]:
            turn = order.draws.uniform(Purpose.REPLACEMENT, uses[row : row + 1], 0, 1)
            for window in order.windows(self.rank, self.size, start, count, row):
                yield from (int(n) for n in np.roll(window, -int(turn[0, 0] * len(window))) if n != ids[row])

        views = None if self.views is None else self.views(start // count)
        return Request(ids, order.draws, replacements, views, uses)


@dataclass(frozen=True)
class Chosen:
    """The requests for the samples `own`, `batch` at a time.

    `numbers`: the replacement candidates in ascending order, a superset of `own`; `draws`: for the crops.
    """

    numbers: Ints
    own: Ints
    batch: int
    draws: Draws = Draws(0)

    def __iter__(self) -> Iterator[Request]:
        for start in range(0, len(self.own), self.batch):
            yield self._request(self.own[start : start + self.batch])

    def _request(self, ids: Ints) -> Request:
        """Return the request for `ids`; any other sample may replace an unreadable one.

        A replacement has another label: callers that use labels must check `valid`.
        """

        def replacements(row: int) -> Iterator[int]:
            place = int(np.searchsorted(self.numbers, ids[row]))
            return (int(n) for n in np.roll(self.numbers, -place)[1:])

        return Request(ids, self.draws, replacements)
