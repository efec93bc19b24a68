"""The interleaving of sources: exact shares at every place, equal to a slow reference, found from any place."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.data.order.interleaving import Interleaving

WEIGHTS = st.lists(st.integers(1, 30) | st.sampled_from([1, 1000, 14_197_122, (1 << 36) - 5]), min_size=1, max_size=9)
PLACES = 400


def slow_counts(weights: list[int], places: int) -> list[int]:
    """The counts of all sources by fractions, the largest weight first, a half rounded up."""
    counts, left = [0] * len(weights), places
    todo = sorted(range(len(weights)), key=lambda source: -weights[source])
    while todo:
        source = todo[0]
        share = Fraction(left * weights[source], sum(weights[other] for other in todo))
        counts[source] = int(share + Fraction(1, 2))
        left -= counts[source]
        del todo[0]
    assert left == 0
    return counts


@given(WEIGHTS)
def test_each_place_goes_to_the_source_whose_slow_count_grows(weights: list[int]) -> None:
    sources, uses = Interleaving(weights).places(0, PLACES)
    before = slow_counts(weights, 0)
    for place in range(PLACES):
        after = slow_counts(weights, place + 1)
        grown = [new - old for new, old in zip(after, before, strict=True)]
        assert sorted(grown) == [0] * (len(weights) - 1) + [1], "one source has the place, and no other one loses any"
        assert sources[place] == grown.index(1)
        assert uses[place] == before[sources[place]]
        before = after
    assert Interleaving(weights).counts(PLACES) == before


@given(WEIGHTS)
def test_shares_are_exact_to_a_sample_or_two_at_every_place(weights: list[int]) -> None:
    sources, _ = Interleaving(weights).places(0, PLACES)
    bound = {1: 0.0, 2: 0.5, 3: 1.0}.get(len(weights), len(weights) / 2)
    for source, weight in enumerate(weights):
        counts = np.cumsum(sources == source)
        share = np.arange(1, PLACES + 1) * (weight / sum(weights))
        assert np.abs(counts - share).max() <= bound + 1e-6


@given(WEIGHTS, st.integers(0, 1 << 50), st.integers(1, 60), st.integers(0, 60))
def test_any_place_is_found_without_those_before_it(weights: list[int], start: int, first: int, second: int) -> None:
    interleaving = Interleaving(weights)
    sources, uses = interleaving.places(start, start + first + second)
    parts = [interleaving.places(start, start + first), interleaving.places(start + first, start + first + second)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), sources)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), uses)
    before = interleaving.counts(start)
    assert before == slow_counts(weights, start)
    for source in range(len(weights)):
        own = uses[sources == source]
        assert own.tolist() == list(range(before[source], before[source] + len(own)))


def test_whole_numbers_of_rounds_are_divided_exactly() -> None:
    for rounds in (1, 7, 10**9):
        assert Interleaving([5, 3, 2]).counts(10 * rounds) == [5 * rounds, 3 * rounds, 2 * rounds]


def test_it_has_a_golden_sequence() -> None:
    sources = Interleaving([3, 1, 2]).places(0, 12)[0].tolist()
    assert sources == GOLDEN, f"the order of every run over several sources has changed; it was {GOLDEN}"


GOLDEN = [0, 2, 0, 1, 0, 2, 0, 2, 0, 1, 0, 2]
