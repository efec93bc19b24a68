"""Crops: torchvision's boxes from our own draws, decoded once, and unreadable bytes told apart from images."""

import io
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from dist_ssl.data import views
from dist_ssl.data.decode import UnreadableError, open_image
from dist_ssl.data.views import (
    CROP_DRAWS,
    Cutter,
    Recipe,
    Whole,
    centre_box,
    crop_box,
    smallest_crop_scale,
)
from dist_ssl.draws import Draws

RECIPE = Recipe(
    crop_min=0.2,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_p=0.8,
    gray_p=0.2,
    blur_p=0.5,
    solarize_p=0.2,
    invert_p=0.4,
    turn_p=0.4,
)
SIDES = st.integers(1, 700)
RECIPES = st.builds(
    Recipe,
    crop_min=st.floats(0.01, 0.9),
    crop_max=st.floats(0.9, 1),
    aspect=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.5, 1.5)]),
)


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


def cut(data: bytes, recipe: Recipe = RECIPE, size: int = 32, number: int = 0) -> np.ndarray:
    """One crop, [size, size, 3] uint8."""
    cutter = Cutter([recipe], size)
    out = np.zeros((size, size, 3), dtype=np.uint8)
    cutter.cut(data, [d[0] for d in cutter.draw(Draws(0), np.array([number]))], [out])
    return out


def slow_box(width: int, height: int, recipe: Recipe, draws: list[float]) -> tuple[int, int, int, int]:
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
def test_boxes_equal_the_slow_reference(width: int, height: int, recipe: Recipe, seed: int) -> None:
    draws = numbers(seed)
    assert crop_box(width, height, recipe, draws) == slow_box(width, height, recipe, draws.tolist())


@given(SIDES, SIDES, RECIPES, st.integers(0, 2**32))
def test_boxes_lie_within_the_image(width: int, height: int, recipe: Recipe, seed: int) -> None:
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
    whole = Recipe(crop_min=1.0)
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


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
    ],
)
def test_images_of_every_kind_become_rgb(mode: str, kind: str) -> None:
    image = picture(60, 50, mode)
    expected = np.asarray(image.convert("RGB"), dtype=float)
    opened, width, height = open_image(encoded(image, kind), 1000)
    assert (opened.mode, width, height) == ("RGB", 60, 50)
    assert np.abs(np.asarray(opened, dtype=float) - expected).mean() < 6
    assert cut(encoded(image, kind)).std() > 5


def test_draft_decoding_leaves_as_many_pixels_as_are_needed() -> None:
    data = encoded(picture(640, 480), "JPEG")
    assert open_image(data, 60)[0].size == (80, 60)
    assert open_image(data, 61)[0].size == (160, 120)
    assert open_image(data, 480)[0].size == (640, 480)
    assert open_image(data, 60)[1:] == (640, 480)


@pytest.mark.parametrize("turn", [0.0, 0.5, 1 - 2**-24], ids=["tall", "square", "wide"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_no_crop_is_enlarged_where_the_original_has_enough_pixels(share: float, turn: float) -> None:
    size = 32
    side = 2 * smallest_crop_scale([RECIPE], size)
    draws = np.array([share] * 10 + [turn] * 10 + [0.5, 0.5], dtype=np.float32)
    left, top, right, bottom = crop_box(side, side, RECIPE, draws)
    assert min(right - left, bottom - top) >= size
    opened, width, _ = open_image(encoded(picture(side, side), "JPEG"), smallest_crop_scale([RECIPE], size))
    assert min(right - left, bottom - top) * opened.width / width >= size - 1


@pytest.mark.parametrize("number", range(6))
def test_a_crop_is_near_torchvisions_resized_crop(number: int) -> None:
    image = picture(90, 70)
    own = cut(encoded(image, "PNG"), number=number)
    left, top, right, bottom = crop_box(90, 70, RECIPE, Cutter([RECIPE], 32).draw(Draws(0), np.array([number]))[0][0])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    theirs = tv.resized_crop(pixels, top, left, bottom - top, right - left, [32, 32], antialias=True)
    difference = np.abs(own.astype(int) - theirs.permute(1, 2, 0).numpy().astype(int))
    # the border sees a little beyond the box; within it both round to the nearest level
    assert difference[2:-2, 2:-2].max() <= 1
    assert difference.max() <= 8


@pytest.mark.parametrize("number", range(4))
def test_a_crop_of_a_draft_is_near_the_crop_of_the_whole(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(640, 480).resize((1280, 960)), "JPEG")
    draft = cut(data, number=number)
    monkeypatch.setattr(views, "smallest_crop_scale", lambda *_: 10**6)
    whole = cut(data, number=number)
    assert np.abs(draft.astype(int) - whole.astype(int)).mean() < 3


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
    original = views.open_image
    monkeypatch.setattr(views, "open_image", lambda *given: opened.append(1) or original(*given))
    cutter = Cutter([RECIPE, RECIPE, RECIPE], 16)
    out = [np.zeros((16, 16, 3), dtype=np.uint8) for _ in range(3)]
    draws = [d[0] for d in cutter.draw(Draws(0), np.array([1]))]
    cutter.cut(encoded(picture(60, 50), "JPEG"), draws, out)
    assert len(opened) == 1
    assert len({view.tobytes() for view in out}) == 3


def test_the_whole_image_is_squeezed_without_draws() -> None:
    image, whole = picture(90, 60), Whole(32)
    out = np.zeros((32, 32, 3), dtype=np.uint8)
    assert [d.shape for d in whole.draw(Draws(0), np.arange(5))] == [(5, 0)]
    whole.cut(encoded(image, "PNG"), [np.empty(0, dtype=np.float32)], [out])
    np.testing.assert_array_equal(out, np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image at all",
        bytes(1000),
        encoded(picture(60, 50), "JPEG")[:20],
        encoded(picture(60, 50), "JPEG")[:-400],
        encoded(picture(60, 50), "PNG")[:-400],
        encoded(picture(60, 50), "WEBP")[:-100],
        encoded(picture(60, 50), "JPEG")[100:],
    ],
    ids=["empty", "garbage", "zeros", "head", "short jpeg", "short png", "short webp", "headless"],
)
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableError):
        cut(data)


def test_an_image_far_too_large_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match="DecompressionBomb"):
        cut(encoded(picture(60, 50), "PNG"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_are_an_image_or_unreadable_and_nothing_else(kind: str) -> None:
    whole = encoded(picture(40, 30), kind)
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        places = rng.integers(0, min(len(data), int(rng.choice([30, 100, 10**6]))), rng.integers(1, 6))
        for place in places:
            data[place] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        with suppress(UnreadableError):
            assert cut(bytes(data), size=8).shape == (8, 8, 3)
