"""Native sums over all axes but one, such as the gradient of the bias of a convolution.

NumPy adds (64, 6, 24, 24) to (6, 1, 1) in 55 us; this takes 18.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from math import prod

import numpy as np

from ..backend import numpy as backend
from .ir import Value
from .loops import Writer
from .machine import ELEMENTS, Machine, machine

# Elements from which a kernel beats NumPy's call.
LEAST = 1 << 14
# Elements from which two threads beat one: a sum takes 0.1 ns for each.
PARALLEL = 1 << 20
# Vectors summed side by side: one addition waits 3 to 4 cycles for the one before it.
ACCUMULATORS = 4

_Kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 4)


def sum_to(x, shape: tuple[int, ...]):
    """The sum of ``x`` over all axes but one, or None where NumPy is to compute it."""
    if x.__class__ is not np.ndarray or x.size < LEAST or not x.flags.c_contiguous:
        return None
    kept = prod(shape)
    element = ELEMENTS.get(x.dtype)
    if element is None or kept == 1 or kept not in shape or len(shape) > x.ndim:
        return None
    axis = shape.index(kept) - len(shape)
    outer, inner = prod(x.shape[:axis]), prod(x.shape[axis + 1 :]) if axis < -1 else 1
    if x.shape[axis] != kept or inner < 8 or machine() is None:
        return None
    kernel = _kernel(element, inner)
    out = np.empty(shape, x.dtype)

    def part(k: int, parts: int) -> None:
        kernel(id(x), id(out), outer, kept, kept * k // parts, kept * (k + 1) // parts)

    backend.run_parts(part, x.size, PARALLEL)
    return out


@lru_cache(1024)
def _kernel(element: str, inner: int):
    compiler = machine()
    return _Kernel(compiler.kernel(_text, element, inner))


def _text(compiler: Machine, element: str, inner: int) -> str:
    """``kernel(x, out, outer, channels, first channel, last channel)`` over (outer, channels,
    ``inner``)."""
    w = Writer(
        compiler, element, compiler.lanes(element) // 2, "x out", "outer channels first last"
    )
    (x, out), (outer, channels, first, last) = w.data, w.integers

    def row(values: list[Value]) -> list[Value]:
        x, total = values
        return [w.at(x, channels * inner), total + _row_sum(w, x, inner)]

    with w.code.loop(first, last) as c:
        _, total = w.code.fold(outer, [w.at(x, c * inner), w.number(0.0)], row)
        w.store(w.first_of(w.lane_sums([total]), 1), out, c)
    return w.text()


def _row_sum(w: Writer, x: Value, inner: int) -> Value:
    """The sum of ``inner`` elements, as a vector whose lanes add up to it."""
    step = ACCUMULATORS * w.lanes

    def block(values: list[Value]) -> list[Value]:
        x, *sums = values
        sums = [s + w.vector(x, k * w.lanes) for k, s in enumerate(sums)]
        return [w.at(x, step), *sums]

    sums = [w.number(0.0)] * ACCUMULATORS
    if inner >= step:
        x, *sums = w.fold(inner // step, [x, *sums], block)
    rest = inner % step
    for k in range(rest // w.lanes):
        sums[k] = sums[k] + w.vector(x, k * w.lanes)
    if rest % w.lanes:
        begin = rest - rest % w.lanes
        sums[-1] = sums[-1] + w.some(x, begin, rest % w.lanes)
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[0::2], sums[1::2], strict=True)]
    return sums[0]
