"""The GPUs of a node through NVML, where nvidia-ml-py (`pynvml`) is installed.

What NVML does not say is left out: an older GPU has no energy counter, and a part of a GPU (MIG) has no use of its own.
"""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Gpus:
    """GPUs by their handles in NVML. `nvml`: the module `pynvml`, initialised."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self.nvml, self.handles = nvml, handles
        self.last: list[float] | None = None
        self.spent = 0.0

    @classmethod
    def open(cls, visible: str | None) -> "Gpus | None":
        """Return the GPUs that CUDA_VISIBLE_DEVICES names, all with None; None where NVML is missing or finds none."""
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception:  # no package, no driver, another package of this name: whatever it is, nothing is known
            return None
        with contextlib.suppress(nvml.NVMLError, ValueError):
            names = [str(n) for n in range(nvml.nvmlDeviceGetCount())] if visible is None else visible.split(",")
            handles = [_handle(nvml, name.strip()) for name in names if name.strip()]
            return cls(nvml, handles) if handles else None
        return None

    def sample(self) -> dict[str, float]:
        """Return what NVML says now, by the keys of the metrics of a node."""
        nvml = self.nvml
        use = self._each(lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        taken = self._each(lambda handle: _share(nvml.nvmlDeviceGetMemoryInfo(handle)))
        found = {"gpus": float(len(self.handles))}
        if use:
            found |= {"gpu_use": sum(use) / len(use), "least_gpu_use": min(use)}
        if taken:
            found["gpu_memory"] = max(taken)
        return found

    def joules(self) -> float | None:
        """Return the energy of all GPUs since the first call; None where one of them does not count it."""
        nvml = self.nvml
        now = self._each(lambda handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        if now is None:
            return None
        for before, after in zip(self.last or now, now, strict=True):
            self.spent += after - before if after >= before else after  # a driver that was loaded again counts from 0
        self.last = now
        return self.spent

    def _each(self, ask: Callable[[Any], float]) -> list[float] | None:
        """Return the answers of all GPUs; None where one has none."""
        try:
            return [float(ask(handle)) for handle in self.handles]
        except self.nvml.NVMLError:
            return None


def _handle(nvml: Any, name: str) -> Any:
    """Return the handle of a GPU that is named by its number or by its unique id."""
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def _share(memory: Any) -> float:
    return float(memory.used / memory.total)
