"""Random numbers are a pure function of their key: known answers, golden values, independence of the company."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.draws import Draws, Purpose, philox

IDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)
SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    words = philox(tuple(np.array([word], dtype=np.uint64) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == answer


def test_words_have_golden_values() -> None:
    words = Draws(7, 3).words(Purpose.CROP, np.array([0, 1, 2**40]), 1, 5)
    assert words.tolist() == [
        [1449776253, 2349458539, 4115200728, 2053567401, 813604559],
        [2730755058, 1282916534, 1455911322, 730138136, 4151161751],
        [74877880, 1364032063, 2117637305, 1337488973, 1338516051],
    ]


def test_uniform_has_golden_values() -> None:
    numbers = Draws(7, 3).uniform(Purpose.CROP, np.array([0, 2**40]), 1, 3)
    assert numbers.dtype == np.float32
    assert numbers.tolist() == [
        [0.3375523090362549, 0.5470259189605713, 0.9581447839736938],
        [0.01743382215499878, 0.3175884485244751, 0.49305081367492676],
    ]


def test_order_has_golden_values() -> None:
    draws = Draws(7, 3)
    assert draws.order(Purpose.SHARD_ORDER, np.arange(12)).tolist() == [0, 4, 1, 3, 8, 10, 7, 9, 2, 5, 6, 11]
    assert draws.order(Purpose.WINDOW_ORDER, np.arange(100, 112)).tolist() == [0, 2, 7, 6, 3, 9, 1, 8, 10, 4, 5, 11]


def test_torch_seeds_have_golden_values() -> None:
    assert Draws(0).torch_seed(0) == 4038360861277484903
    assert Draws(0).torch_seed(1) == 8368781893851556145
    assert Draws(7, 3).torch_seed(1000) == 927408049976734980
    assert Draws(2**64 - 1, 2**32 - 1).torch_seed(2**40) == 7652533018418981235


def test_the_numbers_of_the_purposes_never_change() -> None:
    fixed = ["SHARD_ORDER", "WINDOW_ORDER", "REPLACEMENT", "CROP", "FLIP", "JITTER", "GRAY", "BLUR", "SOLARIZE"]
    assert [int(Purpose[name]) for name in [*fixed, "PROBE", "STEP"]] == list(range(1, 12))
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose.__members__)


@given(IDS, SEEDS, st.integers(0, 2**32 - 1), st.integers(0, 4095), st.integers(1, 30), st.randoms())
def test_a_row_depends_on_its_id_alone(ids, seed, epoch, slot, count, random) -> None:
    draws = Draws(seed, epoch)
    whole = draws.words(Purpose.JITTER, np.array(ids), slot, count)
    rows = random.choices(range(len(ids)), k=len(ids))
    chosen = np.array([ids[row] for row in rows])
    np.testing.assert_array_equal(draws.words(Purpose.JITTER, chosen, slot, count), whole[rows])


@given(st.integers(0, 2**63 - 1), SEEDS, st.integers(1, 40), st.integers(1, 40))
def test_fewer_numbers_are_the_first_of_more(number, seed, count, more) -> None:
    ids = np.array([number])
    long = Draws(seed).uniform(Purpose.BLUR, ids, 0, count + more)
    np.testing.assert_array_equal(Draws(seed).uniform(Purpose.BLUR, ids, 0, count), long[:, :count])


@pytest.mark.parametrize(
    "other",
    [
        Draws(4, 5).words(Purpose.GRAY, np.array([9]), 2, 8),
        Draws(3, 6).words(Purpose.GRAY, np.array([9]), 2, 8),
        Draws(3, 5).words(Purpose.BLUR, np.array([9]), 2, 8),
        Draws(3, 5).words(Purpose.GRAY, np.array([10]), 2, 8),
        Draws(3, 5).words(Purpose.GRAY, np.array([9]), 3, 8),
        Draws(3 + 2**32, 5).words(Purpose.GRAY, np.array([9]), 2, 8),
        Draws(3, 5).words(Purpose.GRAY, np.array([9 + 2**32]), 2, 8),
    ],
    ids=["seed", "epoch", "purpose", "id", "slot", "high seed", "high id"],
)
def test_every_part_of_the_key_matters(other: np.ndarray) -> None:
    assert not set(Draws(3, 5).words(Purpose.GRAY, np.array([9]), 2, 8)[0]) & set(other[0])


def test_keys_do_not_overlap_between_slots_and_blocks() -> None:
    rows = [Draws(1).words(purpose, np.arange(20), slot, 40) for purpose in Purpose for slot in (0, 1, 2)]
    words = np.concatenate(rows, axis=None)
    # 26 400 words of 2**32: about 0.08 pairs are equal by chance
    assert len(np.unique(words)) >= len(words) - 2


@given(IDS, SEEDS)
def test_uniform_stays_below_one(ids, seed) -> None:
    numbers = Draws(seed).uniform(Purpose.CROP, np.array(ids), 0, 22)
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_the_largest_word_becomes_less_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = np.array([[[0xFFFFFFFF, 0, 0xFF]]], dtype=np.uint64)
    monkeypatch.setattr(Draws, "_words", lambda *_: {Purpose.CROP: largest})
    assert Draws(0).uniform(Purpose.CROP, np.array([0]), 0, 3).tolist() == [[1 - 2**-24, 0.0, 0.0]]


@given(IDS, SEEDS, st.integers(0, 2**32 - 1), st.integers(0, 4080), st.integers(1, 15), st.integers(1, 30))
def test_slots_drawn_together_are_as_those_drawn_alone(ids, seed, epoch, first, slots, count) -> None:
    draws, counts, numbers = Draws(seed, epoch), {Purpose.CROP: count, Purpose.TURN: 2}, np.array(ids)
    together = draws.of_slots(counts, numbers, range(first, first + slots))
    for place, slot in enumerate(range(first, first + slots)):
        for purpose, own in counts.items():
            alone = draws.uniform(purpose, numbers, slot, own)
            np.testing.assert_array_equal(together[purpose][place], alone)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_uniform_is_uniform_over_ids_and_over_draws(seed: int) -> None:
    numbers = Draws(seed).uniform(Purpose.CROP, np.arange(5000), 0, 4)
    assert abs(numbers.mean() - 0.5) < 4 * np.sqrt(1 / 12 / numbers.size)
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    expected = numbers.size / 20
    # chi-square of 19 degrees of freedom passes 50 once in 10 000 times
    assert ((counts - expected) ** 2 / expected).sum() < 50
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.06


@given(st.lists(st.integers(0, 2**50), min_size=0, max_size=50, unique=True), SEEDS)
def test_order_is_a_permutation_and_does_not_depend_on_the_order_of_the_ids(ids, seed) -> None:
    numbers = np.array(ids, dtype=np.int64)
    order = Draws(seed).order(Purpose.WINDOW_ORDER, numbers)
    assert sorted(order.tolist()) == list(range(len(ids)))
    backwards = numbers[::-1]
    again = Draws(seed).order(Purpose.WINDOW_ORDER, backwards)
    np.testing.assert_array_equal(backwards[again], numbers[order])


@given(SEEDS, st.integers(0, 2**32 - 1), st.integers(0, 2**62))
def test_torch_seeds_fit_torch(seed, epoch, step) -> None:
    assert 0 <= Draws(seed, epoch).torch_seed(step) < 2**63


def test_torch_seeds_of_neighbouring_steps_and_epochs_differ() -> None:
    seeds = {Draws(0, epoch).torch_seed(step) for epoch in range(20) for step in range(50)}
    assert len(seeds) == 1000


def test_large_ids_and_seeds_work() -> None:
    numbers = Draws(2**64 - 1, 2**32 - 1).uniform(Purpose.SOLARIZE, np.array([2**40, 2**63 - 1]), 4095, 16384)
    assert numbers.shape == (2, 16384)
    assert len(np.unique(numbers[0])) > 16000
    assert not (numbers[0] == numbers[1]).all()


def test_choices_have_golden_values() -> None:
    found = Draws(7, 3).chosen(Purpose.TOKENS, np.array([0, 2**40]), range(1, 3), 9, 4)
    assert found.tolist() == [[[1, 2, 3, 5], [0, 3, 7, 8]], [[4, 6, 7, 8], [3, 5, 7, 8]]]


@given(IDS, SEEDS, st.integers(1, 60), st.data())
def test_a_choice_has_different_numbers_in_order_and_depends_on_its_id_alone(ids, seed, among, data) -> None:
    count = data.draw(st.integers(1, among))
    found = Draws(seed).chosen(Purpose.TOKENS, np.array(ids), range(2, 4), among, count)
    assert found.shape == (2, len(ids), count)
    assert ((found >= 0) & (found < among)).all()
    assert (np.diff(found, axis=-1) > 0).all()
    alone = Draws(seed).chosen(Purpose.TOKENS, np.array(ids[-1:]), range(3, 4), among, count)
    np.testing.assert_array_equal(alone[0, 0], found[1, -1])


def test_every_choice_is_equally_likely() -> None:
    found = Draws(1).chosen(Purpose.TOKENS, np.arange(30000), range(1), 5, 2)[0]
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 10  # 5 over 2
    assert abs(counts - 3000).max() < 5 * np.sqrt(2700)  # five standard deviations of a binomial count
