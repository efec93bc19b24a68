"""Training without loading torch's compiler, which takes more than a second in every process that trains.

torch loads it to exempt functions from compilation: at the first call of an optimizer, of its wrapper for data parallel
training, and of a few others. Where nothing is compiled, such a function is used as it is. So a module in the place of
the compiler answers these few calls; any other use of it loads the compiler, which then takes its own place.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


def defer_compiler() -> None:
    """Let torch go without its compiler in this process until something needs it; do nothing where it is loaded."""
    if NAME not in sys.modules:
        sys.modules[NAME] = Deferred()


class Deferred(ModuleType):
    """The module in the place of the compiler: functions stay as they are, and what is unknown here loads it."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.utils = CompilerPart("utils", get_optimize_ddp_mode=lambda: "ddp_optimizer")  # as without any setting
        self.trace_rules = CompilerPart("trace_rules", clear_lru_cache=lambda: None)

    @staticmethod
    def disable(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
        """Return the function itself, or a decorator that does."""
        return function or (lambda own: own)

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"module '{NAME}' has no attribute '{name}'")  # they are asked of all modules
        return getattr(_loaded(), name)


class CompilerPart:
    """A module of the compiler of which some functions are known; any other attribute loads the compiler."""

    def __init__(self, name: str, **known: Callable[..., Any]) -> None:
        self._name = name
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(_loaded(), self._name), name)


def _loaded() -> ModuleType:
    """Return the compiler in its own place."""
    if isinstance(sys.modules.get(NAME), Deferred):
        del sys.modules[NAME]
    return importlib.import_module(NAME)
