"""Errors that a user can fix: the value, the rule it breaks and the remedy, shown without a stack trace.

Every other error is a bug in this code and propagates with its stack trace.
"""

import difflib
from collections.abc import Iterable

EXIT_CODE = 2
"""Exit code of every process that ends with a `UserError`."""


class UserError(Exception):
    """An error that a user can fix: `problem` names the value and the rule, `remedy` says what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.remedy}"


class ConfigError(UserError):
    """A key or a value of the configuration is invalid."""


class DataError(UserError):
    """The shards do not provide what the run needs."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or read."""


class TrainingError(UserError):
    """The training itself has failed, and continuing would corrupt the weights."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return a remedy for a misspelt name: the nearest valid one, or all of them."""
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Valid names: " + ", ".join(names) + "."
