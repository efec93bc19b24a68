"""Reads of checkpoint files that are tried again where a file system fails for a moment.

A network file system that loses its server for a second answers one of many readers with an error. That says nothing
about the file: only a wrong length or a wrong hash is damage, for which a checkpoint is set aside.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dist_ssl.errors import CheckpointAwayError
from dist_ssl.runtime.tries import TRANSIENT, tried_again

T = TypeVar("T")
PAUSES = (0.1, 1.0, 4.0)
"""Seconds before each further try."""
log = logging.getLogger(__name__)


def with_retries(path: Path, read: Callable[[], T]) -> T:
    """Return what `read` returns, called again after each transient error.

    Raises its other errors as they are, and CheckpointAwayError where the last try has a transient one.
    """

    def again(error: OSError, pause: float) -> bool:
        if error.errno in TRANSIENT:
            log.warning("%s: %s; trying again in %.1f s", path, error.strerror, pause)
        return error.errno in TRANSIENT

    try:
        return tried_again(read, PAUSES, again)
    except OSError as error:
        if error.errno not in TRANSIENT:
            raise
        raise CheckpointAwayError(
            f"{path} cannot be read: {error.strerror}, in {len(PAUSES) + 1} tries.",
            "The checkpoint may be whole: resume once its file system answers. Where the disk is broken, move the "
            f"folder {path.parent.name} away; the checkpoint before it is then used.",
        ) from error
