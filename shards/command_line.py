"""The words of a command line (`key=value`) as the fields of a dataclass, each by its annotation.

What a script can be told is exactly the fields of its options: any other key is refused with the nearest one.
"""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NewType, TypeVar

from rich.console import Console

from dist_ssl.config.byte_sizes import parse_bytes
from dist_ssl.data.storage.pyramid import check_sides
from dist_ssl.errors import EXIT_CODE, ConfigError, UserError, nearest

Bytes = NewType("Bytes", int)
"""A size, written like 256MB."""
Quality = NewType("Quality", int)
"""Of a JPEG, 1 to 100."""
Sides = NewType("Sides", tuple[int, ...])
"""Of the levels of a pyramid, px, the smallest first, written like [160,256]."""
TRUTHS = {"true": True, "false": False}
INTERRUPTED = 130
Threads = NewType("Threads", int)
"""A number of threads, at least one."""
T = TypeVar("T")


@dataclass(frozen=True)
class HeldOut:
    """How much of a data set is kept for asking: a number of images, or a share of them (0 to 1)."""

    number: int = 0
    share: float = 0.0

    def of(self, total: int) -> int:
        """How many of `total` images; a share above 0 is at least one. Raises ConfigError where none is left."""
        count = max(1, round(self.share * total)) if self.share else self.number
        if count and count >= total:
            raise ConfigError(
                f"val={count} leaves nothing of {total} images to train on.", "Hold fewer out, or none with val=0."
            )
        return count


def parse_whole(text: str, key: str) -> int:
    """`12` -> 12. Raises ConfigError."""
    if not text.isdecimal():
        raise ConfigError(f"{key}={text} is not possible: it is a whole number, 0 or more.", f"Write {key}=4, say.")
    return int(text)


def parse_threads(text: str, key: str) -> Threads:
    """`8` -> 8. Raises ConfigError."""
    if parse_whole(text, key) == 0:
        raise ConfigError(f"{key}=0 is not possible: it is at least 1.", f"Set {key}=1, or leave it out.")
    return Threads(int(text))


def parse_quality(text: str, key: str) -> Quality:
    """`90` -> 90. Raises ConfigError."""
    if not 1 <= parse_whole(text, key) <= 100:
        raise ConfigError(f"{key}={text} is not possible: it is between 1 and 100.", f"Set {key}=90, say.")
    return Quality(int(text))


def parse_sides(text: str, key: str) -> Sides:
    """`[160,256]` -> (160, 256). Raises ConfigError."""
    inner = [word.strip() for word in text.removeprefix("[").removesuffix("]").split(",") if text != "[]"]
    if not (text.startswith("[") and text.endswith("]")) or not all(word.isdecimal() for word in inner):
        raise ConfigError(f"{key}={text} is not possible: it is a list of sides in px.", f"Write {key}=[160,256], say.")
    check_sides([int(word) for word in inner], key)
    return Sides(tuple(int(word) for word in inner))


def parse_truth(text: str, key: str) -> bool:
    """`true` -> True. Raises ConfigError."""
    if text.lower() not in TRUTHS:
        raise ConfigError(f"{key}={text} is not possible.", f"Write {key}=true or {key}=false.")
    return TRUTHS[text.lower()]


def parse_held_out(text: str, key: str) -> HeldOut:
    """`500` or `2%`. Raises ConfigError."""
    if text.isdecimal():
        return HeldOut(number=int(text))
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share < 1:
        raise ConfigError(f"{key}={text} is not possible.", f"Write a number of images, or a share like {key}=2%.")
    return HeldOut(share=share)


PARSERS: dict[Any, Callable[[str, str], Any]] = {
    str: lambda text, _key: text,
    Path: lambda text, _key: Path(text).expanduser(),
    int: parse_whole,
    Threads: parse_threads,
    bool: parse_truth,
    Bytes: lambda text, key: Bytes(parse_bytes(text, key)),
    Quality: parse_quality,
    Sides: parse_sides,
    HeldOut: parse_held_out,
}


def pairs(words: Sequence[str]) -> dict[str, str]:
    """`["a=1", "b=2"]` -> {a: 1, b: 2}. Raises ConfigError."""
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"'{word}' is not of the form key=value.", "Write path=pictures, say.")
        if key in given:
            raise ConfigError(f"{key} is given twice: {given[key]} and {value}.", "Leave one of them out.")
        given[key] = value
    return given


def folder_and_pairs(words: Sequence[str], usage: str) -> tuple[Path, dict[str, str]]:
    """The one word that is no `key=value`, and the others. Raises ConfigError."""
    folders = [word for word in words if "=" not in word]
    if len(folders) != 1:
        raise ConfigError("Name one folder of shards.", usage)
    return Path(folders[0]).expanduser(), pairs([word for word in words if "=" in word])


def command(run: Callable[[list[str], Console], int], words: list[str]) -> int:
    """Run a script's command line; its exit code. What a person can mend is printed without a stack trace."""
    console = Console(soft_wrap=True)
    try:
        return run(words, console)
    except UserError as error:
        problem = str(error)
    except PermissionError as error:
        problem = f"{error.filename} cannot be used: {error.strerror}.\n  Ask who owns it, or name another one."
    except KeyboardInterrupt:
        console.print("Interrupted.", highlight=False)
        return INTERRUPTED
    say(console, problem)
    return EXIT_CODE


def say(console: Console, text: str) -> None:
    """Print a line as it is, whatever the names in it."""
    console.print(printable(text), highlight=False, markup=False)


def printable(text: str) -> str:
    """A text with file names that are no UTF-8, as any terminal and any file takes it."""
    return text.encode("utf-8", "backslashreplace").decode()


def fill(options: type[T], given: Mapping[str, str], what: str) -> T:
    """Options of what is given, for `what` (named where something is wrong). Raises ConfigError."""
    hints = typing.get_type_hints(options)
    known = {field.name: field for field in fields(options)}  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} has no option '{key}'.", nearest(key, known))
    for name, field in known.items():
        if field.default is MISSING and name not in given:
            raise ConfigError(f"{what} needs {name}=...", f"Its options: {', '.join(known)}.")
    return options(**{key: PARSERS[_plain(hints[key])](value, key) for key, value in given.items()})


def _plain(hint: Any) -> Any:
    """`X` of `X | None`."""
    inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return inner[0] if inner else hint
