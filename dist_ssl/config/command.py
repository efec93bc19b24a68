"""How every command of the project runs: its help, the errors that the user can correct, and Ctrl-C."""

import errno
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dist_ssl.config.command_names import as_typed
from dist_ssl.errors import EXIT_CODE, ConfigError, UserError, cannot_be_used, explained, nearest, printable
from dist_ssl.runtime.log_setup import make_warnings_printable

INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C."""
NO_ANSWER = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of a file system, or of a link to something that no read can get."""


class Screen(Console):
    """A console whose text is only read: control characters become escapes, and markup in names has no effect.

    What is shown of files, folders and servers may be somebody else's, in lines, tables and progress bars alike.
    Commands of the project are named as the user types them. The environment variable NO_COLOR turns colours off.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"soft_wrap": True, "highlight": False, "markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it will be shown, so that a column of a table is wide enough for it."""
        return super().render_str(as_typed(printable(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the pieces of what is printed. Those with which rich itself moves the cursor stay as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def say(console: Console, text: str) -> None:
    """Print a line literally: without markup or highlighting of the names in it."""
    console.print(printable(text), highlight=False, markup=False, emoji=False)


def run_command(
    run: Callable[[list[str], Console], int],
    arguments: list[str],
    console: Console | None = None,
    *,
    errors: Console | None = None,
    interrupted: str = "Interrupted.",
    more_help: Callable[[], str] | None = None,
) -> int:
    """Run a command line; return its exit code. `run`: the function of the script that does the work.

    -h and --help print the script's docstring, and below it what `more_help` returns. Errors that the user can correct
    are printed to `errors` without a stack trace, and end with exit code 2. `interrupted`: printed after Ctrl-C.
    """
    console = console or Screen()
    make_warnings_printable()
    if {"-h", "--help"} & set(arguments):
        usage = str(sys.modules[run.__module__].__doc__)
        say(console, f"{usage}\n{more_help()}" if more_help else usage)
        return 0
    try:
        return run(arguments, console)
    except (UserError, OSError) as error:
        if (known := known_error(error)) is None:
            raise
        say(errors or console, str(known))
        return EXIT_CODE
    except KeyboardInterrupt:
        say(console, interrupted)
        return INTERRUPTED_CODE


def known_error(error: Exception) -> UserError | None:
    """Return the error as a UserError if the user of a command can correct it, otherwise None."""
    if isinstance(error, PermissionError) and error.filename:
        return cannot_be_used(error, "Change its permissions, or name another one.")
    if isinstance(error, OSError) and error.errno in NO_ANSWER and error.filename:
        return cannot_be_used(error, "See whether it is a link; where its file system does not answer, try again.")
    return explained(error)


def known_pairs(arguments: Sequence[str], keys: Collection[str]) -> list[tuple[str, str]]:
    """Return the keys and values, which may be empty, of a command line whose keys are these. Raises ConfigError."""
    return [known_pair(argument, keys) for argument in arguments]


def known_pair(argument: str, keys: Collection[str]) -> tuple[str, str]:
    """Return key and value, which may be empty, of a word KEY=VALUE whose key is one of these. Raises ConfigError."""
    key, equals, value = argument.partition("=")
    if key in keys and equals:
        return key, value
    if key in keys:
        raise _no_value(key)
    if equals:
        raise ConfigError(f"There is no key '{key}'.", nearest(key, keys))
    remedy = f"Valid keys: {', '.join(sorted(keys))}."
    if "run" in keys and "/" in argument:
        remedy = f"Did you mean run={argument}? {remedy}"
    raise ConfigError(f"'{argument}' is not KEY=VALUE.", remedy)


def filled_pair(argument: str, keys: Collection[str]) -> tuple[str, str]:
    """Return key and value of a word KEY=VALUE whose key is one of these and whose value is not empty.

    Raises ConfigError.
    """
    key, value = known_pair(argument, keys)
    if not value:
        raise _no_value(key)
    return key, value


def _no_value(key: str) -> ConfigError:
    return ConfigError(f"{key} has no value.", f"Write {key}=...")
