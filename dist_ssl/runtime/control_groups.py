"""Where Linux keeps the memory limits and counts of the control group that this process is in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def memory_files(version_1: str, version_2: str, groups: Path, own: Path) -> Iterator[tuple[Path, ...]]:
    """Yield the files of a name in this process's group and in those above it, its own group's first.

    The name is `version_2` where the groups are of version 2, which knows no controllers, and `version_1` in the memory
    controller of version 1. `groups`, `own`: GROUPS and OWN_GROUPS. A file need not exist: a container sees only some.
    """
    names = {"": groups / version_2, "memory": groups / "memory" / version_1}
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = Path(path.strip("/"))
            if file := names.get(controllers):
                yield tuple(file.parent / group / file.name for group in (inside, *inside.parents))
