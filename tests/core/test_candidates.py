"""The choice of a pair: the hardest at temperature 0, else as its softmax says, in any order of the candidates."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.candidates import MOST, SLOTS, candidate_slots, check_candidates, choose, slots_of, standardised
from dist_ssl.core.draws import SLOT_BITS, Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.errors import ConfigError

PLAN = EpochPlan(0, 20, 1.0, 2, 96, 48)


def difficulties(seed: int, batch: int, number: int) -> np.ndarray:
    """Difficulties without ties, [B, K, K]."""
    return np.random.default_rng(seed).permuted(np.arange(batch * number**2) / 7.0).reshape(batch, number, number)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, MOST), st.sampled_from([0.0, 1e-9]))
def test_without_temperature_the_hardest_pair_is_chosen(seed: int, batch: int, number: int, temperature: float) -> None:
    given_, ids = difficulties(seed, batch, number), np.arange(batch)
    choice = choose(given_, temperature, Draws(seed), ids)
    assert (given_[ids, choice.pairs[0], choice.pairs[1]] == given_.max((1, 2))).all()
    assert choice.chosen == pytest.approx(given_.max((1, 2)).mean())
    assert choice.first == pytest.approx(given_[:, 0, 0].mean())


@given(st.integers(0, 2**32), st.integers(2, 6), st.randoms())
def test_candidates_in_another_order_are_chosen_all_the_same(seed: int, number: int, random: object) -> None:
    orders = [np.random.default_rng(random.getrandbits(32)).permutation(number) for _ in range(2)]  # type: ignore[attr-defined]
    whole, ids = difficulties(seed, 4, number), np.arange(4)
    moved = whole[:, orders[0]][:, :, orders[1]]
    chosen, again = (choose(d, 0.0, Draws(1), ids).pairs for d in (whole, moved))
    assert (np.stack([order[at] for order, at in zip(orders, again, strict=True)]) == chosen).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_of_one_candidate_there_is_no_choice(temperature: float) -> None:
    choice = choose(np.array([[[0.3]], [[0.7]]]), temperature, Draws(0), np.array([4, 5]))
    assert choice.pairs.tolist() == [[0, 0], [0, 0]]
    assert choice.metrics == {"difficulty/chosen": 0.5, "difficulty/first": 0.5}


def test_pairs_are_drawn_as_often_as_their_softmax_says() -> None:
    pairs, count = np.array([[0.0, 1.0], [2.0, 5.0]]), 40_000
    choice = choose(np.broadcast_to(pairs, (count, 2, 2)), 0.8, Draws(3, 1), np.arange(count))
    found = np.bincount(2 * choice.pairs[0] + choice.pairs[1], minlength=4) / count
    weights = np.exp((pairs.ravel() - pairs.mean()) / pairs.std() / 0.8)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=4 * 0.5 / np.sqrt(count))


def test_equal_pairs_are_equally_likely_and_scale_and_shift_do_not_matter() -> None:
    ids = np.arange(300)
    even = choose(np.full((300, 3, 3), 0.1), 0.5, Draws(0), ids).pairs
    assert len({tuple(pair) for pair in even.T}) == 9
    own = difficulties(5, 300, 3)
    np.testing.assert_array_equal(
        choose(own, 0.5, Draws(0), ids).pairs, choose(2.0**9 * own + 2.0**12, 0.5, Draws(0), ids).pairs
    )
    rows = standardised(own.reshape(300, 9))
    np.testing.assert_allclose([rows.mean(1), rows.std(1)], [np.zeros(300), np.ones(300)], atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_pairs_that_differ_by_rounding_alone_are_equal(temperature: float) -> None:
    """Features of one image computed in other batches differ in the last bits: the choice must not."""
    equal, ids = np.full((300, 3, 3), 0.1), np.arange(300)
    rounding = [1e-7 * np.random.default_rng(seed).standard_normal(equal.shape) for seed in (0, 1)]
    first, second = (choose(equal + noise, temperature, Draws(0), ids).pairs for noise in rounding)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, choose(equal, temperature, Draws(0), ids).pairs)


def test_a_choice_depends_on_the_sample_the_epoch_and_the_seed_alone() -> None:
    own, ids = difficulties(0, 64, 4), np.arange(64)
    whole = choose(own, 1.0, Draws(2, 3), ids).pairs
    np.testing.assert_array_equal(choose(own[40:], 1.0, Draws(2, 3), ids[40:]).pairs, whole[:, 40:])
    for other in (Draws(2, 4), Draws(1, 3)):
        assert (choose(own, 1.0, other, ids).pairs != whole).any()


def test_first_candidates_have_the_slots_of_views_without_candidates_and_no_two_share_one() -> None:
    assert candidate_slots(3).tolist() == [[0, 1], [SLOTS, SLOTS + 1], [2 * SLOTS, 2 * SLOTS + 1]]
    assert slots_of(np.array([[0, 2], [1, 0]]), 3).tolist() == [[0, 2 * SLOTS], [SLOTS + 1, 1], [2, 2]]
    assert SLOTS * (MOST - 1) + SLOTS - 1 < 1 << SLOT_BITS


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (replace(PLAN, candidates=0), "candidates=0 is not possible: it must be from 1 to 16"),
        (replace(PLAN, candidates=17), "candidates=17"),
        (replace(PLAN, views=1, candidates=4), "it takes 1 view of the main size"),
        (replace(PLAN, views=8, candidates=4), "it takes 8 views of the main size"),
        (replace(PLAN, local_views=255, candidates=2), "255 local views"),
    ],
)
def test_plans_without_pairs_to_choose_are_refused(plan: EpochPlan, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_candidates(plan)


def test_other_plans_are_not() -> None:
    for plan in (PLAN, replace(PLAN, views=1), replace(PLAN, local_views=6, candidates=MOST)):
        check_candidates(plan)
