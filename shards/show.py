"""The command that shows a data set: a table of its splits, and some of its images on one sheet.

Examples:

    python shards/show.py data/mine                      # the sheet: mine.png
    python shards/show.py data/mine split=val images=16 out=val.png
    python shards/show.py data/mine level=160            # of a pyramid level

The images are chosen by the hash of their numbers, so the sheet of a data set is always the same: by default 64 of the
first split.

Exit codes: 0; 2 there is no data set, or something in the command must be corrected; 130 interrupted.
"""

import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console
from rich.table import Table

from dist_ssl.config.command import run_command, say
from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.image_rules import RULES, ImageRules, in_colours
from dist_ssl.data.images.sheet_text import BACK, INK, LINE, drawable, font_of_line
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError, cannot_be_written, plural, shortened
from dist_ssl.runtime.files import write_for_owner_alone, write_output
from shards import depth
from shards.command_line import fill, folder_and_pairs

SIDE = 128
"""Side of an image on the sheet, px."""
LONGEST = 20
"""Most characters below an image."""
BAD = (200, 0, 0)


@dataclass(frozen=True)
class ShowOptions:
    """Options of the command.

    `out`: file of the sheet, by default NAME.png in the current folder; `split`: the split to draw, by default the
    first; `images`: how many of its images, at most; `level`: side in px of the pyramid level to draw instead of the
    originals.
    """

    out: Path | None = None
    split: str | None = None
    images: int = 64
    level: int | None = None


def show(folder: Path, options: ShowOptions, console: Console) -> None:
    """Print the table and write the sheet. Raises UserError."""
    found, where, get = manifest.read(folder), Address(str(folder)), Fetcher()
    if not found.splits:
        raise DataError(f"{folder} has no splits.", "Write its shards again.")
    say(console, f"{folder}: identity {found.identity}")
    levels = pyramid.read(where, found, get)
    found = pyramid.attach(found, where, sorted(levels), get) if levels else found
    console.print(table(found))
    for side, made in sorted(levels.items()):
        quality, chroma = made.get("quality", "unknown"), made.get("chroma", "unknown")
        lossy = f"{side} px on the shorter side, JPEG of quality {quality}, chroma {chroma}"
        say(console, f"level {side}: identity {made['identity']}; lossy: {lossy}")
    if found.classes:
        say(console, "classes: " + shortened(found.classes, most=20))
    if options.images:
        split = level_of(found.split(options.split or next(iter(found.splits))), options.level)
        out = options.out or Path(f"{folder.resolve().name}.png")
        try:
            file = io.BytesIO()
            rules = depth.rules_of(split, found.channels)
            sheet(split, found.classes, options.images, rules).save(file, "PNG")
            write_output(out, file.getvalue())
        except OSError as error:
            raise cannot_be_written(out, error, "Name another file with out=.") from error
        shown = min(options.images, len(split.samples))
        say(console, f"{plural(shown, 'image')} of {called(split)}: {out}")


def level_of(split: manifest.Split, side: int | None) -> manifest.Split:
    """Return the split, or its level with shorter side `side`, px. Raises DataError."""
    if side is None:
        return split
    known = {level.side: level for level in split.levels}
    if side not in known:
        make = "There are none. Make some: python shards/make.py out=... pyramid=[...]"
        there = f"Levels: {', '.join(map(str, known))}." if known else make
        raise DataError(f"level={side} does not exist.", there)
    return known[side]


def called(split: manifest.Split) -> str:
    """Return the name of a split; for a level `NAME@SIDE`."""
    return f"{split.name}@{split.side}" if split.side else split.name


def table(found: manifest.Manifest) -> Table:
    """Return a table with counts, sizes and labels of every split and level."""
    rows = Table("split", "shards", "images", "tar bytes", "mean image", "labelled", "classes", "images per class")
    for split in (part for whole in found.splits.values() for part in (whole, *whole.levels)):
        sizes, labels = np.asarray(split.samples.sizes), split.samples.labels
        known = np.unique(labels[labels >= 0], return_counts=True)[1]
        spread = f"{known.min()} / {np.median(known):g} / {known.max()}" if len(known) else "-"
        rows.add_row(
            called(split),
            str(len(split.shards)),
            str(len(split.samples)),
            f"{sum(shard.bytes for shard in split.shards) / 1e6:,.1f} MB",
            f"{sizes.mean() / 1e3:,.1f} KB" if len(sizes) else "-",
            str(int((labels >= 0).sum())),
            str(len(known)),
            spread,
        )
    rows.caption = "images per class: least / median / most"
    return rows


def sheet(split: manifest.Split, classes: tuple[str, ...], count: int, rules: ImageRules = RULES) -> Image.Image:
    """Return a grid of at most `count` images of a split, with label and class name below each.

    `rules`: how bytes become pixels; of several channels the first three are shown.
    """
    numbers = Draws(0).order(Purpose.PROBE, np.arange(len(split.samples), dtype=np.int64))[:count]
    columns = math.ceil(math.sqrt(len(numbers)))
    size = (columns * SIDE, math.ceil(len(numbers) / columns) * (SIDE + LINE))
    page, font = Image.new("RGB", size, BACK), font_of_line()
    draw = ImageDraw.Draw(page)
    with Reader(split) as reader:
        for place, number in enumerate(numbers):
            x, y = place % columns * SIDE, place // columns * (SIDE + LINE)
            small = thumbnail(reader.read(int(number)), rules)
            page.paste(small, (x + (SIDE - small.width) // 2, y + (SIDE - small.height) // 2))
            draw.text((x + 2, y + SIDE), caption(int(split.samples.labels[number]), classes), INK, font)
    return page


def thumbnail(data: bytes, rules: ImageRules = RULES) -> Image.Image:
    """Return the image scaled to fit SIDE x SIDE; a red cross if it cannot be decoded."""
    try:
        image = Image.fromarray(in_colours(decode(data, SIDE, rules).pixels))
    except UnreadableError:
        image = Image.new("RGB", (SIDE, SIDE), BACK)
        corners = (0, SIDE - 1)
        for ends in (corners, corners[::-1]):
            ImageDraw.Draw(image).line((corners[0], ends[0], corners[1], ends[1]), BAD, 3)
    return ImageOps.contain(image, (SIDE - 4, SIDE - 4))


def caption(label: int, classes: tuple[str, ...]) -> str:
    """Return the text below an image: label and class name, as far as there is room and the font has them."""
    if label < 0:
        return ""
    return drawable(f"{label} {classes[label]}" if label < len(classes) else str(label), LONGEST)


def run(arguments: list[str], console: Console) -> int:
    """Show one folder; return 0. Raises UserError."""
    folder, given = folder_and_pairs(arguments, "python shards/show.py data/mine")
    show(folder, fill(ShowOptions, given, "This command"), console)
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
