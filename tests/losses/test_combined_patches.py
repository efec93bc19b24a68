"""Fast-MoCo: tiles, combinations, and the loss over both views and all of them."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.losses.combined_patches import combine, combined_cross_entropy, split
from tests.losses.tensors import close, normal, with_gradients


def test_the_published_shapes() -> None:
    tiles = split(torch.zeros(2, 3, 224, 224))
    assert tiles.shape == (8, 3, 112, 112)
    combined = combine(torch.zeros(8, 2048))
    assert combined.shape == (12, 2048)
    predictions = torch.stack([combined, combined]).view(2, 6, 2, 2048)
    assert predictions.shape[0] * predictions.shape[1] == 12
    assert combined_cross_entropy(predictions, torch.zeros(2, 2, 2048), 0).shape == (2,)


def test_tiles_come_tile_by_tile_down_the_columns_from_the_left() -> None:
    view = torch.arange(16.0).view(1, 1, 4, 4)
    two = torch.cat([view, view + 100])
    left_top, left_bottom, right_top, right_bottom = split(two).view(4, 2, 1, 2, 2)
    assert left_top[0, 0].tolist() == [[0, 1], [4, 5]]
    assert left_bottom[0, 0].tolist() == [[8, 9], [12, 13]]
    assert right_top[0, 0].tolist() == [[2, 3], [6, 7]]
    assert right_bottom[1, 0].tolist() == [[110, 111], [114, 115]]


@pytest.mark.parametrize(("parts", "side"), [(1, 5), (2, 6), (3, 9)])
def test_tiles_cover_the_view_once(parts: int, side: int) -> None:
    view = torch.arange(2.0 * side * side).view(2, 1, side, side)
    assert sorted(split(view, parts).flatten().tolist()) == view.flatten().tolist()


@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (2, 3, 8, 7)])
def test_ragged_tiles_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be split into 2 x 2 tiles"):
        split(torch.zeros(shape))


@given(st.integers(1, 5), st.data())
def test_combinations_are_means_of_subsets_in_lexicographic_order(tiles: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, tiles))
    features = normal(tiles * 3, 4)
    expected = [
        sum(features[tile * 3 + b] for tile in subset) / size
        for subset in combinations(range(tiles), size)
        for b in range(3)
    ]
    torch.testing.assert_close(combine(features, tiles, size), torch.stack(expected), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_there_are_as_many_combinations_as_subsets(size: int) -> None:
    assert len(combine(normal(8, 3), 4, size)) == 2 * math.comb(4, size)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_loss_and_its_gradient_equal_the_terms_written_out(temperature: float) -> None:
    predictions, keys, first = normal(2, 6, 3, 5, seed=1), normal(2, 8, 5, seed=2), 4
    valid = torch.arange(8) != 1

    def slow(predictions):
        rows = []
        for b in range(3):
            own, terms = first + b, []
            for v in range(2):
                for s in range(6):
                    like = F.cosine_similarity(predictions[v, s, b], keys[1 - v]) / temperature
                    counted = valid | (torch.arange(8) == own)
                    terms.append(like[counted].exp().sum().log() - like[own])
            rows.append(sum(terms) / 12)
        return torch.stack(rows)

    def own(predictions):
        return combined_cross_entropy(predictions, keys, first, temperature, valid)

    close(with_gradients(own, predictions), with_gradients(slow, predictions))


def test_the_published_start_and_floor_at_512_samples() -> None:
    alike = torch.ones(2, 6, 4, 3).double()
    start = combined_cross_entropy(alike, torch.ones(2, 512, 3).double(), 0)
    assert start.tolist() == pytest.approx([math.log(512)] * 4)
    assert start.tolist() == pytest.approx([6.238] * 4, abs=6e-4)
    keys = torch.eye(512).double().expand(2, -1, -1)
    floor = combined_cross_entropy(keys[:, None, :4].expand(-1, 6, -1, -1), keys, 0)
    assert floor.tolist() == pytest.approx([5.242] * 4, abs=6e-4)
