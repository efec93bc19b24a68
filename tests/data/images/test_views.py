"""Crops: torchvision's boxes from our own draws, decoded once, and unreadable bytes distinguished from images."""

import io
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from dist_ssl.core.draws import Draws
from dist_ssl.data.images import views
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.views import (
    CROP_DRAWS,
    SCALED,
    Augmentation,
    Cutter,
    centre_box,
    check_fixed,
    checked,
    crop_box,
    of_views,
    smallest_crop_scale,
)
from dist_ssl.errors import ConfigError
from tests.colours import MOCO

RECIPE = replace(MOCO, invert_p=0.4, turn_p=0.4)
OUTSIDE: dict[str, tuple[dict[str, Any], str]] = {
    "a crop of nothing": ({"crop_min": 0.0}, "crop_min=0 is not possible: it must be more than 0 and at most 1."),
    "a crop of more than all": (
        {"crop_max": 1.5},
        "crop_max=1.5 is not possible: it must be more than 0 and at most 1.",
    ),
    "crops the wrong way round": ({"crop_max": 0.1}, "crop_max=0.1 is not possible: it must be at least crop_min=0.2."),
    "crops without a width": ({"aspect": (0.0, 1.0)}, "aspect=0 is not possible: it must be more than 0."),
    "shapes the wrong way round": (
        {"aspect": (2.0, 1.0)},
        "aspect=1 is not possible: it must be at least the first, 2.",
    ),
    "less than no change": ({"contrast": -0.4}, "contrast=-0.4 is not possible: it must be at least 0."),
    "more than half a turn": ({"hue": 0.6}, "hue=0.6 is not possible: it must be from 0 to 0.5."),
    "a blur of nothing": ({"blur_min": 0.0}, "blur_min=0 is not possible: it must be more than 0."),
    "blurs the wrong way round": (
        {"blur_max": 0.05},
        "blur_max=0.05 is not possible: it must be at least blur_min=0.1.",
    ),
    "more often than always": ({"turn_p": 1.5}, "turn_p=1.5 is not possible: it must be a number from 0 to 1."),
}
"""Keys of a recipe outside their range, and the expected message."""
SIDES = st.integers(1, 700)
RECIPES = st.builds(
    Augmentation,
    crop_min=st.floats(0.01, 0.9),
    crop_max=st.floats(0.9, 1),
    aspect=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.5, 1.5)]),
)


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_recipe_outside_its_ranges_is_refused(case: str) -> None:
    own, message = OUTSIDE[case]
    with pytest.raises(ConfigError) as refusal:
        checked(replace(RECIPE, **own), "views.view1")
    assert str(refusal.value).startswith(f"views.view1.{message}")


def test_a_recipe_at_the_ends_of_its_ranges_is_taken() -> None:
    recipe = Augmentation(crop_min=1.0, aspect=(1.0, 1.0), hue=0.5, blur_min=2.0, jitter_p=1.0, flip_p=0.0)
    assert checked(recipe, "views.view1") is recipe


def numbers(seed: int) -> np.ndarray:
    """The draws of one crop."""
    return np.random.default_rng(seed).random(CROP_DRAWS, dtype=np.float32)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth image with a colour gradient of its own in every direction."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / 9 + p) * np.cos(y / 7 - p) for p in (0.0, 1.0, 2.0)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str) -> bytes:
    """The image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def cut(data: bytes, recipe: Augmentation = RECIPE, size: int = 32, number: int = 0) -> np.ndarray:
    """One crop, [size, size, 3] uint8."""
    cutter = Cutter([recipe], size)
    out = np.zeros((size, size, 3), dtype=np.uint8)
    cutter.cut(data, [d[0] for d in cutter.draw(Draws(0), np.array([number]))], [out])
    return out


def slow_box(width: int, height: int, recipe: Augmentation, draws: list[float]) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params, with the draws written out."""
    for attempt in range(10):
        share = recipe.crop_min + draws[attempt] * (recipe.crop_max - recipe.crop_min)
        target = width * height * share
        low, high = math.log(recipe.aspect[0]), math.log(recipe.aspect[1])
        ratio = math.exp(low + draws[10 + attempt] * (high - low))
        w = round(math.sqrt(target * ratio))
        h = round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(draws[20] * (width - w + 1))
            top = int(draws[21] * (height - h + 1))
            return left, top, left + w, top + h
    if width / height < recipe.aspect[0]:
        w, h = width, round(width / recipe.aspect[0])
    elif width / height > recipe.aspect[1]:
        w, h = round(height * recipe.aspect[1]), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h


@given(SIDES, SIDES, RECIPES, st.integers(0, 2**32))
def test_boxes_equal_the_slow_reference(width: int, height: int, recipe: Augmentation, seed: int) -> None:
    draws = numbers(seed)
    assert crop_box(width, height, recipe, draws) == slow_box(width, height, recipe, draws.tolist())


@given(SIDES, SIDES, RECIPES, st.integers(0, 2**32))
def test_boxes_lie_within_the_image(width: int, height: int, recipe: Augmentation, seed: int) -> None:
    left, top, right, bottom = crop_box(width, height, recipe, numbers(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_extreme_draws_stay_within_the_image(edge: float) -> None:
    left, top, right, bottom = crop_box(37, 53, RECIPE, np.full(CROP_DRAWS, edge, dtype=np.float32))
    assert 0 <= left < right <= 37
    assert 0 <= top < bottom <= 53


@given(st.integers(100, 700), st.integers(100, 700), st.integers(0, 2**32))
def test_area_and_aspect_stay_within_the_recipe(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = crop_box(width, height, RECIPE, numbers(seed))
    w, h = right - left, bottom - top
    if (left, top, right, bottom) != centre_box(width, height, RECIPE.aspect):
        assert 0.2 * 0.97 <= w * h / (width * height) <= 1
    # a side of at least 44 px is rounded by half a pixel
    assert 3 / 4 * 0.97 <= w / h <= 4 / 3 * 1.03


@pytest.mark.parametrize(("width", "height"), [(500, 375), (120, 300)])
def test_boxes_follow_torchvisions_distribution(width: int, height: int) -> None:
    """Two samples of 4000 whose largest difference of distribution functions passes the bound once in a million."""
    torch.manual_seed(0)
    scale, aspect = (RECIPE.crop_min, RECIPE.crop_max), RECIPE.aspect
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, aspect) for _ in range(4000)])
    drawn = Cutter([RECIPE], 32).draw(Draws(1), np.arange(4000))[0]
    boxes = np.array([crop_box(width, height, RECIPE, numbers) for numbers in drawn])
    own = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
    bound = math.sqrt(-math.log(1e-6 / 2) / 4000)
    for statistic in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0], lambda b: b[:, 1]):
        one, two = np.sort(statistic(own)), np.sort(statistic(theirs))
        at = np.concatenate([one, two])
        gap = np.searchsorted(one, at, side="right") - np.searchsorted(two, at, side="right")
        assert np.abs(gap).max() / 4000 < bound


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (1000, 100, (433, 0, 566, 100)),
        (100, 1000, (0, 433, 100, 566)),
        (80, 80, (0, 0, 80, 80)),
        (1, 1000, (0, 499, 1, 500)),
    ],
)
def test_extreme_aspects_fall_back_to_the_centre(width: int, height: int, box: tuple[int, ...]) -> None:
    assert centre_box(width, height, (3 / 4, 4 / 3)) == box
    whole = Augmentation(crop_min=1.0)
    if width != height:
        assert crop_box(width, height, whole, numbers(0)) == box


def test_a_recipe_at_full_strength_is_as_published() -> None:
    assert RECIPE.at(1) == RECIPE
    assert RECIPE.at(1.0) == RECIPE


def test_a_recipe_at_no_strength_shows_the_whole_image_as_it_is() -> None:
    mild = RECIPE.at(0)
    assert (mild.crop_min, mild.crop_max) == (1, 1)
    assert (mild.brightness, mild.contrast, mild.saturation, mild.hue) == (0, 0, 0, 0)
    assert (mild.gray_p, mild.solarize_p, mild.invert_p, mild.turn_p) == (0, 0, 0, 0)
    assert mild.blur_max == mild.blur_min == RECIPE.blur_min
    assert (mild.jitter_p, mild.blur_p, mild.flip_p, mild.aspect) == (0.8, 0.5, 0.5, RECIPE.aspect)


def test_a_recipe_at_half_strength_lies_half_way() -> None:
    half = RECIPE.at(0.5)
    assert half.crop_min == pytest.approx(0.6)
    assert half.crop_max == 1
    assert (half.brightness, half.contrast, half.saturation, half.hue) == pytest.approx((0.2, 0.2, 0.1, 0.05))
    assert (half.gray_p, half.solarize_p, half.invert_p) == pytest.approx((0.1, 0.1, 0.2))
    assert half.turn_p == pytest.approx(0.2)
    assert half.blur_max == pytest.approx(1.05)


@pytest.mark.parametrize("name", SCALED)
def test_an_augmentation_that_is_fixed_keeps_its_strength_and_no_other_does(name: str) -> None:
    weaker, held = RECIPE.at(0.5), RECIPE.at(0.5, fixed=[name])
    for other, keys in SCALED.items():
        same = RECIPE if other == name else weaker
        assert [getattr(held, key) for key in keys] == [getattr(same, key) for key in keys]
    assert held != weaker


def test_every_strength_follows_the_magnitude_but_probabilities_that_are_no_strength() -> None:
    constant = {"aspect", "jitter_p", "blur_p", "blur_min", "flip_p", "local"}
    assert {key for keys in SCALED.values() for key in keys} == {f.name for f in fields(Augmentation)} - constant
    check_fixed(SCALED)
    with pytest.raises(ConfigError, match=r"schedule\.fixed names 'colour'"):
        check_fixed(["colour"])


def test_the_blur_shrinks_with_the_views_and_nothing_else_does() -> None:
    small = RECIPE.at(1.0, scale=0.5)
    assert (small.blur_min, small.blur_max) == (RECIPE.blur_min / 2, RECIPE.blur_max / 2)
    assert replace(small, blur_min=RECIPE.blur_min, blur_max=RECIPE.blur_max) == RECIPE


def test_small_and_weak_views_are_decoded_smaller() -> None:
    whole, small, weak = Cutter([RECIPE], 32), Cutter([RECIPE], 16), Cutter([RECIPE.at(0.5)], 16)
    assert small.needed == math.ceil(whole.needed / 2)
    assert weak.needed < small.needed


@pytest.mark.parametrize("turn", [0.0, 0.5, 1 - 2**-24], ids=["tall", "square", "wide"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_no_crop_is_enlarged_where_the_original_has_enough_pixels(share: float, turn: float) -> None:
    size = 32
    side = 2 * smallest_crop_scale([RECIPE], size)
    draws = np.array([share] * 10 + [turn] * 10 + [0.5, 0.5], dtype=np.float32)
    left, top, right, bottom = crop_box(side, side, RECIPE, draws)
    assert min(right - left, bottom - top) >= size
    decoded = decode(encoded(picture(side, side), "JPEG"), smallest_crop_scale([RECIPE], size)).pixels
    assert decoded.shape[0] < side
    left, top, right, bottom = crop_box(decoded.shape[1], decoded.shape[0], RECIPE, draws)
    assert min(right - left, bottom - top) >= size


@pytest.mark.parametrize("number", range(6))
def test_a_crop_is_near_torchvisions_resized_crop(number: int) -> None:
    image = picture(90, 70)
    own = cut(encoded(image, "PNG"), number=number)
    left, top, right, bottom = crop_box(90, 70, RECIPE, Cutter([RECIPE], 32).draw(Draws(0), np.array([number]))[0][0])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    theirs = tv.resized_crop(pixels, top, left, bottom - top, right - left, [32, 32], antialias=True)
    difference = np.abs(own.astype(int) - theirs.permute(1, 2, 0).numpy().astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("number", range(4))
def test_a_crop_of_a_smaller_scale_is_near_that_of_the_whole(number: int) -> None:
    image = picture(640, 480).resize((1280, 960))
    data = encoded(image, "JPEG")
    height, width, _ = decode(data, smallest_crop_scale([RECIPE], 32)).pixels.shape
    assert width == 160
    box = crop_box(width, height, RECIPE, Cutter([RECIPE], 32).draw(Draws(0), np.array([number]))[0][0])
    whole = image.resize((32, 32), Image.Resampling.BILINEAR, box=[8 * edge for edge in box])
    assert np.abs(cut(data, number=number).astype(int) - np.asarray(whole)).mean() < 3


def test_a_crop_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    cutter = Cutter([RECIPE, RECIPE], 32)
    whole = cutter.draw(Draws(4, 2), np.array([8, 3, 2**40, 5]))
    alone = cutter.draw(Draws(4, 2), np.array([2**40]))
    assert [slot.shape for slot in whole] == [(4, CROP_DRAWS)] * 2
    for many, one in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(many[2], one[0])
    assert not np.array_equal(whole[0], whole[1])


def test_all_views_are_cut_from_one_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = views.decode
    monkeypatch.setattr(views, "decode", lambda *given: opened.append(1) or original(*given))
    cutter = Cutter([RECIPE, RECIPE, RECIPE], 16)
    out = [np.zeros((16, 16, 3), dtype=np.uint8) for _ in range(3)]
    draws = [d[0] for d in cutter.draw(Draws(0), np.array([1]))]
    cutter.cut(encoded(picture(60, 50), "JPEG"), draws, out)
    assert len(opened) == 1
    assert len({view.tobytes() for view in out}) == 3


def test_each_kind_of_view_takes_turns_at_its_own_recipes() -> None:
    first, second, small = Augmentation(0.4), Augmentation(0.5), Augmentation(0.05, local=True)
    assert of_views([small, first, second], 3, 2) == [first, second, first, small, small]
    assert of_views([first], 2, 0) == [first, first]


def test_views_of_several_sides_are_cut_from_one_image_as_if_each_were_alone() -> None:
    small, data, ids = Augmentation(0.05, 0.14, local=True), encoded(picture(300, 200), "PNG"), np.array([7])
    recipes, sides = [RECIPE, small, small], [32, 12, 12]
    cutter = Cutter(recipes, sides)
    out = [np.zeros((side, side, 3), dtype=np.uint8) for side in sides]
    draws = [d[0] for d in cutter.draw(Draws(0), ids)]
    cutter.cut(data, draws, out)
    assert [cutter.side(slot) for slot in range(3)] == sides
    assert not np.array_equal(out[1], out[2])
    for recipe, side, numbers, view in zip(recipes, sides, draws, out, strict=True):
        alone = np.zeros_like(view)
        Cutter([recipe], side).cut(data, [numbers], [alone])
        np.testing.assert_array_equal(view, alone)


@pytest.mark.parametrize("local", [96, 20])
def test_an_image_is_decoded_as_large_as_the_view_that_needs_most(local: int) -> None:
    small = Augmentation(0.05, 0.14, local=True)
    both = smallest_crop_scale([RECIPE], 64), smallest_crop_scale([small], local)
    assert Cutter([RECIPE, small], [64, local]).needed == max(both)
