"""A job without memory: modules and optimizers on torch's meta device, to be checked and thrown away.

Plain `torch.device("meta")` draws every initial weight through torch's symbolic reference, and building an optimizer
loads the compiler: together they take longer than loading torch itself, and every start of a run would wait for it.
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
    """Inside it no tensor is filled with random numbers."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What is to be filled, as it is; anything else as always."""
        return args[0] if func in DRAWS else func(*args, **(kwargs or {}))


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Inside it whatever is built has shapes and types, but neither memory nor values; nothing can be trained."""
    add: Any = torch.optim.Optimizer.add_param_group
    with patch.object(torch.optim.Optimizer, "add_param_group", inspect.unwrap(add)), META, Undrawn():
        yield  # the same method, but it does not load the compiler in order to keep out of its way
