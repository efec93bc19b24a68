"""What a person can mend is a `UserError`: the value, the rule it breaks and the remedy, shown without a stack trace.

Everything else that goes wrong is ours and propagates with its stack trace.
"""

import difflib
from collections.abc import Iterable

EXIT_CODE = 2
"""The exit code of every process that ends with a `UserError`."""


class UserError(Exception):
    """Something that a person can mend: `problem` names the value and the rule, `remedy` says what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.remedy}"


class ConfigError(UserError):
    """A key or a value of the configuration is not possible."""


class DataError(UserError):
    """The shards on disk are not what the run needs."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or read."""


class TrainingError(UserError):
    """The training itself has failed, and going on would harm the weights."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A remedy for a misspelt name: the nearest valid one, or all of them."""
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Valid names: " + ", ".join(names) + "."
