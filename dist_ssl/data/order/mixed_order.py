"""The order of a run over several sources: a pure function of (shard sizes, weights, seed, lanes, window, place).

The samples of a run are one sequence, of which every step takes the next batch, and every epoch as many whole batches
as the samples of all sources together fill. Which source a place of it has follows from the weights (interleaving.py);
which sample of the source, from the number of its use:

* **Passes.** Use j of a source with N samples is use j % N of its pass j // N. A pass uses every sample of the source
  once, in an order of its own, and continues in the next epoch where an epoch ends: a small source is passed several
  times in an epoch, a large one needs several epochs. Nothing is dropped at the end of an epoch.
* **Lanes.** A pass is read like an epoch of one source (lanes.py): its samples are cut into the same number of lanes,
  and consecutive uses go through the lanes. Fewer than `lanes` samples that are left over come last.
* **Ranks.** The samples of a step are sorted by lane and cut into equal parts, one for each rank. So a rank reads from
  the same stretch of every source all the time, but for a few samples at its edges.

The parts of all ranks are the same batch at every world size, and a resume needs the number of samples used so far and
nothing else. A sample may be used several times in an epoch: the random numbers of each use are keyed by a number of
its own, the sample's plus the number of the pass times that of all samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.data.order.interleaving import Interleaving
from dist_ssl.data.order.lanes import EpochOrder, SampleOrder
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.mixture import MixedSplit

PASSES_KEPT = 3
"""Passes of a source whose order is kept in memory: a step may end one and begin the next."""


@lru_cache
def stride(lanes: int) -> int:
    """Return the distance of the lanes of two consecutive uses, for which any few uses lie far apart.

    It has no common divisor with `lanes`, so all lanes come in turn, and is near to the golden section.
    """
    return min((n for n in range(1, lanes + 1) if gcd(n, lanes) == 1), key=lambda n: abs(n - 0.618 * lanes))


def lanes_of(uses: Ints, lanes: int) -> Ints:
    """Return the lane that each use within a pass reads from; of a sample that is left over, one of the lanes too."""
    found: Ints = uses % lanes * stride(lanes) % lanes
    return found


class SourcePass:
    """One pass over a source. `sizes`: samples per shard; `source`: its number, which keys the order."""

    def __init__(self, sizes: Ints, draws: Draws, lanes: int, window: int, source: int) -> None:
        self.order = EpochOrder(sizes, draws, lanes, window, source)
        self.lanes, self.rows = lanes, self.order.lane_length
        over = np.arange(self.rows * lanes, int(sizes.sum()), dtype=np.int64)
        self.left_over = self.order.sample_numbers(over[draws.order(Purpose.WINDOW_ORDER, over, source)])

    def ids(self, uses: Ints) -> Ints:
        """Return the sample of each use, by its number within the source."""
        found, lanes, rows = np.empty_like(uses), lanes_of(uses, self.lanes), uses // self.lanes
        late = rows >= self.rows
        found[late] = self.left_over[uses[late] - self.rows * self.lanes]
        for lane in np.unique(lanes[~late]).tolist():
            own = np.flatnonzero(~late & (lanes == lane))
            first, last = int(rows[own].min()), int(rows[own].max())
            found[own] = self.order.ids(lane, first, last + 1)[rows[own] - first]
        return found

    def windows(self, use: int) -> Iterator[Ints]:
        """Yield all samples of the source window by window, those that are near to that of a use first.

        A lane of a small source may have a single sample, so its own lane is not enough.
        """
        lane, row = int(lanes_of(np.array([use]), self.lanes)[0]), use // self.lanes
        if row >= self.rows:
            yield self.left_over
        for further in range(self.lanes) if self.rows else ():
            yield from self.order.windows_from((lane + further) % self.lanes, min(row, self.rows - 1))
        if row < self.rows:
            yield self.left_over

    def shards(self, rank: int, size: int, first: int, stop: int) -> Ints:
        """Return the shards that a rank reads for the uses [first, stop), about in the order of their first use."""
        found = self.order.shards_from(rank, size, min(first // self.lanes, self.rows))
        count = -(-len(found) * (stop - first) // max(1, self.rows * self.lanes - first))
        return found[:count]


@dataclass(frozen=True)
class Uses:
    """Some places of the sequence: the source, the pass and the number within the pass of each, [n]."""

    sources: Ints
    passes: Ints
    numbers: Ints


class MixedOrder(SampleOrder):
    """The order of an epoch over the sources of a mixture.

    `sizes`: samples per shard of each source; `before`: samples that the run has used in earlier epochs.
    """

    def __init__(
        self, sizes: Sequence[Ints], weights: Sequence[int], draws: Draws, lanes: int, window: int, before: int
    ) -> None:
        self.sizes, self.weights, self.draws = tuple(sizes), tuple(weights), draws
        self.lanes, self.window, self.before = lanes, window, before
        self.interleaving = Interleaving(weights)
        self.samples = np.array([own.sum() for own in sizes], dtype=np.int64)
        self.first_ids = np.cumsum(self.samples) - self.samples
        self.first_shards = np.cumsum([0, *(len(own) for own in sizes[:-1])])
        self.total = int(self.samples.sum())
        self.lane_length = self.total // lanes
        self._pass = lru_cache(maxsize=PASSES_KEPT * len(sizes))(self._make_pass)

    def __reduce__(self) -> tuple[type["MixedOrder"], tuple[object, ...]]:
        """Pickle the arguments only: another process recomputes the order from them."""
        return MixedOrder, (self.sizes, self.weights, self.draws, self.lanes, self.window, self.before)

    def uses(self, rank: int, size: int, start: int, count: int) -> tuple[Ints, Ints]:
        """See `SampleOrder`."""
        own = self._part(rank, size, start, count)
        ids = np.empty_like(own.sources)
        for source, number in sorted({*zip(own.sources.tolist(), own.passes.tolist(), strict=True)}):
            rows = np.flatnonzero((own.sources == source) & (own.passes == number))
            ids[rows] = self.first_ids[source] + self._pass(source, number).ids(own.numbers[rows])
        return ids, ids + self.total * own.passes

    def windows(self, rank: int, size: int, start: int, count: int, row: int) -> Iterator[Ints]:
        """See `SampleOrder`; the windows are of the same source."""
        own = self._part(rank, size, start, count)
        source = int(own.sources[row])
        for window in self._pass(source, int(own.passes[row])).windows(int(own.numbers[row])):
            yield self.first_ids[source] + window

    def shards_from(self, rank: int, size: int, start: int) -> Ints:
        """See `SampleOrder`; the order is about that of the first use, as if every source were read evenly."""
        begin = self.before + start * self.lanes
        end = max(begin, self.before + self.lane_length * self.lanes)
        found, times = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        counts = zip(self.interleaving.counts(begin), self.interleaving.counts(end), strict=True)
        for source, (first, stop) in enumerate(counts):
            own = self._shards(source, rank, size, first, stop) + self.first_shards[source]
            found.append(own)
            times.append((np.arange(len(own)) + 0.5) / max(1, len(own)))
        shards = np.concatenate(found)[np.argsort(np.concatenate(times), kind="stable")]
        return shards[np.sort(np.unique(shards, return_index=True)[1])]

    def _shards(self, source: int, rank: int, size: int, first: int, stop: int) -> Ints:
        """Return the shards of a source that a rank reads for the uses [first, stop), each as often as a pass does."""
        samples = int(self.samples[source])
        found = [np.empty(0, dtype=np.int64)]
        for number in range(first // samples, min(-(-stop // samples), first // samples + PASSES_KEPT)):
            low, high = max(first - number * samples, 0), min(stop - number * samples, samples)
            found.append(self._pass(source, number).shards(rank, size, low, high))
        return np.concatenate(found)

    def _part(self, rank: int, size: int, start: int, count: int) -> Uses:
        """Return a rank's part of the step that begins at offset `start` in the lanes."""
        place = self.before + start * self.lanes
        sources, uses = self.interleaving.places(place, place + count * self.lanes)
        passes, numbers = np.divmod(uses, self.samples[sources])
        part = count * self.lanes // size
        own = np.argsort(lanes_of(numbers, self.lanes), kind="stable")[rank * part : (rank + 1) * part]
        return Uses(sources[own], passes[own], numbers[own])

    def _make_pass(self, source: int, number: int) -> SourcePass:
        return SourcePass(self.sizes[source], Draws(self.draws.seed, number), self.lanes, self.window, source)


def order_of(split: Split, draws: Draws, lanes: int, window: int, before: int | None) -> SampleOrder:
    """Return the order of an epoch of a split. `before`: samples that the run has used in earlier epochs.

    None: that of a pass in which every sample is used once, whatever the weights of a mixture are.
    """
    if before is None or not isinstance(split, MixedSplit):
        return EpochOrder(split.shard_sizes, draws, lanes, window)
    return MixedOrder(split.sizes_of_sources, split.weights, draws, lanes, window, before)
