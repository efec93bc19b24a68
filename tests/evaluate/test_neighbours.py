"""The sheet of nearest neighbours: an image is no neighbour of itself, and frames say whose class is the same."""

import numpy as np
import pytest
import torch

from dist_ssl.data.images.sheet_text import BACK
from dist_ssl.evaluate.neighbours import FRAME, OTHER, QUERY, SAME, SIDE, Tile, drawn_sheet, without_itself


def tile(value: int, side: int, same: bool | None) -> Tile:
    """A colour that no text has."""
    return Tile(np.full((side, side, 3), (value, 100, 200), np.uint8), "0.5", "Zoë 猫 and more than fits", same)


def test_an_image_is_not_a_neighbour_of_itself() -> None:
    found = torch.tensor([[7, 2, 3], [4, 8, 5], [1, 2, 9]])
    similar = torch.tensor([[1.0, 0.9, 0.8], [1.0, 1.0, 0.3], [0.9, 0.5, 0.1]])
    nearer, numbers = without_itself(similar, found, torch.tensor([7, 8, 6]))
    assert numbers.tolist() == [[2, 3], [4, 5], [1, 2]]
    torch.testing.assert_close(nearer, torch.tensor([[0.9, 0.8], [1.0, 0.3], [0.9, 0.5]]))


def test_every_image_is_there_in_the_frame_of_its_class() -> None:
    """Small images are enlarged by whole pixels, large ones are reduced; each lies within its frame."""
    rows = [
        [tile(10, 32, None), tile(20, 32, True), tile(30, 224, False)],
        [tile(40, 7, None)] + 2 * [tile(50, 96, True)],
    ]
    page = np.asarray(drawn_sheet(rows))
    frames = [[QUERY, SAME, OTHER], [QUERY, SAME, SAME]]
    for row, colours in zip(rows, frames, strict=True):
        for one, colour in zip(row, colours, strict=True):
            own = one.pixels[0, 0]
            y, x = (int(axis.min()) for axis in np.nonzero((page == own).all(2)))
            assert (page[y : y + SIDE, x : x + SIDE] == own).all()
            corner = page[y - FRAME : y + SIDE + FRAME, x - FRAME : x + SIDE + FRAME]
            assert (corner[0] == colour).all()
            assert (corner[:, -1] == colour).all()
    assert (page[-1] == BACK).all(), "the last line of text is not cut off"


def test_without_labels_no_frame_speaks_of_classes() -> None:
    page = np.asarray(drawn_sheet([[tile(10, 32, None), tile(20, 32, None)]]))
    for colour in (SAME, OTHER):
        assert not (page == colour).all(2).any()


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_images_of_other_channels_are_shown_in_colours(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, channels), dtype=np.uint8)
    shown = pixels[..., :3] if channels > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    sheets = [drawn_sheet([[Tile(values, "", "", None)]]) for values in (pixels, shown)]
    assert np.array_equal(*map(np.asarray, sheets))
