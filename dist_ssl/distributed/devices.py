"""The device of a rank: the GPU with its local rank's number, or the CPU where the node shows no GPU."""

import torch

from dist_ssl.errors import ConfigError


def own_device(local_rank: int) -> torch.device:
    """Select the device of a rank and make it the current one, before anything is placed on it.

    Raises ConfigError where the node shows fewer GPUs than it has ranks.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and local_rank >= gpus:
        raise ConfigError(
            f"There is no GPU for rank {local_rank} of this node (counted from 0): it shows {gpus}.",
            f"Set ranks_per_node={gpus}, or let Slurm grant more.",
        )
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    return device
