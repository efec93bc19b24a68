"""The device of a rank: the GPU with its local rank's number, or the CPU; and how it computes in single precision."""

import os
import socket

import torch

from dist_ssl.errors import ConfigError, plural


def own_device(local_rank: int, least: int = 0) -> torch.device:
    """Select the device of a rank and make it the current one, before anything is placed on it.

    `least`: number of GPUs that were requested for the node. Raises ConfigError where it shows fewer GPUs than that, or
    than it has ranks.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    parts = os.environ.get("CUDA_VISIBLE_DEVICES", "").count("MIG-")
    if parts > 1 and gpus < max(least, local_rank + 1):
        raise ConfigError(
            f"{socket.gethostname()} grants {parts} MIG instances: a process can use one, and NCCL connects none.",
            "Train on one of them (ranks_per_node=1, and cluster.gpus_per_node=1), or on whole GPUs.",
        )
    if gpus < least:
        raise ConfigError(
            f"{plural(least, 'GPU was', 'GPUs were')} requested for each node, and {socket.gethostname()} "
            f"shows {gpus}.",
            "Its driver may be at fault: see nvidia-smi there, leave the node out (cluster.exclude=NODE), and resume.",
        )
    if gpus and local_rank >= gpus:
        raise ConfigError(
            f"There is no GPU for rank {local_rank} of this node (counted from 0): it shows {gpus}.",
            f"Set ranks_per_node={gpus}, or let Slurm grant more.",
        )
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    return device


def choose_algorithms(device: torch.device, *, deterministic: bool, compiled: bool = False) -> None:
    """Let torch use only algorithms that give the same bits in each run, or the fastest ones it finds.

    `compiled`: whether torch's compiler is used, which then does likewise.
    """
    if deterministic and device.type != "meta":
        # the usual function also sets an option of the compiler, and takes seconds to load it
        torch.use_deterministic_algorithms(True) if compiled else torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic  # benchmarking may choose other algorithms in each run


def set_single_precision(device: torch.device, *, tf32: bool) -> None:
    """Let matrix products and convolutions of float32 tensors on a GPU round their inputs to TF32, or not.

    TF32 has float32's range and 10 bits of mantissa; an NVIDIA A100 or H100 computes with it several times faster.
    torch's own default is TF32 for convolutions alone. A CPU computes as before.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
