"""The largest memory of tensors that are alive at the same time, as torch's operators create and free them."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """A mode that adds up the storages of all tensors that operators return, and of those that are `there` before.

    What an operator uses while it runs is not seen, so a process needs more. `resized`: storages change their size, as
    those of gathered weights do; then all are added up after every operator, which takes longer.
    """

    def __init__(self, there: Iterable[Tensor], *, resized: bool = False) -> None:
        super().__init__()
        self.alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self.now = self.most = 0
        self.resized = resized
        for tensor in there:
            self.see(tensor)

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes(), weakref.ref(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """Stop counting a storage."""
        self.now -= self.alive.pop(key)[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device == torch.device("cpu"):
                self.see(leaf)
        self.most = max(self.most, self.exact() if self.resized else self.now)
        return out

    def exact(self) -> int:
        """Return the bytes of all storages as they are now."""
        return sum(storage.nbytes() for _, kept in list(self.alive.values()) if (storage := kept()) is not None)
