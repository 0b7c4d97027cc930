"""CUDA batch normalisation: an override of ``channel_moments`` and ``batch_norm`` of ``ops/nn.py``.

Forward one kernel for the moments of every channel (two if a channel is larger than what a block
holds in registers), which also updates the running averages, and one that scales; backward one for
the sums and one for the cotangents. The kernels are in ``kernels/batch_norm.cu``. Moments are
float32 (float64 for float64) whatever the storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from ..backend import cupy as backend
from . import cuda_module
from .cuda import PACK, TYPES
from .cuda_module import Launcher, Unsupported, ceil_div

FLOATS = tuple(name for name in TYPES if name != "bool")

_BLOCK = 256
_ITEMS = 16  # elements of a thread
_MOST = (1 << 31) - (1 << 20)
_MOST_BLOCKS = (1 << 16) - 1
# Positions up to which neighbouring threads lie along channels: a row of fewer would not fill a
# memory access of 32 bytes.
_FEW = 8
_WIDE = 32


class Layout(NamedTuple):
    """How the kernels go through (N, C, positions)."""

    channels: int
    positions: int
    count: int  # elements of a channel
    chunks: int
    wide: int  # channels of a block

    @property
    def grid(self) -> tuple[int, int]:
        return (self.chunks, ceil_div(self.channels, self.wide))


@cuda_module.override("moments of channels")
def moments(x, *running, momentum=0.0):
    """Means and variances over all but axis 1 as (2, C); running averages, if given, are updated in
    place. None: no kernel."""
    layout = _layout(x.shape)
    real = _real(x)
    parameter = real if not running else _common_dtype(*running)
    found = backend.empty((2, layout.channels), real)
    parts = backend.empty((2, layout.channels, layout.chunks), real)
    mean, variance = running or (found, found)
    if not (mean.flags.c_contiguous and variance.flags.c_contiguous):
        raise Unsupported("running averages that are views")
    x = backend.contiguous(x)
    sizes = (mean, variance, float(momentum) if running else 0.0, _sizes(layout))
    kernel = _kernel("moments", layout, parameter, x)
    kernel(layout.grid, (_BLOCK,), (x, parts, found, *sizes))
    if layout.chunks > 1:
        kernel = _kernel("merge", layout, parameter, x)
        kernel((1, layout.grid[1]), (_BLOCK,), (parts, found, *sizes))
    return found


@cuda_module.override("batch_norm")
def batch_norm(x, weight, bias, mean, variance, *, eps, training):
    """Every channel scaled by its moments, ``weight`` and ``bias``, or None."""
    layout = _layout(x.shape)
    parameter = _common_dtype(weight, bias)
    x, weight, bias = (backend.contiguous(a) for a in (x, weight, bias))
    mean, variance = _moments(x, mean, variance)
    y = backend.empty(x.shape, x.dtype)
    kernel = _kernel("normalize", layout, parameter, x, y)
    args = (x, weight, bias, mean, variance, y, float(eps), _sizes(layout))
    kernel(layout.grid, (_BLOCK,), args)
    return y


@cuda_module.override("batch_norm backward")
def backward(g, x, weight, mean, variance, *, needs: Sequence[bool], eps, training):
    """The cotangents of x, weight and bias that are needed (None for others), or None."""
    layout = _layout(x.shape)
    if g.shape != x.shape or g.dtype != x.dtype:
        raise Unsupported("a cotangent of another dtype")
    parameter = _common_dtype(weight)
    g, x, weight = (backend.contiguous(a) for a in (g, x, weight))
    mean, variance = _moments(x, mean, variance)
    parts = backend.empty((2, layout.channels, layout.chunks), _real(x))
    kernel = _kernel("sums", layout, parameter, g, x)
    kernel(layout.grid, (_BLOCK,), (g, x, mean, parts, _sizes(layout)))
    with_gx = bool(needs[0])
    gx = backend.empty(x.shape, x.dtype) if with_gx else x
    gweight, gbias = (backend.empty(weight.shape, weight.dtype) for _ in range(2))
    args = (g, x, weight, mean, variance, parts, gx, gweight, gbias)
    args = (*args, float(eps), int(training), int(with_gx), _sizes(layout))
    kernel = _kernel("gradients", layout, parameter, g, x, gx)
    kernel((layout.chunks if with_gx else 1, layout.grid[1]), (_BLOCK,), args)
    found = (gx, gweight, gbias)
    return [a if need else None for a, need in zip(found, needs, strict=True)]


def _real(x) -> np.dtype:
    """The dtype of moments."""
    if x.dtype.name not in FLOATS:
        raise Unsupported("dtypes")
    return np.dtype("float64" if x.dtype.name == "float64" else "float32")


def _common_dtype(*arrays) -> np.dtype:
    """That of the parameters."""
    dtype = arrays[0].dtype
    if dtype.name not in FLOATS or any(a.dtype != dtype for a in arrays):
        raise Unsupported("dtypes")
    return dtype


def _moments(x, *arrays) -> list:
    """Moments as the kernels read them: running averages may be stored in another dtype."""
    real = _real(x)
    return [backend.contiguous(a if a.dtype == real else a.astype(real)) for a in arrays]


@lru_cache(4096)
def _layout(shape) -> Layout:
    if len(shape) < 2 or 0 in shape:
        raise Unsupported("nothing to normalise")
    channels, positions = shape[1], prod(shape[2:])
    count = shape[0] * positions
    wide = _WIDE if positions <= _FEW else 1
    chunks = ceil_div(count, _BLOCK // wide * _ITEMS)
    if count > _MOST or ceil_div(channels, wide) > _MOST_BLOCKS:
        raise Unsupported("more elements than 32 bits count")
    return Layout(channels, positions, count, chunks, wide)


@lru_cache(4096)
def _sizes(layout: Layout) -> np.ndarray:
    """What the kernels take of a layout, as a struct that is passed by value."""
    return np.array(layout[:4], np.int32).view([("values", np.int32, 4)])


def _kernel(function: str, layout: Layout, parameter: np.dtype, *arrays) -> Launcher:
    """The kernel for arrays like these: 16 bytes at once if all begin where that is allowed."""
    dtype = arrays[0].dtype
    lanes = PACK // dtype.itemsize
    if layout.wide > 1 or layout.positions % lanes or any(a.data.ptr % PACK for a in arrays):
        lanes = 1
    return _load(function, dtype.name, parameter.name, layout.wide, lanes)


@cache
def _load(function: str, dtype: str, parameter: str, wide: int, lanes: int) -> Launcher:
    types = [f"STORAGE={TYPES[dtype]}", f"PARAMETER={TYPES[parameter]}"]
    return cuda_module.load_file(
        "batch_norm.cu", function, [*types, f"WIDE={wide}", f"LANES={lanes}"]
    )


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of every kernel in every dtype and layout."""
    for dtype in FLOATS:
        size = 2 if dtype.endswith("16") else int(dtype[5:]) // 8
        layouts = [(1, PACK // size), (1, 1), (_WIDE, 1)]
        for parameter in sorted({dtype, "float64" if dtype == "float64" else "float32"}):
            for wide, lanes in layouts:
                for function in ("moments", "merge", "normalize", "sums", "gradients"):
                    name = f"batch_norm {function} {dtype} {parameter} {wide}x{lanes}"
                    yield name, _load(function, dtype, parameter, wide, lanes).text, function
