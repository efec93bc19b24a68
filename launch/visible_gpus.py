"""The GPUs that this process may use, found without loading torch on a machine that has none."""

import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from dist_ssl.errors import plural

DEVICE_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "dxg", "kfd")
"""Files of /dev by which drivers offer GPUs: NVIDIA's, those of its small boards, of Windows' Linux, and AMD's."""
DEVICES = Path("/dev")
GPU_NAME = re.compile(r"\d+|(GPU|MIG)-.*")
"""A GPU as CUDA_VISIBLE_DEVICES names it, by number or by UUID."""


def present(devices: Path = DEVICES, names: Sequence[str] = DEVICE_FILES) -> bool:
    """Return whether a driver offers GPUs here, whether or not torch can use them."""
    return any(any(devices.glob(name)) for name in names)


def count(devices: Path = DEVICES, names: Sequence[str] = DEVICE_FILES) -> int:
    """Return the number of GPUs that torch would use in this process. `devices`: the folder of device files."""
    if not present(devices, names):
        return 0  # loading torch takes more than a second, which every start on such a machine would wait for
    import torch

    return torch.cuda.device_count()


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    CUDA reads no further than the first name that is none: people write -1, and Slurm NoDevFiles, for no GPU at all.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return list(takewhile(GPU_NAME.fullmatch, map(str.strip, named.split(","))))
    return [str(number) for number in range(count())]


def named_gpus() -> int:
    """Return how many GPUs the environment names for this process; 0 where no driver offers any."""
    return len(visible_gpus()) if "CUDA_VISIBLE_DEVICES" in os.environ and present() else 0


def why_on_the_cpu(ranks: int) -> str:
    """Return why `ranks` ranks use this machine's CPU although it has GPUs, or an empty string if they do not."""
    gpus = len(visible_gpus())
    if 0 < gpus < ranks:
        return (
            f"{plural(gpus, 'GPU is', 'GPUs are')} too few for {ranks} ranks: all ranks use the CPU. nodes=1 uses "
            f"{'it' if gpus == 1 else 'them'}."
        )
    if not gpus and "CUDA_VISIBLE_DEVICES" not in os.environ and present():
        return (
            "This machine has GPUs, and torch can use none of them: all ranks use the CPU. "
            "python -c 'import torch; torch.cuda.init()' says why."
        )
    return ""
