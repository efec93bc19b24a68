"""Changes that pictures vary by themselves are not noticed; those that they do not vary by are."""

import numpy as np
import pytest

from dist_ssl.core.draws import Doubles
from shards.invariance import SIDE, distinguished, hues, outlines, recoloured, turned

COUNT = 600


def blobs(seed: int, angles: float, colours: float) -> Doubles:
    """Return pictures [600, 32, 32, 3] of an edge each, turned by up to `angles` and of up to `colours` of all hues."""
    random = np.random.default_rng(seed)
    down, right = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle, shift = random.uniform(0, angles, COUNT), random.uniform(-0.5, 0.5, COUNT)
    across = np.cos(angle)[:, None, None] * down + np.sin(angle)[:, None, None] * right
    mask = (across > shift[:, None, None]).astype(float)[..., None]
    hue = 2 * np.pi * (random.uniform(0, colours, COUNT)[:, None] - np.array([0, 1 / 3, 2 / 3]))
    colour = (0.5 + 0.3 * np.cos(hue))[:, None, None, :]
    return np.clip(mask * colour + (1 - mask) * 0.5 + random.normal(0, 0.02, (COUNT, SIDE, SIDE, 3)), 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_what_lies_at_any_angle_is_not_told_from_its_turns_and_what_lies_level_is(seed: int) -> None:
    assert turned(blobs(seed, 2 * np.pi, 1.0)) < 0.56
    assert turned(blobs(seed, 0.5, 1.0)) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_any_colours_are_not_told_from_others_and_some_colours_are(seed: int) -> None:
    assert recoloured(blobs(seed, 2 * np.pi, 1.0)) < 0.56
    assert recoloured(blobs(seed, 2 * np.pi, 0.4)) > 0.9


def test_equal_pairs_are_told_in_half_of_all_cases_and_apart_ones_always() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 5))
    assert distinguished(rows, rows) == 0.5
    assert distinguished(rows, rows + 3) == 1.0


def test_hues_are_counted_by_their_chroma() -> None:
    picture = np.zeros((1, SIDE, SIDE, 3))
    picture[..., 0] = 1.0
    picture[:, :8, :, 1] = 1.0  # a quarter yellow, the rest red
    found = hues(picture)[0]
    assert found[0] == 0.75
    assert found[24 // 6] == 0.25
    assert found.sum() == 1
    assert not hues(np.full((1, SIDE, SIDE, 3), 0.3)).any(), "grey has no hue"


def test_outlines_of_many_pictures_are_those_of_each() -> None:
    pictures = blobs(5, 1.0, 1.0)[:70]
    each = np.concatenate([outlines(pictures[n : n + 1]) for n in range(70)])
    np.testing.assert_array_equal(outlines(pictures), each)
