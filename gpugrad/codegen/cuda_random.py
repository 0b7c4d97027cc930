"""Random arrays on CUDA devices: the kernels of kernels/random.cu and their launches.

The stream is that of ``gpugrad.random`` on a CPU: uniform numbers and integers have the same bits,
normal ones differ in the last place, as the logarithms and cosines of the two do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..backend import cupy as backend
from . import cuda_module
from .cuda import TYPES

_BLOCK = 256
_MOST_BLOCKS = 1 << 14
_INTEGERS = {
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
}


class Draw(NamedTuple):
    """A place in the stream of a seed. With ``base``, an int64 array on the device that holds a
    seed and a position, that seed is used when the kernel runs, and the positions are added."""

    seed: int
    position: int
    base: Any = None

    def arguments(self) -> tuple:
        return (np.uint64(self.seed), self.position, self.base)


@cache
def _kernel(function: str, type: str) -> cuda_module.Launcher:
    file = "random_integers.cu" if function == "integers" else "random.cu"
    return cuda_module.load_file(file, function, (f"STORAGE={type}",))


def _launch(kernel, groups: int, arguments: tuple) -> None:
    blocks = max(1, min(-(-groups // _BLOCK), _MOST_BLOCKS))
    kernel((blocks,), (_BLOCK,), arguments)


def _distribution(function: str, draw: Draw, shape, dtype):
    out = backend.empty(shape, dtype)
    if out.size:
        groups = -(-out.size // 2)
        arguments = (out, out.size, *draw.arguments())
        _launch(_kernel(function, TYPES[dtype.name]), groups, arguments)
    return out


def uniform(draw: Draw, shape, dtype):
    """Uniform in [0, 1): one word of the stream a number, two for float64."""
    return _distribution("uniform", draw, shape, dtype)


def normal(draw: Draw, shape, dtype):
    """Standard normal; takes as much of the stream as an even number of uniform ones."""
    return _distribution("normal", draw, shape, dtype)


def has_integers(dtype) -> bool:
    """Whether there is a kernel for integers of a dtype."""
    return dtype.name in _INTEGERS


def integers(draw: Draw, low: int, high: int, shape, dtype):
    """Uniform in [low, high): two words a number. The dtype is one of ``has_integers``."""
    out = backend.empty(shape, dtype)
    if out.size:
        arguments = (out, out.size, low, np.uint64(high - low), *draw.arguments())
        _launch(_kernel("integers", _INTEGERS[dtype.name]), -(-out.size // 2), arguments)
    return out


def dropout(x, *, p: float, draw: Draw):
    """``x / (1 - p)`` where the stream says so, else 0; None where there is no kernel."""
    if not cuda_module.enabled() or x.dtype.name not in TYPES or x.dtype.kind == "b":
        return None
    x = backend.cupy().ascontiguousarray(x)
    with backend.on_device_of(x):
        out = backend.empty(x.shape, x.dtype)
        if x.size:
            arguments = (x, out, x.size, float(p), *draw.arguments())
            _launch(_kernel("dropout", TYPES[x.dtype.name]), -(-x.size // 4), arguments)
    return out


def words_of(shape, dtype, paired: bool = False) -> int:
    """How much of the stream an array of floats takes; ``paired`` for normal ones."""
    n = prod(shape)
    return (n + n % 2 if paired else n) * (2 if dtype.name == "float64" else 1)


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of every kernel."""
    for type in TYPES.values():
        if type != "bool":
            for function in ("uniform", "normal", "dropout"):
                yield f"random {function} {type}", _kernel(function, type).text, function
    for type in _INTEGERS.values():
        yield f"random integers {type}", _kernel("integers", type).text, "integers"
