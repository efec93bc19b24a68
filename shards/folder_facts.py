"""Facts about pictures in a folder or in shards, measured on a sample: all that the rules for a run on them may use.

Of images of other channels than three, colours are those of the first three channels, or of one as grey.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from dist_ssl.config.bounds import RGB
from dist_ssl.core.draws import Doubles, Draws, Purpose
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.image_rules import RULES, ImageRules, Pixels, White, in_colours
from dist_ssl.data.images.resize import resize_whole
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage.manifest import Manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.errors import DataError, plural
from shards.depth import FoundRange, range_of, together
from shards.invariance import SIDE, recoloured, turned
from shards.sources.imagefolder import Pictures, read

SAMPLE = 1000
"""Pictures that are decoded, at most: of a folder the first in the order of packing, which is that of a hash of their
names, of shards a random choice that is always the same."""
LEAST = 128
"""Shorter side, px, at which they are decoded at least, if they have it."""
SMALL = SIDE
"""Side of the copies, px, that are compared with each other."""
GREY_BELOW = 8 / 255
"""Largest difference between channels that a grey picture has: JPEGs round."""
PAIRS = 4
"""Pictures that a comparison with changed copies needs at least; of fewer, the change counts as noticed."""
PERCENTILES = (10, 50, 90)
Moments = tuple[Doubles, Doubles]
"""Mean and mean square of each channel of an image, [C] each, for values in [0, 1]."""


@dataclass(frozen=True)
class Facts:
    """All that is known about a folder of pictures."""

    train: int
    """Number of pictures to train on."""
    val: int
    """Number of held-out pictures."""
    classes: int
    """Number of classes; 0 without labels."""
    measured: int
    """Number of pictures that were decoded for the facts below."""
    unreadable: int
    """How many of those could not be."""
    short_sides: tuple[int, int, int]
    """The 10th, 50th and 90th percentile of the length of the shorter side, px."""
    grey: float
    """Share of grey pictures, 0 to 1."""
    colour: float
    """Share of the variance of colour (hue and saturation, not light) that is between pictures, 0 to 1."""
    turned: float
    """How often a picture is distinguished from its copy with a quarter turn, 0.5 (never) to 1."""
    recoloured: float
    """How often a picture that is not grey is distinguished from its copy with other hues, 0.5 (never) to 1."""
    deepest: int
    """Largest value of the pictures of 16 bits or of floating point; 0 where there are none."""
    mean: tuple[float, ...]
    """Mean of the channels, for values in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of the channels over all pixels, for values in [0, 1]."""
    floats: bool = False
    """Whether some pictures are arrays of floating point, which have no range of their own."""


class Glance(NamedTuple):
    """A picture in numbers: shorter side, px; mean and mean square of each channel; mean colour and its variance.

    `centre`: its middle square, [32, 32, 3] in [0, 1].
    """

    side: int
    mean: Doubles
    mean_square: Doubles
    grey: bool
    colour: Doubles
    spread: float
    centre: Doubles


def measure(pictures: Pictures, threads: int, sample: int = SAMPLE, white: White = None) -> Facts:
    """Return the facts of a folder. `white`: the value that is white, or that of each channel; None: the one found.

    Raises DataError where none of the pictures of the sample can be read.
    """
    root = pictures.roots[0]
    chosen = [partial(read, root, file) for file in pictures.train[:sample]]
    counts = PictureCounts(len(pictures.train), len(pictures.val), len(pictures.classes))
    return facts_of(chosen, counts, str(root), threads, pictures.channels, white)


def measure_shards(
    data: Manifest,
    threads: int,
    access: Access | None = None,
    sample: int = SAMPLE,
    ranges: Iterable[FoundRange] = (),
) -> Facts:
    """Return the facts of a data set. Raises DataError where none of the pictures of the sample can be read.

    Classes count where every sample of both splits has a label, which is what a probe needs. `ranges`: those of the
    splits, where they are known: of all of these and of the sample follows the value that is white.
    """
    train, val = data.split("train"), data.splits.get("val")
    labelled = val is not None and train.labelled and val.labelled
    classes = len(np.unique(train.samples.labels)) if labelled else 0
    numbers = np.sort(Draws(0).order(Purpose.PROBE, np.arange(len(train.samples), dtype=np.int64))[:sample])
    with Reader(train, access, scattered=True) as reader:
        chosen = [partial(reader.read, int(number)) for number in numbers]
        counts = PictureCounts(len(train.samples), len(val.samples) if val else 0, classes)
        return facts_of(chosen, counts, str(train.folder), threads, data.channels, ranges=ranges)


class PictureCounts(NamedTuple):
    """Numbers of pictures to train on, of held-out pictures, and of classes (0 without labels)."""

    train: int
    val: int
    classes: int


def facts_of(
    chosen: Sequence[Callable[[], bytes]],
    counts: PictureCounts,
    where: str,
    threads: int,
    channels: int,
    white: White = None,
    ranges: Iterable[FoundRange] = (),
) -> Facts:
    """Return the facts that follow from a sample of pictures, which have `channels` channels.

    `chosen`: functions that return their bytes; `where`: their folder, for the message; `white`: the value that is
    white, None: the one that is found; `ranges`: what is known of it before. Raises DataError where none of them can
    be read.
    """
    with ThreadPoolExecutor(threads) as pool:
        values = pool.map(lambda take: range_of(take()), chosen)
        own = [FoundRange(1, 1, value, floats) for value, floats in values if value is not None]
        deep = together([*ranges, *own])
        if deep.floats and deep.largest <= 0:
            raise DataError(
                f"The pictures of {where} are of floating point, and no value is above 0, which is black.",
                "Add to the values what makes them positive, 30 to decibels, say, and make the shards again.",
            )
        rules = ImageRules(range=white or deep.white, channels=channels)
        looks = list(pool.map(lambda take: look(take(), rules), chosen))
    found = [one for one in looks if one is not None]
    if not found:
        raise DataError(
            f"None of the {plural(len(chosen), 'picture')} of {where} that were tried can be read.",
            "See whether they are images: python shards/make.py source=imagefolder path=... out=...",
        )
    return summary(found, counts, len(chosen), deep)


def summary(found: Sequence["Glance"], counts: PictureCounts, measured: int, deep: FoundRange) -> Facts:
    """Return the facts of the pictures that could be decoded, at least one, of `measured` that were tried."""
    mean = np.mean([one.mean for one in found], 0)
    std = np.sqrt(np.maximum(np.mean([one.mean_square for one in found], 0) - mean**2, 0))
    centres, hued = np.stack([one.centre for one in found]), [not one.grey for one in found]
    low, middle, high = np.percentile([one.side for one in found], PERCENTILES, method="lower")
    return Facts(
        **counts._asdict(),
        measured=measured,
        unreadable=measured - len(found),
        short_sides=(int(low), int(middle), int(high)),
        grey=float(np.mean([one.grey for one in found])),
        colour=between(found),
        turned=turned(centres) if len(found) >= PAIRS else 1.0,
        recoloured=recoloured(centres[hued]) if sum(hued) >= PAIRS else 1.0,
        deepest=deep.largest,
        mean=rounded(mean),
        std=rounded(std),
        floats=deep.floats,
    )


def look(data: bytes, rules: ImageRules = RULES) -> Glance | None:
    """Return a picture in numbers; None if it cannot be decoded."""
    try:
        image = decode(data, LEAST, rules)
    except UnreadableError:
        return None
    mean, mean_square = moments(image.pixels)
    shown = in_colours(image.pixels)
    small = reduced(shown).reshape(-1, RGB)
    red, green, blue = small.T
    opposed = np.stack([red - green, (red + green) / 2 - blue])  # what is left of a colour without its light
    grey = bool((small.max(1) - small.min(1)).max() <= GREY_BELOW)
    colour, spread = opposed.mean(1), float(opposed.var(1).sum())
    middle = reduced(centre_of(shown))
    return Glance(min(image.sides), mean, mean_square, grey, colour, spread, middle)


def moments(pixels: Pixels) -> Moments:
    """Return mean and mean square of each channel, [C] for values in [0, 1], of [H, W, C].

    In whole numbers and without a copy: in floating point a large picture would take some 30 times its memory, in every
    thread.
    """
    count = pixels.shape[0] * pixels.shape[1]
    sums = pixels.sum((0, 1), dtype=np.int64)
    squares = np.einsum("hwc,hwc->c", pixels, pixels, dtype=np.int64)
    return sums / (255 * count), squares / (255**2 * count)


def reduced(pixels: Pixels) -> Doubles:
    """Return a copy of 32 x 32 px, [32, 32, 3] in [0, 1]."""
    return resize_whole(np.ascontiguousarray(pixels), SMALL, SMALL).astype(np.float64) / 255


def centre_of(pixels: Pixels) -> Pixels:
    """Return the largest square in the middle of [H, W, 3]: one that a turn does not distort."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def between(looks: Sequence[Glance]) -> float:
    """Return the share of the variance of colour that is between pictures; 0 where there is none at all."""
    apart = float(np.var([one.colour for one in looks], axis=0).sum())
    total = apart + float(np.mean([one.spread for one in looks]))
    return apart / total if total > GREY_BELOW**2 else 0.0


def rounded(values: Doubles) -> tuple[float, ...]:
    """Return the values of the channels, to three digits; of a standard deviation of 0 at least 0.001."""
    return tuple(max(0.001, round(float(value), 3)) for value in values)
