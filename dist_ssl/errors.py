"""Errors that a user can fix: the value, the rule it breaks and the remedy, shown without a stack trace.

Every other error is a bug in this code and propagates with its stack trace.
"""

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that act on a terminal or change the order of the text: all control characters but tab and line feed."""
EXIT_CODE = 2
"""Exit code of every process that ends with a `UserError`."""
MOST_SHOWN = 60
"""Characters that are shown of a path that is too long."""
MOST_NAMES = 60
"""Names that a remedy lists: timm has more than a thousand."""


class UserError(Exception):
    """An error that a user can fix: `problem` names the value and the rule, `remedy` says what to do.

    `transient`: it is a fault of a machine or a network rather than of the run, and the same attempt may succeed later.
    """

    transient = False

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return printable(f"{self.problem}\n  {self.remedy}")


class ConfigError(UserError):
    """A key or a value of the configuration is invalid."""


class DisagreementError(ConfigError):
    """The ranks of an attempt would not do the same: each acts on another plan, position or hyperparameter."""


class DataError(UserError):
    """The shards do not provide what the run needs."""


class TooManyUnreadableError(DataError):
    """More samples cannot be read than the run allows, as it would find again after a resume."""


class ServerAwayError(DataError):
    """A server of data, or a file system with data, does not answer."""

    transient = True


class LostPeerError(UserError):
    """Another rank, or the node that it was on, is gone or does not answer."""

    transient = True


class CheckpointError(UserError):
    """A checkpoint cannot be written or read."""


class CheckpointAwayError(CheckpointError):
    """The file system with a checkpoint does not answer."""

    transient = True


class TrainingError(UserError):
    """The training itself has failed, and continuing would corrupt the weights."""


def reason_of(error: BaseException) -> object:
    """Return why a call of the system failed, without its error number and path; of other errors all that they say."""
    return getattr(error, "strerror", None) or error


def cannot_be_written(place: object, error: OSError, remedy: str) -> UserError:
    """Return the error for a file or folder, named by the user, that a command could not write."""
    return UserError(f"{place} cannot be written: {reason_of(error)}.", remedy)


def cannot_be_used(error: OSError, remedy: str) -> UserError:
    """Return the error for the path that an error of the system names."""
    return UserError(f"{error.filename} cannot be used: {error.strerror}.", remedy)


def explained(error: BaseException) -> UserError | None:
    """Return the error as a UserError if the user can fix it, as a full disk is, otherwise None."""
    if isinstance(error, UserError):
        return error
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {error}.", "Free some space, then try again.")
    if error.errno == errno.EROFS:
        return UserError(f"The disk is read-only: {error}.", "Have it mounted for writing, or name another folder.")
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"A path is too long: {str(error.filename)[:MOST_SHOWN]}...", "Name a shorter one.")
    if error.errno in (errno.EISDIR, errno.ENOTDIR) and error.filename:
        return cannot_be_used(error, "A file or a folder of a run is something else: move that away, then try again.")
    return None


def printable(text: str) -> str:
    """Return a text in which nothing acts on a terminal: file names and servers' answers may hold anything.

    Control characters, and bytes of file names that are not valid UTF-8, become backslash escapes.
    """
    plain = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return plain.encode("utf-8", "backslashreplace").decode()


def shortened(names: Sequence[str], most: int = 10, between: str = ", ") -> str:
    """Return the first `most` of many names joined by `between`, with the number of the others."""
    more = [f"... and {len(names) - most} more"] if len(names) > most else []
    return between.join([*names[:most], *more])


def plural(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 image`, `2 images`. `many`: the plural, where it is not `one` with an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def nearest(name: str, options: Iterable[str], before: str = "") -> str:
    """Return a remedy for a misspelt name: the nearest valid one, or all of them, up to `MOST_NAMES`.

    `before`: what a user writes before the nearest one.
    """
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{before}{close[0]}'?"
    return f"Valid names: {shortened(names, MOST_NAMES)}."
