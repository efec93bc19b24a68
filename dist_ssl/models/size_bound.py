"""A bound for the memory and time of building an encoder that somebody else's file describes.

The description may name any width, depth and window, in a few bytes. So the encoder is built on the meta device first,
and no tensor on the way may be much larger than all that the file holds; only then is it built in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, empty_strided, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dist_ssl.errors import CheckpointError

SPARE, SPARE_TENSORS, SPARE_NUMBERS = 2, 1000, 1 << 24
"""How many times as many parameters and buffers, and how many more, an encoder may have than its file has."""
MODULES = 8
"""Modules that there may be for each of these tensors; activations and drop-outs have none."""
LARGEST = 1 << 20
"""The largest whole number in a description: lists of this many values are made without any tensor."""


class SmallTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode in which no operation may return a tensor of more than `most` numbers. Raises RuntimeError before it does.

    An operation that would use memory is computed on the meta device first.
    """

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what the operation returns. Raises RuntimeError."""
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        device = kwargs.get("device")
        if all(x.is_meta for x in given) and (device.type == "meta" if device else given):
            return self._checked(func(*args, **kwargs))
        plain, named = tree_map_only(Tensor, _without_memory, (args, kwargs))
        try:
            found = func(*plain, **(named | {"device": "meta"} if device else named))
        except (RuntimeError, NotImplementedError):  # what needs values returns no tensor
            found = None
        self._checked(found)
        return func(*args, **kwargs)

    def _checked(self, found: Any) -> Any:
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and x.numel() > self.most:
                raise RuntimeError(f"it makes a tensor of {x.numel()} numbers, many more than the file has")
        return found


def _without_memory(x: Tensor) -> Tensor:
    return empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


class Allowance:
    """The `tensors`, `numbers` in them and `modules` that an encoder may still have. Raises RuntimeError below 0."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.tensors = SPARE * len(state) + SPARE_TENSORS
        self.numbers = self.most = SPARE * sum(x.numel() for x in state.values()) + SPARE_NUMBERS
        self.modules = MODULES * self.tensors

    def tensor(self, _module: nn.Module, _name: str, value: Tensor | None) -> None:
        """Count a parameter or a buffer."""
        self.tensors, self.numbers = self.tensors - 1, self.numbers - (0 if value is None else value.numel())
        if min(self.tensors, self.numbers) < 0:
            raise RuntimeError("it has more parameters than the file")

    def module(self, _module: nn.Module, _name: str, _value: nn.Module | None) -> None:
        """Count a module."""
        self.modules -= 1
        if self.modules < 0:
            raise RuntimeError("it has many more modules than the file has tensors")


@contextmanager
def no_larger_than(state: Mapping[str, Tensor], node: Mapping[str, Any], origin: str) -> Iterator[None]:
    """Let a network that is built within, on the meta device first, have little more numbers than a file has.

    `node`: the config that describes it; `origin`: the file, for messages. Raises CheckpointError.
    """
    left = Allowance(state)
    hooks = [
        register_module_parameter_registration_hook(left.tensor),
        register_module_buffer_registration_hook(left.tensor),
        register_module_module_registration_hook(left.module),
    ]
    try:
        if (largest := _largest(node)) > LARGEST:
            raise RuntimeError(f"{largest} is larger than any size of an encoder")
        with SmallTensors(left.most):
            yield
    except RuntimeError as error:  # of torch, where not even the addresses suffice
        raise CheckpointError(
            f"{origin} describes an encoder that cannot be built: {str(error).partition(chr(10))[0]}.",
            "Use the encoder that it was trained with.",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _largest(node: Any) -> int:
    """Return the largest absolute value of a whole number in plain values; 0 where there is none."""
    if isinstance(node, Mapping):
        return max(map(_largest, node.values()), default=0)
    if isinstance(node, Sequence) and not isinstance(node, str):
        return max(map(_largest, node), default=0)
    return abs(node) if isinstance(node, int) else 0
