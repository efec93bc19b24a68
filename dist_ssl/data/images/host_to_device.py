"""Small arrays of the host on their way to a device: all of them in one copy, for which the host does not wait.

A copy of its own for each of a batch's parameters stops the host each time, for as long as the device has other work.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNED_BYTES = 16


def send(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors on the device; on the CPU they share the memory of the arrays."""
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    sizes = [array.nbytes + -array.nbytes % ALIGNED_BYTES for array in arrays]
    starts = np.cumsum([0, *sizes]).tolist()
    # torch keeps pinned memory of its own until the copy is over
    memory = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    kinds = []
    for array, start in zip(arrays, starts, strict=False):
        part = torch.from_numpy(np.ascontiguousarray(array))
        memory[start : start + array.nbytes].view(part.dtype).view(part.shape).copy_(part)
        kinds.append(part.dtype)
    there = memory.to(device, non_blocking=True)
    parts = zip(arrays, kinds, starts, strict=False)
    return [there[start : start + array.nbytes].view(kind).view(array.shape) for array, kind, start in parts]
