"""Which checkpoints of a folder count, and which are removed, also where a forgotten process still writes there.

An attempt that has been superseded may go on for a while (its node was thought dead, or slept). What it saves must not
count as newer than what the newest attempt has saved, even with a higher step, and it must not remove that:

* the restore of a new attempt first takes away what is half-written (`remove_unfinished`): each folder is renamed, one
  change on the server, so its writer either has published it before or cannot publish it any more;
* a save that begins later is published only if its attempt is the newest, which it asks after it was written;
* checkpoints are ordered by attempt, then by step (`newest_first`), so what slips through counts as old.

This module does not import torch.
"""

import contextlib
import logging
import re
import shutil
from pathlib import Path

from dist_ssl.checkpoint.folder_names import KEPT, published
from dist_ssl.runtime.files import remove
from dist_ssl.runtime.strange_files import open_regular

STATE = "state.json"
HEAD_BYTES = 1024
"""Bytes of `state.json` in which the attempt stands: the position of a run comes first, its lists last."""
ATTEMPT = re.compile(rb'"attempt": ([0-9]{1,18})\b')
GONE = ".gone"
"""Prefix of the name of a half-written checkpoint that is being removed."""
log = logging.getLogger(__name__)


def attempt_of(checkpoint: Path) -> int | None:
    """Return the number of the attempt that wrote a checkpoint; None where the checkpoint does not say."""
    try:
        with open_regular(checkpoint / STATE) as file:
            found = ATTEMPT.search(file.read(HEAD_BYTES) or b"")
    except OSError:  # the restore says what is wrong with it
        return None
    return int(found[1]) if found else None


def newest_first(folder: Path) -> list[Path]:
    """Return the published checkpoints by attempt and step, the newest first.

    One that does not say its attempt, which is damaged, has the place of its step.
    """
    order: list[tuple[int, int, Path]] = []
    attempt = 0
    for step, path in published(folder).items():
        attempt = attempt_of(path) or attempt
        order.append((attempt, step, path))
    return [path for *_, path in sorted(order, reverse=True)]


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    newest = next(iter(newest_first(folder)), None)
    return next((step for step, path in published(folder).items() if path == newest), 0)


def remove_unfinished(folder: Path) -> None:
    """Remove half-written checkpoints, of this attempt too; their writers, if they still run, cannot publish them."""
    for part in folder.glob(".*.part"):
        gone = part if part.name.startswith(GONE) else part.with_name(GONE + part.name)
        with contextlib.suppress(OSError):  # published at this moment, or not ours to remove
            part.rename(gone)
            remove(gone)


def retire(folder: Path, keep_last: int, attempt: int, own: Path | None = None) -> None:
    """Remove the checkpoints that are neither among the newest nor permanent.

    Never `own`, which was just published, and none of an attempt after this one.
    """
    for old in newest_first(folder)[keep_last:]:
        try:
            if old != own and not (old / KEPT).exists() and (attempt_of(old) or 0) <= attempt:
                shutil.rmtree(old)
        except OSError as error:
            log.warning("The old checkpoint %s cannot be removed: %s", old, error)
