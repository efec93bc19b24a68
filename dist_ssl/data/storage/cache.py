"""The node cache: whole, verified shards on a node's disk, bounded in size, shared by all processes using it.

    SHA256.tar    a shard; its name is the hash of its content, so runs and data sets share equal shards
    SHA256.part   a shard that is being fetched, at its full size from the start; the fetching process holds its lock
    lock          held while older shards are evicted to make room

The kernel releases the locks of a process that dies, so a part without a lock holder is left over from a dead process;
the next process takes it over or removes it. A part is renamed to .tar only once its content has the expected hash, so
a reader never sees anything else.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from dist_ssl.data.storage.fields import CHANGED, HASHES
from dist_ssl.errors import DataError
from dist_ssl.runtime.strange_files import others_may_change

log = logging.getLogger(__name__)
WHOLE, PART = ".tar", ".part"
POLL_SECONDS = 0.05
USED_SECONDS = 5.0
"""Longest time between two updates of the last-use time of a shard that is being read."""
FETCHES = 2
"""Number of fetches of a shard whose content does not have the manifest's hash, before it is refused."""


class Cache:
    """A cache folder that holds at most `size` bytes. Open files can still be read after their eviction."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size

    def find(self, sha256: str, size: int) -> FileIO | None:
        """Return the shard as an open file, None if it is not cached.

        Raises DataError if another user owns it, or may write to the cache.
        """
        path = self._named(sha256, WHOLE)
        try:
            file = FileIO(path, opener=_itself)
        except FileNotFoundError:
            return None
        self._check_folder()
        state = os.fstat(file.fileno())
        self._check_owner(state)
        if state.st_size != size:  # cut short by a power failure
            path.unlink(missing_ok=True)
            return None
        use(file)
        return file

    def obtain(self, name: str, sha256: str, size: int, fetch: Callable[[], Iterator[bytes]]) -> FileIO:
        """Return the shard as an open file; fetch it first if it is not cached, in one process at a time.

        `name`: for messages. Raises DataError where two fetches do not give the manifest's content, where the shard
        does not fit into the cache or its disk, or another user owns the cache or may write to it; and whatever `fetch`
        raises.
        """
        if size > self.size:
            raise DataError(
                f"{name} has {size} bytes, and the cache may hold {self.size}.",
                "Raise data.cache_bytes, or use no cache.",
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_folder()
        while True:
            found = self.find(sha256, size)
            if found:
                return found
            with self._claimed(sha256) as part:
                if part and not self._named(sha256, WHOLE).exists():
                    return self._fetch(part, name, sha256, size, fetch)

    def _named(self, sha256: str, ending: str) -> Path:
        """Return the path of a file of this folder; a manifest's text that is no hash could lead elsewhere."""
        assert HASHES["sha256"].fullmatch(sha256), f"{sha256!r} is no sha256"
        return self.folder / (sha256 + ending)

    def _check_owner(self, state: os.stat_result) -> None:
        """Raise DataError for a file or folder that another user owns: its content cannot be trusted."""
        if state.st_uid != os.geteuid():
            raise DataError(
                f"The cache {self.folder} belongs to another user.", "Name a folder of your own: data.cache=..."
            )

    def _check_folder(self) -> None:
        """Raise DataError for a folder in which another user may put files."""
        self._check_owner(self.folder.lstat())  # another user may have put a link to a folder of this one's here
        state = self.folder.stat()
        self._check_owner(state)
        if others_may_change(self.folder):
            raise DataError(
                f"The cache {self.folder} can be changed by others (mode {stat.S_IMODE(state.st_mode):o}).",
                f"Take the right from them: chmod go-w {shlex.quote(str(self.folder))}; or name a new folder, which is "
                f"made for you alone: data.cache={self.folder / 'own'}",
            )

    def _fetch(self, part: FileIO, name: str, sha256: str, size: int, fetch: Callable[[], Iterator[bytes]]) -> FileIO:
        """Fetch a shard into the part that this process has locked, verify and rename it; return it, open."""
        path = self._named(sha256, PART)
        while not self._reserve(part, size, sha256):
            time.sleep(POLL_SECONDS)  # parts of other processes fill the cache; once complete, they can be evicted
        for _ in range(FETCHES):
            try:
                found = _fill(part, fetch())
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise DataError(
                    f"The disk of the cache {self.folder} is full.",
                    "Lower data.cache_bytes, or name a folder with more room: data.cache=...",
                ) from error
            if found == sha256:
                os.fsync(part.fileno())
                file = FileIO(path, opener=_itself)
                path.rename(path.with_suffix(WHOLE))
                return file
            log.warning("%s has the sha256 %s; the manifest says %s", name, found, sha256)
        raise DataError(
            f"{name} has the sha256 {found}; the manifest says {sha256}. Fetching it again did not help.",
            CHANGED,
        )

    @contextmanager
    def _claimed(self, sha256: str) -> Iterator[FileIO | None]:
        """Yield the shard's part, locked; None where the part was renamed or removed while this process waited."""
        path = self._named(sha256, PART)
        with _open(path) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not _is(part, path):
                yield None
                return
            part.truncate(0)  # a dead process may have left it at its full size
            try:
                yield part
            finally:
                if _is(part, path):
                    path.unlink()

    def _reserve(self, part: FileIO, size: int, sha256: str) -> bool:
        """Evict shards until a part fits and give it its full size; return False where other parts leave no room."""
        with _open(self.folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used = self._parts(sha256)
            shards = sorted(self._shards(), key=lambda shard: shard[0])
            used += sum(size for _, size, _ in shards)
            for _, freed, path in shards:
                if used + size <= self.size:
                    break
                path.unlink(missing_ok=True)
                used -= freed
            if used + size > self.size:
                return False
            part.truncate(size)
            return True

    def _shards(self) -> Iterator[tuple[int, int, Path]]:
        """Yield the time of last use (ns), the size in bytes and the path of each shard."""
        for path in self._files(WHOLE):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                yield state.st_mtime_ns, state.st_size, path

    def _files(self, ending: str) -> list[Path]:
        """Return the cache's own files; others that lie in its folder are never removed."""
        return [path for path in self.folder.glob(f"*{ending}") if HASHES["sha256"].fullmatch(path.stem)]

    def _parts(self, own: str) -> int:
        """Return the total bytes of other processes' parts; remove those of dead processes."""
        total = 0
        for path in self._files(PART):
            if path.stem == own:
                continue
            with contextlib.suppress(FileNotFoundError), FileIO(path, opener=_itself) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += path.stat().st_size
                else:
                    if _is(file, path):
                        path.unlink()
        return total


def use(file: FileIO) -> None:
    """Set the last-use time of an open shard to now: the least recently used shard is evicted first."""
    os.utime(file.fileno())


def _open(path: Path) -> FileIO:
    """Open a file to read and write without truncating it; create it if it does not exist."""
    return FileIO(_itself(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), "r+")


def _itself(path: str | Path, flags: int) -> int:
    """Open a file of the cache. Raises OSError; DataError for a link, which could lead to any file of the user."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DataError(f"{path} is a link, which the cache does not follow.", "Remove it.") from error


def _is(file: FileIO, path: Path) -> bool:
    """Return whether the path still leads to this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fill(part: FileIO, chunks: Iterator[bytes]) -> str:
    """Write the chunks into a part from its start; return their sha256."""
    part.seek(0)
    hashed = hashlib.sha256()
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[part.write(rest) :]
        hashed.update(chunk)
    return hashed.hexdigest()
