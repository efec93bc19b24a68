"""Finds the tars of each split in a folder: by patterns, or by the words for splits in their names."""

import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import braceexpand

from dist_ssl.errors import DataError, shortened
from dist_ssl.runtime.strange_files import open_regular
from shards.split_names import VAL_NAMES, split_of_tar

T = TypeVar("T")

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
"""Endings of compressed tars. They have to be decompressed: samples are read by their place in a tar."""
DECOMPRESS = "Decompress them (gunzip, zstd -d, ...): samples are read by their place in a tar"
MAGIC = {
    rb"\x1f\x8b": "gzip",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bzip2",
    rb"\xfd7zXZ": "xz",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"\x04\x22\x4d\x18": "lz4",
}
"""First bytes of compressed files, as regular expressions, and the program that reads them. Those of bzip2 are text
and may begin a name: what follows them is the mark of its first block, or that of its end."""
USTAR = slice(257, 262)
"""Where a tar says that it is one; those of the first format do not. Before that is the name of its first member."""


def tars_of_splits(folder: Path, train: str | None, val: str | None) -> dict[str, list[Path]]:
    """Return the tars of every split, sorted by name. `train`, `val`: patterns below the folder. Raises DataError."""
    words = {path: split_of_tar(str(path.relative_to(folder))) for path in (tars_to_split(folder) if not train else [])}
    splits = divided(words, matches(folder, train) if train else None, matches(folder, val) if val else [])
    if not splits["train"]:
        raise nothing_to_train_on(folder, splits["val"])
    return {split: paths for split, paths in splits.items() if paths}


def divided(words: Mapping[T, str], train: list[T] | None, held_out: list[T]) -> dict[str, list[T]]:
    """Return the tars to train on and those held out, under `train` and `val`; no tar is in both.

    `words`: the word for a split in the name of every tar; `train`, `held_out`: tars that patterns chose. Where `train`
    is None, the words choose those to train on among the tars that are not held out. Raises DataError.
    """
    if train is None:
        tars, named = by_words({tar: word for tar, word in words.items() if tar not in held_out})
        return {"train": tars, "val": held_out or named}
    twice = set(train) & set(held_out)
    if twice:
        raise DataError(
            f"{min(map(str, twice))} is in train and in val.", "Change train=... or val=... so that no tar fits both."
        )
    return {"train": train, "val": held_out}


def by_words(words: Mapping[T, str]) -> tuple[list[T], list[T]]:
    """Return the tars to train on and those held out, by the words for splits in their names.

    Where no tar is named for training, all that are named for no split are. Of several held-out splits, the first of
    VAL_NAMES is used.
    """
    train = "train" if "train" in words.values() else ""
    held = next((name for name in VAL_NAMES if name in words.values()), None)
    return [tar for tar, word in words.items() if word == train], [tar for tar, word in words.items() if word == held]


def tars_to_split(folder: Path) -> list[Path]:
    """Return the tars among which names tell the splits, sorted: those in a folder, or else in its sub-folders.

    Where sub-folders have tars to train on and held-out ones, and the folder has no tar named for training, all count:
    a tar that happens to lie beside `train/` and `val/` is in no split, and not the whole data set.
    """
    every = all_tars(folder)
    outer = [path for path in every if path.parent == folder]
    inner = {split_of_tar(str(path.relative_to(folder))) for path in every if path.parent != folder}
    split = "train" in inner and not inner.isdisjoint(VAL_NAMES)
    named = any(split_of_tar(path.name) == "train" for path in outer)
    return outer if outer and (named or not split) else every


def all_tars(folder: Path) -> list[Path]:
    """Return the tars in a folder and in its sub-folders, sorted."""
    found = (path for pattern in ("*.tar", "*/*.tar") for path in folder.glob(pattern))
    return sorted(path for path in found if path.is_file())


def compressed_tars(folder: Path) -> list[Path]:
    """Return the compressed tars in a folder and in its sub-folders, sorted."""
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    return sorted(path for path in found if path.name.lower().endswith(COMPRESSED) and path.is_file())


def compression_of(path: Path) -> str:
    """Return the program that compressed a file, by its first bytes; empty if none has. Raises OSError."""
    with open_regular(path) as file:
        start = file.read(tarfile.BLOCKSIZE)
    if start[USTAR] == b"ustar":
        return ""
    return next((program for magic, program in MAGIC.items() if re.match(magic, start)), "")


def matches(folder: Path, pattern: str) -> list[Path]:
    """Return the tars that fit a pattern, sorted. Raises DataError if an alternative in braces fits none."""
    paths: set[Path] = set()
    for part in braceexpand.braceexpand(pattern):
        own = {path for path in folder.glob(part) if path.is_file()}
        if not own:
            raise DataError(f"No tar in {folder} fits {part}.", "Correct the pattern, or fetch the missing tar.")
        paths |= own
    return sorted(paths)


def nothing_to_train_on(folder: Path, held_out: Sequence[Path]) -> DataError:
    """Return the error for a folder without tars to train on."""
    if held_out:
        names = shortened([path.name for path in held_out])
        return DataError(
            f"By their names, all tars in {folder} are held out: {names}.", "Say which to train on: train='test-*.tar'."
        )
    packed = compressed_tars(folder)
    if packed:
        return DataError(
            f"{folder} holds compressed tars only ({len(packed)}): {shortened([path.name for path in packed])}.",
            f"{DECOMPRESS}, then run the same command again.",
        )
    return DataError(f"No tar in {folder} fits *.tar.", "Set a pattern for their names: train='images-*', for example.")
