"""Definition of a source of images: its options, and the function that writes a data set from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console


@dataclass(frozen=True)
class ImageSource:
    """A source of images. `options`: dataclass of its options; `in_place`: `out` may be left out.

    `drawn`: our code draws the images and every option has a default, so a run makes the data set on its first use.
    """

    options: type[Any]
    write: Callable[[Any, Any, Console], None]
    """Function that writes the data set: `write(out, options, console)`. Raises ConfigError, DataError."""
    in_place: bool = False
    drawn: bool = False
