"""CUDA kernels of reductions: sum, mean, max, min, any, all, argmax, argmin over any axes.

Axes that are next to each other in memory are merged; up to two kept and two reduced ones may
remain (kernels/reduce.cuh), which covers every reduction of a contiguous array over one axis, over
leading or trailing ones, and over all but the channels of images. Sums of float16 and bfloat16 are
made in float32, of integers and booleans in int64.

Few results of many elements are made in two launches, by chunks. The chunks depend on the shape
alone: the same bits in every run and on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from ..backend import cupy as backend
from ..config import settings
from ..errors import KernelError
from . import cuda_module
from .cuda import TYPES
from .cuda_module import Launcher, PreparedByDevice

_INTEGERS = {
    "bool": "bool",
    "int8": "signed char",
    "uint8": "unsigned char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
}
_TYPES = {**_INTEGERS, **TYPES}
# C++ name of an operation, the dtypes it takes besides floating ones, and its result (None: the
# dtype of the elements).
OPERATIONS = {
    "sum": ("SumOf", ("bool", "int8", "int16", "int32", "int64"), None),
    "mean": ("MeanOf", (), None),
    "max": ("MaxOf", tuple(_INTEGERS), None),
    "min": ("MinOf", tuple(_INTEGERS), None),
    "any": ("AnyOf", tuple(_INTEGERS), "bool"),
    "all": ("AllOf", tuple(_INTEGERS), "bool"),
    "argmax": ("ArgMaxOf", tuple(_INTEGERS), "int64"),
    "argmin": ("ArgMinOf", tuple(_INTEGERS), "int64"),
}

_STATES = {"float": "float32", "double": "float64", "long long": "int64"}

_ACCESS = 16  # bytes a thread loads at once
_BLOCK = 256  # threads of a block of reduce_outer
_TEAMS = (2, 8, 32, 256)  # threads for a result of reduce_inner
_PACKS = 4  # loads of a thread that are worth another thread
# Blocks that keep the largest devices busy, four on each multiprocessor: chunks are made until
# there are as many, if each thread has this many loads left.
_BLOCKS = 512
_LOADS = 8
_PLANS = 4096
_WIDE = 1 << 31


class Variant(NamedTuple):
    """What the text of a kernel depends on."""

    operation: str
    source: str  # dtype of the elements
    target: str  # dtype of the results
    team: int  # threads of reduce_inner; 0: reduce_outer
    width: int  # elements a thread loads at once
    nested: bool  # whether there are two reduced dimensions
    wide: bool  # 64-bit offsets
    reads_parts: bool  # the states of chunks instead of elements
    writes_parts: bool


class _Layout(NamedTuple):
    """Kept and reduced dimensions as (size, step in elements), two of each."""

    kept: tuple[tuple[int, int], tuple[int, int]]
    reduced: tuple[tuple[int, int], tuple[int, int]]

    @property
    def results(self) -> int:
        return self.kept[0][0] * self.kept[1][0]

    @property
    def elements(self) -> int:
        return self.reduced[0][0] * self.reduced[1][0]

    def steps(self) -> list[int]:
        return [step for _, step in (*self.kept, *self.reduced)]


# ------------------------------------------------------------------------------------------------
# calls


def reduce(operation: str, x, axes, keepdims: bool):
    """A reduction of a CuPy array over ``axes`` (a tuple, None for all); None where CuPy must
    compute it."""
    if not settings.cuda_kernels:
        return None
    return _run(operation, x, _plan(operation, x.dtype, x.shape, x.strides, axes, keepdims))


def sum_to(x, shape: tuple[int, ...]):
    """The sum over the axes that broadcasting ``shape`` to ``x.shape`` added or stretched."""
    if x.shape == shape or not settings.cuda_kernels:
        return None
    return _run("sum", x, _plan_of_sum_to(x.dtype, x.shape, x.strides, shape))


def _run(operation: str, x, plan: tuple | None):
    if plan is None:
        return None
    shape, dtype, mask, aligned, unaligned = plan
    launches = unaligned if x.data.ptr & mask else aligned
    out = backend.empty(shape, dtype)
    device = out.data.device_id
    try:
        if len(launches) > 1:
            launch, scale, size, state = launches[0]
            parts = backend.empty(size, state)
            launch[device]((x,), scale, (parts,))
            x = parts
        launch, scale = launches[-1]
        launch[device]((x,), scale, (out,))
    except KernelError as error:
        _broken(operation, error)
        return None
    return out


def sum_parts(parts, dtype):
    """The sums over the first axis, rounded to a dtype."""
    shape = parts.shape
    launch, scale = _sum_of_parts(shape, parts.dtype, dtype)
    out = backend.empty(shape[1:], dtype)
    launch[out.data.device_id]((parts,), scale, (out,))
    return out


@lru_cache(_PLANS)
def _sum_of_parts(shape: tuple[int, ...], dtype, result) -> tuple:
    layout = _of_parts(shape[0], prod(shape[1:]))
    work = _Work("sum", layout, dtype, result, 1.0)
    return work.launch(_outer(layout, _width(layout, dtype.itemsize, 0)))


_failed: set[str] = set()  # operations whose kernel did not build


def _broken(operation: str, error: KernelError) -> None:
    """Say, once, that CuPy is used from now on."""
    if operation not in _failed:
        _failed.add(operation)
        _plan.cache_clear()
        _plan_of_sum_to.cache_clear()
        cuda_module.report(error, f"the {operation} over axes")


# ------------------------------------------------------------------------------------------------
# plans: the shape and dtype of the results, the bits an aligned address lacks, and the launches for
# aligned and for other addresses


@lru_cache(_PLANS)
def _plan(operation: str, dtype, shape, strides, axes, keepdims: bool) -> tuple | None:
    axes = tuple(range(len(shape))) if axes is None else axes
    kept = [1 if k in axes else n for k, n in enumerate(shape) if keepdims or k not in axes]
    return _planned(operation, dtype, shape, strides, axes, tuple(kept))


@lru_cache(_PLANS)
def _plan_of_sum_to(dtype, shape, strides, target) -> tuple | None:
    added = len(shape) - len(target)
    stretched = [k for k, n in enumerate(target, added) if n == 1]
    return _planned("sum", dtype, shape, strides, (*range(added), *stretched), target)


def _planned(operation, dtype, shape, strides, axes, results) -> tuple | None:
    _, integers, result = OPERATIONS[operation]
    name = str(dtype)
    if (name not in integers and (name not in TYPES or name == "bool")) or not prod(shape):
        return None
    layout = _layout(shape, [s // dtype.itemsize for s in strides], axes, "arg" in operation)
    if layout is None or operation in _failed or not cuda_module.enabled():
        return None
    if operation == "sum" and name in _INTEGERS:
        result = "int64"
    work = _Work(operation, layout, dtype, np.dtype(result or dtype), 1.0 / layout.elements)
    neighbours = layout.kept[1][0] > 1 and layout.kept[1][1] == 1 and layout.reduced[1][1] != 1
    width = _width(layout, dtype.itemsize, 0 if neighbours else 1)
    frame = _outer if neighbours else _inner
    ways = [work.launches(frame(layout, w)) for w in dict.fromkeys((width, 1))]
    return results, work.target, width * dtype.itemsize - 1, ways[0], ways[-1]


def _layout(shape, steps, axes, ordered: bool) -> _Layout | None:
    """The dimensions of a reduction, merged; None if more than two of a kind are left. Reduced ones
    may change places unless they are ``ordered``."""
    dims: list[tuple[int, int, bool]] = []
    for axis, (n, step) in enumerate(zip(shape, steps, strict=True)):
        if n == 1:
            continue
        reduced = axis in axes
        if dims and dims[-1][2] == reduced and dims[-1][1] == n * step:
            n, step = n * dims.pop()[0], step
        dims.append((n, step, reduced))
    kept = [(n, step) for n, step, reduced in dims if not reduced]
    gone = [(n, step) for n, step, reduced in dims if reduced]
    if len(kept) > 2 or len(gone) > 2:
        return None
    if not ordered:
        gone.sort(key=lambda dim: -abs(dim[1]))
    return _Layout(_two(kept), _two(gone))


def _two(dims: list) -> tuple:
    return tuple([(1, 0)] * (2 - len(dims)) + dims)


def _of_parts(chunks: int, results: int) -> _Layout:
    return _Layout(((1, 0), (results, 1)), ((1, 0), (chunks, results)))


def _width(layout: _Layout, itemsize: int, reduced: int) -> int:
    """Elements to load at once: neighbours along the last kept or the last reduced dimension."""
    size, step = (layout.reduced if reduced else layout.kept)[1]
    others = layout.steps()
    del others[3 if reduced else 1]
    if step != 1:
        return 1
    for width in (16, 8, 4, 2):
        fits = width * itemsize <= _ACCESS and width <= 8
        if fits and all(n % width == 0 for n in (size, *others)):
            return width
    return 1


class _Frame(NamedTuple):
    """How threads are laid out over a reduction."""

    team: int  # threads for a result, in reduce_inner; 0: reduce_outer
    width: int
    blocks: int
    block: tuple[int, ...]
    span: int  # what a chunk is a part of: packs of a result (inner), rows (outer)
    threads: int  # along it


def _inner(layout: _Layout, width: int) -> _Frame:
    packs = layout.elements // width
    team = next((t for t in _TEAMS if t * _PACKS >= packs), _TEAMS[-1])
    block = 128 if team <= 32 else team
    return _Frame(team, width, -(-layout.results * team // block), (block, 1), packs, team)


def _outer(layout: _Layout, width: int) -> _Frame:
    (outer, _), (neighbours, _) = layout.kept
    rows, packs = layout.elements, neighbours // width
    deep = min(_power_of_two(-(-rows // _LOADS)), 8)
    columns = min(_BLOCK // deep, _power_of_two(packs))
    deep = min(_BLOCK // columns, _power_of_two(-(-rows // _PACKS)))
    return _Frame(0, width, outer * -(-packs // columns), (columns, deep), rows, deep)


def _power_of_two(n: int) -> int:
    """The smallest that is not less."""
    return 1 << max(n - 1, 0).bit_length()


class _Work(NamedTuple):
    """A reduction to be launched."""

    operation: str
    layout: _Layout
    source: np.dtype
    target: np.dtype
    scale: float  # of a mean

    def launches(self, frame: _Frame) -> list[tuple]:
        """One launch, or two by way of the states of chunks: ``(launch, (scale,))``, and the shape
        and dtype of the states."""
        wanted = -(-_BLOCKS // frame.blocks)
        chunks = min(wanted, frame.span // (frame.threads * _LOADS), _BLOCKS)
        if chunks <= 1:
            return [self.launch(frame)]
        length = -(-frame.span // chunks)
        chunks = -(-frame.span // length)
        first = self.launch(frame, length, writes_parts=True)
        layout = _of_parts(chunks, self.layout.results)
        second = self._replace(layout=layout).launch(_outer(layout, 1), reads_parts=True)
        return [(*first, (chunks * self.layout.results,), self._state()), second]

    def launch(self, frame: _Frame, length=0, reads_parts=False, writes_parts=False) -> tuple:
        layout = self.layout
        (kept0, keep0), (kept1, keep1) = layout.kept
        (size0, step0), (size1, step1) = layout.reduced
        length = length or frame.span
        chunks = -(-frame.span // length)
        reach = sum((n - 1) * abs(step) for n, step in (*layout.kept, *layout.reduced))
        # sums of indices and block sizes stay below, too
        wide = max(reach, layout.results, layout.elements) >= _WIDE - (1 << 16)
        variant = Variant(
            self.operation, str(self.source), str(self.target), frame.team, frame.width,
            size0 > 1, wide, reads_parts, writes_parts,
        )  # fmt: skip
        sizes = (kept0, kept1, keep0, keep1, size0, size1, step0, step1, length)
        grid = (frame.blocks, chunks)
        launch = PreparedByDevice(_launcher(variant), grid, frame.block, 1, sizes)
        return launch, (self.scale,)

    def _state(self) -> np.dtype:
        """A dtype of the size of a state."""
        if "arg" in self.operation:
            return np.dtype("complex128")  # 16 bytes: a value and a place
        if self.operation in ("any", "all"):
            return np.dtype("int32")
        return np.dtype(
            {"long long": "int64", "double": "float64"}.get(_arithmetic(self.source), "float32")
        )


def _arithmetic(dtype) -> str:
    name = str(dtype)
    return "long long" if name in _INTEGERS else "double" if name == "float64" else "float"


@cache
def _launcher(variant: Variant) -> Launcher:
    return cuda_module.load(kernel_text(variant), "reduce", "reduce.cu")


def kernel_text(v: Variant) -> str:
    """The source of ``reduce(x, scale, out, sizes...)``. The mean of rows of float32 reads

    #include "reduce.cuh"
    typedef MeanOf<float> Op;
    typedef Elements<float> Source;
    typedef Results<Op, float> Target;
    extern "C" __global__ void __launch_bounds__(256) reduce(const float* x, ...) {
      const Layout<int> layout = {...};
      reduce_inner<Op, 32, 4, false>(Source{x}, Target{out}, layout, scale);
    }
    """
    source = "Op::State" if v.reads_parts else _TYPES[v.source]
    target = "Op::State" if v.writes_parts else _TYPES[v.target]
    sizes = ["kept0", "kept1", "keep_step0", "keep_step1"]
    sizes += ["size0", "size1", "step0", "step1", "chunk"]
    frame = f"reduce_inner<Op, {v.team}, " if v.team else "reduce_outer<Op, "
    nested = "true" if v.nested else "false"
    parameters = ", ".join(f"long long {name}" for name in sizes)
    return f"""\
#include "reduce.cuh"
typedef {OPERATIONS[v.operation][0]}<{_arithmetic(v.source)}> Op;
typedef Elements<{source}> Source;
typedef {"long long" if v.wide else "int"} Index;
typedef {"States<Op>" if v.writes_parts else f"Results<Op, {target}>"} Target;

extern "C" __global__ void __launch_bounds__({_BLOCK}) reduce(
    const {source}* x, double scale, {target}* out, {parameters}) {{
  const Layout<Index> layout = {{{", ".join(f"Index({name})" for name in sizes)}}};
  {frame}{v.width}, {nested}>(Source{{x}}, Target{{out}}, layout, scale);
}}
"""


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of kernels in representative variants: every dtype, operation,
    frame and stage, but not every combination."""
    sums = [("float16", 8), ("bfloat16", 8), ("float32", 4), ("float64", 2), ("bool", 8)]
    found = [("sum", source, width, team) for source, width in sums for team in (0, 32)]
    found += [("sum", "float32", 4, 2), ("mean", "float16", 8, 256), ("max", "int64", 2, 8)]
    for operation in ("min", "any", "all", "argmax", "argmin"):
        found += [(operation, "float32", 4, 0), (operation, "float32", 4, 256)]
    found += [("argmax", "float64", 2, 0), ("argmin", "int64", 2, 256), ("any", "bool", 8, 256)]
    for operation, source, width, team in found:
        target = OPERATIONS[operation][2] or ("int64" if source == "bool" else source)
        v = Variant(operation, source, target, team, width, False, False, False, False)
        name = f"{operation} {source} {f'team of {team}' if team else 'columns'}"
        yield name, _launcher(v).text, "reduce"
        if source in ("float32", "float64"):
            to_parts = v._replace(writes_parts=True, nested=True)
            yield f"{name} to parts", _launcher(to_parts).text, "reduce"
        if not team:
            of_parts = v._replace(reads_parts=True, width=1)
            yield f"{name} of parts", _launcher(of_parts).text, "reduce"
    for team in (0, 32):
        v = Variant("sum", "float32", "float32", team, 1, True, True, False, False)
        yield f"sum float32 strided, 64-bit offsets, {team}", _launcher(v).text, "reduce"
