"""Sweeps: `-m method=mocov3,simclr seed=0,1` starts a run for every combination."""

import contextlib
import time
from itertools import count, product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from dist_ssl.runtime.strange_files import close_to_others
from launch import settings

FLAGS = ("-m", "--multirun")


def expand(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of every run, the first key varying slowest. Raises ConfigError if one has no value."""
    parsed = OverridesParser.create().parse_overrides(
        [settings.legible(override, commas=True) for override in overrides]
    )
    choices = []
    for override, one in zip(overrides, parsed, strict=True):
        key = override.partition("=")[0]
        sweep = one.is_sweep_override()
        choices.append([f"{key}={value}" for value in one.sweep_string_iterator()] if sweep else [override])
    return [_named(list(combination), number) for number, combination in enumerate(product(*choices), start=1)]


def new_folder(runs: Path) -> Path:
    """Create a new folder in `runs` for the files of an array of jobs; exclusive creation makes it unique."""
    name = f"sweep-{time.strftime('%m%d-%H%M%S')}"
    for number in count(1):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o755, parents=True)
            close_to_others(folder)  # the job executes what is in it
            return folder
    raise AssertionError("unreachable")


def _named(overrides: list[str], number: int) -> list[str]:
    """Return the overrides with the number appended to a given name, which all runs of the sweep would share."""
    return [
        f"{override}-{number}" if override.startswith("name=") and override != "name=null" else override
        for override in overrides
    ]
