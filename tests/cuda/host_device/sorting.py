"""CuPy's sorting by NumPy: Thrust is machine code inside the wheel.

The module ``cupy.cuda.thrust`` sorts memory in place, given its address; so does this one.
"""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np


def _at(address: int, dtype, shape) -> np.ndarray:
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


def _wait() -> None:
    from cupy.cuda import stream

    stream.get_current_stream().synchronize()


def sort(dtype, data: int, keys: int, shape) -> None:
    """Sort the last axis in place."""
    _wait()
    _at(data, dtype, shape).sort(axis=-1)


def argsort(dtype, index: int, data: int, keys: int, shape) -> None:
    """Indices that sort the last axis; Thrust's sort is stable, and it sorts the data too."""
    _wait()
    values = _at(data, dtype, shape)
    _at(index, np.intp, shape)[...] = values.argsort(axis=-1, kind="stable")


def lexsort(dtype, index: int, keys: int, k: int, n: int) -> None:
    """Indices that sort by the last key first."""
    _wait()
    _at(index, np.intp, (n,))[...] = np.lexsort(_at(keys, dtype, (k, n)))


def install() -> None:
    module = types.ModuleType("cupy.cuda.thrust")
    module.available = True
    module.get_build_version = lambda: 0
    module.sort, module.argsort, module.lexsort = sort, argsort, lexsort
    sys.modules["cupy.cuda.thrust"] = module
