"""The dtypes that stand behind the config's `precision`."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run."""

    dtype: torch.dtype
    """Dtype of parameters, optimizer state, views and loss."""
    compute: torch.dtype | None = None
    """Dtype of matrix products and convolutions, where it differs."""
    tf32: bool = False
    """Whether a GPU may round their float32 inputs to TF32."""

    @property
    def views(self) -> torch.dtype:
        """Dtype of views that a GPU's kernels write: at once what autocast would make of them, in half the memory."""
        return self.compute or self.dtype


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bf16": Precision(torch.float32, compute=torch.bfloat16),
    "fp64": Precision(torch.float64),
}
"""By the value of `precision`; `run_keys` has the names alone, for processes that do not import torch."""
