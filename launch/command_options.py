"""Options of a command as the fields of a dataclass: KEY=VALUE words, with the types and defaults of the fields."""

from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

import yaml

from dist_ssl.config.command import known_pairs
from dist_ssl.config.instantiate import fit
from dist_ssl.errors import ConfigError

T = TypeVar("T")
DATA_PATH = "data_path"
"""Field whose key is data.path, as for a run."""


def parse(kind: type[T], arguments: list[str], usage: str) -> T:
    """Return the options in the words of a command line. `usage`: the shortest command that works.

    Raises ConfigError for an unknown key, for a value of another type, and for a key that is missing.
    """
    types = get_type_hints(kind)
    names = {"data.path" if field.name == DATA_PATH else field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, text in known_pairs(arguments, names):
        if not text:
            raise ConfigError(f"{key} has no value.", f"Write {key}=...")
        name = names[key].name
        values[name] = fit(yaml.safe_load(text) if types[name] in (int, float, bool) else text, types[name], key)
    for key, field in names.items():
        if field.default is MISSING and field.name not in values:
            raise ConfigError(f"{key} is not given.", f"Usage: {usage}")
    return kind(**values)


def check_least(options: Any, **least: float) -> None:
    """Raise ConfigError where a field is less than its least value."""
    for key, value in least.items():
        if getattr(options, key) < value:
            raise ConfigError(f"{key}={getattr(options, key)} is too small.", f"Use at least {value}.")


def one_encoder(run: str | None, encoder: str | None) -> str:
    """Return which of the two is given: a run or a file. Raises ConfigError where not exactly one is."""
    if (run is None) == (encoder is None):
        raise ConfigError("The encoder is not clear.", "Write either run=runs/NAME or encoder=FILE.")
    return str(run or encoder)
