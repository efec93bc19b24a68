"""The commands of the project in messages: they are shown as the user of this process types them.

Messages are written with scripts, `python launch/audit.py run=...`. Where the installed command runs, `show_as` has
them shown as its subcommands, `dist-ssl audit run=...`: an installation without the repository has no scripts to start.
"""

import re
from collections.abc import Mapping

PROGRAM = "dist-ssl"
"""The installed command."""
COMMAND = re.compile(r"(?<![\w./-])(?:python|(?P<torchrun>torchrun(?: --\S+(?: \d+)?)*)) (?P<script>\w+/\w+\.py)\b")
"""A script behind the program that starts it; without one, a path is the name of a file."""
_subcommands: dict[str, str] = {}


def show_as(subcommands: Mapping[str, str]) -> None:
    """Show scripts as the subcommands to which these map them (`launch/audit.py` to `audit`), from now on."""
    _subcommands.clear()
    _subcommands.update(subcommands)


def subcommand(script: str) -> str | None:
    """Return the subcommand as which a script is shown; None where the user types the script."""
    return _subcommands.get(script)


def as_typed(text: str) -> str:
    """Return a text in which commands of the project are named as the user of this process types them."""
    return COMMAND.sub(_renamed, text) if _subcommands else text


def _renamed(found: re.Match[str]) -> str:
    name = subcommand(found["script"])
    if name is None:
        return found[0]
    return f"{found['torchrun']} --no-python {PROGRAM} {name}" if found["torchrun"] else f"{PROGRAM} {name}"
