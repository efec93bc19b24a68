"""Compilation and activation checkpointing of an encoder, block by block.

A unit is a member of a `ModuleList` or `Sequential` that has layers of its own and contains no smaller unit: a residual
block, a transformer block. Its `forward` is replaced, so parameters keep their names, and wrappers (FSDP's hooks) stay
outside of it.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dist_ssl.errors import ConfigError
from dist_ssl.models import drop_path, norm
from dist_ssl.models.norm import BatchNorm

VARIANTS = 64
"""Largest number of compiled variants of one block class: per width, stride, gradient mode, fixed and dynamic side."""


def units(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of all networks in a module."""
    found: list[nn.Module] = []

    def look(part: nn.Module, listed: bool) -> None:
        lists, before = isinstance(part, nn.ModuleList | nn.Sequential), len(found)
        for child in part.children():
            look(child, lists)
        deep = any(True for child in part.children() for _ in child.parameters())
        if listed and not lists and deep and len(found) == before:
            found.append(part)

    look(module, False)
    return found


def of(method: nn.Module, option: str) -> list[nn.Module]:
    """Return the units. Raises ConfigError, which names the `option` of the config, where there are none."""
    if found := units(method):
        return found
    raise ConfigError(
        f"{option} has nothing to work on: the encoder has no blocks (members of a Sequential or ModuleList).",
        f"Leave {option} out, or use another encoder.",
    )


def checkpointed(method: nn.Module) -> None:
    """Make units keep only their inputs and recompute their activations in the backward pass."""
    for unit in of(method, "engine.activation_checkpointing=true"):
        unit.forward = Twice(unit, unit.forward)


class Twice:
    """A unit's forward pass with recomputation in the backward pass: statistics are recorded once, with equal draws."""

    def __init__(self, unit: nn.Module, forward: Callable[..., Any]) -> None:
        self.unit, self.forward = unit, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the unit's output."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _together(norm.again(self.unit), drop_path.again(self.unit))


@contextmanager
def _together(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield


def compiled(method: nn.Module, device: torch.device) -> None:
    """Make torch compile units at their first use, except for batch norms.

    Hyperparameters are no inputs of a unit. A second size of views compiles a variant for any size; further sizes
    compile nothing. Raises ConfigError.
    """
    found = of(method, "engine.compile=true")
    if device.type == "meta":  # nothing is computed on it
        return
    check_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for unit in found:
        for child in unit.modules():
            if isinstance(child, BatchNorm):  # it exchanges with other ranks and uses numpy, which cannot be compiled
                child.forward = torch.compiler.disable(child.forward)  # type: ignore[method-assign,no-untyped-call]
        unit.forward = torch.compile(unit.forward)


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError where torch finds no compiler for the code that it generates."""
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError("engine.compile=true needs triton on a GPU.", "pip install triton, or leave it out.")
    from torch._inductor import config

    names = [name for name in (config.cpp.cxx if isinstance(config.cpp.cxx, tuple) else (config.cpp.cxx,)) if name]
    if device.type == "cpu" and not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"engine.compile=true needs a C++ compiler on this machine: there is no {' or '.join(names)}.",
            "Install g++, or set CXX to a compiler, or leave engine.compile out.",
        )
