"""Native tasks that move elements: copies between any strides, rows picked or added by index,
sums along a middle axis."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

from .arrays import merge_dimensions
from .ir import Code, Value
from .machine import ELEMENTS, Machine, machine
from .shares import parameters, share
from .tasks import Operand, Rows, Task

_LOOPS = 6
_TILE = 16  # elements of the source that lie together, copied at once where layouts differ
# Elements from which threads share a copy.
_PARALLEL = 1 << 15
# What an element takes that is written.
_NANOSECONDS = 0.05
# Columns of a thread's share of the sum of rows, at least: ends of shares go element by element.
_COLUMNS = 1 << 9
_WORDS = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}


def _begin(element: str = "float", lanes: int = 1) -> tuple[Code, list[Value]]:
    code = Code(element, lanes)
    return code, parameters(code)


def _data(code: Code, compiler: Machine, table: Value, place: int) -> Value:
    obj = code.load(code.at(table, place), "ptr")
    return code.load(code.at(obj, compiler.offsets["data"], "i8"), "ptr")


# ------------------------------------------------------------------------------------------------
# copies


def copy(source: np.ndarray, target: np.ndarray) -> Task | None:
    """The task that copies an array into another of the same shape and dtype, whatever their
    strides; None for elements of another size, or more dimensions than there are loops."""
    compiler, word = machine(), _WORDS.get(target.itemsize)
    if compiler is None or word is None or source.dtype != target.dtype or not target.size:
        return None
    sizes, steps = merge_dimensions(target.shape, [source.strides, target.strides])
    loops = _ordered(sizes, *steps, target.itemsize)
    if len(loops) > _LOOPS:
        return None
    loops = [(1, 0, 0)] * (_LOOPS - len(loops)) + loops
    words = [id(source), id(target), *[w for loop in loops for w in loop]]
    parts = 1 if target.size < _PARALLEL else min(64, loops[0][0] * loops[1][0] * loops[2][0])
    function = _copy_kernel(compiler, word)
    return Task(function, array("q", words), array("d", [0.0]), parts, (source, target))


def _ordered(sizes: Sequence[int], source, target, itemsize: int) -> list[tuple[int, int, int]]:
    """Loops, outermost first, as (size, step of the source, step of the target).

    The target is gone through in its order; where the source is contiguous along another dimension,
    that one is cut into tiles whose elements are copied together.
    """
    loops = sorted(zip(sizes, source, target, strict=True), key=lambda loop: -abs(loop[2]))
    inner = next((k for k, (_, s, _) in enumerate(loops) if s == itemsize), None)
    if inner is None or inner == len(loops) - 1:
        return loops
    n, s, t = loops[inner]
    if n % _TILE:
        return loops
    loops[inner] = (n // _TILE, s * _TILE, t * _TILE)
    return [*loops, (_TILE, s, t)]


@lru_cache(8)
def _copy_kernel(compiler: Machine, word: str) -> int:
    return compiler.kernel(_copy_text, word)


def _copy_text(compiler: Machine, word: str) -> str:
    """Threads share the three outer loops together."""
    code, given = _begin()
    table, _, first, last = given
    source, target = (_data(code, compiler, table, k) for k in range(2))
    loops = [
        [code.load(code.at(table, 2 + 3 * k + j), "i64") for j in range(3)] for k in range(_LOOPS)
    ]
    (a, *_), (b, *_), (c, *_) = loops[:3]
    zero, outer = code.integer(0), a * b * c
    with code.loop(share(code, outer, first), share(code, outer, last)) as i:
        rest = code.emit(f"sdiv {i}, {c.name}", "i64")
        k = i - rest * c
        h = code.emit(f"sdiv {rest}, {b.name}", "i64")
        j = rest - h * b
        places = []
        for step in (1, 2):
            places.append(h * loops[0][step] + j * loops[1][step] + k * loops[2][step])
        with (
            code.loop(zero, loops[3][0]) as x,
            code.loop(zero, loops[4][0]) as y,
            code.loop(zero, loops[5][0]) as z,
        ):
            pointers = []
            for base, place, step in zip((source, target), places, (1, 2), strict=True):
                inner = x * loops[3][step] + y * loops[4][step] + z * loops[5][step]
                pointers.append(code.at(base, place + inner, "i8"))
            code.store(code.load(pointers[0], word), pointers[1])
    return code.function("kernel", given)


# ------------------------------------------------------------------------------------------------
# rows by index


def take_rows(table: np.ndarray, index: np.ndarray, out: np.ndarray) -> Task | None:
    """The task ``out[...] = table[index]`` for rows along the first axis; the first word of its
    table becomes 1 if an index is out of range."""
    return _rows("take", table, index, out)


def add_rows(rows: np.ndarray, index: np.ndarray, out: np.ndarray) -> list[Task] | None:
    """The tasks ``out[...] = 0; out[index] += rows``, added in the order of the index."""
    task = _rows("add", out, index, rows)
    zeros = None if task is None else fill(out)
    return None if task is None or zeros is None else [zeros, task]


def _rows(kind: str, table: np.ndarray, index: np.ndarray, rows: np.ndarray) -> Task | None:
    compiler = machine()
    element = ELEMENTS.get(table.dtype)
    arrays = (table, index, rows)
    if compiler is None or element is None or index.dtype != np.int64 or rows.dtype != table.dtype:
        return None
    if not all(a.flags.c_contiguous and a.size for a in arrays):
        return None
    width, bound = prod(table.shape[1:]), table.shape[0]
    words = [0, *map(id, arrays), index.size, width, bound]
    parts = 1 if kind == "add" or rows.size < _PARALLEL else 16
    function = _rows_kernel(compiler, kind, element)
    return Task(function, array("q", words), array("d", [0.0]), parts, arrays)


@lru_cache(16)
def _rows_kernel(compiler: Machine, kind: str, element: str) -> int:
    return compiler.kernel(_rows_text, kind, element)


def _rows_text(compiler: Machine, kind: str, element: str) -> str:
    lanes = compiler.lanes(element) // 2
    code, given = _begin(element, lanes)
    table, _, first, last = given
    matrix, index, rows = (_data(code, compiler, table, k) for k in (1, 2, 3))
    count, width, bound = (code.load(code.at(table, k), "i64") for k in (4, 5, 6))
    zero = code.integer(0)
    with code.loop(share(code, count, first), share(code, count, last)) as i:
        row = code.load(code.at(index, i), "i64")
        inside = row.compare("ult", bound)
        failed = code.select(inside, zero, code.integer(1))
        code.do(f"%before = atomicrmw or {table}, {failed} monotonic")
        place = code.select(inside, row, zero) * width  # what is read then is not used
        here = i * width

        def move(k: Value, type: str, place=place, here=here) -> None:
            a = code.at(matrix, place + k, element)
            b = code.at(rows, here + k, element)
            if kind == "take":
                code.store(code.load(a, type), b)
            else:
                code.store(code.load(a, type) + code.load(b, type), a)

        with code.loop(zero, width, lanes) as k:
            move(k, code.vector)
        with code.loop(k, width) as k:
            move(k, element)
    return code.function("kernel", given)


def check_range(index: np.ndarray, bound: int) -> Task | None:
    """The task that makes the first word of its table 1 if an index is not in ``range(bound)``."""
    compiler = machine()
    if compiler is None or index.dtype != np.int64 or not index.flags.c_contiguous:
        return None
    table = array("q", [0, id(index), index.size, bound])
    return Task(_check_kernel(compiler), table, array("d", [0.0]), 1, index)


@lru_cache(4)
def _check_kernel(compiler: Machine) -> int:
    return compiler.kernel(_check_text)


def _check_text(compiler: Machine) -> str:
    code, given = _begin("double", 1)
    table = given[0]
    index = _data(code, compiler, table, 1)
    count, bound = (code.load(code.at(table, k), "i64") for k in (2, 3))
    zero, one = code.integer(0), code.integer(1)
    with code.loop(zero, count) as i:
        inside = code.load(code.at(index, i), "i64").compare("ult", bound)
        failed = code.select(inside, zero, one)
        code.do(f"%before = atomicrmw or {table}, {failed} monotonic")
    return code.function("kernel", given)


# ------------------------------------------------------------------------------------------------
# sums along a middle axis


def sum_middle(x: np.ndarray, out: np.ndarray) -> Task | None:
    """The task that sums (outer, middle, inner) over the middle axis, in the order of the axis."""
    compiler = machine()
    element = ELEMENTS.get(x.dtype)
    if compiler is None or element is None or out.dtype != x.dtype or not x.size:
        return None
    if not (x.flags.c_contiguous and out.flags.c_contiguous):
        return None
    table = array("q", [id(x), id(out), *x.shape])
    outer, _, inner = x.shape
    shares = outer if outer > 1 else max(1, inner // _COLUMNS)
    parts = 1 if x.size < _PARALLEL else min(64, shares)
    function = _sum_kernel(compiler, element)
    return Task(function, table, array("d", [0.0]), parts, (x, out))


@lru_cache(4)
def _sum_kernel(compiler: Machine, element: str) -> int:
    return compiler.kernel(_sum_text, element)


def _sum_text(compiler: Machine, element: str) -> str:
    lanes = compiler.lanes(element)
    code, given = _begin(element, lanes)
    table, _, first, last = given
    x, out = (_data(code, compiler, table, k) for k in range(2))
    outer, middle, inner = (code.load(code.at(table, 2 + k), "i64") for k in range(3))
    one = outer.compare("eq", 1)  # then threads share columns
    start = code.select(one, share(code, inner, first), 0)
    stop = code.select(one, share(code, inner, last), inner)
    begin = code.select(one, 0, share(code, outer, first))
    end = code.select(one, 1, share(code, outer, last))
    with code.loop(begin, end) as o:

        def column(k: Value, type: str, o=o) -> None:
            place = code.at(x, o * middle * inner + k, element)

            def add(values: list[Value]) -> list[Value]:
                pointer, total = values
                pointer = code.at(pointer, inner, element)
                return [pointer, total + code.load(pointer, type)]

            total = code.load(place, type)
            several = middle.compare("sgt", 1)
            total = code.choose(
                several,
                lambda: [code.fold(middle - 1, [place, total], add)[1]],
                lambda: [total],
            )[0]
            code.store(total, code.at(out, o * inner + k, element))

        with code.loop(start, stop, lanes) as k:
            column(k, code.vector)
        with code.loop(k, stop) as k:
            column(k, element)
    return code.function("kernel", given)


# ------------------------------------------------------------------------------------------------
# constants


def fill(out: np.ndarray, value: float = 0.0) -> Task | None:
    """The task that fills a contiguous array of float32 or float64 with a number."""
    compiler = machine()
    element = ELEMENTS.get(out.dtype)
    if compiler is None or element is None or not out.flags.c_contiguous:
        return None
    parts = 1 if out.size < _PARALLEL else 16
    table = array("q", [id(out), out.size, 1])
    task = Task(_fill_kernel(compiler, element), table, array("d", [value]), parts, out)
    return task._replace(rows=_rows_to_fill(out, task)) if out.ndim > 1 else task


def _rows_to_fill(out: np.ndarray, task: Task) -> Rows:
    def cut(count: int) -> Task:
        return task._replace(table=array("q", [id(out), count, out.size // count]))

    operand = Operand(out, out.strides[:-1], out.shape[-1] * out.itemsize, True)
    return Rows(out.shape[:-1], (operand,), cut, out.size * _NANOSECONDS)


@lru_cache(4)
def _fill_kernel(compiler: Machine, element: str) -> int:
    return compiler.kernel(_fill_text, element)


def _fill_text(compiler: Machine, element: str) -> str:
    lanes = compiler.lanes(element)
    code, given = _begin(element, lanes)
    table, numbers, first, last = given
    out = _data(code, compiler, table, 0)
    shares, each = (code.load(code.at(table, k), "i64") for k in (1, 2))
    start, stop = (share(code, shares, bound) * each for bound in (first, last))
    value = code.load(numbers, "double")
    if element != "double":
        value = value.convert("fptrunc", element)
    vector = code.splat(value)
    with code.loop(start, stop, lanes) as i:
        code.store(vector, code.at(out, i, element))
    with code.loop(i, stop) as k:
        code.store(value, code.at(out, k, element))
    return code.function("kernel", given)
