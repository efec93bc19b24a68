"""A node's folder of files that processes of one user share: who may write there, and who makes a file.

A file's name is a sha256 in hexadecimal digits. One process makes it, as a part whose lock it holds, and renames the
part once it is whole; the kernel releases the locks of a process that dies.
"""

import contextlib
import errno
import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import ClassVar

from dist_ssl.data.storage.fields import HASHES
from dist_ssl.errors import DataError
from dist_ssl.runtime.strange_files import others_may_change


class NodeFolder:
    """The folder. `WHOLE`, `PART`: endings of its files, once they are whole and before."""

    WHOLE: ClassVar[str]
    PART: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder if it does not exist. Raises OSError; DataError where others may put files into it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.check_folder()

    def named(self, sha256: str, ending: str) -> Path:
        """Return the path of a file of this folder; a manifest's text that is no hash could lead elsewhere."""
        assert HASHES["sha256"].fullmatch(sha256), f"{sha256!r} is no sha256"
        return self.folder / (sha256 + ending)

    def files(self, ending: str) -> list[Path]:
        """Return the folder's own files; others that lie in it are never removed."""
        names = ((path, path.name.removesuffix(ending)) for path in self.folder.glob(f"*{ending}"))
        return [path for path, name in names if HASHES["sha256"].fullmatch(name)]

    def opened(self, sha256: str) -> FileIO | None:
        """Return a whole file, open; None if it does not exist.

        Raises DataError if another user owns it, or may write to the folder.
        """
        try:
            file = FileIO(self.named(sha256, self.WHOLE), opener=itself)
        except FileNotFoundError:
            return None
        self.check_folder()
        self.check_owner(os.fstat(file.fileno()))
        return file

    def check_owner(self, state: os.stat_result) -> None:
        """Raise DataError for a file or folder that another user owns: its content cannot be trusted."""
        if state.st_uid != os.geteuid():
            raise DataError(
                f"The cache {self.folder} belongs to another user.", "Name a folder of your own: data.cache=..."
            )

    def check_folder(self) -> None:
        """Raise DataError for a folder in which another user may put files."""
        self.check_owner(self.folder.lstat())  # another user may have put a link to a folder of this one's here
        state = self.folder.stat()
        self.check_owner(state)
        if others_may_change(self.folder):
            raise DataError(
                f"The cache {self.folder} can be changed by others (mode {stat.S_IMODE(state.st_mode):o}).",
                f"Take the right from them: chmod go-w {shlex.quote(str(self.folder))}; or name a new folder, which is "
                f"made for you alone: data.cache={self.folder / 'own'}",
            )

    @contextmanager
    def claimed(self, sha256: str) -> Iterator[FileIO | None]:
        """Yield a file's part, locked; None where the part was renamed or removed while this process waited."""
        path = self.named(sha256, self.PART)
        with open_to_write(path) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not leads_to(part, path):
                yield None
                return
            part.truncate(0)  # a dead process may have left it at its full size
            try:
                yield part
            finally:
                if leads_to(part, path):
                    path.unlink()

    def parts(self, own: str) -> int:
        """Return the total bytes of other processes' parts; remove those of dead processes."""
        total = 0
        for path in self.files(self.PART):
            if path == self.named(own, self.PART):
                continue
            with contextlib.suppress(FileNotFoundError), FileIO(path, opener=itself) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += path.stat().st_size
                else:
                    if leads_to(file, path):
                        path.unlink()
        return total


def use(file: FileIO) -> None:
    """Set the last-use time of an open file to now: what has not been used for longest is removed first."""
    os.utime(file.fileno())


def open_to_write(path: Path) -> FileIO:
    """Open a file to read and write without truncating it; create it if it does not exist."""
    return FileIO(itself(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), "r+")


def itself(path: str | Path, flags: int) -> int:
    """Open a file of the folder. Raises OSError; DataError for a link, which could lead to any file of the user."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DataError(f"{path} is a link, which the cache does not follow.", "Remove it.") from error


def leads_to(file: FileIO, path: Path) -> bool:
    """Return whether the path still leads to this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
