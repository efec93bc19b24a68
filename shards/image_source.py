"""What a source of images is: its own options, and how a data set is made with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console


@dataclass(frozen=True)
class ImageSource:
    """One source. `options`: a dataclass of what it can be told; `in_place`: `out` may be left out."""

    options: type[Any]
    write: Callable[[Any, Any, Console], None]
    """Makes the data set: `write(out, options, console)`. Raises ConfigError, DataError."""
    in_place: bool = False
