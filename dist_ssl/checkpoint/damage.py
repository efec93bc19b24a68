"""The errors for checkpoint files that are not what was written, and for those that cannot be opened."""

import errno
from pathlib import Path

from dist_ssl.errors import CheckpointError

GONE = (errno.ENOENT, errno.ESTALE)
"""Errors of opening a file that has been removed."""
NOT_THE_FILE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that say nothing about its content."""


class DamagedError(Exception):
    """A checkpoint on disk differs from what was written."""


class MissingError(DamagedError):
    """A file of a checkpoint is not there, as while the checkpoint is being removed."""


def not_opened(path: Path, error: OSError) -> Exception:
    """Return the error for a file that cannot be opened: DamagedError, or CheckpointError if it may be intact."""
    if error.errno not in NOT_THE_FILE:
        return (MissingError if error.errno in GONE else DamagedError)(f"{path.name}: {error.strerror}")
    return CheckpointError(
        f"{path} cannot be opened: {error.strerror}.",
        "The checkpoint may be whole: fix the permissions or the limit on open files (ulimit -n), then resume.",
    )
