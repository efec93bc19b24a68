"""Which of several sources each place of one endless sequence takes: a pure function of integer weights and the place.

Of the first n places, source k of K has

    count of k = round(left * weight of k / rest),   left -= count of k,

computed source by source, the largest weight first: `left` begins with n, `rest` is the sum of the weights that are not
yet served. Both sides are integers, so nothing is rounded but the count itself. A count grows by 0 or 1 from place to
place, and the counts of all sources add up to n, so exactly one source grows: that one has the place, and its count
before is the number of the use. Nothing is remembered between places: any of them is found from its number alone.

A count differs from its share, n * weight / sum, by at most half a sample for two sources, by at most one for three,
and by less than K for any number of them. Batches have at least K samples, so shares are exact to one batch at every
step.
"""

from collections.abc import Sequence

import numpy as np

from dist_ssl.core.draws import Ints


class Interleaving:
    """The sequence of these weights, whole numbers of at least 1 whose sum is below 2^40."""

    def __init__(self, weights: Sequence[int]) -> None:
        assert weights
        assert min(weights) > 0
        self.weights = tuple(weights)
        self.served = sorted(range(len(weights)), key=lambda source: (-weights[source], source))
        """The sources in the order in which their counts are computed."""

    def counts(self, places: int) -> list[int]:
        """Return the number of times that each source occurs among the first `places` places."""
        found, left, rest = [0] * len(self.weights), places, sum(self.weights)
        for source in self.served:
            found[source] = rounded(left, self.weights[source], rest)[0]
            left -= found[source]
            rest -= self.weights[source]
        return found

    def places(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Return the source of each of the places [start, stop), and how often it occurs before that place.

        Both are [stop - start]. At most 2^20 places are asked for at once.
        """
        sources, uses = np.empty((2, stop - start), dtype=np.int64)
        left, rest = start, sum(self.weights)
        further = np.arange(stop - start + 1, dtype=np.int64)
        """By how much `left` grows from the first place to each of them."""
        for source in self.served:
            weight = self.weights[source]
            first, part = rounded(left, weight, rest)
            counted = (part + 2 * weight * further) // (2 * rest)
            own = np.flatnonzero(np.diff(counted))
            sources[own], uses[own] = source, first + counted[own]
            left, rest, further = left - first, rest - weight, further - counted
        return sources, uses


def rounded(left: int, weight: int, rest: int) -> tuple[int, int]:
    """Return left * weight / rest, rounded (a half: up), and what the division by 2 * rest leaves."""
    return divmod(2 * left * weight + rest, 2 * rest)
