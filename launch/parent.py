"""Detection of a dead parent process.

The parent passes its process id in the environment: getppid() at start-up is too late if the parent has died already.
"""

import os

from launch.variables import PARENT


def alone() -> bool:
    """Return whether the parent process is gone; always False if it passed no process id (under torchrun)."""
    parent = os.environ.get(PARENT)
    return parent is not None and os.getppid() != int(parent)
