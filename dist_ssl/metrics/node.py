"""The numbers of one node of a run, as its agent sees them; what the machine does not say has no series.

Samples are taken beside the scrapes: a file system that does not answer delays a sample, and no scrape.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil

from dist_ssl.metrics.endpoint import Exported
from dist_ssl.metrics.energy import Rapl
from dist_ssl.metrics.gpus import Gpus
from dist_ssl.metrics.node_table import NODE_METRICS

Values = dict[tuple[str, str], float]


class NodeSeries(Exported):
    """The metrics of a node with their values, at first those of its start.

    `places`: the folders whose free space is of interest, by the value of their label. `gpus`, `packages`: None where
    they say nothing. The run's processes are those that descend from the process `root`, by default this one.
    """

    def __init__(
        self,
        places: Mapping[str, Path],
        gpus: Gpus | None,
        packages: Rapl | None,
        root: psutil.Process | None = None,
    ) -> None:
        super().__init__(NODE_METRICS)
        self.places, self.gpus, self.packages = places, gpus, packages
        self.root = root or psutil.Process()
        self._read: dict[psutil.Process, int] = {}
        self._read_before = 0
        psutil.cpu_percent(None)  # it says what has happened since the last call
        self.values = {}

    def sample(self) -> None:
        """Read all numbers again."""
        gpus: Values = {(key, ""): value for key, value in self.gpus.sample().items()} if self.gpus else {}
        self.values = {**self._machine(), **self._processes(), **self._space(), **gpus, **self._energy()}

    @property
    def joules(self) -> dict[str, float]:
        """The energy of the last sample by source; less where the machine does not count it."""
        return {source: value for (key, source), value in self.values.items() if key == "energy"}

    def _machine(self) -> Values:
        memory = psutil.virtual_memory()
        return {
            ("processor_use", ""): psutil.cpu_percent(None) / 100,
            ("memory_used", ""): float(memory.total - memory.available),
            ("memory_size", ""): float(memory.total),
        }

    def _processes(self) -> Values:
        """Return the memory of the run's processes, and what they and those that have ended have read."""
        alive, memory = 0, 0
        read: dict[psutil.Process, int] = {}
        for process in self.root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                alive += 1
                with contextlib.suppress(AttributeError):  # systems that do not count it
                    read[process] = process.io_counters().read_bytes
        self._read_before += sum(count for process, count in self._read.items() if process not in read)
        self._read = read
        found: Values = {("workers", ""): float(alive), ("workers_memory", ""): float(memory)}
        if read or self._read_before:
            found["read_bytes", ""] = float(self._read_before + sum(read.values()))
        return found

    def _space(self) -> Values:
        found: Values = {}
        for place, folder in self.places.items():
            with contextlib.suppress(OSError):
                found["free_space", place] = float(shutil.disk_usage(_existing(folder)).free)
        return found

    def _energy(self) -> Values:
        counters: dict[str, Gpus | Rapl | None] = {"gpus": self.gpus, "processors": self.packages}
        joules = {source: counter.joules() for source, counter in counters.items() if counter}
        return {("energy", source): value for source, value in joules.items() if value is not None}


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one around it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
