"""Range checks of config values, with the same form of message for all of them."""

from collections.abc import Callable

from dist_ssl.config.durations import Duration
from dist_ssl.errors import ConfigError


def require(place: str, rule: str, kept: Callable[[float], bool], **values: float) -> None:
    """Raise ConfigError for the first of `values` for which `kept` is False.

    `rule`: the rule in words; `place`: the config group of the keys.
    """
    for key, value in values.items():
        if not kept(value):
            raise ConfigError(f"{place}.{key}={value:g} is not possible: it must be {rule}.", "Correct it.")


def at_least(place: str, least: float, **values: float) -> None:
    """Raise ConfigError if one of these is less than `least`."""
    require(place, f"at least {least:g}", lambda value: value >= least, **values)


def positive(place: str, **values: float) -> None:
    """Raise ConfigError if one of these is not more than 0."""
    require(place, "more than 0", lambda value: value > 0, **values)


def shares(place: str, **values: float) -> None:
    """Raise ConfigError if one of these is not between 0 and 1."""
    require(place, "a number from 0 to 1", lambda value: 0 <= value <= 1, **values)


def counted(place: str, **values: Duration | None) -> None:
    """Raise ConfigError if one of these is measured by a clock: training depends on the position alone, not on time."""
    for key, value in values.items():
        if value is not None and value.timed:
            raise ConfigError(f"{place}.{key} is timed: it must be counted.", "Write it in epochs or steps.")
