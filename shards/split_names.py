"""Names by which people call the splits of a data set: `Train/`, `val2017/`, `set-validation-03.tar`, `test/1.tar`."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dist_ssl.errors import DataError, shortened

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")
"""Words for the splits, in any case; of several held-out ones, the first in this order is used."""
YEAR = re.compile(r"([a-z]+)[-_ ]?\d{0,4}")
WORD = re.compile(r"[a-z]+")
ENDING = re.compile(r"(set|split|data)$")


def split_of_folder(name: str) -> str:
    """Return the word for a split that a folder is named by, with a year or a number behind it or not; empty if none.

    `Train` -> `train`, `val2017` -> `val`, `trains` -> an empty text.
    """
    found = YEAR.fullmatch(name.lower())
    return found[1] if found and found[1] in (*TRAIN_NAMES, *VAL_NAMES) else ""


def named_like(names: Sequence[str], folders: Iterable[str]) -> list[str]:
    """Return the folders whose word for a split is one of these, in the order of the words."""
    found = {folder: split_of_folder(folder) for folder in folders}
    return sorted((f for f, word in found.items() if word in names), key=lambda f: (names.index(found[f]), f))


def split_of_tar(path: str) -> str:
    """Return the word for a split that stands in the path of a tar, `train` for TRAIN_NAMES; empty if none or several.

    `imagenet1k-train-0001.tar` -> `train`, `test/0001.tar` -> `test`, `valley-1.tar` -> an empty text.
    """
    words = {ENDING.sub("", word) for word in WORD.findall(path.lower().removesuffix(".tar"))}
    known = [*(["train"] if words & {*TRAIN_NAMES} else []), *(name for name in VAL_NAMES if name in words)]
    return known[0] if len(known) == 1 else ""


def folder_of_splits(files: Sequence[str]) -> str:
    """Return `NAME/` or `NAME/INNER/` if all images lie in this one folder, which has the folders of splits.

    Otherwise an empty text. `files`: their paths, at least one.
    """
    folders = {file.rpartition("/")[0] for file in files}
    shared = os.path.commonpath(folders)
    inside = f"{shared}/" if shared else ""
    inner = {folder.removeprefix(inside).partition("/")[0] for folder in folders if folder != shared}
    whole = shared not in folders and named_like(TRAIN_NAMES, inner) and named_like(VAL_NAMES, inner)
    return inside if whole else ""


def check_inner_splits(files: Sequence[str], root: Path, *, all_used: bool | None) -> list[str]:
    """Return the folders, with a slash, in which folders of splits lie; raise DataError if there are any.

    What is held out would be trained on. `all_used`: the user says that this is meant; None where no option could
    say so; `files`: their paths below `root`.
    """
    inner: dict[str, set[str]] = {}
    for file in files:
        above, _, name = file.rpartition("/")[0].rpartition("/")
        while above:
            if word := split_of_folder(name):
                inner.setdefault(above, set()).add(word)
            above, _, name = above.rpartition("/")
    found = sorted(f"{above}/" for above, words in inner.items() if words & {*TRAIN_NAMES} and words & {*VAL_NAMES})
    if found and not all_used:
        say_so = "" if all_used is None else "; or use all of them, with val=0 (nothing is held out) or labels=false"
        raise DataError(
            f"{root} has folders of splits inside others: {shortened(found, 3)}: pictures "
            "that are held out would be trained on.",
            f"Pack one of them alone, path={root / found[0]}; or make train/ and val/ the outermost folders (links "
            f"will do); or rename them, if they are no splits{say_so}.",
        )
    return found
