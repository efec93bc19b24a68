"""Views cut by compiled loops have the bits of torch's resize, whatever the sides, the boxes and how many there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_ssl.data.images import resize
from dist_ssl.data.images.decode import Box


@pytest.fixture(autouse=True, scope="module")
def looped() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "SMALLEST_LOOPED", 0)
        yield


def same(pixels: np.ndarray, boxes: list[Box], sides: list[int]) -> None:
    """Buffers with guards before and behind, so that nothing is written elsewhere."""
    memory = [np.full(3 * side * side + 64, 7, dtype=np.uint8) for side in sides]
    out = [m[32:-32].reshape(side, side, 3) for m, side in zip(memory, sides, strict=True)]
    resize.cut_views(pixels, boxes, out)
    for box, side, view, whole in zip(boxes, sides, out, memory, strict=True):
        np.testing.assert_array_equal(view, resize.resize(pixels, box, side), f"{pixels.shape} {box} {side}")
        assert set(whole[:32]) | set(whole[-32:]) == {7}


@st.composite
def box_in(draw: st.DrawFn, width: int, height: int) -> Box:
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 400), st.integers(1, 400), st.integers(1, 5), st.booleans())
def test_bits_are_those_of_torch(data: st.DataObject, width: int, height: int, views: int, white: bool) -> None:
    rng = np.random.default_rng(width * 401 + height)
    pixels = rng.integers(255 if white else 0, 256, (height, width, 3), dtype=np.uint8)
    boxes = [data.draw(box_in(width, height)) for _ in range(views)]
    same(pixels, boxes, [data.draw(st.integers(1, 260)) for _ in range(views)])


@pytest.mark.parametrize(("width", "height"), [(3000, 9), (9, 3000), (2501, 1999), (1, 1), (7, 8), (8, 7)])
@pytest.mark.parametrize("side", [1, 8, 224])
def test_very_large_and_very_small_images(width: int, height: int, side: int) -> None:
    pixels = np.random.default_rng(side).integers(0, 256, (height, width, 3), dtype=np.uint8)
    inner = (width // 3, height // 3, width // 3 + 1, height // 3 + 1)
    same(pixels, [(0, 0, width, height), inner], [side, side])


def test_small_views_do_without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "SMALLEST_LOOPED", 64)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    monkeypatch.setitem(__import__("sys").modules, "dist_ssl.data.images.resize_cpu", None)
    same(pixels, [(0, 0, 60, 50)], [63])
    with pytest.raises(ImportError):
        same(pixels, [(0, 0, 60, 50)], [64])


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
@pytest.mark.parametrize("side", [20, 80])
def test_every_channel_is_resized_as_one_of_three(channels: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, channels), dtype=np.uint8)
    views = [np.zeros((side, side, channels), dtype=np.uint8)]
    resize.cut_views(pixels, [(3, 2, 66, 89)], views)
    for channel in range(channels):
        alike = np.repeat(pixels[..., channel : channel + 1], 3, axis=2)
        expected = resize.resize(alike, (3, 2, 66, 89), side)[..., 0]
        assert np.abs(views[0][..., channel].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("channels", "side"), [(3, 20), (3, 80), (5, 30)])
def test_sixteen_bits_are_resized_as_precisely(channels: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, channels), dtype=np.uint8)
    narrow, wide = (np.zeros((side, side, channels), dtype=dtype) for dtype in (np.uint8, np.uint16))
    resize.cut_views(pixels, [(3, 2, 66, 89)], [narrow])
    resize.cut_views(pixels * np.uint16(257), [(3, 2, 66, 89)], [wide])
    assert np.abs(wide / 257 - narrow).max() < 1.6, "eight bits are rounded twice"
