"""A fast meta device: build modules and optimizers without memory, to check a config and throw them away.

Plain `torch.device("meta")` runs every random weight initialisation through torch's slow reference implementations,
and building an optimizer imports the compiler: together they take longer than importing torch itself, and every start
of a run would wait for it.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
DRAWS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_})


class Undrawn(TorchFunctionMode):
    """Function mode in which in-place random fills of tensors do nothing."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor unchanged instead of filling it; call every other function normally."""
        return args[0] if func in DRAWS else func(*args, **(kwargs or {}))


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Build modules and optimizers on the meta device within this context.

    They have shapes and dtypes, but neither memory nor values, and cannot be trained.
    """
    add: Any = torch.optim.Optimizer.add_param_group
    with patch.object(torch.optim.Optimizer, "add_param_group", inspect.unwrap(add)), META, Undrawn():
        yield  # `add` without its decorator, which imports the compiler only to disable it for this method
