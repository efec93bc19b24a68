"""Arrays of numpy beside pictures: masks, depths or features of these, and no images unless most files are arrays.

Where arrays are the minority, or as many as the pictures, they are left out and counted. Where they are the majority,
or `channels=N` is given, they are images; a data set whose images then have different numbers of channels is refused.
"""

from dataclasses import replace
from pathlib import PurePosixPath

from rich.console import Console

from dist_ssl.config.command import say
from dist_ssl.data.images.file_formats import ARRAYS
from dist_ssl.errors import plural, shortened
from shards.folder_scan import Found


def count_as_images(arrays: int, pictures: int, channels: int | None) -> bool:
    """Return whether arrays are images, by the numbers of files; `channels`: that of the option, if any."""
    return channels is not None or arrays > pictures


def is_array_name(name: str) -> bool:
    """Return whether a path is named as an array of numpy."""
    return PurePosixPath(name).suffix.lower() == f".{ARRAYS}"


def without_arrays(found: Found, channels: int | None, console: Console) -> Found:
    """Return what a folder holds, without its arrays where they are no images; prints how many were left out."""
    arrays = [file.name for file in found.files if is_array_name(file.name)]
    pictures = [file for file in found.files if not is_array_name(file.name)]
    if not arrays or count_as_images(len(arrays), len(pictures), channels):
        return found
    say(
        console,
        f"{plural(len(arrays), 'array')} (.{ARRAYS}) beside {plural(len(pictures), 'picture')} "
        f"{'is no image' if len(arrays) == 1 else 'are no images'}: {shortened(arrays, 3)}.",
    )
    return replace(found, files=pictures)
