"""Finds images of a data set that have the same bytes as others, and held-out ones that are trained on too.

Only images of equal size can be copies. Of those the middle is hashed, in the order in which they lie on the disk, and
all bytes only of the few whose middles agree.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import xxhash
from rich.console import Console

from dist_ssl.config.command import say
from dist_ssl.core.draws import Ints
from dist_ssl.data.order.ledger import Hashes
from dist_ssl.data.storage.manifest import Manifest, Split
from dist_ssl.errors import DataError, plural, shortened
from dist_ssl.runtime.strange_files import open_regular

MIDDLE = 4096
"""Bytes of the middle of an image that are hashed first."""
PIECE = 1 << 20
"""Bytes that are read at a time."""
MOST_IMAGES = 2_000_000
"""Images of a data set that is looked through, at most: a read for each of many more would take hours."""
SHOWN = 3
"""Names that a message lists."""
TRAIN = "train"


class Copies(NamedTuple):
    """Keys of images by split, sorted: those that repeat one before them, and those that train has as well."""

    repeated: dict[str, list[str]]
    trained_on: dict[str, list[str]]


def say_copies(data: Manifest, threads: int, console: Console) -> None:
    """Print which images of a data set on this machine are copies of others. Raises DataError."""
    if (total := sum(len(split.samples) for split in data.splits.values())) > MOST_IMAGES:
        say(console, f"Copies are not looked for among {total} images: more than {MOST_IMAGES}.")
        return
    found = copies_in(data, threads)
    for name, keys in found.repeated.items():
        many = plural(len(keys), "image repeats another one", "images repeat other ones")
        say(console, f"{name}: {many} byte for byte; all are used: {shortened(keys, SHOWN)}.")
    for name, keys in found.trained_on.items():
        many = plural(len(keys), "image is in train too", "images are in train too")
        what = f"{name}: {many}, byte for byte, so an accuracy on {name} is too high: {shortened(keys, SHOWN)}"
        say(console, f"{what}. Remove the copies and make the shards again.")


def copies_in(data: Manifest, threads: int) -> Copies:
    """Return the copies in a data set whose shards are on this machine. Raises DataError where it cannot be read."""
    splits = [split for _, split in sorted(data.splits.items(), key=lambda item: (item[0] != TRAIN, item[0]))]
    sizes = np.concatenate([np.asarray(split.samples.sizes, dtype=np.int64) for split in splits])
    numbers = np.flatnonzero(sizes)
    hashes = np.zeros(len(numbers), dtype=np.uint64)  # before any byte is read, only sizes tell them apart
    numbers, hashes = alike(numbers, sizes, hashes)
    for most in (MIDDLE, int(sizes.max(initial=0))):
        hashes = hashes_of(splits, numbers, most, threads)
        numbers, hashes = alike(numbers, sizes, hashes)
    return sorted_out(splits, numbers, sizes, hashes)


def alike(numbers: Ints, sizes: Ints, hashes: Hashes) -> tuple[Ints, Hashes]:
    """Return the numbers, and their hashes, of images of which another one has the same size and hash."""
    rows = np.column_stack([sizes[numbers].astype(np.uint64), hashes])
    _, group, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    shared = counts[group.ravel()] > 1
    return numbers[shared], hashes[shared]


def hashes_of(splits: Sequence[Split], numbers: Ints, most: int, threads: int) -> Hashes:
    """Return the hashes of up to `most` bytes in the middle of each image, [N]. `numbers`: sorted, over all splits."""
    parts: list[tuple[Split, int, Ints]] = []
    first = 0
    for split in splits:
        own = numbers[(numbers >= first) & (numbers < first + len(split.samples))] - first
        shards = np.searchsorted(split.ends, own, side="right")
        groups = np.split(own, np.flatnonzero(np.diff(shards)) + 1) if len(own) else []
        parts += [(split, split.shard_of(int(group[0])), group) for group in groups]
        first += len(split.samples)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda part: hashes_in_shard(part[0], part[1], part[2], most), parts))
    return np.array([one for own in found for one in own], dtype=np.uint64)


def hashes_in_shard(split: Split, shard: int, numbers: Ints, most: int) -> list[int]:
    """Return the hashes of up to `most` bytes in the middle of these images of a shard. Raises DataError."""
    path, found = split.path(shard), []
    try:
        with open_regular(path) as file:
            for number in numbers.tolist():
                start, size = int(split.samples.offsets[number]), int(split.samples.sizes[number])
                skipped = max(0, size - most) // 2
                found.append(hash_of_bytes(file.fileno(), start + skipped, min(size, most)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.", "Fix that and run the same command again.") from error
    return found


def hash_of_bytes(file: int, start: int, size: int) -> int:
    """Return the 64-bit hash of `size` bytes from byte `start` of an open file, read in blocks. Raises OSError."""
    content = xxhash.xxh3_64()
    for at in range(start, start + size, PIECE):
        content.update(os.pread(file, min(PIECE, start + size - at), at))
    return content.intdigest()


def sorted_out(splits: Sequence[Split], numbers: Ints, sizes: Ints, hashes: Hashes) -> Copies:
    """Return the keys of the copies. `splits`: train first; `numbers`: sorted, of images that have a copy."""
    of_split = np.searchsorted(np.cumsum([len(split.samples) for split in splits]), numbers, side="right")
    firsts = np.cumsum([0, *(len(split.samples) for split in splits)])
    known: set[tuple[int, int, int]] = set()
    found: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for number, content, own in zip(numbers.tolist(), hashes.tolist(), of_split.tolist(), strict=True):
        split, same = splits[own], (int(sizes[number]), content)
        key = split.samples.key(number - int(firsts[own]))
        if (own, *same) in known:
            found[0].setdefault(split.name, []).append(key)
        if own and splits[0].name == TRAIN and (0, *same) in known:
            found[1].setdefault(split.name, []).append(key)
        known.add((own, *same))
    repeated, trained_on = ({name: sorted(keys) for name, keys in part.items()} for part in found)
    return Copies(repeated, trained_on)
