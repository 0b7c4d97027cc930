"""Native pooling over the last two axes: an override of the pools of ``ops/nn.py``.

A vector is a row of windows. For a stride of 2 and more the columns a tap sees lie apart: they are
picked out of longer loads, which never leave the windows of their row. Ties and NaN are treated as
in the reference: the first maximum in reading order takes the cotangent; NaN spreads forward.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from ..backend import numpy as backend
from .ir import Value, with_element
from .loops import Writer
from .machine import ELEMENTS, Machine, machine

# Elements of the input from which a call of a kernel beats the reference's calls of NumPy.
LEAST = 1 << 11
# Elements from which two threads beat one: a pool takes 0.1 ns for each.
PARALLEL = 1 << 20
# Taps of a window that are written out.
LARGEST = 49

_Forward = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)
_Scatter = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)


class Pool(NamedTuple):
    """The sizes of a pool except the number of images."""

    element: str
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def tiles(self) -> bool:
        """Whether windows are next to each other, without gap or overlap."""
        return self.kernel == self.stride and self.dilation == (1, 1)

    @property
    def covers(self) -> bool:
        """Whether they also reach the end of the image."""
        covered = (self.out[0] * self.stride[0], self.out[1] * self.stride[1])
        return self.tiles and covered == self.image


# ------------------------------------------------------------------------------------------------
# the operations


def max_pool(x, *, kernel, stride, dilation):
    """Maxima of windows, or None where the reference is to compute them."""
    return _windows("max", x, kernel, stride, dilation)


def sum_pool(x, *, kernel, stride, dilation):
    """Sums of windows, or None where the reference is to compute them."""
    return _windows("sum", x, kernel, stride, dilation)


def max_pool_scatter(g, x, out, *, kernel, stride, dilation):
    """Every cotangent at the first maximum of its window, or None for the reference."""
    if not (g.__class__ is x.__class__ is out.__class__) or not (g.dtype == x.dtype == out.dtype):
        return None
    found = _pool(x, kernel, stride, dilation)
    if found is None or not g.shape == out.shape == (*x.shape[:-2], *found.out):
        return None
    function = _compiled("scatter", found)
    g, x, out = (np.ascontiguousarray(a) for a in (g, x, out))
    gx = backend.empty(x.shape, g.dtype)
    _over_planes(function, x, (g, x, out, gx))
    return gx


def sum_unpool(g, *, shape, kernel, stride, dilation):
    """Every cotangent at all elements of its window, or None for the reference, which also does
    all windows but those two columns wide that tile the image."""
    if g.__class__ is not np.ndarray or prod(shape) < LEAST:
        return None
    found = _sizes(g.dtype, shape, kernel, stride, dilation)
    if found is None or g.shape != (*shape[:-2], *found.out):
        return None
    if not found.covers or found.stride[1] != 2 or found.out[1] < 2:
        return None
    function = _compiled("spread", found)
    g = np.ascontiguousarray(g)
    gx = backend.empty(shape, g.dtype)
    _over_planes(function, gx, (g, gx))
    return gx


def _windows(kind: str, x, kernel, stride, dilation):
    found = _pool(x, kernel, stride, dilation)
    if found is None:
        return None
    function = _compiled(kind, found)
    x = np.ascontiguousarray(x)
    y = backend.empty((*x.shape[:-2], *found.out), x.dtype)
    _over_planes(function, x, (x, y))
    return y


def _over_planes(function, x, arrays) -> None:
    planes = prod(x.shape[:-2])
    addresses = [id(a) for a in arrays]

    def part(k: int, parts: int) -> None:
        function(*addresses, planes * k // parts, planes * (k + 1) // parts)

    backend.run_parts(part, x.size, PARALLEL)


def _pool(x, kernel, stride, dilation) -> Pool | None:
    """The sizes of a pool of a NumPy array that a kernel is worth for."""
    if x.__class__ is not np.ndarray or x.size < LEAST or x.ndim < 2:
        return None
    return _sizes(x.dtype, x.shape, kernel, stride, dilation)


def _sizes(dtype, shape, kernel, stride, dilation) -> Pool | None:
    element = ELEMENTS.get(dtype)
    if element is None or prod(kernel) > LARGEST or machine() is None:
        return None
    return _make_pool(element, shape[-2:], kernel, stride, dilation)


@lru_cache(4096)
def _make_pool(element, image, kernel, stride, dilation) -> Pool | None:
    out = tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(image, kernel, stride, dilation, strict=True)
    )
    if min(*out, *kernel, *stride, *dilation) < 1:
        return None
    return Pool(element, image, out, kernel, stride, dilation)


@lru_cache(4096)
def _compiled(kind: str, pool: Pool) -> Callable:
    compiler = machine()
    if kind == "scatter":
        return _Scatter(compiler.kernel(scatter_text, pool))
    if kind == "spread":
        return _Forward(compiler.kernel(spread_text, pool))
    return _Forward(compiler.kernel(windows_text, pool, kind))


# ------------------------------------------------------------------------------------------------
# texts


def _lanes(compiler: Machine, pool: Pool) -> int:
    """Lanes that cover a row of windows with the fewest vectors, which may overlap."""
    lanes = compiler.lanes(pool.element) // 2
    fitting = [n for n in (lanes, lanes // 2, lanes // 4, lanes // 8) if 1 < n <= pool.out[1]]
    if not fitting or pool.stride[1] > 4:
        return 1
    return min(fitting, key=lambda n: (-(-pool.out[1] // n), n))


def windows_text(compiler: Machine, pool: Pool, kind: str) -> str:
    """``kernel(x, y, first plane, last plane)``."""
    w = Writer(compiler, pool.element, _lanes(compiler, pool), "x y", "first last")
    (x, y), (first, last) = w.data, w.integers
    (height, width), (out_h, out_w) = pool.image, pool.out
    with (
        w.code.loop(first, last) as n,
        w.repeat(out_h) as row,
        w.starts(out_w, w.lanes) as column,
    ):
        corner = (n * height + row * pool.stride[0]) * width + column * pool.stride[1]
        total = None
        for i in range(pool.kernel[0]):
            tap_row = w.at(x, corner + i * pool.dilation[0] * width)
            for value in _columns(w, pool, tap_row):
                total = value if total is None else _combined(w, kind, total, value)
        w.store(total, y, (n * out_h + row) * out_w + column)
    return w.text()


def _combined(w: Writer, kind: str, a: Value, b: Value) -> Value:
    if kind == "sum":
        return a + b
    larger = w.code.select(a > b, a, b)  # one instruction on x86; b if either is NaN
    return w.code.select(a.is_nan(), a, larger)


def _columns(w: Writer, pool: Pool, row: Value) -> list[Value]:
    """What the taps of one kernel row see, for a vector of windows from ``row`` on."""
    step, dilation, taps = pool.stride[1], pool.dilation[1], pool.kernel[1]
    if w.lanes == 1 or step == 1:
        return [w.vector(row, tap * dilation) for tap in range(taps)]
    loads: dict[tuple[int, int], Value] = {}
    values = []
    for tap in range(taps):
        start, count, skip = tap * dilation, w.lanes * step, 0
        if start + step - 1 > (taps - 1) * dilation:  # a whole load would leave the windows
            skip = step - 1 if start >= step - 1 else 0  # begin earlier,
            count -= 0 if skip else step - 1  # or take fewer elements
        key = (start - skip, count)
        if key not in loads:
            loads[key] = w.vector(row, *key)
        chosen = [skip + lane * step for lane in range(w.lanes)]
        values.append(w.shuffle(loads[key], loads[key], chosen))
    return values


def scatter_text(compiler: Machine, pool: Pool) -> str:
    """``kernel(g, x, out, gx, first plane, last plane)``."""
    w = Writer(compiler, pool.element, _lanes(compiler, pool), "g x out gx", "first last")
    g, x, out, gx = w.data
    pairs = pool.tiles and pool.stride[1] == 2 and w.lanes > 1
    (height, width), (out_h, out_w) = pool.image, pool.out
    with w.code.loop(*w.integers) as n:
        if not (pairs and pool.covers):
            _clear(w, w.at(gx, n * (height * width)), height * width)
        with w.repeat(out_h) as row:
            windows = (n * out_h + row) * out_w
            corner = (n * height + row * pool.stride[0]) * width

            def scatter(write: Callable, column: Value, lanes: int) -> None:
                at, place = windows + column, corner + column * pool.stride[1]
                values = w.vector(g, at, lanes), w.vector(out, at, lanes)
                write(w, pool, *values, w.at(x, place), w.at(gx, place))

            if pairs:
                with w.starts(out_w, w.lanes) as column:
                    scatter(_scatter_rows, column, w.lanes)
            else:  # windows may overlap: every one is to be added once
                whole = out_w // w.lanes if w.lanes > 1 else 0
                if whole:
                    with w.repeat(whole) as k:
                        scatter(_scatter_windows, k * w.lanes, w.lanes)
                if whole * w.lanes < out_w:
                    with w.repeat(out_w - whole * w.lanes) as k:
                        scatter(_scatter_window, k + whole * w.lanes, 1)
    return w.text()


def _clear(w: Writer, place: Value, count: int) -> None:
    whole = count // w.lanes * w.lanes
    if whole:
        w.clear(place, whole)
    for k in range(whole, count):
        w.store(Value(w.code, "0.0", w.element), place, k)


def _scatter_rows(w: Writer, pool: Pool, g: Value, out: Value, x: Value, gx: Value) -> None:
    """Windows that lie next to each other, two columns wide: every element belongs to one."""
    free = None  # whether no earlier tap was the maximum
    for i in range(pool.kernel[0]):
        at = i * pool.image[1]
        parts = []
        for value in _columns(w, pool, w.at(x, at)):
            hit = value.equals(out)
            first = hit if free is None else hit & free
            free = (hit ^ 1) if free is None else free & (hit ^ 1)
            parts.append(w.code.select(first, g, 0.0))
        w.store(_interleaved(w, *parts), gx, at)


def _interleaved(w: Writer, even: Value, odd: Value) -> Value:
    return w.shuffle(even, odd, [k * w.lanes + lane for lane in range(w.lanes) for k in range(2)])


def _scatter_windows(w: Writer, pool: Pool, g: Value, out: Value, x: Value, gx: Value) -> None:
    """A vector of windows, which may overlap: their places are found side by side, then filled one
    after the other."""
    rows = [x if i == 0 else w.at(x, _place(pool, i, 0)) for i in range(pool.kernel[0])]
    values = [_columns(w, pool, row) for row in rows]
    index = Value(w.code, "", with_element(g.type, "i64" if w.element == "double" else "i32"))
    place, found = w.code.like(index, 0), w.number(0.0)
    for i, j in _taps(pool):
        hit = values[i][j].equals(out)
        place = w.code.select(hit, w.code.like(index, _place(pool, i, j)), place)
        found = w.code.select(hit, g, found)
    for lane in range(w.lanes):
        at = w.code.emit(f"extractelement {place}, i64 {lane}", index.type.split()[-1][:-1])
        at = at.convert("sext", "i64") if at.type == "i32" else at
        target = w.at(gx, at + lane * pool.stride[1])
        value = w.code.emit(f"extractelement {found}, i64 {lane}", w.element)
        w.store(w.vector(target, 0, 1) + value, target)


def _scatter_window(w: Writer, pool: Pool, g: Value, out: Value, x: Value, gx: Value) -> None:
    """One window; others may overlap it."""
    place, found = w.code.integer(0), Value(w.code, "0.0", w.element)
    for i, j in _taps(pool):
        hit = w.vector(x, _place(pool, i, j), 1).equals(out)
        place = w.code.select(hit, w.code.integer(_place(pool, i, j)), place)
        found = w.code.select(hit, g, found)
    w.store(w.vector(gx, place, 1) + found, gx, place)


def _taps(pool: Pool) -> list[tuple[int, int]]:
    """From the last to the first: of equal maxima the one looked at last is kept."""
    return list(product(*map(range, pool.kernel)))[::-1]


def _place(pool: Pool, i: int, j: int) -> int:
    """Of a tap, seen from the corner of its window."""
    return i * pool.dilation[0] * pool.image[1] + j * pool.dilation[1]


def spread_text(compiler: Machine, pool: Pool) -> str:
    """``kernel(g, gx, first plane, last plane)`` for windows two columns wide that tile the
    image."""
    w = Writer(compiler, pool.element, _lanes(compiler, pool), "g gx", "first last")
    (g, gx), (out_h, out_w) = w.data, pool.out
    with (
        w.code.loop(*w.integers) as n,
        w.repeat(out_h) as row,
        w.starts(out_w, w.lanes) as column,
    ):
        window = n * out_h + row
        value = w.vector(g, window * out_w + column)
        value = _interleaved(w, value, value)
        target = w.at(gx, window * (pool.kernel[0] * pool.image[1]) + column * 2)
        for i in range(pool.kernel[0]):
            w.store(value, target, i * pool.image[1])
    return w.text()
