"""The check for NaN and infinity before each weight update, on a gradient norm that is equal on all ranks."""

import math

from dist_ssl.errors import TrainingError


def check_finite(gradient_norm: float, loss: float) -> None:
    """Raise TrainingError if the norm of the averaged gradient is not finite; `loss` is only reported.

    Averaging spreads a NaN of one rank to all, so every rank decides alike without communication.
    """
    if math.isfinite(gradient_norm):
        return
    raise TrainingError(
        f"The gradient's norm is {gradient_norm} (loss {loss:g}): it must be finite. No weight was changed.",
        "The last checkpoint is whole. Lower optim.base_lr, lengthen schedule.warmup or set engine.clip, in a new run.",
    )
