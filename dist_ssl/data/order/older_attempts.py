"""Joins what the nodes of older attempts have written: one file an attempt instead of one for each of its nodes.

    attempt_0007_node_00000.ledger, ..., attempt_0007_node_00127.ledger  ->  attempt_0007_joined.ledger

A joined file is made whole under a hidden name, and is never replaced; the files that it holds are removed after that
and count no more, also where a process that was forgotten makes one of them anew. Whatever fails leaves files as they
are, for the next attempt.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from dist_ssl.runtime.files import hidden_beside

log = logging.getLogger(__name__)
NODE = re.compile(r"(attempt_([0-9]{4,18}))_node_[0-9]{5,18}(\.ledger|\.jsonl)")
JOINED_NAME = re.compile(r"attempt_([0-9]{4,18})_joined(?:\.ledger|\.jsonl)")


def joined_of(path: Path) -> Path:
    """Return the file that joins a node's file with those of the other nodes."""
    named = NODE.fullmatch(path.name)
    assert named
    return path.with_name(f"{named[1]}_joined{named[3]}")


def join(folder: Path, before: int) -> None:
    """Join the files of the attempts before this one."""
    for joined, parts in sorted(by_attempt(folder, before).items()):
        try:
            if len(parts) > 1 and not joined.exists():
                _copy(parts, joined)
            if joined.exists():
                for path in parts:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("The records of an older attempt stay in %s files: %s", len(parts), error)


def by_attempt(folder: Path, before: int) -> dict[Path, list[Path]]:
    """Return the files of nodes, by the file that joins those of their attempt and kind."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if (named := NODE.fullmatch(path.name)) and int(named[2]) < before:
            found.setdefault(joined_of(path), []).append(path)
    return found


def _copy(parts: Iterable[Path], joined: Path) -> None:
    """Write the files one after the other. Raises OSError, also where another process has joined them meanwhile."""
    whole = hidden_beside(joined)
    try:
        with whole.open("xb") as out:
            for path in parts:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, out)
                out.write(b"\n")  # a line that was cut short does not spoil the first one of the next file
            out.flush()
            os.fsync(out.fileno())
        joined.hardlink_to(whole)  # not renamed: an older one, which may hold more, is not replaced
    finally:
        whole.unlink(missing_ok=True)
