"""The number of files that a process may have open: each other rank takes a few, and so does a checkpoint of many."""

import resource

MOST_FILES = 1 << 16
"""Open files that a process may have, if the machine allows; the usual limit is 1,024."""


def allow_open_files() -> None:
    """Raise this process's bound on open files, which the processes that it starts inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
