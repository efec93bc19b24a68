"""The energy that the processors of a machine take, from Linux's powercap counters (RAPL).

A counter runs up to its `max_energy_range_uj` and starts again from 0, within minutes to an hour under load; it must be
read more often than that. Many systems let only root read it: then nothing is known.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
MICRO = 1e-6


@dataclass
class Zone:
    """One counter of energy. `last`: its last value; `range_`: its largest one, both in microjoules."""

    file: Path
    range_: int
    last: int

    def advance(self) -> int:
        """Return the microjoules since the last call. Raises OSError."""
        now = int(self.file.read_text())
        before, self.last = self.last, now
        return now - before if now >= before else now - before + self.range_


class Rapl:
    """The counters of all processor packages and their memory, as far as they can be read."""

    def __init__(self, zones: list[Zone]) -> None:
        self.zones = zones
        self.spent = 0

    @classmethod
    def open(cls, root: Path = POWERCAP) -> "Rapl | None":
        """Return the counters below a folder; None where there are none that this process may read.

        Packages (`package-0`) and their memory (`dram`) count. Cores are parts of a package, and `psys`, the whole
        machine of a laptop, holds the packages.
        """
        zones = []
        for folder in sorted(root.glob("intel-rapl:*")):  # AMD's have this name too
            with contextlib.suppress(OSError, ValueError):
                name = (folder / "name").read_text().strip()
                if name.startswith("package") or name == "dram":
                    file, largest = folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())
                    zones.append(Zone(file, largest, int(file.read_text())))
        return cls(zones) if zones else None

    def joules(self) -> float | None:
        """Return the energy since the counters were opened; None where one of them cannot be read any more."""
        try:
            for zone in self.zones:
                self.spent += zone.advance()
        except (OSError, ValueError):
            return None
        return self.spent * MICRO
