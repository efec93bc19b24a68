"""DeepSpeed's config, derived from our options, and the check of keys that a user adds to it.

A user may set those keys of DeepSpeed that change how ZeRO works, not what it computes. All others are refused: they
either duplicate an option of ours, or configure parts of DeepSpeed that are not used here.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from dist_ssl.core.plan import FROZEN
from dist_ssl.errors import ConfigError, nearest
from dist_ssl.optim.recipes import LARS, Muon, OptimizerRecipe
from dist_ssl.protocols.method import Method

Stage = Literal[0, 1, 2, 3]
ZERO = "zero_optimization"
OURS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "engine.accumulate",
    "gradient_clipping": "engine.clip",
    "optimizer": "optim",
    "scheduler": "schedule",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "zero_optimization.stage": "engine.stage",
}
"""Keys of DeepSpeed's config and the option of ours from which each is derived."""
OPEN = (
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_model_persistence_threshold",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "sub_group_size",
    "use_multi_rank_bucket_allreduce",
)
"""Keys of `zero_optimization` that change how it works, not what it computes; a user may set them."""
BUCKETS = {"reduce_bucket_size": 500_000_000, "allgather_bucket_size": 500_000_000}
"""DeepSpeed's default bucket sizes, in elements."""


def written(stage: int, own: Mapping[str, Any], *, weights: int, compute: torch.dtype | None) -> dict[str, Any]:
    """Return DeepSpeed's config for `weights` parameters; the user's keys `own` override ours. Raises ConfigError."""
    # a bucket is allocated whole: no larger than the weights, and even, for the alignment of NCCL
    buckets = {key: min(most, max(weights + weights % 2, 2)) for key, most in BUCKETS.items()}
    zero = {"stage": stage, **buckets, **zero_keys(own)}
    check_values(zero)
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts with it
        "gradient_accumulation_steps": 1,  # parts of a batch are scaled by our loss
        "gradient_clipping": 0.0,  # clipping is done before its step
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        ZERO: zero,
        # gradients are summed in full precision: no module counts as safe in a lower one
        "torch_autocast": {
            "enabled": compute is not None,
            "dtype": str(compute or torch.bfloat16).removeprefix("torch."),
            "lower_precision_safe_modules": [],
        },
    }


def check(stage: Stage, method: Method, optimizer: OptimizerRecipe, dtype: torch.dtype) -> None:
    """Raise ConfigError for options and methods that DeepSpeed cannot run."""
    if dtype != torch.float32:
        raise ConfigError(
            "precision=fp64 cannot be combined with engine=deepspeed, which keeps weights and sums gradients in single "
            "precision.",
            "Use engine=ddp or engine=fsdp, or precision=fp32.",
        )
    frozen = [name.removeprefix(FROZEN) for name in method.curves if name.startswith(FROZEN)]
    if stage > 0 and isinstance(optimizer, LARS):
        what, why, least = "optim=lars", "splits layers anywhere, and LARS needs the norm of every layer", 0
    elif stage > 0 and isinstance(optimizer, Muon):
        what, why, least = "optim=muon", "splits matrices anywhere, and Muon needs whole ones", 0
    elif stage > 0 and frozen:
        what, why, least = f"Freezing '{frozen[0]}' at first", "updates a group of parameters as one", 0
    elif stage == 3 and method.unit_rows:
        what, why, least = f"'{method.unit_rows[0]}', whose rows are normalised,", "splits rows anywhere", 2
    else:
        return
    others = "engine=ddp" if isinstance(optimizer, Muon) else "engine=fsdp or engine=ddp"
    raise ConfigError(
        f"{what} cannot be combined with engine.stage={stage}: ZeRO {why}.",
        f"Use {others}, or engine.stage={least}.",
    )


def zero_keys(own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the user's keys of `zero_optimization`. Raises ConfigError where there are other keys."""
    for key in _dotted(own):
        first = key.partition(".")[0]
        if ours := OURS.get(key) or OURS.get(first):
            raise ConfigError(
                f"engine.config.{key} is not possible: it is derived from {ours}.", f"Leave it out, and set {ours}."
            )
        if first != ZERO or key.removeprefix(f"{ZERO}.") not in OPEN:
            raise ConfigError(
                f"engine.config.{key} is not possible: only keys that change how ZeRO works, not what it computes.",
                nearest(key, [f"{ZERO}.{name}" for name in OPEN]),
            )
    found: Mapping[str, Any] = own.get(ZERO, {})
    return found


def check_values(zero: Mapping[str, Any]) -> None:
    """Raise ConfigError where DeepSpeed rejects a value."""
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(word) for word in first["loc"])
        raise ConfigError(
            f"engine.config.{ZERO}.{key}={first['input']} is not possible: {first['msg']}.", "Correct the value."
        ) from error


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the values that are not mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and (value or key == ZERO):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
