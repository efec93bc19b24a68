"""A sheet of nearest neighbours: each row shows an image and the images whose features are nearest to its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dist_ssl.data.images.image_rules import in_colours
from dist_ssl.data.images.sheet_text import BACK, INK, LINE, Font, drawable, font_of_line

SIDE, FRAME, GAP = 96, 4, 8
"""Side of an image on the sheet, width of its frame, and distance to the next one, px."""
FIRST_GAP = 3 * GAP
"""Distance of a row's image to its neighbours, px."""
LONGEST = 15
"""Most characters of a line below an image."""
LEAST_WIDTH = 560
"""Width of the legend, px."""
QUERY, SAME, OTHER = INK, (0, 114, 178), (230, 159, 0)
COLOURS: dict[bool | None, tuple[int, int, int]] = {True: SAME, False: OTHER, None: (190, 190, 190)}
"""Colours of the frames, which people who cannot tell red from green can tell apart."""


@dataclass(frozen=True)
class Tile:
    """An image of the sheet, [S, S, C] uint8, and the two lines below it; `same`: its class is that of the row's image.

    `same` is None where that is not known, and for the first image of a row.
    """

    pixels: npt.NDArray[np.uint8]
    caption: str
    name: str
    same: bool | None


def without_itself(similar: Tensor, found: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return similarities and neighbours, [Q, k - 1] each, of [Q, k] of them, nearest first, without `own`, [Q].

    A row in which the image itself is not found loses its last neighbour.
    """
    places = torch.arange(found.shape[1])
    itself = found == own[:, None]
    left_out = torch.where(itself.any(1), itself.int().argmax(1), found.shape[1] - 1)
    keep = places != left_out[:, None]
    shape = len(found), found.shape[1] - 1
    return similar[keep].view(shape), found[keep].view(shape)


def drawn_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Return the sheet of some rows of as many images each, of which the first is the one that has the neighbours."""
    pitch, height = SIDE + 2 * FRAME + GAP, SIDE + 2 * FRAME + 2 * LINE + GAP
    known = any(tile.same is not None for row in rows for tile in row)
    above = 2 * LINE
    size = max(LEAST_WIDTH, GAP + len(rows[0]) * pitch + FIRST_GAP - GAP), above + len(rows) * height
    page, font = Image.new("RGB", size, BACK), font_of_line()
    draw = ImageDraw.Draw(page)
    draw.text((GAP, LINE // 2), "image", INK, font)
    legend = [("neighbours, cosine similarity", INK)]
    legend += [("same class", SAME), ("another class", OTHER)] if known else []
    at = float(pitch + FIRST_GAP)
    for text, colour in legend:
        if colour != INK:
            draw.rectangle((at, LINE // 2 + 1, at + LINE - 4, LINE // 2 + LINE - 4), colour)
            at += LINE
        draw.text((at, LINE // 2), text, INK, font)
        at += draw.textlength(text, font) + 2 * LINE
    for place, row in enumerate(rows):
        for column, tile in enumerate(row):
            x, y = GAP + column * pitch + (FIRST_GAP - GAP) * (column > 0), above + place * height
            _put(page, font, tile, QUERY if column == 0 else COLOURS[tile.same], x, y)
    return page


def _put(page: Image.Image, font: Font, tile: Tile, colour: tuple[int, int, int], x: int, y: int) -> None:
    """Draw an image, its frame and the lines below it, with the upper left corner of the frame at (x, y)."""
    draw, whole = ImageDraw.Draw(page), SIDE + 2 * FRAME
    draw.rectangle((x, y, x + whole - 1, y + whole - 1), colour)
    image = Image.fromarray(in_colours(tile.pixels))
    smooth = Image.Resampling.NEAREST if image.width <= SIDE else Image.Resampling.LANCZOS
    page.paste(image.resize((SIDE, SIDE), smooth), (x + FRAME, y + FRAME))
    for line, text in enumerate((tile.caption, tile.name)):
        draw.text((x, y + whole + line * LINE), drawable(text, LONGEST), INK, font)
