"""The model FLOPs utilisation (MFU; Chowdhery et al. 2022, arXiv 2204.02311, appendix B): useful work against the peak.

Useful are the passes of the encoders: a student's forward pass and twice as much for its backward pass, a teacher's
forward pass. Heads and loss are left out, and so is what an engine computes twice to save memory. The FLOPs of a pass
are counted in the first step of an epoch and taken over for passes of the same shape. Where the peak of a device is
not known, or blocks are compiled, the utilisation is not known.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from dist_ssl.protocols.method import Method

PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"H200|H100 80GB HBM3", {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}),
    (r"H100 PCIe", {"bf16": 756.0e12, "tf32": 378.0e12, "fp32": 51.2e12}),
    (r"A100\b", {"bf16": 312.0e12, "tf32": 156.0e12, "fp32": 19.5e12}),
    (r"L40S", {"bf16": 362.1e12, "tf32": 183.0e12, "fp32": 91.6e12}),
    (r"A10\b", {"bf16": 125.0e12, "tf32": 62.5e12, "fp32": 31.2e12}),
)
"""Names of devices, as patterns, and their dense FLOP/s by the dtype of products, from NVIDIA's data sheets."""


def peak(device: torch.device, dtype: torch.dtype, compute: torch.dtype | None, tf32: bool) -> float | None:
    """Return the largest FLOP/s of a device in a precision; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    kind = {torch.bfloat16: "bf16", torch.float32: "tf32" if tf32 else "fp32"}.get(compute or dtype, "")
    return next((by_kind.get(kind) for pattern, by_kind in PEAKS if re.search(pattern, name)), None)


class UsefulWork:
    """The useful FLOPs of the passes of two encoders, as the time that they would take at the peak.

    `peak`: FLOP/s. It watches the modules' own calls, so it does not matter how an engine wraps them.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, peak: float) -> None:
        self.peak = peak
        self._flops = 0
        self._known: dict[tuple[int, ...], int] = {}
        self._counting: Any = None
        for encoder in (student, *([teacher] if teacher is not None else [])):
            encoder.register_forward_pre_hook(self._begin)
            encoder.register_forward_hook(self._end_of_student if encoder is student else self._end, always_call=True)

    @classmethod
    def of(cls, method: Method, peak: float | None) -> "UsefulWork | None":
        """Return the work of a method's encoders; None where the peak is not known."""
        if peak is None:
            return None
        return cls(method.encoder, method.teacher and method.teacher.get_submodule("encoder"), peak)

    def start(self) -> None:
        """Count passes again: in another epoch encoders may see other tokens."""
        self._known = {}
        self._flops = 0

    def seconds(self) -> float:
        """Return the time that the passes since the last call would take at the peak."""
        found, self._flops = self._flops, 0
        return found / self.peak

    def _begin(self, encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        if encoder.training and tuple(inputs[0].shape) not in self._known:
            from torch.utils.flop_counter import FlopCounterMode  # it takes a second to import, and few runs need it

            self._counting = FlopCounterMode(display=False)
            self._counting.__enter__()

    def _end(self, encoder: nn.Module, inputs: tuple[Any, ...], output: Tensor, passes: int = 1) -> None:
        if not encoder.training:
            return
        shape = tuple(inputs[0].shape)
        if self._counting:
            counter, self._counting = self._counting, None
            counter.__exit__(None, None, None)
            self._known[shape] = int(counter.get_total_flops())
        self._flops += passes * self._known[shape]

    def _end_of_student(self, encoder: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Count a pass and its backward pass; one without a graph is made again with one, so it does not count."""
        self._end(encoder, inputs, output, 3 if torch.is_grad_enabled() else 0)
