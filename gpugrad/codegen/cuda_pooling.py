"""CUDA pooling over the last two axes: an override of the pools of ``ops/nn.py`` for CUDA arrays.

One thread for each window, or for each pixel where windows may overlap: a pixel looks at the
windows that cover it, so that no two threads write one place and sums have one order. The kernels
are in ``kernels/pooling.cu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np

from ..backend import cupy as backend
from . import cuda_module
from .cuda import TYPES
from .cuda_module import Launcher, Unsupported, ceil_div

FLOATS = tuple(name for name in TYPES if name != "bool")

_MOST = 1 << 31
_BLOCK = 256


@cuda_module.override("max_pool")
def max_pool(x, *, kernel, stride, dilation):
    """Maxima of windows, or None."""
    return _windows("max_windows", x, kernel, stride, dilation)


@cuda_module.override("sum_pool")
def sum_pool(x, *, kernel, stride, dilation):
    """Sums of windows, or None."""
    return _windows("sum_windows", x, kernel, stride, dilation)


@cuda_module.override("max_pool_scatter")
def max_pool_scatter(g, x, out, *, kernel, stride, dilation):
    """Every cotangent at the first maximum of its window, or None."""
    pool = _pool(x.shape[-2:], kernel, stride, dilation)
    _check_shapes(pool, x.shape, g, out)
    return _launch("scatter", pool, (g, x, out), x.shape)


@cuda_module.override("max_pool_gather")
def max_pool_gather(h, x, out, *, kernel, stride, dilation):
    """What lies at the first maximum of every window, or None."""
    pool = _pool(x.shape[-2:], kernel, stride, dilation)
    _check_shapes(pool, x.shape, out)
    if h.shape != x.shape:
        raise Unsupported("images of different shapes")
    return _launch("gather", pool, (h, x, out), out.shape)


@cuda_module.override("sum_unpool")
def sum_unpool(g, *, shape, kernel, stride, dilation):
    """Every cotangent at all elements of its window, in an image of ``shape``, or None."""
    pool = _pool(shape[-2:], kernel, stride, dilation)
    _check_shapes(pool, shape, g)
    return _launch("spread", pool, (g,), shape)


def _windows(function: str, x, kernel, stride, dilation):
    pool = _pool(x.shape[-2:], kernel, stride, dilation)
    return _launch(function, pool, (x,), (*x.shape[:-2], *_results(pool)))


# A pool as the kernels take it: for rows and columns the size of the image, the number of windows,
# the taps of a window, stride and dilation.
_POOL = np.dtype([("rows", np.int32, 5), ("columns", np.int32, 5)])


@lru_cache(4096)
def _pool(image, kernel, stride, dilation) -> np.ndarray:
    axes = []
    for n, k, s, d in zip(image, kernel, stride, dilation, strict=True):
        windows = (n - d * (k - 1) - 1) // s + 1
        if min(windows, k, s, d) < 1 or n * max(s, d, k) >= _MOST:
            raise Unsupported("a window that does not fit")
        axes.append((n, windows, k, s, d))
    return np.array([tuple(axes)], _POOL)


def _results(pool: np.ndarray) -> tuple[int, int]:
    return int(pool["rows"][0, 1]), int(pool["columns"][0, 1])


def _check_shapes(pool: np.ndarray, image: tuple, *arrays) -> None:
    if any(a.shape != (*image[:-2], *_results(pool)) for a in arrays):
        raise Unsupported("arrays of different shapes")


def _launch(function: str, pool: np.ndarray, arrays, shape):
    """A new array of ``shape``, each element of which one thread computes."""
    dtype = arrays[0].dtype
    if dtype.name not in FLOATS or any(a.dtype != dtype for a in arrays):
        raise Unsupported("dtypes")
    result = backend.empty(shape, dtype)
    if result.size:
        arrays = [backend.contiguous(a) for a in arrays]
        most = max(a.size for a in (*arrays, result)) + _BLOCK
        kernel = _kernel(function, dtype.name, most >= _MOST)
        args = (*arrays, result, result.size, pool)
        kernel((ceil_div(result.size, _BLOCK),), (_BLOCK,), args)
    return result


@cache
def _kernel(function: str, dtype: str, wide: bool) -> Launcher:
    index = "long long" if wide else "int"
    return cuda_module.load_file(
        "pooling.cu", function, [f"STORAGE={TYPES[dtype]}", f"Index={index}"]
    )


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of every kernel in every dtype, and with 64-bit places."""
    for dtype, wide in [*((d, False) for d in FLOATS), ("float32", True)]:
        for function in ("max_windows", "sum_windows", "scatter", "gather", "spread"):
            size = " wide" if wide else ""
            yield f"{function} {dtype}{size}", _kernel(function, dtype, wide).text, function
