"""Readers for tests: of damaged samples, and processes that read from a server through a cache that they share."""

import fcntl
import hashlib
import json
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.fetch import Fetcher, Patience
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access


class Damaged(Reader):
    """A reader for which the bytes of some samples are no image."""

    def __init__(self, split: manifest.Split, numbers: Iterable[int]) -> None:
        super().__init__(split)
        self.numbers = set(numbers)

    def read(self, number: int) -> bytes:
        return b"damaged" if number in self.numbers else super().read(number)


def rehashed(folder: Path) -> Path:
    """The folder of a data set whose tars were spoilt, with their present sha256 in its manifest: they came so."""
    content = json.loads((folder / manifest.NAME).read_text())
    for split in content["splits"].values():
        for shard in split["shards"]:
            shard["sha256"] = hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest()
    manifest.write_json(folder / manifest.NAME, content)
    return folder


def access(cache: Path | None, size: int = 10**9, tries: int = 6) -> Access:
    """Access with little patience."""
    return Access(Fetcher(Patience(tries, 0.002, stall_seconds=0.3)), Cache(cache, size) if cache else None)


def remote(url: str, found: Access, name: str = "train") -> manifest.Split:
    """A split of the data set behind an address."""
    return manifest.read(Address.parse(url), found.fetcher).split(name)


def held(folder: Path) -> int:
    """Bytes that the cache holds or has promised, while nobody makes room in it."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sizes = {}
        for path in [*folder.glob("*.part"), *folder.glob("*.tar")]:
            try:
                state = path.stat()
            except FileNotFoundError:  # it was whole in this moment, and is listed by its new name
                continue
            sizes[state.st_ino] = state.st_size
        return sum(sizes.values())


def main(url: str, local: str, cache: str, size: str, seed: str, count: str) -> None:
    """Read samples at random and compare each with the local one."""
    found = access(Path(cache), int(size), tries=40)
    choice = random.Random(int(seed))
    true = Reader(manifest.read(Path(local)).split("train"))
    reader = Reader(remote(url, found), found)
    numbers = range(len(reader.split.samples))
    reader.expect(choice.sample(range(len(reader.split.shards)), k=len(reader.split.shards)))
    for _ in range(int(count)):
        number = choice.choice(numbers)
        assert reader.read(number) == true.read(number), number
        assert held(Path(cache)) <= int(size)
        time.sleep(choice.random() / 500)
    print("all right")


if __name__ == "__main__":
    main(*sys.argv[1:])
