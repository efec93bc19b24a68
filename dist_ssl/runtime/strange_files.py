"""Reads files that another user may have written, endless ones too, and checks and changes who may write to a path."""

import contextlib
import errno
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from dist_ssl.runtime import jsonl

ACCESS_LIST, DEFAULT_ACCESS_LIST = "system.posix_acl_access", "system.posix_acl_default"
"""Where Linux keeps the rights of further users and groups, and those that new files and folders get."""
HUGE = 1e300
"""A number that no metric reaches: JSON has whole numbers that no float can hold."""


class NotRegularError(OSError, ValueError):
    """A path leads to a pipe, a device, a socket or a folder: none is read, and none is a whole file."""


def open_regular(path: Path) -> FileIO:
    """Return a file that is open to be read, unbuffered. Raises OSError, NotRegularError.

    A pipe would be waited for, and a device has no end.
    """
    file = FileIO(path, opener=_at_once)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotRegularError(errno.EINVAL, "it is no regular file", str(path))
    os.set_blocking(file.fileno(), True)  # file systems that keep files on tape fail reads that may not wait
    return file


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises OSError; NotRegularError; ValueError where it is larger.
    """
    with BufferedReader(open_regular(path)) as file, naming(path):
        size = os.fstat(file.fileno()).st_size  # a read of `most` bytes would ask for that much memory first
        content = file.read(size + 1) if size <= most else b""
        if size < len(content) <= most:  # it has grown, or says no size
            content += file.read(most + 1 - len(content))
    if max(size, len(content)) > most:
        raise ValueError(f"{path} has more than {most} bytes")
    return content


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of reading an open file have its path, as those of opening it have."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a regular file, in hexadecimal digits. Raises OSError, NotRegularError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def others_may_change(place: Path | int) -> bool:
    """Return whether another user may write to a file or folder, given by its path or descriptor. Raises OSError.

    The user's own group has no others, unless an access list names some: its rights are those of the group in the mode.
    """
    state = os.stat(place)  # noqa: PTH116  # of a descriptor too
    if state.st_mode & stat.S_IWOTH:
        return True
    return bool(state.st_mode & stat.S_IWGRP) and (_has_access_list(place) or not _of_one_user(state.st_gid))


def _has_access_list(place: Path | int) -> bool:
    try:
        return bool(os.getxattr(place, ACCESS_LIST))
    except (OSError, AttributeError):  # none, or a system without them
        return False


def is_ones_own(path: Path) -> bool:
    """Return whether a path, and where it is a link what it leads to, is the user's and no other user may write to it.

    A path that leads nowhere is not. Raises OSError.
    """
    users = {path.lstat().st_uid, path.stat().st_uid} if path.exists() else set[int]()
    return users == {os.geteuid()} and not others_may_change(path)


def close_to_others(folder: Path) -> None:
    """Let no other user write to a folder of one's own, or to what will be made in it. Raises OSError.

    Where the folder above has a default access list, this one has inherited it, and the umask would have no effect.
    """
    with contextlib.suppress(OSError, AttributeError):  # it has none, or the system knows none
        os.removexattr(folder, DEFAULT_ACCESS_LIST)
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o022)


def _of_one_user(group: int) -> bool:
    """Return whether a group is the user's alone: named like the user, as many systems make one, without members."""
    try:
        found, name = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
        return group == os.getegid() and found.gr_name == name and not {*found.gr_mem} - {name}
    except KeyError:
        return False


def parsed_object(text: bytes | str) -> dict[str, Any] | None:
    """Return the object in a JSON text; None where it holds anything else, or is nested too deeply to be read."""
    try:
        found = jsonl.parsed(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def writable(text: str) -> str:
    """Return a text that can be written: JSON, YAML and file names may hold halves of characters, which become `?`."""
    return text.encode(errors="replace").decode()


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Return those values of an object that are finite numbers."""
    return {key: value for key, value in found.items() if type(value) in (int, float) and abs(value) < HUGE}
