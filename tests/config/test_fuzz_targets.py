"""Whatever `_target_` says, it names a class or a function of its group's own package or is refused in one message.

A share is part of the suite; `make chaos` tries 20,000 spellings.
"""

import builtins
import importlib
import os
import pkgutil
import random
import subprocess
import sys
from typing import Any

import pytest

from dist_ssl.config.instantiate import ALLOWED, BASES, resolve
from dist_ssl.errors import ConfigError, printable
from tests.fuzzing import NASTY, mutated, shares, some, tried

FOREIGN = (builtins, os, subprocess, sys, importlib, pkgutil)
BETWEEN = ("", ".", "..", ".a" * 5000, ".\u0000", "/", ".__class__", ".__globals__", ".__init__", ".forward", " ", "\n")


def package(key: str) -> str:
    """The package whose classes a key of BASES may name."""
    return ALLOWED[key.partition(".")[0]]


def own_modules() -> list[str]:
    """The names of all modules of the packages that targets may name."""
    packages = [importlib.import_module(name) for name in set(ALLOWED.values())]
    return sorted(
        own.name for package in packages for own in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    )


def foreign_targets() -> list[str]:
    """Import paths of what torch, timm and Python itself have, whether it can be called or not."""
    roots = ("torch", "timm", "torchvision")
    modules = [sys.modules[name] for name in sorted(sys.modules) if name.partition(".")[0] in roots]
    return [f"{module.__name__}.{name}" for module in (*FOREIGN, *modules) for name in sorted(vars(module))]


def spelling(foreign: list[str], module: str, chance: random.Random) -> Any:
    """A target: of others, of this module, of what the module has only imported, or no name at all."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice(foreign)
    if kind == 1:
        return chance.choice(NASTY)
    known = sorted(vars(own := importlib.import_module(module)))
    if kind in (2, 3, 4):
        known = [name for name in known if getattr(getattr(own, name), "__module__", "") == module] or known
    name = chance.choice([*known, chance.choice(foreign), "__builtins__.eval", "os.system", "torch.hub.load"])
    target = f"{module}{chance.choice(BETWEEN)}.{name}" if kind == 5 else f"{module}.{name}"
    return mutated(target.encode(), chance).decode(errors="replace") if kind == 4 else target


@pytest.mark.parametrize("inputs", shares(300))
def test_any_target_is_one_of_the_groups_own_or_refused(inputs: range) -> None:
    importlib.import_module("timm")
    own, foreign = own_modules(), foreign_targets()
    assert len(foreign) > 10_000
    for module in own:
        importlib.import_module(module)
    loaded = set(sys.modules)

    def work(chance: random.Random) -> bool:
        module = chance.choice(own)
        keys = [key for key in sorted(BASES) if module.startswith(f"{package(key)}.") or chance.random() < 0.1]
        key, target = chance.choice(keys), spelling(foreign, module, chance)
        refusal = ""
        try:
            found = resolve(target, key if "." in key else f"{key}._target_")
            assert found.__module__.startswith(f"{package(key)}.")
        except ConfigError as error:
            refusal = str(error)
        assert set(sys.modules) == loaded, "nothing is imported for a target"
        assert len(refusal) < 2000
        assert printable(refusal) == refusal
        return not refusal

    assert some(tried(inputs, work), inputs)
