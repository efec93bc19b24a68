"""What code does to the machine around it: files changed outside of given folders, commands started, hosts reached.

Python tells its audit hooks of each of these before it happens, so it does not happen here. Hooks stay until the end of
their process: `confine` is for a process that a test has forked. What compiled libraries open is not told.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
Places = tuple[tuple[int, int | None], ...]
CHANGES: dict[str, Places] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
}
"""Events that change a path: which of their arguments it is, and which one is the folder that it starts from."""
FOLLOWING = ("open", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr")
"""Events that change what a link leads to."""
COMMANDS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class")
"""Events of running something else: a command, or what a pickle names."""
LOOPBACK = ("127.0.0.1", "::1")


class OutsideError(BaseException):
    """Something outside was about to be changed. No `except Exception` keeps it."""


def confine(folders: Sequence[Path]) -> list[str]:
    """Let this process change nothing outside of the folders from now on; return the list of what was refused."""
    inside = [os.path.realpath(folder) for folder in folders]
    refused: list[str] = []
    sys.dont_write_bytecode = True
    sys.addaudithook(_hook(inside, refused))
    return refused


def _hook(inside: list[str], refused: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Return the function that Python calls before whatever it does."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or event == "open":
            told = [f"{event} {place}" for place in changed(event, arguments) if not _is_inside(place, inside)]
        elif event in COMMANDS:
            told = [f"{event} {arguments!r:.200}"]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            told = [f"{event} {arguments[1]!r}"] if arguments[1][0] not in LOOPBACK else []
        else:
            return
        if told:
            refused.extend(told)
            raise OutsideError(told[0])

    return hook


def changed(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Return the full paths that an event changes; nothing for a file that is opened to be read."""
    if event == "open":
        path, _, flags = arguments
        places = [] if isinstance(path, int) or not (flags or 0) & WRITES else [_full(path, None, follow=True)]
    else:
        places = [
            _full(arguments[path], None if folder is None else arguments[folder], follow=event in FOLLOWING)
            for path, folder in CHANGES[event]
        ]
    return places


def _full(path: Any, folder: int | None, follow: bool) -> str:
    """Return the path without links on its way; `follow`: also not at its end. `folder`: descriptor that it is in."""
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    base = "" if folder is None or folder < 0 else os.fspath(Path(f"/proc/self/fd/{folder}").readlink())
    whole = os.path.abspath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH100, PTH118  # links are kept
    if follow:
        return os.path.realpath(whole)
    above, name = os.path.split(whole)
    return os.path.join(os.path.realpath(above), name)  # noqa: PTH118


def _is_inside(place: str, folders: list[str]) -> bool:
    return place == os.devnull or any(place == folder or place.startswith(f"{folder}{os.sep}") for folder in folders)
