"""The operations that a piece of work calls, and those among them that start something on a device."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SILENT = {
    *("view", "_unsafe_view", "_reshape_alias", "alias", "detach", "expand", "permute", "transpose", "t", "select"),
    *("slice", "split", "split_with_sizes", "chunk", "unbind", "squeeze", "unsqueeze", "diagonal", "as_strided"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "lift_fresh", "is_same_size"),
}
"""Operations that only say how memory is looked at, or take some."""
ABOUT = ("prim::", "profiler::")
"""Questions about tensors and marks for a profile."""


class Calls(TorchDispatchMode):
    """The names of all operations between entering and leaving it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        self.names += [name] * (one_by_one(args) if name.startswith("_foreach") else 1)
        return func(*args, **(kwargs or {}))

    @property
    def launches(self) -> list[str]:
        """One name for each operation that starts something on a device."""
        return [name for name in self.names if name.partition(".")[0] not in SILENT and not name.startswith(ABOUT)]


def one_by_one(args: Any) -> int:
    """How often a GPU starts an operation over lists: once, or for each tensor where shapes differ between lists."""
    first, *others = [own for own in args if isinstance(own, list | tuple) and own and isinstance(own[0], Tensor)]
    alike = all(a.shape == b.shape for other in others for a, b in zip(first, other, strict=True))
    return 1 if alike else len(first)
