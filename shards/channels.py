"""How many channels the images of a data set have, which is the same for all of them.

A picture (JPEG, PNG, ...) counts as RGB, grey or transparent as it may be, unless `channels=1` or `channels=4` says
otherwise; an array of numpy and a TIFF of bands have the channels that they have. A data set with images of different
numbers of channels is refused: its message names one image of either kind.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dist_ssl.config.bounds import MOST_CHANNELS, RGB
from dist_ssl.data.images.array_files import header_of, is_array
from dist_ssl.data.images.file_formats import ARRAYS
from dist_ssl.data.images.image_rules import OF_PICTURES, counted
from dist_ssl.data.images.tiff_bands import bands_in, coloured
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage.manifest import Samples
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.runtime.strange_files import open_regular
from shards.image_heads import head_at

TIFFS = (".tif", ".tiff")
Counted = tuple[str, int | None]
"""An image, for people, and its number of channels; None for a picture, which may be read as one of OF_PICTURES."""


def channels_in(data: bytes, given: int | None) -> int | None:
    """Return the channels of an image; None for a picture, and for a file that is damaged.

    `data`: what `head_at` returns of its file; `given`: the channels that are asked for, None: measured. A
    TIFF whose first bands are colours is a picture where a picture is asked for.
    """
    try:
        if is_array(data):
            return header_of(data).channels
        bands = bands_in(data)
        return None if bands is not None and given in OF_PICTURES and coloured(data) else bands
    except UnreadableError:  # a run counts such a sample
        return None


def check_option(channels: int | None) -> None:
    """Raise ConfigError where `channels=...` is no possible number of channels."""
    if channels is not None and not 1 <= channels <= MOST_CHANNELS:
        raise ConfigError(
            f"channels={channels} is not possible: it is a number from 1 to {MOST_CHANNELS}.",
            "Leave it out: it is measured.",
        )


def of_files(paths: Sequence[Path], given: int | None, threads: int) -> int:
    """Return the number of channels of files. Raises ConfigError, DataError where one has another or is unreadable."""
    check_option(given)
    with ThreadPoolExecutor(threads) as pool:
        own = list(pool.map(lambda path: channels_in(head_of(path), given), paths))
    return of_all(zip(map(str, paths), own, strict=True), given)


def head_of(path: Path) -> bytes:
    """Return the first bytes of an array of numpy or of a TIFF; none of a file of another name, which is a picture.

    Raises DataError where it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in (f".{ARRAYS}", *TIFFS):
        return b""
    try:
        with open_regular(path) as opened:
            return head_at(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", "Fix that and run the same command again."
        ) from error


def of_tars(tars: Sequence[tuple[Path, Samples, bool]], given: int | None, threads: int) -> int:
    """Return the number of channels of the images in tars. Raises DataError where one has another, or is unreadable.

    `tars`: path and samples of each, and whether some of its images may be no pictures, by their names: of the others
    nothing is read.
    """
    with ThreadPoolExecutor(threads) as pool:
        own = pool.map(
            lambda tar: distinct(of_tar(tar[0], tar[1], given)) if tar[2] else pictures(tar[0], tar[1]), tars
        )
        return of_all((one for counts in own for one in counts), given)


def distinct(images: Iterable[Counted]) -> list[Counted]:
    """Return the first image of each number of channels."""
    found: dict[int | None, str] = {}
    for name, own in images:
        found.setdefault(own, name)
    return [(name, own) for own, name in found.items()]


def pictures(path: Path, samples: Samples) -> list[Counted]:
    """Return the first image of a tar as a picture."""
    return [(f"{os.path.normpath(path)}: {samples.key(0)}", None)] if len(samples) else []


def of_tar(path: Path, samples: Samples, given: int | None) -> Iterator[Counted]:
    """Yield the images of a tar with their numbers of channels. Raises DataError where it cannot be read."""
    own = Path(os.path.normpath(path))  # it may lead through a folder that is not there yet
    try:
        with open_regular(own) as file:
            for number, (offset, size) in enumerate(zip(samples.offsets, samples.sizes, strict=True)):
                head = head_at(file.fileno(), int(offset), int(size))
                yield f"{own}: {samples.key(number)}", channels_in(head, given)
    except OSError as error:
        raise DataError(f"{own} cannot be read: {error}.", "Fix that and run the same command again.") from error


def of_all(images: Iterable[Counted], given: int | None) -> int:
    """Return the number of channels of a data set; `given`: that of the option, None: it is measured.

    Raises DataError where an image has another one.
    """
    expected, first = given, ""
    for name, own in images:
        if expected is None:
            expected, first = (RGB if own is None else own), name
        fits = expected in OF_PICTURES if own is None else own == expected
        # without the option a picture is RGB: that an array has one channel does not make a picture grey
        if fits and (own is not None or given is not None or expected == RGB):
            continue
        has = "is a picture, which has 3 unless channels=1 or channels=4 is given" if own is None else f"has {own}"
        if given is not None:
            raise DataError(
                f"channels={given} is given, but {name} {has.partition(',')[0]}.",
                "Correct channels=..., or move the others away. A picture can be read as 1, 3 or 4 channels.",
            )
        raise DataError(
            f"The images have different numbers of channels: {first} has {counted(expected)}, {name} {has}.",
            "Move one kind away: a data set has images of one kind.",
        )
    return RGB if expected is None else expected
