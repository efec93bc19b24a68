"""The GPUs that this process may use, found without loading torch on a machine that has none."""

import os
from collections.abc import Sequence
from pathlib import Path

DEVICE_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "dxg", "kfd")
"""Files of /dev by which drivers offer GPUs: NVIDIA's, those of its small boards, of Windows' Linux, and AMD's."""
DEVICES = Path("/dev")


def count(devices: Path = DEVICES, names: Sequence[str] = DEVICE_FILES) -> int:
    """Return the number of GPUs that torch would use in this process. `devices`: the folder of device files."""
    if not any(any(devices.glob(name)) for name in names):
        return 0  # loading torch takes more than a second, which every start on such a machine would wait for
    import torch

    return torch.cuda.device_count()


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(count())]
