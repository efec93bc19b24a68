"""How many processes the kernel has killed because memory was short, as this process's control group counts them.

A process that is killed so and one that a person kills end with the same signal; this count tells them apart.
"""

import contextlib
import re
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
FILES = {"": ("", "memory.events"), "memory": ("memory", "memory.oom_control")}
"""Where a group's count is, by the controllers that a line of OWN_GROUPS names: none in version 2."""


def memory_kills(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the number for this process's group and those below it since they were made; 0 where it is not known."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            folder, name = FILES.get(kinds, ("", ""))
            file = groups / folder / path.strip("/") / name
            if name and file.is_file() and (found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)):
                return int(found[1])
    return 0
