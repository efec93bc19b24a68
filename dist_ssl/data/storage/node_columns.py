"""The columns of large splits, once per node: the first process that needs them makes a file that all of them map.

    SHA256.columns        the columns (column_file.py). The name is the hash of what they are made of: address and hash
                          of the data set's own file, samples and bytes of its shards
    SHA256.columns-part   the same while it is being made; the process that makes it holds its lock

The files lie in the node's cache folder, under its rules (node_folder.py), beside the shards and not counted with them.
Every process compares length and hash of a file before it maps it, and makes it again where they differ. Where there
can be no such file, each process has the columns in memory, as it has those of small splits.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from dist_ssl.data.storage import column_file
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.node_folder import NodeFolder, use
from dist_ssl.data.storage.samples import Samples
from dist_ssl.errors import DataError
from dist_ssl.runtime.strange_files import open_regular

log = logging.getLogger(__name__)
LEAST = 1 << 17
"""Splits of fewer samples are read into memory, by every process: 7 MB."""
UNUSED_SECONDS = 30 * 86400.0
"""Files that no process has opened for so long are removed when another one is made."""
CHUNK = 1 << 20
VERSION = 1
TRIES = 8
IN_MEMORY = "The columns of %s are read into the memory of every process: %s"


class NodeColumns(NodeFolder):
    """The files of columns in a folder of this node. `least`: samples of a split that has a file."""

    WHOLE, PART = ".columns", ".columns-part"

    def __init__(self, folder: Path, least: int = LEAST) -> None:
        super().__init__(folder)
        self.least = least

    def samples(self, file: Address, hashed: str, shards: Sequence[tuple[int, int]], get: Fetcher) -> Samples | None:
        """Return the columns in a data set's file, mapped; None where they are to be read into memory.

        `hashed`: the xxh3 of the file; `shards`: samples and bytes of each shard. Raises the DataError of `get`.
        """
        if sum(count for count, _ in shards) < self.least:
            return None
        try:
            self.prepare()
        except (OSError, DataError) as error:
            log.warning(IN_MEMORY, file, error)
            return None
        try:
            return self._obtain(file, hashed, shards, get)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            log.warning(IN_MEMORY, file, error)
            return None

    def _obtain(self, file: Address, hashed: str, shards: Sequence[tuple[int, int]], get: Fetcher) -> Samples:
        place = str(file.path.absolute()) if file.local else str(file)
        named = hashlib.sha256(json.dumps([VERSION, place, hashed, shards]).encode()).hexdigest()
        path = self.named(named, self.WHOLE)
        for _ in range(TRIES):
            if found := self._found(named):
                return found
            with self.claimed(named) as part:
                if part and not path.exists():
                    self._make(part, file, hashed, shards, get)
                    self.named(named, self.PART).rename(path)
                    self._prune(named)
        raise OSError(f"{path} is damaged each time that it is made")

    def _found(self, named: str) -> Samples | None:
        """Return the columns of a whole file; remove one that is not. Raises OSError; DataError, see `opened`."""
        file = self.opened(named)
        if file is None:
            return None
        with file:
            path = self.named(named, self.WHOLE)
            found = column_file.mapped(file, path)
            if found is None:
                log.warning("%s is damaged and made again", path)
                path.unlink(missing_ok=True)
                return None
            use(file)
        return found

    def _make(self, part: FileIO, file: Address, hashed: str, shards: Sequence[tuple[int, int]], get: Fetcher) -> None:
        """Write the file of columns to a part. Raises OSError, ValueError; DataError where it cannot be fetched."""
        try:
            column_file.write(part, _content(file, get), hashed, shards, wide=False)
        except column_file.UnusualError:
            column_file.write(part, _content(file, get), hashed, shards, wide=True)

    def _prune(self, own: str) -> None:
        """Remove parts of dead processes, and files that have not been used for long; their readers keep them."""
        self.parts(own)
        for path in self.files(self.WHOLE):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > UNUSED_SECONDS:
                    path.unlink()


def _content(file: Address, get: Fetcher) -> Iterator[bytes]:
    """Yield the content of a data set's file in chunks. Raises OSError for a local one, DataError for others."""
    if not file.local:
        yield from get.stream(file, 0, get.size(file))
        return
    with open_regular(file.path) as opened:
        while chunk := opened.read(CHUNK):
            yield chunk
