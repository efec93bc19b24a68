"""Text on a sheet of images: its colours, its size, and the characters that its font has."""

import unicodedata

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
BACK, INK = (255, 255, 255), (0, 0, 0)
"""Colours of the page and of the text."""
LINE = 14
"""Height of a line of text, px."""


def font_of_line(height: int = LINE) -> Font:
    """Return the font of which a line fits into `height` px."""
    return ImageFont.load_default(height - 3)


def drawable(text: str, most: int) -> str:
    """Return the first `most` characters of a text as the font has them: without accents."""
    return "".join(_plain(character) for character in unicodedata.normalize("NFC", text))[:most]


def _plain(character: str) -> str:
    """Return a character without its accents; a question mark for one that the font does not have."""
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii") or "?"
