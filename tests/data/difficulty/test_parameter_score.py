"""Difficulty by what was drawn: the differences by hand, crops as they are cut, and views that are those scored."""

import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.batch import Batch
from dist_ssl.core.candidates import SLOTS
from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.difficulty.parameter_score import HardSlots, ParameterScore, colour_values, unit_boxes
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.colour_constants import NOTHING
from dist_ssl.data.images.photometric import NUMBERS, Photometry
from dist_ssl.data.images.views import CROP_DRAWS, Augmentation, Cutter, crop_box
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError

STRONG = Augmentation(
    crop_min=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.3, jitter_p=0.8, gray_p=0.2, blur_p=0.5
)
RECIPES = [STRONG, replace(STRONG, crop_min=0.4, solarize_p=0.2, turn_p=0.5)]
COLOURS = Colours((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PLAN = EpochPlan(epoch=2, image_size=16, magnitude=1.0, views=2, batch_size=16, lanes=4, candidates=4)
SCORE = ParameterScore(0.5)


def epoch(reader: Reader, plan: EpochPlan = PLAN, *, world: World | None = None, start: int = 0) -> list[Batch]:
    """One rank's batches of an epoch, in double precision, their views in memory of their own."""
    stream = Stream(
        Loader(reader, 1),
        [*RECIPES, replace(STRONG, local=True)],
        COLOURS,
        world=world or World(),
        seed=11,
        window=6,
        dtype=torch.float64,
        difficulty=SCORE,
    )
    return list(stream.epoch(plan, start))


@pytest.fixture(scope="module")
def split(demo_shards: Path) -> manifest.Split:
    """The training split of the demo."""
    return manifest.read(demo_shards).split("train")


def boxes(*given_: tuple[float, float, float, float]) -> np.ndarray:
    """Crops of one sample, one candidate per slot: [2, 1, 1, 4]."""
    return np.array(given_).reshape(2, 1, 1, 4)


SAME = boxes((0, 0, 0, 0), (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("first", "second", "overlap", "scale"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 0.0, 0.0),
        ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), 1.0, 0.0),
        ((0, 0, 1, 1), (0, 0, 0.5, 0.5), 0.75, 0.75),
        ((0, 0, 0.5, 1), (0.25, 0, 0.75, 1), 2 / 3, 0.0),
    ],
)
def test_crops_differ_by_their_overlap_and_their_scale(first, second, overlap, scale) -> None:
    for weights, expected in (((1, 0, 0), overlap), ((0, 1, 0), scale), ((2, 3, 1), 2 * overlap + 3 * scale)):
        found = ParameterScore(0.0, *map(float, weights)).difficulty(boxes(first, second), SAME)
        assert found.item() == pytest.approx(expected)


def test_colours_differ_by_their_factors_and_hues_the_short_way_round() -> None:
    values = np.array([[1.2, 1.0, 1.0, 0.4], [0.8, 1.0, 0.0, -0.4]]).reshape(2, 1, 1, 4)
    found = ParameterScore(0.0, 0.0, 0.0, 1.0).difficulty(np.stack([boxes((0, 0, 1, 1), (0, 0, 1, 1))])[0], values)
    assert found.item() == pytest.approx((0.4 + 0.0 + 1.0 + 2 * 0.2) / 4)


def test_every_candidate_of_a_slot_meets_every_one_of_the_other() -> None:
    whole, corner, other = (0, 0, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)
    crops = np.array([[whole, corner], [corner, other]], dtype=np.float64)[:, :, None]
    found = ParameterScore(0.0, 1.0, 0.0, 0.0).difficulty(crops, np.zeros((2, 2, 1, 4)))
    assert found.tolist() == [[[0.75, 0.75], [0.0, 1.0]]]


@given(
    st.integers(0, 2**40),
    st.sampled_from([STRONG, Augmentation(crop_min=0.9), Augmentation(1.0), Augmentation(0.9, aspect=(2, 3))]),
)
def test_crops_are_those_that_are_cut_from_a_square_image(number: int, recipe: Augmentation) -> None:
    numbers, side = Draws(number).uniform(Purpose.CROP, np.array([number]), 1, CROP_DRAWS), 100_000
    expected = np.array(crop_box(side, side, recipe, numbers[0])) / side
    np.testing.assert_allclose(unit_boxes(recipe, numbers)[0], expected, atol=2e-5)


def test_colours_are_those_that_are_applied() -> None:
    ids, draws = np.arange(200), Draws(4)
    drawn = draws.uniforms(NUMBERS, ids, 1)
    looks = Photometry(STRONG, 1, (0, 0, 0), (1, 1, 1)).looks(drawn)
    values = colour_values(STRONG, drawn[Purpose.JITTER], drawn[Purpose.GRAY])
    plain = (looks.order == NOTHING).all(1)
    assert 0 < plain.sum() < 100
    assert (values[plain][:, [0, 1, 3]] == [1, 1, 0]).all()
    np.testing.assert_array_equal(values[~plain][:, [0, 1, 3]], looks.factors[~plain][:, [0, 1, 3]])
    assert ((values[:, 2] == 0) == looks.gray).all()


@pytest.mark.parametrize("key", ["temperature", "overlap", "scale", "colour"])
def test_negative_numbers_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"difficulty\.{key}=-1 is not possible"):
        ParameterScore(**{"temperature": 0.5, key: -1.0})


def slots_for(ids: np.ndarray, draws: Draws, candidates: int = 4, score: ParameterScore = SCORE) -> np.ndarray:
    return HardSlots(score, tuple(RECIPES), candidates)(draws, ids)


def test_one_candidate_leaves_every_view_as_it_is_and_several_make_it_harder() -> None:
    ids, draws = np.arange(400), Draws(11, 2)
    assert (slots_for(ids, draws, 1) == [[0], [1]]).all()
    hard = HardSlots(SCORE, tuple(RECIPES), 4).choice(draws, ids)
    hardest = HardSlots(replace(SCORE, temperature=0.0), tuple(RECIPES), 4).choice(draws, ids)
    even = HardSlots(replace(SCORE, temperature=1e6), tuple(RECIPES), 4).choice(draws, ids)
    assert hard.first == even.first == hardest.first
    assert abs(even.chosen - even.first) < 0.1 < hard.chosen - hard.first < hardest.chosen - hardest.first


def recut(reader: Reader, ids: Iterable[int], read_as: dict[int, int] | None = None) -> list[torch.Tensor]:
    """The pairs of single samples, each cut from the slots that were chosen for it alone, without any stream."""
    found: list[list[torch.Tensor]] = [[], []]
    for number in ids:
        one, draws = np.array([number]), Draws(11, PLAN.epoch)
        for slot, (recipe, key) in enumerate(zip(RECIPES, slots_for(one, draws)[:, 0].tolist(), strict=True)):
            assert key % SLOTS == slot
            pixels = np.zeros((1, 16, 16, 3), dtype=np.uint8)
            cutter = Cutter(RECIPES, 16)  # decoded as for both views
            box = draws.uniform(Purpose.CROP, one, key, CROP_DRAWS)
            both, out = [box[0], box[0]], [np.zeros((16, 16, 3), dtype=np.uint8), np.zeros((16, 16, 3), dtype=np.uint8)]
            cutter.cut(reader.read((read_as or {}).get(number, number)), both, out)
            pixels[0] = out[slot]
            change = Photometry(recipe, key, COLOURS.mean, COLOURS.std)
            found[slot].append(change(torch.from_numpy(pixels), one, draws, torch.float64)[0])
    return [torch.stack(views) for views in found]


def test_the_views_are_the_scored_ones_cut_and_coloured_by_themselves(split: manifest.Split) -> None:
    with Reader(split) as reader:
        batch = epoch(reader)[1]
        for view, expected in zip(batch.views, recut(reader, batch.ids.tolist()), strict=True):
            torch.testing.assert_close(view, expected, rtol=0, atol=1e-11)
        plain = epoch(reader, replace(PLAN, candidates=1))[1]
    moved = slots_for(batch.ids.numpy(), batch.draws) >= SLOTS
    assert 0 < moved.sum() < moved.size
    for slot, view in enumerate(batch.views):
        assert [torch.equal(a, b) for a, b in zip(view, plain.views[slot], strict=True)] == (~moved[slot]).tolist()
    assert batch.costs["difficulty/chosen"] > batch.costs["difficulty/first"]


def test_local_views_and_replacements_keep_their_draws(split: manifest.Split) -> None:
    class Damaged(Reader):
        def read(self, number: int) -> bytes:
            return b"damaged" if number == gone else super().read(number)

    local = replace(PLAN, local_views=2, local_size=8)
    gone = -1
    with Damaged(split) as reader:
        whole = epoch(reader, local)[0]
        plain = epoch(reader, replace(local, candidates=1))[0]
        assert all(torch.equal(a, b) for a, b in zip(whole.views[2:], plain.views[2:], strict=True))
        gone = int(whole.ids[3])
        batch = epoch(reader, local)[0]
        assert batch.valid.tolist() == [number != gone for number in batch.ids.tolist()]
        candidates = [n for n in range(60) if n != gone]
        own = [recut(reader, [gone], {gone: n}) for n in candidates]
    (used,) = [pair for pair in own if torch.allclose(pair[0][0], batch.views[0][3], rtol=0, atol=1e-11)]
    torch.testing.assert_close(used[1][0], batch.views[1][3], rtol=0, atol=1e-11)
    for view, other in zip(batch.views, whole.views, strict=True):
        assert torch.equal(view[batch.valid], other[batch.valid])


def test_ranks_and_starts_come_to_the_same_views(split: manifest.Split) -> None:
    with Reader(split) as reader:
        alone = epoch(reader)
        resumed = epoch(reader, start=4)
        ranks = [epoch(reader, world=World(rank=rank, size=4)) for rank in range(4)]
    for step, batch in enumerate(alone):
        for slot, view in enumerate(batch.views):
            torch.testing.assert_close(torch.cat([r[step].views[slot] for r in ranks]), view, rtol=0, atol=1e-11)
            assert step == 0 or torch.equal(resumed[step - 1].views[slot], view)


def test_in_a_loaders_process_the_choice_is_the_same() -> None:
    cutter = Cutter(RECIPES, 16, slots=HardSlots(SCORE, tuple(RECIPES), 4))
    ids = np.arange(50)
    sent = pickle.loads(pickle.dumps(cutter)).draw(Draws(3), ids)
    np.testing.assert_array_equal(sent, cutter.draw(Draws(3), ids))
    assert not np.array_equal(sent, Cutter(RECIPES, 16).draw(Draws(3), ids))
    assert [drawn.shape for drawn in cutter.draw(Draws(3), ids[:0])] == [(0, CROP_DRAWS)] * 2
