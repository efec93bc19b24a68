"""Command lines of `key=value` arguments, parsed into the fields of a dataclass by their annotations.

A script's options are exactly the fields of its dataclass: any other key is refused, with the nearest valid one.
"""

import math
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NewType, TypeVar

from dist_ssl.config.byte_sizes import parse_bytes
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.pyramid import check_sides
from dist_ssl.errors import ConfigError, nearest, plural, shortened
from dist_ssl.runtime.own_cores import own_cores

Bytes = NewType("Bytes", int)
"""Number of bytes, written like 256MB."""
Quality = NewType("Quality", int)
"""JPEG quality, 1 to 100."""
Sides = NewType("Sides", tuple[int, ...])
"""Shorter sides of the levels of a pyramid in px, the smallest first, written like [160,256]."""
NotNegative = NewType("NotNegative", float)
"""A number of at least 0."""
TRUTHS = {"true": True, "false": False}
Threads = NewType("Threads", int)
"""Number of threads, at least one."""
ONE_PER_CORE = Threads(own_cores())
"""Default number of threads for work that keeps the processor busy."""
T = TypeVar("T")


@dataclass(frozen=True)
class HeldOut:
    """Size of the held-out split: a number of images, or a share of them (0 to 1)."""

    number: int = 0
    share: float = 0.0

    def of(self, total: int) -> int:
        """Return the number of held-out images of `total`, at least one for a share above 0.

        Raises ConfigError if no image would be left to train on.
        """
        count = max(1, round(self.share * total)) if self.share else self.number
        if count and count >= total:
            raise ConfigError(
                f"val={count} leaves nothing of {plural(total, 'image')} to train on.",
                "Hold fewer out, or none with val=0.",
            )
        return count


def parse_whole(text: str, key: str) -> int:
    """Return the whole number in a text: `12` -> 12. Raises ConfigError."""
    if not text.isdecimal():
        raise ConfigError(
            f"{key}={text} is not possible: it must be a whole number, 0 or more.", f"Write {key}=4, for example."
        )
    return int(text)


def parse_positive(text: str, key: str) -> float:
    """Return the number above 0 in a text: `0.5` -> 0.5. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{key}={text} is not possible: it must be a number above 0.", f"Write {key}=4095, say.")
    return value


def parse_not_negative(text: str, key: str) -> NotNegative:
    """Return the number of at least 0 in a text: `0.05` -> 0.05. Raises ConfigError."""
    zero = text.strip().strip("0") in ("", ".")
    return NotNegative(0.0 if zero else parse_positive(text, key))


def parse_path(text: str, key: str = "") -> Path:
    """Return the path in a text, in which `~` and `~NAME` are home folders. Raises ConfigError for an unknown NAME."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        given = f"{key}={text}" if key else text
        raise ConfigError(
            f"{given} is not possible: nobody here has this home folder.", "Write the whole path."
        ) from error


def parse_place(text: str, key: str) -> Path | Address:
    """Return the path in a text, or the address of a folder elsewhere: `s3://bucket/set`. Raises ConfigError."""
    where = Address.parse(text)
    return parse_path(where.shown, key) if where.local else where


def parse_choice(text: str, key: str, choices: Sequence[str]) -> str:
    """Return the text where it is one of the choices. Raises ConfigError."""
    if text not in choices:
        raise ConfigError(f"{key}={text} is not possible.", f"It may be {', '.join(choices)}.")
    return text


def parse_threads(text: str, key: str) -> Threads:
    """Return the number of threads in a text: `8` -> 8. Raises ConfigError."""
    if parse_whole(text, key) == 0:
        raise ConfigError(f"{key}=0 is not possible: it must be at least 1.", f"Set {key}=1, or leave it out.")
    return Threads(int(text))


def parse_quality(text: str, key: str) -> Quality:
    """Return the JPEG quality in a text: `90` -> 90. Raises ConfigError."""
    if not 1 <= parse_whole(text, key) <= 100:
        raise ConfigError(f"{key}={text} is not possible: it must be between 1 and 100.", f"Set {key}=90, for example.")
    return Quality(int(text))


def parse_sides(text: str, key: str) -> Sides:
    """Return the sides in a text: `[160,256]` -> (160, 256). Raises ConfigError."""
    inner = [side.strip() for side in text.removeprefix("[").removesuffix("]").split(",") if text != "[]"]
    if not (text.startswith("[") and text.endswith("]")) or not all(side.isdecimal() for side in inner):
        raise ConfigError(
            f"{key}={text} is not possible: it must be a list of sides in px.",
            f"Write {key}=[160,256], for example.",
        )
    check_sides([int(side) for side in inner], key)
    return Sides(tuple(int(side) for side in inner))


def parse_truth(text: str, key: str) -> bool:
    """Return the truth value in a text: `true` -> True. Raises ConfigError."""
    if text.lower() not in TRUTHS:
        raise ConfigError(
            f"{key}={text} is not possible: it must be true or false.", f"Write {key}=true or {key}=false."
        )
    return TRUTHS[text.lower()]


def parse_held_out(text: str, key: str) -> HeldOut:
    """Return the size of the held-out split in a text: `500` or `2%`. Raises ConfigError."""
    if text.isdecimal():
        return HeldOut(number=int(text))
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share < 1:
        raise ConfigError(
            f"{key}={text} is not possible: it must be a number of images or a share below 100 %.",
            f"Write {key}=500 or {key}=2%, for example.",
        )
    return HeldOut(share=share)


PARSERS: dict[Any, Callable[[str, str], Any]] = {
    str: lambda text, _key: text,
    Path: parse_path,
    Address: parse_place,
    int: parse_whole,
    float: parse_positive,
    NotNegative: parse_not_negative,
    Threads: parse_threads,
    bool: parse_truth,
    Bytes: lambda text, key: Bytes(parse_bytes(text, key)),
    Quality: parse_quality,
    Sides: parse_sides,
    HeldOut: parse_held_out,
}


def pairs(arguments: Sequence[str]) -> dict[str, str]:
    """Parse `["a=1", "b=2"]` into {a: 1, b: 2}. Raises ConfigError."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise ConfigError(f"'{argument}' is not of the form key=value.", "Write path=pictures, for example.")
        if key in given:
            raise ConfigError(f"{key} is given twice: {given[key]} and {value}.", "Leave one of them out.")
        given[key] = value
    return given


def folder_and_pairs(arguments: Sequence[str], usage: str) -> tuple[Path, dict[str, str]]:
    """Return the one argument that is not `key=value`, and the pairs. Raises ConfigError, with `usage` as remedy."""
    folders = [argument for argument in arguments if "=" not in argument]
    if len(folders) != 1:
        given = f"{len(folders)} folders are given ({', '.join(folders)})" if folders else "No folder is given"
        raise ConfigError(f"{given}: this script takes one folder of shards.", f"Usage: {usage}")
    return parse_path(folders[0]), pairs([argument for argument in arguments if "=" in argument])


def counted_kinds(kinds: Counter[str], most: int = 20) -> str:
    """Return how many files there are of each extension, the most frequent first."""
    listed = [
        f"{count} {f'.{kind}' if kind else 'without extension'}"
        for kind, count in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    return shortened(listed, most)


def fill(options: type[T], given: Mapping[str, str], what: str) -> T:
    """Return options filled from key=value pairs. `what`: their owner, for messages. Raises ConfigError."""
    hints = typing.get_type_hints(options)
    known = {field.name: field for field in fields(options)}  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} has no option '{key}'.", nearest(key, known))
    for name, field in known.items():
        if field.default is MISSING and name not in given:
            raise ConfigError(f"{what} needs {name}=...", f"Its options: {', '.join(known)}.")
    return options(**{key: _parsed(value, key, hints[key]) for key, value in given.items()})


def _parsed(text: str, key: str, hint: Any) -> Any:
    """Return the value of a text for an annotation. Raises ConfigError."""
    if typing.get_origin(hint) is typing.Literal:
        return parse_choice(text, key, typing.get_args(hint))
    return PARSERS[_plain(hint)](text, key)


def _plain(hint: Any) -> Any:
    """Return `X` for the annotation `X | None`."""
    inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return inner[0] if inner else hint
