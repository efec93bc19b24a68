"""The blocks of an encoder, compiled or computed twice: what is done to one at a time.

A unit is a member of a `ModuleList` or `Sequential` that has layers of its own and no smaller unit in it: a residual
block, a transformer's block. Its `forward` is replaced, so parameters keep their names and wrappers around it (FSDP's
hooks) stay outside.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dist_ssl.errors import ConfigError
from dist_ssl.models import norm
from dist_ssl.models.norm import BatchNorm

VARIANTS = 64
"""Compiled forms of one kind of block: per width and stride, with gradients and without, for one side and for any."""


def units(module: nn.Module) -> list[nn.Module]:
    """The blocks of all networks in a module."""
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
    """The units; raises ConfigError where there are none that the option could be about."""
    if found := units(method):
        return found
    raise ConfigError(
        f"{option} has nothing to work on: the encoder has no blocks (members of a Sequential or ModuleList).",
        f"Leave {option} out, or use another encoder.",
    )


def checkpointed(method: nn.Module) -> None:
    """From now on units keep only what goes into them, and compute the rest again in the backward pass."""
    for unit in of(method, "engine.activation_checkpointing=true"):
        unit.forward = Twice(unit, unit.forward)


class Twice:
    """A unit's forward pass, computed again when its gradients are wanted; batch norms note what they see once."""

    def __init__(self, unit: nn.Module, forward: Callable[..., Any]) -> None:
        self.unit, self.forward = unit, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the unit answers."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), norm.again(self.unit)


def compiled(method: nn.Module, device: torch.device) -> None:
    """From now on units run as torch's compiler makes them, at their first use; batch norms stay as they are.

    Hyperparameters are no inputs of a unit. A second size of views compiles a form for any size, further ones nothing.
    """
    found = of(method, "engine.compile=true")
    if device.type == "meta":  # a sketch computes nothing
        return
    check_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for unit in found:
        for child in unit.modules():
            if isinstance(child, BatchNorm):  # exchanges with other ranks, and numpy: nothing for a compiler
                child.forward = torch.compiler.disable(child.forward)  # type: ignore[method-assign,no-untyped-call]
        unit.forward = torch.compile(unit.forward)


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError where torch finds no compiler for what it writes."""
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError("engine.compile=true needs triton on a GPU.", "pip install triton, or leave it out.")
    from torch._inductor import config

    names = [name for name in (config.cpp.cxx if isinstance(config.cpp.cxx, tuple) else (config.cpp.cxx,)) if name]
    if device.type == "cpu" and not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"engine.compile=true needs a C++ compiler on this machine: there is no {' or '.join(names)}.",
            "Install g++, or set CXX to a compiler, or leave engine.compile out.",
        )
