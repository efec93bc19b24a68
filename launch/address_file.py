"""Reads addresses of data with their credentials from a file that nobody but its owner can read."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from dist_ssl.data.storage.address import WEB, Address
from dist_ssl.errors import ConfigError
from dist_ssl.runtime.strange_files import open_regular
from launch.variables import ADDRESS_FILE

MOST_BYTES = 1 << 16
"""Size of such a file, at most."""
ROOT = 0
OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Rights of others; those that an access list gives to further users stand in the bits of the group."""


def addresses_in(path: Path) -> list[str]:
    """Return the addresses in a file: one per line, beside empty lines and comments (`# ...`).

    Raises ConfigError where others can read the file, where it is no file of the user's or of root's, or where a line
    is no address with credentials; no message quotes a line.
    """
    try:
        with BufferedReader(open_regular(path)) as file:
            _check_owner(path, os.fstat(file.fileno()))
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}", "Correct the path, or unset the variable.") from error
    if len(content) > MOST_BYTES:
        raise _refused(path, f"has more than {MOST_BYTES} bytes", "It holds one address per line, and nothing else.")
    lines = content.decode(errors="replace").splitlines()
    found = {number: line.strip() for number, line in enumerate(lines, 1)}
    return [_checked(path, number, line) for number, line in found.items() if line and not line.startswith("#")]


def _check_owner(path: Path, state: os.stat_result) -> None:
    """Raise ConfigError unless an open file is the user's or root's, and no other user has any right to it."""
    if state.st_uid not in (os.geteuid(), ROOT):
        raise _refused(
            path, f"belongs to another user (uid {state.st_uid})", "Make a copy of your own, with mode 0600."
        )
    if state.st_mode & OTHERS:
        mode = stat.S_IMODE(state.st_mode)
        raise _refused(path, f"can be read or changed by others (mode {mode:04o})", f"Close it: chmod 600 {path}")


def _checked(path: Path, number: int, line: str) -> str:
    """Return a line of the file. Raises ConfigError where it is no web address with a user, a password or a query."""
    try:
        address = Address.parse(line)
    except ConfigError:
        address = None
    if address is None or address.scheme not in WEB or not address.secret:
        raise _refused(
            path,
            f"has no address with credentials in line {number}",
            "Write https://USER:PASSWORD@host/folder there, with /, ?, @ and # in a password as %2F, %3F, %40 and %23.",
        ) from None
    return line


def _refused(path: Path, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"{path}, which {ADDRESS_FILE} names, {problem}.", remedy)
