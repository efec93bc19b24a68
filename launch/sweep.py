"""Several runs from one command: `-m method=mocov3,simclr seed=0,1` stands for every combination."""

import contextlib
import time
from itertools import count, product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from launch import settings

FLAGS = ("-m", "--multirun")


def expand(words: list[str]) -> list[list[str]]:
    """The words of every run, the first key varying slowest. Raises ConfigError where a word has no value."""
    overrides = OverridesParser.create().parse_overrides([settings.legible(word, commas=True) for word in words])
    choices = []
    for word, override in zip(words, overrides, strict=True):
        key = word.partition("=")[0]
        sweep = override.is_sweep_override()
        choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if sweep else [word])
    return [_named(list(combination), number) for number, combination in enumerate(product(*choices), start=1)]


def new_folder(runs: Path) -> Path:
    """A folder in `runs` for the files of an array of jobs, made by exclusive creation."""
    name = f"sweep-{time.strftime('%m%d-%H%M%S')}"
    for number in count(1):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def _named(words: list[str], number: int) -> list[str]:
    """A run that was given a name shares it with the others, so it gets a number too."""
    return [f"{word}-{number}" if word.startswith("name=") and word != "name=null" else word for word in words]
