"""Reading and writing by index arrays on CUDA, without waiting for the device.

An index out of range is reported (``backend/device_errors.py``) and read as zeros, or not written.
Sums at repeated positions are deterministic: positions are sorted by their destination and added in
their order (kernels/radix_sort.cu, kernels/segment_sum.cu), in float32 for float16 and bfloat16. Of
several values written to one position the last one stays, as in NumPy.

What has no kernel (masks, more than 4 index arrays) is answered with None; CuPy computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..backend import cupy as backend
from ..backend import device_errors
from ..errors import KernelError
from . import cuda_module
from .arrays import merge_dimensions
from .cuda import BLOCK, TYPES

# An index is split into arrays and a pattern of slices with holes for them:
# x[1:3, i, None, j] has pattern (slice(1, 3), HOLE, None, HOLE) and arrays (i, j).
HOLE = "array"

_DIMS, _INDICES = 8, 4  # MOST_DIMS and MOST_INDICES of kernels/index.cuh
# As struct Places.
PLACES = np.dtype(
    [
        ("dims", "i8"),
        ("size", "i8", _DIMS),
        ("step", "i8", _DIMS),
        ("other", "i8", _DIMS),
        ("index_step", "i8", (_INDICES, _DIMS)),
        ("bound", "i8", _INDICES),
        ("scale", "i8", _INDICES),
    ]
)
_MOST_BLOCKS = 1 << 16  # beyond, threads loop
_DIGIT, _TILE, _CHUNK = 8, 2048, 32  # bits of a digit, keys of a tile, rows of a chunk
_MOST = 1 << 31  # keys and positions are 32-bit numbers
_WORDS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long",
          16: "uint4"}  # fmt: skip
_INDEX_TYPES = {"int32": "int", "int64": "long long"}
# What values of a type are added up in.
_SUMS = {"float16": "float", "bfloat16": "float", "float32": "float", "float64": "double",
         "int32": "int", "int64": "long long"}  # fmt: skip
_SUM_TYPES = {**TYPES, **_INDEX_TYPES}
_LANES = {"float": 4, "double": 2, "int": 4, "long long": 2}
_OUTSIDE = "index {value} is out of bounds for a dimension with size {bound}"
_NO_ROW = "index {value} out of range in embedding: the table has {bound} rows"
_OUT_OF_BOUNDS = "{}(): index {{value}} is out of bounds for dimension with size {{bound}}"
_NO_CLASS = "Target {value} is out of bounds: there are {bound} classes"


class _Unfit(Exception):
    """CuPy must compute this."""


def _kernel(function):
    """Answer None where kernels may not be used, cannot be built, or do not fit."""

    def guarded(*args, **params):
        if not cuda_module.enabled():
            return None
        try:
            with backend.on_device_of(args[0]):
                return function(*args, **params)
        except _Unfit:
            return None
        except KernelError as error:
            cuda_module.report(error, function.__name__)
            return None

    guarded.__name__, guarded.__doc__ = function.__name__, function.__doc__
    return guarded


# ------------------------------------------------------------------------------------------------
# places


@lru_cache(1024)
def _places(sizes, steps, others, index_steps, bounds, scales):
    """The struct Places for elements counted through in the shape ``sizes``; steps in elements."""
    merged, (step, other, *by_index) = merge_dimensions(sizes, [steps, others, *index_steps])
    dims = len(merged)
    if dims > _DIMS:
        raise _Unfit
    places = np.zeros(1, PLACES)
    record = places[0]
    record["dims"] = dims
    record["size"][:dims], record["step"][:dims], record["other"][:dims] = merged, step, other
    for k, found in enumerate(by_index):
        record["index_step"][k, :dims] = found
    record["bound"][: len(bounds)], record["scale"][: len(scales)] = bounds, scales
    return places


def _steps(array) -> tuple[int, ...]:
    size = array.itemsize
    return tuple([s // size for s in array.strides])


def _row_steps(shape: Sequence[int]) -> tuple[int, ...]:
    """Steps through a contiguous array."""
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= n
    return tuple(reversed(steps))


def _broadcast_steps(array, shape) -> tuple[int, ...]:
    """Steps through an array that is broadcast to a shape."""
    own = [0 if n == 1 else s for n, s in zip(array.shape, _steps(array), strict=True)]
    return (0,) * (len(shape) - array.ndim) + tuple(own)


def _integers(indices: Sequence) -> list:
    """Index arrays of one type that kernels read; masks do not fit."""
    if not 0 < len(indices) <= _INDICES or any(i.dtype.kind not in "iu" for i in indices):
        raise _Unfit
    names = {i.dtype.name for i in indices}
    if len(names) == 1 and names <= _INDEX_TYPES.keys():
        return list(indices)
    return [i.astype(np.int64) for i in indices]


class _Layout(NamedTuple):
    """An array addressed by index arrays: the index dimensions of the result are at ``place`` among
    the others."""

    view: Any  # the array with its slices taken
    axes: tuple[int, ...]  # of the view, one for each index array
    place: int
    spread: tuple[int, ...]  # common shape of the index arrays

    @property
    def rest(self) -> list[int]:
        """Axes of the view that no index addresses."""
        return [d for d in range(self.view.ndim) if d not in self.axes]

    def result(self, index_part: Sequence, others: Sequence) -> tuple:
        """Something of the index dimensions put among that of the others."""
        return (*others[: self.place], *index_part, *others[self.place :])


def _address(array, indices: Sequence, pattern) -> _Layout:
    """How ``array[pattern filled with indices]`` is addressed, with NumPy's rule for the order of
    dimensions: in the place of the index arrays if they are neighbours, else first."""
    taken = sum(1 for part in pattern if part is not None and part is not Ellipsis)
    parts: list = []
    for part in pattern:
        if part is Ellipsis:
            if len(indices) > 1:
                raise _Unfit  # whether it separates index arrays is subtle
            parts += [slice(None)] * (array.ndim - taken)
        elif part == HOLE or part is None or isinstance(part, slice):
            parts.append(part)
        else:
            raise _Unfit  # numbers beside arrays
    axes = tuple([d for d, part in enumerate(parts) if part == HOLE])
    if len(axes) != len(indices) or taken > array.ndim:
        raise _Unfit  # CuPy has the words for it
    view = array
    if any(part is None or (part != HOLE and part != slice(None)) for part in parts):
        view = array[tuple([slice(None) if part == HOLE else part for part in parts])]
    try:
        spread = np.broadcast_shapes(*[i.shape for i in indices])
    except ValueError:
        raise _Unfit from None
    neighbours = axes == tuple(range(axes[0], axes[0] + len(axes)))
    return _Layout(view, axes, axes[0] if neighbours else 0, spread)


# ------------------------------------------------------------------------------------------------
# launching


@cache
def _index_kernel(function: str, size: int, index: str, arrays: int, wide: bool):
    return cuda_module.load_file("index.cu", function, _index_defines(size, index, arrays, wide))


def _index_defines(size: int, index: str, arrays: int, wide: bool) -> tuple[str, ...]:
    return (
        f"WORD={_WORDS[size]}",
        f"INDEX={_INDEX_TYPES[index]}",
        f"INDICES={arrays}",
        f"COUNT={_count_type(wide)}",
    )


def _count_type(wide: bool) -> str:
    return "unsigned long long" if wide else "unsigned"


def _is_wide(count: int) -> bool:
    """Whether counters need 64 bits; they go beyond the end by one step of the grid."""
    return count + _MOST_BLOCKS * BLOCK >= 1 << 32


def _launch(kernel, count: int, args: Sequence) -> None:
    kernel((min(-(-count // BLOCK), _MOST_BLOCKS),), (BLOCK,), args)


def _addressing(indices: list, strict: bool, message: str = _OUTSIDE, error=IndexError) -> tuple:
    """INDEX_PARAMETERS of kernels/index.cuh."""
    padded = (indices * _INDICES)[:_INDICES]
    return (*padded, device_errors.record(), device_errors.site(message, error), int(strict))


def _word_size(itemsize: int) -> int:
    if itemsize not in _WORDS:
        raise _Unfit
    return itemsize


def _new(shape, dtype):
    return backend.cupy().ndarray(shape, dtype)


def _contiguous(array):
    """An array in C order; CuPy's ``ascontiguousarray`` makes a vector of a number."""
    return array if array.flags.c_contiguous else array.copy("C")


def _zeros(shape, dtype):
    return backend.cupy().zeros(shape, dtype)


# ------------------------------------------------------------------------------------------------
# reading


@_kernel
def take(x, *indices, pattern):
    """``x[pattern filled with indices]``; negative indices count from the end."""
    found = _integers(indices)
    if pattern == (HOLE,) and x.ndim and x.flags.c_contiguous:
        return _take_rows(x, found[0], False, _OUTSIDE)
    layout = _address(x, found, pattern)
    view, rest = layout.view, layout.rest
    steps = _steps(view)
    shape = layout.result(layout.spread, [view.shape[d] for d in rest])
    none, unused = (0,) * len(layout.spread), (0,) * len(rest)
    places = _places(
        shape,
        layout.result(none, [steps[d] for d in rest]),
        (0,) * len(shape),
        tuple([layout.result(_broadcast_steps(i, layout.spread), unused) for i in found]),
        tuple([view.shape[d] for d in layout.axes]),
        tuple([steps[d] for d in layout.axes]),
    )
    out = _new(shape, x.dtype)
    _read(view, out, places, found, False)
    return out


def _read(x, out, places, indices: list, strict: bool, *error) -> None:
    if not out.size:
        return
    size = _word_size(x.itemsize)
    kernel = _index_kernel("gather", size, indices[0].dtype.name, len(indices), _is_wide(out.size))
    addressing = _addressing(indices, strict, *error)
    _launch(kernel, out.size, (x, out, places, out.size, *addressing))


def _take_rows(x, index, strict: bool, message: str):
    """Rows of a contiguous table, in words as large as their length and addresses allow."""
    index = _contiguous(index)
    out = _new(index.shape + x.shape[1:], x.dtype)
    if not out.size:
        return out
    length = x.itemsize * math.prod(x.shape[1:])
    size = math.gcd(16, length, x.data.ptr)
    words = length // size
    kernel = _index_kernel("take_rows", size, index.dtype.name, 1, _is_wide(index.size * words))
    site = device_errors.site(message)
    args = (x, index, out, index.size, words, x.shape[0], device_errors.record(), site, int(strict))
    _launch(kernel, index.size * words, args)
    return out


@_kernel
def gather(x, index, *, axis):
    """``out[i, j] = x[index[i, j], j]`` (axis 0); negative indices are errors."""
    (index,) = _integers([index])
    steps = list(_steps(x))
    scale, steps[axis] = steps[axis], 0
    nothing = (0,) * index.ndim
    places = _places(
        index.shape, tuple(steps), nothing, (_steps(index),), (x.shape[axis],), (scale,)
    )
    out = _new(index.shape, x.dtype)
    _read(x, out, places, [index], True, _OUT_OF_BOUNDS.format("gather"), RuntimeError)
    return out


@_kernel
def embedding(weight, index, *, padding):
    """Rows of a table; negative indices are errors."""
    if not weight.flags.c_contiguous:
        raise _Unfit
    return _take_rows(weight, _integers([index])[0], True, _NO_ROW)


# ------------------------------------------------------------------------------------------------
# adding up


@_kernel
def put_add(g, *indices, pattern, shape):
    """Zeros with ``g`` added at an index; repeated positions add up."""
    found = _integers(indices)
    out = _zeros(shape, g.dtype)
    layout = _address(out, found, pattern)
    moved = layout.view.transpose((*layout.axes, *layout.rest))
    holes = len(layout.axes)
    row_shape, rest = moved.shape[:holes], moved.shape[holes:]
    rows, columns, count = math.prod(row_shape), math.prod(rest), math.prod(layout.spread)
    _need_sums(g.dtype, rows, count)
    if not g.size:
        return out
    first = range(layout.place, layout.place + len(layout.spread))
    values = g.transpose((*first, *[d for d in range(g.ndim) if d not in first]))
    places = _places(
        layout.spread,
        (0,) * len(layout.spread),
        (0,) * len(layout.spread),
        tuple([_broadcast_steps(i, layout.spread) for i in found]),
        row_shape,
        _row_steps(row_shape),
    )
    keys = _keys(places, count, found, _addressing(found, False), rows)
    direct = moved.flags.c_contiguous
    table = moved if direct else _zeros(moved.shape, g.dtype)
    _add_rows(values, keys, table, rows, columns)
    if not direct:
        moved[...] = table
    return out


@_kernel
def scatter_add(g, index, *, axis, shape):
    """Zeros with ``g`` added where ``gather`` would read; negative indices are errors."""
    (index,) = _integers([index])
    out = _zeros(shape, g.dtype)
    _need_sums(g.dtype, out.size, index.size)
    if not index.size:
        return out
    steps = list(_row_steps(shape))
    scale, steps[axis] = steps[axis], 0
    alone = index.shape[axis] == 1  # one position in every row: nothing can repeat
    places = _places(
        index.shape,
        tuple(steps),
        _steps(g) if alone else (0,) * g.ndim,
        (_steps(index),),
        (shape[axis],),
        (scale,),
    )
    addressing = _addressing([index], True, _OUT_OF_BOUNDS.format("scatter_add"), RuntimeError)
    if alone:
        kernel = _index_kernel("scatter", g.itemsize, index.dtype.name, 1, _is_wide(index.size))
        _launch(kernel, index.size, (out, g, places, index.size, *addressing))
    else:
        keys = _keys(places, index.size, [index], addressing, out.size)
        _add_rows(g, keys, out, out.size, 1)
    return out


@_kernel
def embedding_add(g, index, *, shape, padding):
    """The gradient of the table of an embedding; that of row ``padding`` is zero."""
    (index,) = _integers([index])
    out, rows = _zeros(shape, g.dtype), shape[0]
    _need_sums(g.dtype, rows, index.size)
    if not g.size:
        return out
    spread = (0,) * index.ndim
    places = _places(index.shape, spread, spread, (_steps(index),), (rows,), (1,))
    addressing = _addressing([index], True, _NO_ROW)
    dropped = -1 if padding is None else padding
    keys = _keys(places, index.size, [index], addressing, rows, dropped)
    _add_rows(g, keys, out, rows, math.prod(shape[1:]))
    return out


def _need_sums(dtype, rows: int, count: int) -> None:
    if dtype.name not in _SUMS or max(rows, count) >= _MOST - 1:
        raise _Unfit


def _keys(places, count: int, indices: list, addressing, rows: int, dropped: int = -1):
    """The row that each position goes to; ``rows`` for none, and instead of row ``dropped``."""
    keys = _new((count,), np.uint32)
    kernel = _index_kernel("keys", 4, indices[0].dtype.name, len(indices), False)
    _launch(kernel, count, (keys, places, count, rows, dropped, *addressing))
    return keys


def _add_rows(values, keys, table, rows: int, columns: int) -> None:
    """Add rows of values to rows of a table of zeros, given by their keys."""
    count = keys.size
    values = _contiguous(values)
    keys, positions = _sort(keys, rows)
    kind = table.dtype.name
    sums = np.dtype("f8" if kind == "float64" else kind if kind.startswith("int") else "f4")
    parts = _new((2 * -(-count // _CHUNK), columns), sums)
    lanes = math.gcd(16 // max(sums.itemsize, table.itemsize), columns)
    if any(a.data.ptr % (lanes * a.itemsize) for a in (values, table, parts)):
        lanes = 1
    threads = -(-count // _CHUNK) * (columns // lanes)
    wide = _is_wide(threads)
    sizes = (count, columns, rows)
    kernel = _sum_kernel("sum_chunks", kind, lanes, wide)
    _launch(kernel, threads, (values, keys, positions, table, parts, *sizes))
    if count > _CHUNK:
        kernel = _sum_kernel("join_chunks", kind, lanes, wide)
        _launch(kernel, threads, (keys, table, parts, *sizes))


@cache
def _sum_kernel(function: str, kind: str, lanes: int, wide: bool):
    return cuda_module.load_file("segment_sum.cu", function, _sum_defines(kind, lanes, wide))


def _sum_defines(kind: str, lanes: int, wide: bool) -> tuple[str, ...]:
    return (
        f"ELEMENT={_SUM_TYPES[kind]}",
        f"SUM={_SUMS[kind]}",
        f"LANES={lanes}",
        f"COUNT={_count_type(wide)}",
    )


@cache
def _sort_kernel(function: str):
    return cuda_module.load_file("radix_sort.cu", function)


def _sort(keys, most: int) -> tuple:
    """Keys up to ``most`` in ascending order and their positions, equal keys in order of theirs."""
    count = keys.size
    tiles = -(-count // _TILE)
    positions = _new((count,), np.int32)
    spare = _new((count,), np.uint32), _new((count,), np.int32)
    counts, totals = _new((256, tiles), np.uint32), _new((256,), np.uint32)
    for shift in range(0, max(most.bit_length(), 1), _DIGIT):
        if tiles > 1:
            _sort_kernel("count_digits")((tiles,), (256,), (keys, counts, count, shift))
            _sort_kernel("scan")((256,), (256,), (counts, totals, tiles))
        args = (keys, positions, *spare, counts, totals, count, shift, int(shift == 0))
        _sort_kernel("move")((tiles,), (256,), args)
        (keys, positions), spare = spare, (keys, positions)
    return keys, positions


# ------------------------------------------------------------------------------------------------
# writing


@_kernel
def put(x, v, *indices, pattern):
    """A copy of ``x`` with ``v`` written at an index."""
    out = x.copy()
    _write(out, v, _integers(indices), pattern)
    return out


def assign(array, value, indices: Sequence, pattern) -> bool:
    """``array[pattern filled with indices] = value``; False where CuPy must do it."""
    return _assign(array, value, indices, pattern) is not None


@_kernel
def _assign(array, value, indices, pattern):
    _write(array, value, _integers(indices), pattern)
    return array


def _write(array, value, indices: list, pattern) -> None:
    """Write values broadcast to an index; the last of those that share a position stays."""
    layout = _address(array, indices, pattern)
    view, rest = layout.view, layout.rest
    steps, spread = _steps(view), layout.spread
    if value.dtype != array.dtype or not _fits(value, layout):
        raise _Unfit
    # counted through with the index dimensions first: a position has all elements of its row
    others = [view.shape[d] for d in rest]
    value_steps = _broadcast_steps(value, layout.result(spread, others))
    inside = range(layout.place, layout.place + len(spread))
    by_position = [value_steps[d] for d in inside]
    by_rest = [s for d, s in enumerate(value_steps) if d not in inside]
    shape = (*spread, *others)
    size, width = math.prod(shape), math.prod(others)
    if not size:
        return
    row_shape = tuple([view.shape[d] for d in layout.axes])
    if max(math.prod(row_shape), math.prod(spread)) >= _MOST:
        raise _Unfit
    index_steps = [_broadcast_steps(i, spread) for i in indices]
    none, unused = (0,) * len(spread), (0,) * len(rest)
    marks = _places(spread, none, none, tuple(index_steps), row_shape, _row_steps(row_shape))
    places = _places(
        shape,
        (*none, *[steps[d] for d in rest]),
        (*by_position, *by_rest),
        tuple([(*s, *unused) for s in index_steps]),
        row_shape,
        tuple([steps[d] for d in layout.axes]),
    )
    last = _new((math.prod(row_shape),), np.int32)
    last.fill(-1)
    addressing = _addressing(indices, False)
    kind, arrays, count = indices[0].dtype.name, len(indices), math.prod(spread)
    _launch(
        _index_kernel("mark_last", 4, kind, arrays, False), count, (last, marks, count, *addressing)
    )
    kernel = _index_kernel("put", _word_size(array.itemsize), kind, arrays, _is_wide(size))
    _launch(kernel, size, (view, value, last, places, marks, size, width, *addressing))


def _fits(value, layout: _Layout) -> bool:
    """Whether a value can be broadcast to the index."""
    rest = [layout.view.shape[d] for d in layout.rest]
    shape = layout.result(layout.spread, rest)
    tail = shape[len(shape) - value.ndim :]
    return value.ndim <= len(shape) and all(
        n in (1, m) for n, m in zip(value.shape, tail, strict=True)
    )


# ------------------------------------------------------------------------------------------------
# one element of every row


@_kernel
def pick(x, index, scale, *, axis, total):
    """``scale * x[..., index, ...]``: one element along ``axis`` per position; ``total`` sums
    them."""
    out = _new(index.shape, x.dtype)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if shape != index.shape:
        raise _Unfit
    steps = _steps(x)
    _pick("pick", x, out, x, steps, (0,) * index.ndim, index, scale, axis)
    return backend.cupy().add.reduce(out, axis=None) if total else out


@_kernel
def unpick(g, index, scale, *, shape, axis, total):
    """The transpose of ``pick``: zeros of ``shape`` with ``g * scale`` at the picked places."""
    out = _zeros(shape, g.dtype)
    others = (0,) * index.ndim if total else _steps(g)
    _pick("unpick", g, out, out, _row_steps(shape), others, index, scale, axis)
    return out


def _pick(function, source, out, addressed, steps, others, index, scale, axis) -> None:
    (index,) = _integers([index])
    kind = source.dtype.name
    is_array = not isinstance(scale, (int, float))
    if kind not in TYPES or kind == "bool" or (is_array and scale.shape != index.shape):
        raise _Unfit
    if is_array:
        if scale.dtype != source.dtype:
            raise _Unfit
        factor = _contiguous(scale)
    else:
        factor = float(scale)
    if not index.size:
        return
    places = _places(
        index.shape,
        (*steps[:axis], *steps[axis + 1 :]),
        others,
        (_steps(index),),
        (addressed.shape[axis],),
        (steps[axis],),
    )
    kernel = _pick_kernel(function, kind, index.dtype.name, is_array, _is_wide(index.size))
    addressing = _addressing([index], True, _NO_CLASS)
    _launch(kernel, index.size, (source, out, factor, places, index.size, *addressing))


@cache
def _pick_kernel(function: str, kind: str, index: str, factors: bool, wide: bool):
    defines = _pick_defines(kind, index, factors, wide)
    return cuda_module.load_file("pick.cu", function, defines)


def _pick_defines(kind: str, index: str, factors: bool, wide: bool) -> tuple[str, ...]:
    return (
        f"ELEMENT={TYPES[kind]}",
        f"INDEX={_INDEX_TYPES[index]}",
        f"COUNT={_count_type(wide)}",
        f"FACTORS={int(factors)}",
    )


# ------------------------------------------------------------------------------------------------
# checks


@_kernel
def check_range(index, bound: int, message: str, error: type[Exception]):
    """Report numbers that are not in ``[0, bound)``: the exception comes with the next wait for
    the device."""
    (index,) = _integers([index])
    index = _contiguous(index)
    if index.size:
        kernel = _index_kernel("check_range", 1, index.dtype.name, 1, _is_wide(index.size))
        site = device_errors.site(message, error)
        _launch(kernel, index.size, (index, index.size, bound, device_errors.record(), site))
    return True


# ------------------------------------------------------------------------------------------------
# all kernels, for checks without a GPU


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of the kernels in representative variants."""

    def text(file: str, defines: Sequence[str]) -> str:
        return cuda_module.load_file(file, "", defines).text

    for size, index, arrays, wide in (
        (1, "int64", 1, False),
        (2, "int32", 1, False),
        (4, "int64", 1, True),
        (4, "int64", 3, False),
        (8, "int64", 2, False),
        (16, "int32", 4, True),
    ):
        source = text("index.cu", _index_defines(size, index, arrays, wide))
        for function in ("take_rows", "gather", "scatter", "keys", "mark_last", "put",
                         "check_range"):  # fmt: skip
            name = f"{function} {size} bytes, {arrays} x {index}{', wide' * wide}"
            yield name, source, function
    for kind in ("float32", "float64", "float16", "bfloat16"):
        for factors in (False, True):
            source = text("pick.cu", _pick_defines(kind, "int64", factors, factors))
            for function in ("pick", "unpick"):
                yield f"{function} {kind}{', factors' * factors}", source, function
    for kind in _SUMS:
        for lanes in (1, _LANES[_SUMS[kind]]):
            source = text("segment_sum.cu", _sum_defines(kind, lanes, lanes == 1))
            for function in ("sum_chunks", "join_chunks"):
                yield f"{function} {kind}, {lanes} lanes", source, function
    source = text("radix_sort.cu", ())
    for function in ("count_digits", "scan", "move"):
        yield f"radix sort: {function}", source, function
