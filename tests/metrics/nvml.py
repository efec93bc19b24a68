# ruff: noqa: N802
"""A machine's NVML and powercap, as a test says they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """NVML's error."""


class Nvml:
    """The module `pynvml` with some GPUs; one is a dict of what it says, and lacks what it does not know.

    `energy`: mJ since the driver was loaded; `gpu`: percent of time in use; `used` and `total`: bytes of memory.
    """

    NVMLError = NVMLError

    def __init__(self, *gpus: dict[str, Any], driver: bool = True) -> None:
        self.gpus, self.driver = gpus, driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if index >= len(self.gpus):
            raise NVMLError("Invalid Argument")
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, name: str) -> dict[str, Any]:
        return next(gpu for gpu in self.gpus if gpu["uuid"] == name)

    def nvmlDeviceGetUtilizationRates(self, handle: dict[str, Any]) -> Any:
        return SimpleNamespace(gpu=self._known(handle, "gpu"))

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> Any:
        return SimpleNamespace(used=self._known(handle, "used"), total=self._known(handle, "total"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: dict[str, Any]) -> Any:
        return self._known(handle, "energy")

    def _known(self, handle: dict[str, Any], key: str) -> Any:
        if key not in handle:
            raise NVMLError("Not Supported")
        return handle[key]


def zone(root: Path, folder: str, name: str, microjoules: int, largest: int = 262_143_328_850) -> Path:
    """A counter of powercap; its file."""
    (root / folder).mkdir(parents=True)
    (root / folder / "name").write_text(f"{name}\n")
    (root / folder / "max_energy_range_uj").write_text(f"{largest}\n")
    file = root / folder / "energy_uj"
    file.write_text(f"{microjoules}\n")
    return file
