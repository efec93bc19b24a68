"""Who started this process, as the starter says: a parent that dies early must not be mistaken for pid 1."""

import os

from launch.variables import PARENT


def alone() -> bool:
    """Whether the process that started this one is gone. Without a word from it (under torchrun), never."""
    parent = os.environ.get(PARENT)
    return parent is not None and os.getppid() != int(parent)
