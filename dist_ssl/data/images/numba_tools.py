"""Decorators and memory access for Numba loops, which release the GIL and give the same bits on every CPU."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function together with its callers; LLVM may not reorder or fuse floating-point operations."""
    found: Function = numba.njit(nogil=True, error_model="numpy")(function)
    return found


def entrance(signature: str, function: Function) -> Function:
    """Compile a function that Python calls, at once for this signature, or load it from the cache on disk."""
    found: Function = numba.njit(signature, nogil=True, cache=True, error_model="numpy")(function)
    return found


def _bytes_at(_: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(numba.types.uint8)(address), code


def _load(_: Any, address: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return numba.types.uint64(address), code


def _store(_: Any, address: Any, _value: Any) -> Any:
    def code(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        builder.store(values[1], place, align=1)
        return context.get_dummy_value()

    return numba.types.void(address, numba.types.uint64), code


def _shifted(_: Any, value: Any, bits: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.ashr(values[0], values[1])

    return numba.types.int32(value, bits), code


shifted = intrinsic(_shifted)
"""Intrinsic `value >> bits` in 32 bits: Numba's own shift takes 64 bits, and half as many of these fit a register."""
bytes_at, load, store = intrinsic(_bytes_at), intrinsic(_load), intrinsic(_store)
"""Intrinsics for memory at an address: a pointer to its bytes; 8 bytes (uint64) read or written, unaligned."""
