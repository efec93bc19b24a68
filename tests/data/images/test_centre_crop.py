"""The view for evaluation is torchvision's Resize and CenterCrop, of an image and of its smaller copies."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Resize

from dist_ssl.core.draws import Draws
from dist_ssl.data.images.centre_crop import CentreCrop
from dist_ssl.data.images.image_rules import Pixels

SIDES = st.integers(20, 260)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture, so that pixels differ from their neighbours by little."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of the picture."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def cut(data: bytes, resize: int, crop: int) -> Pixels:
    """The view."""
    out = np.zeros((crop, crop, 3), dtype=np.uint8)
    assert CentreCrop(resize, crop).cut(data, [np.empty(0, dtype=np.float32)], [out]) in ("", "format")
    return out


def published(image: Image.Image, resize: int, crop: int) -> Pixels:
    """The view that the papers' code makes."""
    return np.asarray(CenterCrop(crop)(Resize(resize)(image)))


@given(SIDES, SIDES, st.integers(8, 80), st.floats(0.5, 1))
def test_the_view_is_that_of_torchvision(width: int, height: int, resize: int, share: float) -> None:
    if max(width, height) > 8 * min(width, height):
        return  # only the middle of so long an image is resized
    image, crop = picture(width, height), max(1, round(resize * share))
    own = cut(encoded(image), resize, crop).astype(int)
    assert np.abs(own - published(image, resize, crop)).max() <= 1


def test_a_jpeg_that_is_decoded_at_a_smaller_scale_gives_nearly_the_same_view() -> None:
    image = picture(1000, 750)
    own = cut(encoded(image, "JPEG"), 128, 112).astype(int)
    assert np.abs(own - published(image, 128, 112)).mean() < 1.5


def test_nothing_is_squeezed() -> None:
    """A circle in a wide picture stays a circle."""
    y, x = np.mgrid[:60, :120]
    disc = ((x - 60) ** 2 + (y - 30) ** 2 < 20**2).astype(np.uint8) * 255
    view = cut(encoded(Image.fromarray(np.repeat(disc[..., None], 3, axis=2))), 30, 30)[..., 0] > 127
    assert abs(int(view.any(0).sum()) - int(view.any(1).sum())) <= 1
    assert 18 <= view.any(0).sum() <= 21


def test_nothing_is_drawn() -> None:
    assert [d.shape for d in CentreCrop(32, 28).draw(Draws(0), np.arange(5))] == [(5, 0)]


@pytest.mark.parametrize(("width", "height"), [(4000, 1), (1, 4000)])
def test_the_longest_images_take_no_more_memory(width: int, height: int) -> None:
    """An image of one row would be 4000 * 256 px wide once its shorter side is 256 px."""
    assert cut(encoded(picture(width, height)), 256, 224).shape == (224, 224, 3)


@pytest.mark.parametrize("side", [32, 40, 64])
def test_a_smaller_copy_gives_nearly_the_same_view(side: int) -> None:
    image = picture(90, 70)
    crops = CentreCrop(32, 28).crops((90, 70), [])
    copy = image.resize((round(90 * side / 70), side), Image.Resampling.BILINEAR)
    out = np.zeros((28, 28, 3), dtype=np.uint8)
    assert crops.cut(encoded(copy), [out]) == "format"
    view = published(image, 32, 28)
    apart = [np.abs(out.astype(int) - np.roll(view, shift, (0, 1))).mean() for shift in ((0, 0), (0, 1), (1, 0))]
    assert apart[0] < min(apart[1:]) / 2, "the copy is smoother, but everything is at its place"
    assert crops.enlarged(side) == 32 / side
    assert crops.boxes == [(14, 4, 75, 65)]
