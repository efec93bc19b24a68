"""Whole, verified shards on a node's own disk, within a bound, shared by all processes that name the same folder.

    SHA256.tar    a shard; its name is the hash of its content, so runs and data sets share what is the same
    SHA256.part   one that is being fetched, at its full size from the start; whoever fetches it holds a lock on it
    lock          held while room is made

The kernel drops the locks of a process that dies, so a part that nobody holds is rubbish, and is taken over by the next
or removed. A part gets its name when its content has the hash, and never before: nothing else is ever served.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path

from dist_ssl.errors import DataError

log = logging.getLogger(__name__)
WHOLE, PART = ".tar", ".part"
POLL_SECONDS = 0.05
USED_SECONDS = 5.0
"""How old the note may be that a shard is in use."""
FETCHES = 2
"""Of a shard whose content is not what the manifest says."""


class Cache:
    """A folder of shards that stays below `size` bytes. Open files that were evicted can still be read."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size

    def find(self, sha256: str, size: int) -> FileIO | None:
        """The shard, open, where it is here. Raises DataError where it is another user's."""
        path = self.folder / (sha256 + WHOLE)
        try:
            file = FileIO(path)
        except FileNotFoundError:
            return None
        state = os.fstat(file.fileno())
        self._check_owner(state)
        if state.st_size != size:  # the machine lost power
            path.unlink(missing_ok=True)
            return None
        use(file)
        return file

    def obtain(self, name: str, sha256: str, size: int, fetch: Callable[[], Iterator[bytes]]) -> FileIO:
        """The shard, open; fetched if need be, by one process at a time. `name`: for messages.

        Raises DataError where its content is not the manifest's, twice, and what `fetch` raises.
        """
        if size > self.size:
            raise DataError(
                f"{name} has {size} bytes, and the cache may hold {self.size}.", "Raise data.cache_bytes, or use none."
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_owner(self.folder.stat())
        while True:
            found = self.find(sha256, size)
            if found:
                return found
            with self._claimed(sha256) as part:
                if part and not (self.folder / (sha256 + WHOLE)).exists():
                    return self._fetch(part, name, sha256, size, fetch)

    def _check_owner(self, state: os.stat_result) -> None:
        """Raise DataError for what is another user's: it could be anything."""
        if state.st_uid != os.geteuid():
            raise DataError(
                f"The cache {self.folder} belongs to another user.", "Name a folder of yours: data.cache=..."
            )

    def _fetch(self, part: FileIO, name: str, sha256: str, size: int, fetch: Callable[[], Iterator[bytes]]) -> FileIO:
        """Fill a part that is ours, and give it its name."""
        path = self.folder / (sha256 + PART)
        while not self._reserve(part, size, sha256):
            time.sleep(POLL_SECONDS)  # others' parts fill the cache; they become shards, which can go
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
                file = FileIO(path)
                path.rename(path.with_suffix(WHOLE))
                return file
            log.warning("%s has the sha256 %s; the manifest says %s", name, found, sha256)
        raise DataError(
            f"{name} has the sha256 {found}; the manifest says {sha256}. So it was when it was fetched again.",
            "It has changed since it was indexed: put the old one back, or make the shards again.",
        )

    @contextmanager
    def _claimed(self, sha256: str) -> Iterator[FileIO | None]:
        """The shard's part, locked; None where another process was done with it, or gone, while we waited."""
        path = self.folder / (sha256 + PART)
        with _open(path) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not _is(part, path):
                yield None
                return
            part.truncate(0)  # a dead process may have reserved its space
            try:
                yield part
            finally:
                if _is(part, path):
                    path.unlink()

    def _reserve(self, part: FileIO, size: int, sha256: str) -> bool:
        """Make room for a part and give it its full size; False where others' parts leave none."""
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
        """When each shard was last in use, its size and its path."""
        for path in self.folder.glob(f"*{WHOLE}"):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                yield state.st_mtime_ns, state.st_size, path

    def _parts(self, own: str) -> int:
        """Bytes of others' parts; those of dead processes are removed."""
        total = 0
        for path in self.folder.glob(f"*{PART}"):
            if path.stem == own:
                continue
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += path.stat().st_size
                else:
                    if _is(file, path):
                        path.unlink()
        return total


def use(file: FileIO) -> None:
    """Note that an open shard is in use: what has not been for longest is evicted first."""
    os.utime(file.fileno())


def _open(path: Path) -> FileIO:
    """A file to write, made if need be, whose content stays."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")


def _is(file: FileIO | BufferedReader, path: Path) -> bool:
    """Whether the path still leads to this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fill(part: FileIO, chunks: Iterator[bytes]) -> str:
    """Write what arrives; its sha256."""
    part.seek(0)
    hashed = hashlib.sha256()
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[part.write(rest) :]
        hashed.update(chunk)
    return hashed.hexdigest()
