"""Sweeps: `-m method=mocov3,simclr seed=0,1` starts a run for every combination."""

import time
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from launch import settings
from launch.half_made import new_folder

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


def new_sweep(runs: Path) -> Path:
    """Create a new folder in `runs` for the files of an array of jobs; exclusive creation makes it unique."""
    return new_folder(runs, f"sweep-{time.strftime('%m%d-%H%M%S')}")


def _named(overrides: list[str], number: int) -> list[str]:
    """Return the overrides with the number appended to a given name, which all runs of the sweep would share."""
    return [
        f"{override}-{number}" if override.startswith("name=") and override != "name=null" else override
        for override in overrides
    ]
