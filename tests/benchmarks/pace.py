"""How fast a machine is just now: the seconds of a fixed piece of work, by which rows of other times are compared.

On shared cores a second of the processor does less while others use the same caches and memory: up to a third less
where it was looked at. The work is what small encoders do: convolutions and batch norm, forward and backward.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

REPEATS = 12
"""Forward and backward passes that are timed, after one that is not: a third of a second of a processor."""


def clock(device: torch.device) -> float:
    """Return seconds: of the process, or of the wall once the GPU has done all that it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def pace(device: torch.device) -> float:
    """Return the seconds that the fixed piece of work takes. No random number is drawn from torch's generators."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 16, 20, 20, generator=generator).to(device)
    kernel = nn.Parameter(torch.randn(16, 16, 3, 3, generator=generator).to(device))
    started = 0.0
    for number in range(REPEATS + 1):
        started = clock(device) if number == 1 else started
        hidden = F.relu(F.batch_norm(F.conv2d(images, kernel, padding=1), None, None, training=True))
        F.conv2d(hidden, kernel, padding=1).square().mean().backward()
    return clock(device) - started
