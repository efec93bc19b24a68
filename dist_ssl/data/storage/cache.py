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
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from dist_ssl.data.storage.fields import CHANGED
from dist_ssl.data.storage.node_folder import NodeFolder, itself, open_to_write, use
from dist_ssl.errors import DataError

log = logging.getLogger(__name__)
POLL_SECONDS = 0.05
USED_SECONDS = 5.0
"""Longest time between two updates of the last-use time of a shard that is being read."""
FETCHES = 2
"""Number of fetches of a shard whose content does not have the manifest's hash, before it is refused."""


class Cache(NodeFolder):
    """A cache folder that holds at most `size` bytes. Open files can still be read after their eviction."""

    WHOLE, PART = ".tar", ".part"

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder)
        self.size = size

    def find(self, sha256: str, size: int) -> FileIO | None:
        """Return the shard as an open file, None if it is not cached.

        Raises DataError if another user owns it, or may write to the cache.
        """
        file = self.opened(sha256)
        if file is None:
            return None
        if os.fstat(file.fileno()).st_size != size:  # cut short by a power failure
            self.named(sha256, self.WHOLE).unlink(missing_ok=True)
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
        self.prepare()
        while True:
            found = self.find(sha256, size)
            if found:
                return found
            with self.claimed(sha256) as part:
                if part and not self.named(sha256, self.WHOLE).exists():
                    return self._fetch(part, name, sha256, size, fetch)

    def _fetch(self, part: FileIO, name: str, sha256: str, size: int, fetch: Callable[[], Iterator[bytes]]) -> FileIO:
        """Fetch a shard into the part that this process has locked, verify and rename it; return it, open."""
        path = self.named(sha256, self.PART)
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
                file = FileIO(path, opener=itself)
                path.rename(path.with_suffix(self.WHOLE))
                return file
            log.warning("%s has the sha256 %s; the manifest says %s", name, found, sha256)
        raise DataError(
            f"{name} has the sha256 {found}; the manifest says {sha256}. Fetching it again did not help.",
            CHANGED,
        )

    def _reserve(self, part: FileIO, size: int, sha256: str) -> bool:
        """Evict shards until a part fits and give it its full size; return False where other parts leave no room."""
        with open_to_write(self.folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used = self.parts(sha256)
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
        for path in self.files(self.WHOLE):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                yield state.st_mtime_ns, state.st_size, path


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
