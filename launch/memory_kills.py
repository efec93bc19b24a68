"""How many processes the kernel has killed because memory was short, as this process's control group counts them.

A process that is killed so and one that a person kills end with the same signal; this count tells them apart.
"""

import contextlib
import re
from pathlib import Path

from dist_ssl.runtime.control_groups import GROUPS, OWN_GROUPS, memory_files


def memory_kills(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the number for this process's group and those below it since they were made; 0 where it is not known."""
    with contextlib.suppress(OSError):
        for file, *_ in memory_files("memory.oom_control", "memory.events", groups, own):
            if file.is_file() and (found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)):
                return int(found[1])
    return 0
