"""Triton's decorator and launches with types that a type checker knows, and a trial of whether kernels run here.

Import it only where Triton is installed.
"""

import logging
from collections.abc import Callable
from typing import Any

import triton

log = logging.getLogger(__name__)


def kernel(function: Callable[..., Any]) -> Any:
    """Return the function as Triton compiles it, at its first launch for the types that it is given then."""
    return triton.jit(function)


def kernel_of_any(*numbers: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator like `kernel` for a function that is not compiled again for other values of these integers."""
    return triton.jit(do_not_specialize=numbers)  # type: ignore[no-any-return]


def launch(function: Any, programs: tuple[int, int], *given: Any, **sizes: Any) -> None:
    """Start the programs of a kernel."""
    function[programs](*given, **sizes)


def works(work: Callable[[], object], otherwise: str) -> bool:
    """Return whether kernels compile and run here; where they do not, log what the product does otherwise."""
    try:
        work()
    except Exception as error:  # a missing C compiler, an unknown GPU: whatever Triton raises
        log.warning("%s: %s: %s", otherwise, type(error).__name__, error)
        return False
    return True
