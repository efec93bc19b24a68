"""A picture of a run's plan: one panel for each hyperparameter that changes, over the epochs."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from dist_ssl.data.images.sheet_text import BACK, INK, font_of_line

WIDTH, HEIGHT = 900, 150
"""Size of a panel, px."""
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 30, 25
"""Margins of a panel, px."""
TEXT = 15
"""Height of a line of text, px."""
LINE, GRID = (30, 90, 180), (220, 220, 220)
Series = Sequence[tuple[float, float]]
"""Points (epoch, value), by epoch."""


def sheet(panels: Mapping[str, Series], marks: Sequence[float]) -> Image.Image:
    """Return the panels one below the other. `marks`: epochs at which a cycle begins or ends, the last one the end."""
    page = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), BACK)
    for number, (name, points) in enumerate(panels.items()):
        page.paste(panel(name, points, marks), (0, number * HEIGHT))
    return page


def panel(name: str, points: Series, marks: Sequence[float]) -> Image.Image:
    """Return one panel: the values as a line, with the least and the largest beside the axis."""
    image, font = Image.new("RGB", (WIDTH, HEIGHT), BACK), font_of_line(TEXT)
    draw = ImageDraw.Draw(image)
    low, high, end = min(y for _, y in points), max(y for _, y in points), max(marks[-1], 1)
    spread = (high - low) or 1.0

    def place(epoch: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * epoch / end
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / spread

    for mark in (0.0, *marks):
        x, _ = place(mark, low)
        draw.line((x, TOP, x, HEIGHT - BOTTOM), GRID)
        draw.text((x, HEIGHT - BOTTOM + 4), f"{mark:g}", INK, font, anchor="ma")
    draw.line([place(*point) for point in points], LINE, 2)
    draw.text((LEFT, 8), name, INK, font)
    for value in {low, high}:
        draw.text((LEFT - 8, place(0, value)[1]), f"{value:.4g}", INK, font, anchor="rm")
    return image
