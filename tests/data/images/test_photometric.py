"""Every part agrees with torchvision, the batch with one image at a time, and a sample's view is its own alone."""

import colorsys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.data.images import photometric
from dist_ssl.data.images.colour_constants import BRIGHTNESS, CONTRAST, HUE, NOTHING, PARTS, SATURATION
from dist_ssl.data.images.photometric import Photometry
from dist_ssl.data.images.views import Augmentation
from shards.picture_rules import IMAGENET
from tests.colours import MOCO

MEAN, STD = IMAGENET
FULL = replace(MOCO, solarize_p=0.3, invert_p=0.3, turn_p=0.5)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


@pytest.fixture(params=[False, True], ids=["torch", "loops"])
def looped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether single-precision views on the CPU are coloured by compiled loops, whatever their size."""
    monkeypatch.setattr(photometric, "SMALLEST_LOOPED", 0 if request.param else 10**6)
    return bool(request.param)


def images(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """[count, size, size, 3] uint8: noise at two scales, with flat grey, black, white and saturated corners."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, size // 4, size // 4, 3)).repeat(4, 1).repeat(4, 2)
    pixels = (0.5 * coarse + 0.5 * rng.integers(0, 256, (count, size, size, 3))).astype(np.uint8)
    pixels[:, :4, :4] = 100
    pixels[:, :4, -4:] = 0
    pixels[:, -4:, :4] = 255
    pixels[:, -4:, -4:] = (255, 0, 0)
    return pixels


def floats(count: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """[count, 3, 16, 16] in [0, 1]."""
    return torch.from_numpy(images(count)).permute(0, 3, 1, 2).to(dtype) / 255


def column(values: list[float]) -> Tensor:
    """[B, 1, 1, 1] float64."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (BRIGHTNESS, tv.adjust_brightness),
        (CONTRAST, tv.adjust_contrast),
        (SATURATION, tv.adjust_saturation),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_blends_equal_torchvision(part: int, change: Callable[[Tensor, float], Tensor]) -> None:
    factors = np.full((6, PARTS), 99.0)
    factors[:, part] = [0.0, 0.3, 0.6, 1.0, 1.4, 2.5]
    x = floats(len(factors))
    expected = torch.stack([change(image, factor) for image, factor in zip(x, factors[:, part], strict=True)])
    own = photometric._blend_some(x, np.full(len(factors), part), factors)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", [HUE, NOTHING])
def test_a_sample_that_is_not_blended_keeps_its_bits(part: int) -> None:
    x = floats(6, torch.float32)
    parts = np.array([part, CONTRAST, part, part, SATURATION, part])
    own = photometric._blend_some(x, parts, np.full((6, PARTS), 0.3))
    assert [torch.equal(a, b) for a, b in zip(own, x, strict=True)] == [p == part for p in parts]


def test_hue_equals_torchvision() -> None:
    turns = [-0.5, -0.1, 0.0, 0.07, 0.25, 0.5]
    x = floats(len(turns))
    expected = torch.stack([tv.adjust_hue(image, turn) for image, turn in zip(x, turns, strict=True)])
    # torchvision computes in single precision whatever it is given
    torch.testing.assert_close(photometric.hue(x, column(turns)), expected, rtol=0, atol=1e-6)


def slow_hue(x: Tensor, turns: float) -> Tensor:
    """One image [3, H, W], pixel by pixel through the standard library."""
    colours = [colorsys.rgb_to_hsv(*colour) for colour in x.flatten(1).T.tolist()]
    turned = [colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in colours]
    return torch.tensor(turned, dtype=x.dtype).T.reshape(x.shape)


def test_hue_equals_the_standard_library() -> None:
    turns = [-0.5, -0.1, 0.0, 0.07, 0.25, 0.5]
    x = floats(len(turns))
    expected = torch.stack([slow_hue(image, turn) for image, turn in zip(x, turns, strict=True)])
    torch.testing.assert_close(photometric.hue(x, column(turns)), expected, rtol=0, atol=1e-12)


def test_hue_leaves_greys_as_they_are() -> None:
    gray = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    torch.testing.assert_close(photometric.hue(gray, column([0.1, -0.3, 0.5])), gray, rtol=0, atol=1e-12)


def test_hue_turns_red_to_green_to_blue() -> None:
    red = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert photometric.hue(red, column([1 / 3])).flatten().tolist() == pytest.approx([0, 1, 0])
    assert photometric.hue(red, column([-1 / 3])).flatten().tolist() == pytest.approx([0, 0, 1])


def test_luma_equals_torchvision() -> None:
    torch.testing.assert_close(photometric.luma(floats()), tv.rgb_to_grayscale(floats()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_torchvision_with_a_wide_kernel(sigma: float) -> None:
    x = torch.from_numpy(images(3, 32)).permute(0, 3, 1, 2).double() / 255
    expected = tv.gaussian_blur(x, kernel_size=[31, 31], sigma=[sigma, sigma])
    own = photometric.blur(x, torch.full((3,), sigma, dtype=torch.float64))
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-10)


def test_blur_keeps_constant_images_and_the_range() -> None:
    flat = torch.full((2, 3, 16, 16), 0.7, dtype=torch.float64)
    sigma = torch.tensor([0.1, 4.0], dtype=torch.float64)
    torch.testing.assert_close(photometric.blur(flat, sigma), flat, rtol=0, atol=1e-12)
    blurred = photometric.blur(floats(2), sigma)
    assert blurred.min() >= 0
    assert blurred.max() <= 1 + 1e-12


def test_solarize_equals_torchvision() -> None:
    x = floats()
    view = Photometry(Augmentation(crop_min=1, solarize_p=1, flip_p=0), 0, (0, 0, 0), (1, 1, 1))
    own = view(torch.from_numpy(images(6)), np.arange(6), Draws(0), torch.float64)
    torch.testing.assert_close(own, tv.solarize(x, 128 / 255), rtol=0, atol=1e-12)


def test_flip_gray_and_normalise_equal_torchvision() -> None:
    view = Photometry(Augmentation(crop_min=1, gray_p=1, flip_p=1), 0, MEAN, STD)
    own = view(torch.from_numpy(images(6)), np.arange(6), Draws(0), torch.float64)
    gray = tv.rgb_to_grayscale(floats(), num_output_channels=3)
    expected = tv.normalize(tv.horizontal_flip(gray), list(MEAN), list(STD))
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


def test_nothing_but_normalising_is_left_where_all_probabilities_are_zero() -> None:
    view = Photometry(Augmentation(crop_min=1, flip_p=0), 0, MEAN, STD)
    own = view(torch.from_numpy(images(6)), np.arange(6), Draws(0), torch.float64)
    torch.testing.assert_close(own, tv.normalize(floats(), list(MEAN), list(STD)), rtol=0, atol=1e-12)


def test_a_view_is_channels_last_and_of_the_requested_dtype(looped: bool) -> None:
    out = Photometry(FULL, 0, MEAN, STD)(torch.from_numpy(images(5)), np.arange(5), Draws(0), torch.float32)
    assert (out.shape, out.dtype) == ((5, 3, 16, 16), torch.float32)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_pixels_are_not_written_to(looped: bool) -> None:
    pixels = torch.from_numpy(images(5))
    before = pixels.clone()
    Photometry(FULL, 0, MEAN, STD)(pixels, np.arange(5), Draws(0), torch.float32)
    assert torch.equal(pixels, before)


def slow_blur(x: Tensor, sigma: float) -> Tensor:
    """One image [3, S, S]: every pixel the weighted mean of its row, then of its column, edges mirrored once."""
    size = x.shape[-1]
    matrix = torch.zeros(size, size, dtype=x.dtype)
    for i in range(size):
        for j in range(-size + 1, 2 * size - 1):
            mirrored = -j if j < 0 else 2 * (size - 1) - j if j >= size else j
            matrix[i, mirrored] += np.exp(-0.5 * ((i - j) / sigma) ** 2)
    matrix = matrix / matrix.sum(1, keepdim=True)
    return matrix @ x @ matrix.T


def slow_view(
    pixels: np.ndarray, number: int, recipe: Augmentation, slot: int, draws: Draws, dtype: torch.dtype
) -> Tensor:
    """One image at a time, through the same draws: jitter, gray, blur, solarize, invert, flip, turn."""

    def drawn(purpose: Purpose, count: int) -> list[float]:
        return draws.uniform(purpose, np.array([number]), slot, count)[0].tolist()

    def between(low: float, high: float, share: float) -> float:
        low, high = np.float32(low), np.float32(high)
        return float(low + np.float32(share) * (high - low))

    x = torch.from_numpy(pixels).permute(2, 0, 1).to(dtype) / 255
    chosen, *numbers = drawn(Purpose.JITTER, 9)
    if chosen < recipe.jitter_p:
        parts = [
            lambda x, f: tv.adjust_brightness(x, f),
            lambda x, f: tv.adjust_contrast(x, f),
            lambda x, f: tv.adjust_saturation(x, f),
        ]
        spreads = [recipe.brightness, recipe.contrast, recipe.saturation]
        for part in sorted(range(4), key=lambda part: numbers[4 + part]):
            if part == 3 and recipe.hue > 0:
                x = slow_hue(x, between(-recipe.hue, recipe.hue, numbers[3]))
            elif part < 3 and spreads[part] > 0:
                spread = np.float32(spreads[part])
                x = parts[part](x, between(max(np.float32(1) - spread, 0), np.float32(1) + spread, numbers[part]))
    if drawn(Purpose.GRAY, 1)[0] < recipe.gray_p:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    chosen, share = drawn(Purpose.BLUR, 2)
    if chosen < recipe.blur_p:
        x = slow_blur(x, between(recipe.blur_min, recipe.blur_max, share))
    if drawn(Purpose.SOLARIZE, 1)[0] < recipe.solarize_p:
        x = tv.solarize(x, 128 / 255)
    if drawn(Purpose.INVERT, 1)[0] < recipe.invert_p:
        x = tv.invert(x)
    if drawn(Purpose.FLIP, 1)[0] < recipe.flip_p:
        x = tv.horizontal_flip(x)
    chosen, share = drawn(Purpose.TURN, 2)
    if chosen < recipe.turn_p:
        x = tv.rotate(x, 90 * (1 + int(np.float32(3) * np.float32(share))))
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slot", [0, 1])
def test_the_batch_equals_one_image_at_a_time(looped: bool, slot: int, dtype: torch.dtype) -> None:
    ids = np.array([3, 2**40, 17, 5, 0, 99, 1000, 8, 9, 11, 12, 13])
    pixels, draws = images(len(ids)), Draws(5, 2)
    own = Photometry(FULL, slot, (0, 0, 0), (1, 1, 1))(torch.from_numpy(pixels), ids, draws, dtype)
    slow = [slow_view(p, int(n), FULL, slot, draws, dtype) for p, n in zip(pixels, ids, strict=True)]
    torch.testing.assert_close(own, torch.stack(slow), rtol=0, atol=TOLERANCE[dtype])


def test_single_precision_is_near_double(looped: bool) -> None:
    ids = np.arange(64)
    pixels, draws = torch.from_numpy(images(64)), Draws(1)
    # without solarize, which jumps at its threshold
    view = Photometry(replace(FULL, solarize_p=0), 0, (0, 0, 0), (1, 1, 1))
    single, double = (view(pixels, ids, draws, dtype) for dtype in (torch.float32, torch.float64))
    assert (single.double() - double).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True))
def test_a_view_does_not_depend_on_the_rest_of_the_batch(dtype: torch.dtype, rows: list[int]) -> None:
    ids, pixels = np.arange(100, 112), torch.from_numpy(images(12))
    view = Photometry(FULL, 1, MEAN, STD)
    whole = view(pixels, ids, Draws(3), dtype)
    part = view(pixels[rows], ids[rows], Draws(3), dtype)
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=TOLERANCE[dtype])


def test_an_effect_is_as_frequent_as_its_probability(looped: bool) -> None:
    ids = np.arange(4000)
    pixels = torch.zeros(4000, 2, 2, 3, dtype=torch.uint8)
    pixels[:, :, 0] = 255
    view = Photometry(Augmentation(crop_min=1, flip_p=0.25), 0, (0, 0, 0), (1, 1, 1))
    flipped = view(pixels, ids, Draws(0), torch.float32)[:, 0, 0, 0] == 0
    assert abs(float(flipped.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_turns_are_by_one_two_or_three_quarters_equally_often(looped: bool) -> None:
    pixels = torch.zeros(3000, 2, 2, 3, dtype=torch.uint8)
    pixels[:, 0, 0] = 255
    view = Photometry(Augmentation(crop_min=1, flip_p=0, turn_p=0.75), 0, (0, 0, 0), (1, 1, 1))
    corners = view(pixels, np.arange(3000), Draws(0), torch.float32)[:, 0].flatten(1).mean(0)
    assert float(corners.sum()) == pytest.approx(1)
    assert corners.sub(0.25).abs().max() < 4 * (0.25 * 0.75 / 3000) ** 0.5


def test_slots_and_epochs_look_different() -> None:
    pixels, ids = torch.from_numpy(images(12)), np.arange(12)
    first = Photometry(FULL, 0, MEAN, STD)(pixels, ids, Draws(0), torch.float32)
    slot = Photometry(FULL, 1, MEAN, STD)(pixels, ids, Draws(0), torch.float32)
    epoch = Photometry(FULL, 0, MEAN, STD)(pixels, ids, Draws(0, 1), torch.float32)
    assert not torch.equal(first, slot)
    assert not torch.equal(first, epoch)


def test_values_stay_in_the_range_before_normalising(looped: bool) -> None:
    out = Photometry(FULL, 0, (0, 0, 0), (1, 1, 1))(
        torch.from_numpy(images(64)), np.arange(64), Draws(9), torch.float32
    )
    assert out.min() >= -1e-6
    assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_loops_give_the_same_bits_on_any_number_of_threads_and_in_any_batch(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, pixels = np.arange(12), torch.from_numpy(images(12, 64))
    view = Photometry(FULL, 1, MEAN, STD)
    whole = view(pixels, ids, Draws(3), torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(view(pixels, ids, Draws(3), torch.float32), whole)
    assert torch.equal(view(pixels[4:7], ids[4:7], Draws(3), torch.float32), whole[4:7])
    assert view(pixels[:0], ids[:0], Draws(3), torch.float32).shape == (0, 3, 64, 64)


def test_loops_equal_one_image_at_a_time_at_a_size_that_is_blurred_in_several_blocks() -> None:
    ids, pixels = np.arange(6), images(6, 72)
    recipe = replace(FULL, blur_p=1, blur_max=3)
    own = Photometry(recipe, 0, (0, 0, 0), (1, 1, 1))(torch.from_numpy(pixels), ids, Draws(8), torch.float32)
    slow = [slow_view(p, int(n), recipe, 0, Draws(8), torch.float32) for p, n in zip(pixels, ids, strict=True)]
    torch.testing.assert_close(own, torch.stack(slow), rtol=0, atol=2e-6)


PLAIN = replace(FULL, saturation=0.0, hue=0.0, gray_p=0.0)
"""What images of other channels than three keep of an augmentation."""


def test_what_needs_three_colours_is_left_out_of_other_images() -> None:
    assert FULL.of_channels(3) is FULL
    assert FULL.of_channels(1) == FULL.of_channels(5) == PLAIN


@pytest.mark.parametrize("channels", [1, 5])
def test_every_channel_is_changed_as_a_grey_picture_of_its_own_is(channels: int) -> None:
    ids, draws = np.arange(12), Draws(3)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (12, 16, 16, channels), dtype=np.uint8))
    mean, std = [0.3] * channels, [0.2] * channels
    found = Photometry(PLAIN, 0, mean, std)(pixels, ids, draws, torch.float64)
    assert found.shape == (12, channels, 16, 16)
    for channel in range(channels):
        grey = pixels[..., channel : channel + 1].expand(-1, -1, -1, 3).contiguous()
        expected = Photometry(PLAIN, 0, [0.3] * 3, [0.2] * 3)(grey, ids, draws, torch.float64)
        # torchvision's weights of the luma add up to 0.9999
        torch.testing.assert_close(found[:, channel], expected[:, 0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [16, 80])
def test_a_view_of_five_channels_is_its_own_alone_and_has_its_bits_in_any_batch(side: int) -> None:
    ids, draws = np.arange(6), Draws(3)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (6, side, side, 5), dtype=np.uint8))
    change = Photometry(PLAIN, 0, [0.3] * 5, [0.2] * 5)
    whole = change(pixels, ids, draws, torch.float32)
    for row in range(6):
        assert torch.equal(change(pixels[row : row + 1], ids[row : row + 1], draws, torch.float32)[0], whole[row])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_sixteen_bits_are_changed_as_eight_are(channels: int) -> None:
    ids, draws, recipe = np.arange(12), Draws(3), FULL.of_channels(channels)
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 16, channels), dtype=np.uint8)
    change = Photometry(recipe, 0, [0.3] * channels, [0.2] * channels)
    narrow, wide = (torch.from_numpy(own) for own in (pixels, pixels * np.uint16(257)))
    found = change(wide, ids, draws, torch.float64)
    torch.testing.assert_close(found, change(narrow, ids, draws, torch.float64), rtol=0, atol=1e-12)
