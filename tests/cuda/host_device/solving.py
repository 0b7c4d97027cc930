"""CuPy's linalg by NumPy: cuSOLVER is machine code inside NVIDIA's wheels.

As with cuSOLVER, a matrix without a result gives NaN and no exception.
"""

from __future__ import annotations

import functools

import numpy as np

REPLACED = ("inv", "solve", "det", "slogdet", "cholesky")


def _by_numpy(name: str):
    function = getattr(np.linalg, name)

    @functools.wraps(function)
    def computed(*arrays):
        import cupy

        host = [a.get() for a in arrays]
        try:
            result = function(*host)
        except np.linalg.LinAlgError:
            result = np.full(host[-1].shape, np.nan, host[-1].dtype)
        if isinstance(result, tuple):
            return tuple(cupy.asarray(part) for part in result)
        return cupy.asarray(result)

    return computed


def install() -> None:
    import cupy

    for name in REPLACED:
        setattr(cupy.linalg, name, _by_numpy(name))
