"""How many channels the images of a data set have, which is the same for all of them.

A picture (JPEG, PNG, ...) counts as RGB, grey or transparent as it may be, unless `channels=1` or `channels=4` says
otherwise; an array of numpy and a TIFF of bands have the channels that they have. A TIFF whose first bands are red,
green and blue is a picture beside pictures. Files that are damaged, or no images, have no say. A data set with images
of different numbers of channels is refused: its message names one image of either kind.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dist_ssl.config.bounds import MOST_CHANNELS, RGB
from dist_ssl.config.command import say
from dist_ssl.data.images.array_files import header_of, is_array
from dist_ssl.data.images.file_formats import ARRAYS, looks_like_image
from dist_ssl.data.images.image_rules import OF_PICTURES, counted
from dist_ssl.data.images.tiff_bands import bands_in, coloured
from dist_ssl.data.images.tiff_tags import STARTS, tags_of
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage.samples import Samples
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.runtime.strange_files import open_regular
from shards.image_heads import head_at

TIFFS = (".tif", ".tiff")


class Kind(NamedTuple):
    """An image by its number of channels; None for a picture, which may be read as one of OF_PICTURES.

    `coloured`: whether it is a TIFF of bands that may be read as a picture too.
    """

    channels: int | None
    coloured: bool = False


PICTURE = Kind(None)
UNKNOWN = Kind(0)
"""A file that is damaged or no image: a run counts it as unreadable."""
Counted = tuple[str, Kind]
"""An image, for people, and what it is."""


def kind_in(data: bytes) -> Kind:
    """Return what an image is, by what `head_at` returns of its file."""
    try:
        if is_array(data):
            return Kind(header_of(data).channels)
        if (bands := bands_in(data)) is not None:
            return Kind(bands, coloured(data))
        whole = any(tags_of(data)) if data.startswith(STARTS) else looks_like_image(data)
        return PICTURE if whole else UNKNOWN
    except UnreadableError:
        return UNKNOWN


def check_option(channels: int | None) -> None:
    """Raise ConfigError where `channels=...` is no possible number of channels."""
    if channels is not None and not 1 <= channels <= MOST_CHANNELS:
        raise ConfigError(
            f"channels={channels} is not possible: it is a number from 1 to {MOST_CHANNELS}.",
            "Leave it out: it is measured.",
        )


def of_files(paths: Sequence[Path], given: int | None, threads: int, console: Console) -> int:
    """Return the number of channels of files. Raises ConfigError, DataError where one has another or is unreadable.

    Files that are named as pictures are opened only where others have bands, since one that is none has no say.
    """
    check_option(given)
    bands = [path for path in paths if may_have_bands(path)]
    with ThreadPoolExecutor(threads) as pool:
        own = dict(zip(bands, pool.map(lambda path: kind_in(head_of(path)), bands), strict=True))
        if given not in (None, *OF_PICTURES) or any(kind.channels for kind in own.values()):
            rest = [path for path in paths if path not in own]
            own |= zip(rest, pool.map(lambda path: kind_in(head_of(path)), rest), strict=True)
    return of_all(((str(path), own.get(path, PICTURE)) for path in paths), given, console)


def may_have_bands(path: Path) -> bool:
    """Return whether a file of this name may have other channels than a picture."""
    return path.suffix.lower() in (f".{ARRAYS}", *TIFFS)


def head_of(path: Path) -> bytes:
    """Return of a file what tells its kind, see `head_at`. Raises DataError where it cannot be read."""
    try:
        with open_regular(path) as opened:
            return head_at(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", "Fix that and run the same command again."
        ) from error


def of_tars(tars: Sequence[tuple[Path, Samples, bool]], given: int | None, threads: int, console: Console) -> int:
    """Return the number of channels of the images in tars. Raises DataError where one has another, or is unreadable.

    `tars`: path and samples of each, and whether some of its images may be no pictures, by their names: of the others
    nothing is read.
    """
    with ThreadPoolExecutor(threads) as pool:
        own = pool.map(lambda tar: distinct(of_tar(tar[0], tar[1])) if tar[2] else pictures(tar[0], tar[1]), tars)
        return of_all((one for counts in own for one in counts), given, console)


def say_assumed(console: Console) -> None:
    """Print how many channels images elsewhere count as: those that may have others are not read to count them."""
    say(
        console,
        f"By their names, some images are arrays or TIFFs. Of tars elsewhere their channels are not measured: they "
        f"count as {RGB}. Where they have others, remove the manifest and say so: channels=5, for example.",
    )


def distinct(images: Iterable[Counted]) -> list[Counted]:
    """Return the first image of each kind."""
    found: dict[Kind, str] = {}
    for name, own in images:
        found.setdefault(own, name)
    return [(name, own) for own, name in found.items()]


def pictures(path: Path, samples: Samples) -> list[Counted]:
    """Return the first image of a tar as a picture."""
    return [(f"{os.path.normpath(path)}: {samples.key(0)}", PICTURE)] if len(samples) else []


def of_tar(path: Path, samples: Samples) -> Iterator[Counted]:
    """Yield the images of a tar with what they are. Raises DataError where it cannot be read."""
    own = Path(os.path.normpath(path))  # it may lead through a folder that is not there yet
    try:
        with open_regular(own) as file:
            for number in range(len(samples)):
                place = int(samples.offsets[number]), int(samples.sizes[number])
                yield f"{own}: {samples.key(number)}", kind_in(head_at(file.fileno(), *place))
    except OSError as error:
        raise DataError(f"{own} cannot be read: {error}.", "Fix that and run the same command again.") from error


def of_all(images: Iterable[Counted], given: int | None, console: Console) -> int:
    """Return the number of channels of a data set; `given`: that of the option, None: it is measured.

    Prints it where TIFFs that begin with colours are read as bands. Raises DataError where an image has another number.
    """
    expected, first = given, ""
    later: dict[int | None, str] = {}
    for name, kind in images:
        if kind == UNKNOWN:
            continue
        if kind.coloured:  # what it is depends on the others
            later.setdefault(kind.channels, name)
            continue
        if expected is None:
            expected, first = kind.channels or RGB, name
        check(name, kind, expected, given, first)
    for channels, name in later.items():
        kind = Kind(channels, coloured=True)
        if expected is None:
            expected, first = channels or RGB, name
            text = f"{name} and others begin with red, green and blue, and are read as {counted(expected)}"
            say(console, f"{text}; channels={RGB} reads them as pictures.")
        as_picture = expected in OF_PICTURES and (given is not None or expected == RGB)
        check(name, PICTURE if as_picture and channels != expected else kind, expected, given, first)
    return RGB if expected is None else expected


def check(name: str, kind: Kind, expected: int, given: int | None, first: str) -> None:
    """Raise DataError where an image does not have the expected channels; `first`: the image that has."""
    own = kind.channels
    fits = expected in OF_PICTURES if own is None else own == expected
    # without the option a picture is RGB: that an array has one channel does not make a picture grey
    if fits and (own is not None or given is not None or expected == RGB):
        return
    has = "is a picture, which has 3 unless channels=1 or channels=4 is given" if own is None else f"has {own}"
    if given is not None:
        raise DataError(
            f"channels={given} is given, but {name} {has.partition(',')[0]}.",
            "Correct channels=..., or move the others away. A picture can be read as 1, 3 or 4 channels.",
        )
    remedy = "Move one kind away: a data set has images of one kind."
    raise DataError(
        f"The images have different numbers of channels: {first} has {counted(expected)}, {name} {has}.",
        f"{remedy} Or set channels={RGB}: the TIFF begins with red, green and blue." if kind.coloured else remedy,
    )
