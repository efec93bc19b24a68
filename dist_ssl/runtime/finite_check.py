"""The check of each step for NaN and infinity, on a gradient norm that is equal on all ranks: at once or later."""

import math
from typing import Any

import torch
from torch import Tensor

from dist_ssl.errors import TrainingError

REMEDY = "Lower optim.base_lr, lengthen schedule.warmup or set engine.clip."


def check_finite(gradient_norm: float, loss: float) -> None:
    """Raise TrainingError if the norm of the averaged gradient is not finite; `loss` is only reported.

    Averaging spreads a NaN of one rank to all, so every rank decides alike without communication.
    """
    if math.isfinite(gradient_norm):
        return
    raise TrainingError(
        f"The gradient's norm is {gradient_norm} (loss {loss:g}): it must be finite. No weight was changed.",
        REMEDY,
    )


class FiniteCheck:
    """Checks the gradient norm of every step: at once on a CPU, one step later on a GPU, ahead of which the host runs.

    The answer is copied beside what the device computes and read when the next step comes to its update, or when the
    state is asked for. So weights may have moved by a gradient that was not finite, but they never reach a checkpoint.
    """

    def __init__(self, device: torch.device, *, later: bool | None = None) -> None:
        """`later`: put the answer off; None: on a GPU only."""
        self.later = device.type == "cuda" if later is None else later
        self._host = torch.zeros(2)
        self._copied: Any = None
        self._open = False

    def ask(self, gradient_norm: Tensor, loss: Tensor) -> None:
        """Check a step; on a GPU, check the one before and start to copy this one's numbers. Raises TrainingError."""
        if not self.later:
            check_finite(float(gradient_norm), float(loss))
            return
        self.answer()
        # shards in host memory have their norm there
        self._fetch(torch.stack([gradient_norm.detach(), loss.detach().to(gradient_norm)]))
        self._open = True

    def answer(self) -> None:
        """Wait for what was asked, if anything was. Raises TrainingError, as often as it is called after a bad step."""
        if not self._open:
            return
        if self._copied is not None:
            self._copied.synchronize()
        found = self._host.numpy()
        if not math.isfinite(found[0]):
            raise TrainingError(
                f"The gradient's norm was {found[0]} (loss {found[1]:g}): it must be finite. Nothing of that step was "
                "saved.",
                REMEDY,
            )
        self._open = False

    def forget(self) -> None:
        """Let go of what was asked: another state has taken the place of the one it was about."""
        self._open = False

    def _fetch(self, values: Tensor) -> None:
        if self._host.dtype != values.dtype or self._host.is_pinned() != values.is_cuda:
            self._host = torch.zeros(2, dtype=values.dtype, pin_memory=values.is_cuda)
        self._host.copy_(values, non_blocking=True)
        if values.is_cuda:
            self._copied = self._copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
