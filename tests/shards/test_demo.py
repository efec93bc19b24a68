"""The demo data set is keyed by (seed, split, index) alone, balanced, and not told apart by colour.

Pixel checksums are not pinned: resampling and rounding may change between Pillow versions, the properties may not.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shards.sources import demo

ROOT = Path(__file__).resolve().parents[2]


def pixels(seed: int, split: str, index: int) -> bytes:
    """The raw RGB bytes of one image."""
    return demo.draw(seed, split, index)[0].tobytes()


def mean_colours(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean RGB [count, 3] and labels [count] of the first images of a split."""
    pairs = [demo.draw(0, split, index) for index in range(count)]
    means = [np.asarray(image, np.float64).mean((0, 1)) for image, _ in pairs]
    return np.array(means), np.array([label for _, label in pairs])


def nearest_class_mean(split_means: tuple[np.ndarray, np.ndarray], means: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of assigning each row of means to the class whose average over the first split is nearest."""
    known, known_labels = split_means
    centres = np.stack([known[known_labels == label].mean(0) for label in range(len(demo.CLASSES))])
    guesses = ((means[:, None] - centres) ** 2).sum(2).argmin(1)
    return float((guesses == labels).mean())


def test_same_key_gives_the_same_pixels_in_any_order() -> None:
    forward = [pixels(3, "train", index) for index in range(20)]
    backward = [pixels(3, "train", index) for index in reversed(range(20))]
    assert forward == backward[::-1]


def test_another_process_draws_the_same_pixels() -> None:
    code = "import sys; from shards.sources import demo; sys.stdout.buffer.write(demo.draw(0, 'val', 7)[0].tobytes())"
    env = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": str(ROOT)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert other.stdout == pixels(0, "val", 7)


@pytest.mark.parametrize("key", [(1, "train", 0), (0, "val", 0), (0, "train", 10)])
def test_every_part_of_the_key_matters(key: tuple[int, str, int]) -> None:
    assert pixels(*key) != pixels(0, "train", 0)


def test_no_two_images_of_a_split_are_alike() -> None:
    assert len({pixels(0, "train", index) for index in range(300)}) == 300


def test_images_are_small_rgb_and_use_the_range() -> None:
    images = [demo.draw(0, "train", index)[0] for index in range(200)]
    assert {(image.mode, image.size) for image in images} == {("RGB", (48, 48))}
    assert all(np.asarray(image).std() > 8 for image in images)


def test_labels_are_balanced_and_follow_the_index() -> None:
    labels = [label for _, _, label in demo.samples("val", 50)]
    assert labels == [index % 10 for index in range(50)]


def test_ten_distinct_names_with_distinct_families() -> None:
    shapes, textures = zip(*demo.FAMILIES.values(), strict=True)
    assert len(set(demo.CLASSES)) == len(set(shapes)) == len(set(textures)) == 10
    assert set(shapes) == set(demo.SHAPES)
    assert set(textures) == set(demo.TEXTURES)


def test_samples_are_jpeg_files_near_the_drawn_image() -> None:
    for index, (key, data, label) in enumerate(demo.samples("train", 12, seed=4)):
        image, drawn_label = demo.draw(4, "train", index)
        assert (key, label) == (f"demo-train-{index:08d}", drawn_label)
        stored = Image.open(io.BytesIO(data))
        assert stored.format == "JPEG"
        assert np.abs(np.asarray(stored, float) - np.asarray(image, float)).mean() < 12


def test_samples_are_reproducible() -> None:
    assert list(demo.samples("train", 10)) == list(demo.samples("train", 10))
    assert list(demo.samples("train", 10)) != list(demo.samples("train", 10, seed=1))


def test_mean_colour_does_not_reveal_the_class() -> None:
    accuracy = nearest_class_mean(mean_colours("train", 1500), *mean_colours("val", 1000))
    assert accuracy < 0.2


@pytest.mark.parametrize("name", list(demo.SHAPES))
def test_shapes_fill_the_middle_of_their_unit_square(name: str) -> None:
    steps = np.linspace(-1.2, 1.2, 97, dtype=np.float32)
    inside = demo.SHAPES[name](*np.meshgrid(steps, steps)) < 0
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    assert 0.15 < inside.mean() < 0.65
    assert not border.any()


@pytest.mark.parametrize("name", list(demo.TEXTURES))
def test_textures_show_both_colours_in_single_precision(name: str) -> None:
    steps = np.linspace(-3, 3, 96, dtype=np.float32)
    field = demo.TEXTURES[name](*np.meshgrid(steps, steps), np.random.default_rng(0))
    assert field.dtype == np.float32
    assert 0.2 < (field > 0).mean() < 0.8
