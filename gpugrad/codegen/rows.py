"""Row programs: expressions whose elements also see sums, means and maxima of their row.

A row is the last axis. ``row_sum(e)``, ``row_mean(e)`` and ``row_max(e)`` are constant along it and
may be part of larger expressions: softmax is ``exp(x - row_max(x))`` divided by its ``row_sum``. A
program renders to NumPy (any layout, the reference) and to one native loop over rows:

- a row is passed over once for every reduction that waits for another one, and once for the
  results; what is read again is still in the L1 cache
- a function that several passes need is computed once and kept, in the memory of a result or in
  scratch memory of the size of a row
- float32 is summed in float64, float64 in as many sums as a vector has lanes
- a row that fits into one vector is loaded once and stays in registers

Sums over rows (gradients of weights, a loss) are made of one sum for each group of rows. The groups
depend on the shape alone, so that the number of threads changes no bit.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Container, Sequence
from functools import cached_property, partial
from itertools import chain

import numpy as np

from ..backend import numpy as backend
from ..backend.arrays import array_module, is_array
from ..backend.memory import LARGE
from . import llvm, vector_math
from .arrays import REDUCTIONS, Program
from .expr import Expr, as_expr, build, declare, topological, variable
from .functions import functions_for
from .ir import Code, Value, with_element
from .machine import Machine, machine

# What an input holds: a number per element, per column, per row; one number; the number of a column
# for each row (int64, checked); the index (one Python integer, not for expressions) that says there
# is no column: -1 for expressions.
ELEMENT, COLUMN, ROW, NUMBER, INDEX = "element", "column", "row", "number", "index"
HOLE = "hole"
# An output may be per element or row, or a sum over rows: per column, or of one number per row.
TOTAL = "total"

# Elements from which threads are worth their dispatch: softmax takes 1 ns for each. With 2**17 the
# layer norms of a transformer with 1024 rows of 128 made its step slower.
PARALLEL = 1 << 19
# Elements of a group of rows. NumPy takes 13 ms for log_softmax of (4096, 1024) in groups of 2**16,
# 15 of 2**15, 22 without groups.
GROUP = 1 << 16
# Beyond, column numbers are no float32 numbers.
EXACT = 1 << 24

# Bytes of a row of which there may be so many in scratch memory, on the stack: 3 rows of 1024
# float32 numbers leave half of an L1 cache to the arrays.
SCRATCH, SCRATCH_ROWS = 1 << 14, 3
# What primitive operations cost, beside 1 for an addition; a value is kept for several passes if
# that saves so much.
_FUNCTION, _DIVISION, _WORTH = 16, 4, 8
# Values that are considered at a time: each takes some 0.1 ms.
_CONSIDERED = 8

for _name in REDUCTIONS:
    declare(_name, None, _name)

_INT64 = np.dtype("int64")
_SIZES = {"float": 4, "double": 8}
_ndarray = np.ndarray
# Plans a program keeps: for so many shapes.
_PLANS = 256
_READABLE = 0x101  # flags of NumPy: C-contiguous and aligned

# The number of the column, as an expression.
position = variable("position")


def row_sum(e) -> Expr:
    """The sum of an expression along the row."""
    return build("row_sum", as_expr(e))


def row_mean(e) -> Expr:
    """The mean of an expression along the row."""
    return build("row_mean", as_expr(e))


def row_max(e) -> Expr:
    """The maximum of an expression along the row; NaN if there is one."""
    return build("row_max", as_expr(e))


class RowProgram:
    """Expressions over rows: outputs with their kinds, and the kinds of the inputs by name.

    The first input is of elements; its shape is that of all. Arrays per column have the shape of a
    row, arrays per row the length 1 along the last axis, indices lack that axis.
    """

    # of an index that is no column
    complaint = "index {value} is out of range for rows of {bound} columns"

    def __init__(self, outputs: Sequence[tuple[str, Expr]], inputs: dict[str, str]):
        self.outputs, self.inputs = list(outputs), inputs
        names = [*inputs, "position"]
        full = [name for name, kind in inputs.items() if kind == ELEMENT]
        self.program = Program([e for _, e in outputs], names, full)
        self.reads_position = "position" in self.program.used
        self._kinds = tuple(inputs.values())
        self._kernels: dict = {}
        self._plans: dict = {}
        self._cuda: Callable | None = None

    @cached_property
    def description(self) -> str:
        """A text that differs for programs of which different kernels are written."""
        kinds = [*self.inputs.values(), *[kind for kind, _ in self.outputs]]
        return f"{' '.join(kinds)}: {self.program.description}"

    @cached_property
    def _call(self) -> Callable:
        """See ``_call_source``; compiled programs have no need of it, and making it takes 1 ms."""
        names = {"ndarray": np.ndarray, "int64": _INT64, "copy": _copy}
        names["without_groups"] = self.without_groups
        exec(compile(_call_source(self), "<gpugrad row program>", "exec"), names)
        return names["call"]

    def __call__(self, *args):
        """An array, or a list of several; indices out of range raise IndexError, on CUDA devices
        with the next wait."""
        results = self.native(args)
        if results is None:
            results = self.reference(args)
        return results[0] if len(results) == 1 else results

    # ---- array functions

    def reference(self, args: Sequence) -> list:
        """The outputs by functions of NumPy or CuPy; large ones in groups of rows that stay in the
        cache."""
        x = args[0]
        args = self._without_holes(args)
        for a, kind in zip(args, self._kinds, strict=True):
            if kind == INDEX and a.size:
                self._check(a, x.shape[-1])
        if x.__class__ is np.ndarray and x.nbytes >= LARGE and self._divisible(args):
            return self._in_groups(args)
        return self._direct(args)

    def _without_holes(self, args: Sequence) -> list:
        """Arguments with -1 in indices where there is no column."""
        if HOLE not in self._kinds:
            return list(args)
        hole = args[self._kinds.index(HOLE)]
        return [
            array_module(a).where(a == hole, -1, a) if kind == INDEX else a
            for a, kind in zip(args, self._kinds, strict=True)
        ]

    def _check(self, index, columns: int) -> None:
        """IndexError for an index that is no column; of CUDA arrays with the next wait."""
        least = -1 if HOLE in self._kinds else 0
        if index.__class__ is not _ndarray:
            from .cuda_index import check_range

            if check_range(index - least, columns - least, self.complaint, IndexError):
                return
        if not bool(((index >= least) & (index < columns)).all()):
            raise IndexError("an index is no column")

    def _direct(self, args: Sequence) -> list:
        x = args[0]
        xp = array_module(x)
        values = [a[..., None] if k == INDEX else a for a, k in zip(args, self._kinds, strict=True)]
        numbers = xp.arange(x.shape[-1]) if self.reads_position else None
        dtype = x.dtype if self.program.chooses_constants else None
        results = self.program.direct(functions_for(xp), dtype)(*values, numbers)
        results = results if len(self.outputs) > 1 else [results]
        return [
            self._summed(r, kind, xp) for r, (kind, _) in zip(results, self.outputs, strict=True)
        ]

    @staticmethod
    def _summed(value, kind: str, xp):
        if kind == COLUMN:
            return xp.add.reduce(value, axis=tuple(range(value.ndim - 1)))
        return xp.asarray(xp.add.reduce(value, axis=None)) if kind == TOTAL else value

    def _divisible(self, args) -> bool:
        """Whether all arrays are as the kinds say, of one dtype, and groups of rows are views."""
        x = args[0]
        return all(
            a.shape == shape
            and (kind == INDEX or a.dtype == x.dtype)
            and (kind == COLUMN or a.flags.c_contiguous)
            for a, kind, shape in zip(args, self._kinds, self.shapes(x.shape), strict=True)
            if kind not in (NUMBER, HOLE)
        )

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shapes of the inputs beside elements of this shape."""
        lead, columns = shape[:-1], shape[-1:]
        shapes = {ELEMENT: shape, COLUMN: columns, ROW: (*lead, 1), INDEX: lead}
        return [shapes.get(kind, ()) for kind in self._kinds]

    def _in_groups(self, args: Sequence) -> list:
        x = args[0]
        columns = x.shape[-1]
        rows = x.size // columns
        step = max(1, GROUP // columns)
        count = -(-rows // step)
        shapes = self.output_shapes(x.shape, count)
        results = [backend.empty(shape, x.dtype) for shape in shapes]
        lengths = {ELEMENT: (rows, columns), ROW: (rows, 1), INDEX: (rows,)}
        flat = [
            a.reshape(lengths[kind]) if kind in lengths else a
            for a, kind in zip(args, self._kinds, strict=True)
        ]
        split = [kind in lengths for kind in self._kinds]
        targets = [
            out.reshape(lengths.get(kind, out.shape))
            for out, (kind, _) in zip(results, self.outputs, strict=True)
        ]
        errors = np.geterr()  # settings of floating-point errors belong to a thread

        def group(k: int) -> None:
            part = slice(k * step, (k + 1) * step)
            found = self._direct([a[part] if s else a for a, s in zip(flat, split, strict=True)])
            for target, value, (kind, _) in zip(targets, found, self.outputs, strict=True):
                target[part if kind in lengths else k if count > 1 else ...] = value

        def some(k: int, parts: int) -> None:
            with np.errstate(**errors):
                for j in range(count * k // parts, count * (k + 1) // parts):
                    group(j)

        backend.run_parts(some, x.size, backend.PARALLEL)
        return self.without_groups(results) if count > 1 else results

    def output_shapes(self, shape: tuple[int, ...], groups: int) -> list[tuple[int, ...]]:
        """Shapes of the outputs; sums over rows have a part for each group if there are several."""
        parts = (groups,) if groups > 1 else ()
        shapes = {
            ELEMENT: shape,
            ROW: (*shape[:-1], 1),
            COLUMN: (*parts, shape[-1]),
            TOTAL: parts,
        }
        return [shapes[kind] for kind, _ in self.outputs]

    def without_groups(self, results: list) -> list:
        return [
            np.asarray(np.add.reduce(r, axis=0)) if kind in (COLUMN, TOTAL) else r
            for r, (kind, _) in zip(results, self.outputs, strict=True)
        ]

    # ---- native code

    def native(self, args: Sequence) -> list | None:
        """The outputs by a kernel, or None where NumPy must compute them.

        Shapes, dtypes and strides decide, never the number of calls: a training that was
        interrupted continues bit for bit.
        """
        x = args[0]
        if x.__class__ is not _ndarray:
            return self._on_device(args) if is_array(x) else None
        key = (x.shape, x.dtype)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._plan(x)
        return None if not plan or llvm.raises() else self._call(plan, *args)

    def _on_device(self, args: Sequence) -> list | None:
        """The outputs by a CUDA kernel."""
        if self._cuda is None:
            from .cuda_rows import Kernels

            self._cuda = Kernels(self, args[0].__class__)
        return self._cuda(args)

    def _plan(self, x) -> tuple:
        """What ``_call_source`` needs to know for a shape and dtype; empty if there is no
        kernel."""
        native = x.size and HOLE not in self._kinds
        kernel = self._kernel(x.dtype, x.shape[-1]) if native else None
        if kernel is None:
            return ()
        shapes = zip(self._kinds, self.shapes(x.shape), strict=True)
        wanted = [shape for kind, shape in shapes if kind not in (NUMBER, HOLE)]
        columns = x.shape[-1]
        count, step = x.size // columns, max(1, GROUP // columns)
        groups = -(-count // step)
        sizes = array("q", [count, columns, step, 0, groups])
        address = sizes.buffer_info()[0]
        run = kernel if x.size < PARALLEL else partial(_on_threads, kernel, x.size, sizes)
        make = np.empty if x.nbytes < LARGE else backend.empty
        results = self.output_shapes(x.shape, groups)
        return (run, make, x.dtype, *wanted, *results, sizes, address)

    def _kernel(self, dtype, columns: int):
        """The kernel for rows of a length; None where there is none."""
        kernels = self._kernels.get(dtype)
        if kernels is None:
            kernels = self._kernels[dtype] = _Kernels(self, dtype)
        return kernels.of(columns)


def _call_source(rows: RowProgram) -> str:
    """The function that checks the arguments of a program and calls its kernel; written out, it
    takes half the time of loops (2 against 4 us). For the gradient of a softmax it reads

        def call(plan, g, y):
            run, make, dtype, shape_g, shape_y, shape_out0, sizes, address = plan
            if not (g.__class__ is ndarray and g.shape == shape_g and g.dtype == dtype): return None
            if not (g.flags.num & 257 == 257 or (g := copy(g)) is not None): return None
            ...
            out0 = make(shape_out0, dtype)
            if run(id(g), id(y), id(out0), address): raise IndexError('an index is no column')
            return [out0]
    """
    arrays = [name for name, kind in rows.inputs.items() if kind not in (NUMBER, HOLE)]
    numbers = [name for name, kind in rows.inputs.items() if kind == NUMBER]
    outputs = [f"out{k}" for k in range(len(rows.outputs))]
    names = ["run", "make", "dtype", *[f"shape_{n}" for n in (*arrays, *outputs)]]
    names += ["sizes", "address"]
    lines = [f"def call(plan, {', '.join(rows.inputs)}):", f"    {', '.join(names)} = plan"]
    for a in arrays:
        dtype = "int64" if rows.inputs[a] == INDEX else "dtype"
        fits = f"{a}.__class__ is ndarray and {a}.shape == shape_{a} and {a}.dtype == {dtype}"
        lines.append(f"    if not ({fits}): return None")
        fits = f"{a}.flags.num & {_READABLE} == {_READABLE} or ({a} := copy({a})) is not None"
        lines.append(f"    if not ({fits}): return None")
    lines += [f"    {out} = make(shape_{out}, dtype)" for out in outputs]
    ids = [f"id({n})" for n in (*arrays, *outputs)]
    given = ", ".join([*ids, *numbers, "address"])
    lines.append(f"    if run({given}): raise IndexError('an index is no column')")
    results = f"[{', '.join(outputs)}]"
    if any(kind in (COLUMN, TOTAL) for kind, _ in rows.outputs):
        lines.append(f"    return {results} if sizes[-1] == 1 else without_groups({results})")
    else:
        lines.append(f"    return {results}")
    return "\n".join(lines)


def _copy(a: np.ndarray) -> np.ndarray | None:
    """A contiguous, aligned one; None if NumPy is faster without: along another axis of a large
    array (logsumexp of (4096, 1024) along the first: 11 ms, with a copy 38)."""
    if a.nbytes >= LARGE and a.strides[-1] not in (0, a.itemsize):
        return None
    out = backend.empty(a.shape, a.dtype)
    out[...] = a
    return out


def _on_threads(kernel, size: int, sizes: array, *given) -> bool:
    """Call a kernel for all groups; whether a thread found an index out of range."""
    *arguments, _ = given
    groups, failed = sizes[-1], []

    def part(k: int, parts: int) -> None:
        mine = array("q", [*sizes[:3], groups * k // parts, groups * (k + 1) // parts])
        failed.append(kernel(*arguments, mine.buffer_info()[0]))

    backend.run_parts(part, size, PARALLEL)
    return any(failed)


class _Kernels:
    """The kernels of a program for a dtype, compiled on first use: for rows of up to half a vector,
    up to one, and longer."""

    def __init__(self, rows: RowProgram, dtype):
        self.rows, self.element, self.compiler = rows, llvm.ELEMENTS.get(dtype), machine()
        self.lanes = self.compiler.lanes(self.element) if self.supported else 0
        self.made: dict = {}

    @property
    def supported(self) -> bool:
        return self.compiler is not None and self.element is not None

    def of(self, columns: int):
        lanes = self.lanes
        short = columns <= lanes
        if 2 * columns <= lanes:
            lanes //= 2
        most = SCRATCH // _SIZES.get(self.element, 8)
        key = (lanes, short, most if columns <= most else 0)
        found = self.made.get(key, _Kernels)
        if found is _Kernels:
            found = self.made[key] = self._make(*key)
        exact = columns <= EXACT or not self.rows.reads_position
        return found if exact else None

    def _make(self, lanes: int, short: bool, most: int):
        if not self.supported:
            return None
        numbers = list(self.rows.inputs.values()).count(NUMBER)
        arrays = len(self.rows.inputs) - numbers + len(self.rows.outputs)
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int64,
            *[ctypes.c_void_p] * arrays,
            *[ctypes.c_double] * numbers,
            ctypes.c_void_p,
        )
        try:
            given = (self.rows, self.element, lanes, short, most)
            return kind(self.compiler.kernel(_text, *given))
        except llvm.Unsupported:
            return None
        except RuntimeError as error:  # slower, not wrong
            warnings.warn(f"no native kernel, LLVM refuses it: {error}", stacklevel=2)
            return None


class Schedule:
    """What a row program computes in which pass over the row.

    The ``level`` of an expression is the number of passes its reductions need; ``varies`` says
    whether it differs along the row. Pass ``p`` of ``passes`` makes ``reductions[p]``, and one more
    the ``results``; ``needed[p]`` are the expressions that vary and are computed in it.
    """

    def __init__(self, rows: RowProgram):
        self.order = topological(rows.program.outputs)
        self.level: dict[Expr, int] = {}
        self.varies: dict[Expr, bool] = {}
        for e in self.order:
            below = [] if e.op in ("input", "const") else e.args
            self.level[e] = max([self.level[a] for a in below], default=0) + (e.op in REDUCTIONS)
            if e.op == "input":
                kind = rows.inputs.get(e.args[0], COLUMN)  # the position is none of them
                self.varies[e] = kind in (ELEMENT, COLUMN)
            else:
                self.varies[e] = e.op not in REDUCTIONS and any(self.varies[a] for a in below)
        self.passes = max(self.level.values())
        self.reductions = [
            [e for e in self.order if e.op in REDUCTIONS and self.level[e] == p + 1]
            for p in range(self.passes)
        ]
        self.results = [e for kind, e in rows.outputs if kind in (ELEMENT, COLUMN)]
        self.roots = [*[[e.args[0] for e in found] for found in self.reductions], self.results]
        self.needed = [self.below(r) for r in self.roots]

    def below(self, roots: Sequence[Expr], known: Collection[Expr] = ()) -> dict[Expr, None]:
        """What a pass computes for its roots, of the expressions that vary along the row; ``known``
        are values that it reads."""
        found: dict[Expr, None] = {}
        stack = list(roots)
        while stack:
            e = stack.pop()
            if self.varies[e] and e not in found:
                found[e] = None
                stack.extend(() if e.op == "input" or e in known else e.args)
        return found

    def to_keep(self, most: int, functions: Container[str]) -> list[Expr]:
        """The values, at most so many, that are better kept than computed in several passes."""

        def price(e: Expr) -> int:
            if e.op in functions:
                return _FUNCTION
            return _DIVISION if e.op in ("div", "sqrt") else e.op not in ("input", "const")

        kept: list[Expr] = []
        while len(kept) < most:
            passes = self._computed(kept)
            several = Counter(chain.from_iterable(passes))
            repeated = [e for e in self.order if several[e] > 1 and price(e)]
            worth = {e: sum(map(price, self.below([e], kept))) * several[e] for e in repeated}
            likely = sorted(repeated, key=lambda e: worth[e])[-_CONSIDERED:]

            def cost(kept: Sequence[Expr]) -> int:
                """Of all passes, and to write and read what is kept."""
                return sum(sum(map(price, p)) for p in self._computed(kept)) + 3 * len(kept)

            costs = {e: cost([*kept, e]) for e in likely}
            best = min(likely, key=lambda e: costs[e], default=None)
            if best is None or cost(kept) - costs[best] < _WORTH:
                break
            kept.append(best)
        return kept

    def _computed(self, kept: Sequence[Expr]) -> list[list[Expr]]:
        """What each pass computes if some values are kept."""
        known: set[Expr] = set()
        passes = []
        for roots in self.roots:
            needed = self.below(roots, known)
            passes.append([e for e in needed if e not in known])
            known.update(e for e in kept if e in needed)
        return passes


def _text(
    compiler: Machine, rows: RowProgram, element: str, lanes: int, short: bool, most: int
) -> str:
    return _Writer(compiler, rows, element, lanes, short, most).text()


class _Writer:
    """Writes ``kernel(arrays..., outputs..., numbers..., sizes)``.

    The sizes are rows, columns, step, first and last: it does the groups of ``step`` rows from
    ``first`` to ``last`` and returns 0, or 1 at once if an index is no column.
    """

    def __init__(
        self, compiler: Machine, rows: RowProgram, element: str, lanes: int, short: bool, most: int
    ):
        """``short`` rows fit into a vector; others have scratch memory for ``most`` numbers."""
        self.code = code = Code(element, lanes)
        self.rows, self.short = rows, short
        self.rules = llvm.rules_for(compiler, element)
        arrays = [name for name, kind in rows.inputs.items() if kind != NUMBER]
        numbers = [name for name, kind in rows.inputs.items() if kind == NUMBER]
        outputs = [f"out{k}" for k in range(len(rows.outputs))]
        objects = [code.parameter(name, "ptr") for name in (*arrays, *outputs)]
        reals = [code.parameter(name, "double") for name in numbers]
        sizes = code.parameter("sizes", "ptr")
        self.parameters = [*objects, *reals, sizes]
        self.count, self.columns, self.step, self.first, self.last = (
            code.load(code.at(sizes, k), "i64") for k in range(5)
        )
        offset = compiler.offsets["data"]
        data = [code.load(code.at(o, offset, "i8"), "ptr") for o in objects]
        self.data = dict(zip(arrays, data, strict=False))
        self.targets = data[len(arrays) :]
        self.number = {n: code.splat(self._narrow(v)) for n, v in zip(numbers, reals, strict=True)}
        self.schedule = schedule = Schedule(rows)
        self.order, self.level, self.varies = schedule.order, schedule.level, schedule.varies
        self.passes, self.reductions = schedule.passes, schedule.reductions
        self.results = schedule.results
        # Results that wait for no reduction of the last pass are stored in it.
        levels = [self.level[e] for e in self.results]
        self.merged = bool(levels) and max(levels) < self.passes
        if self.merged:
            schedule.roots = [*schedule.roots[:-2], [*schedule.roots[-2], *self.results], []]
            schedule.needed = [schedule.below(roots) for roots in schedule.roots]
        self._find_kept(most)

    def _find_kept(self, most: int) -> None:
        """Choose what is kept for later passes, and where: in the memory of a result, or in
        scratch memory."""
        code = self.code
        results = [
            t for t, (k, _) in zip(self.targets, self.rows.outputs, strict=True) if k == ELEMENT
        ][:1]
        count = 0 if self.short else len(results) + (SCRATCH_ROWS if most else 0)
        functions = vector_math.for_element(code.element)
        kept = self.schedule.to_keep(count, functions) if count else []
        self.kept_in_result = dict(zip(kept, results, strict=False))
        self.kept_in_scratch = {
            e: code.emit(f"alloca [{most} x {code.element}], align 64", "ptr")
            for e in kept[len(results) :]
        }

    # ---- the function

    def text(self) -> str:
        code = self.code
        total = [k for k, (kind, _) in enumerate(self.rows.outputs) if kind == TOTAL]
        self.totals = {k: code.emit("alloca double", "ptr") for k in total}
        zero = Value(code, "0.0", "double")
        with code.loop(self.first, self.last) as group:
            for place in self.totals.values():
                code.store(zero, place)
            self.sums = {
                k: code.at(t, group * self.columns, code.element)
                for k, t in enumerate(self.targets)
                if self.rows.outputs[k][0] == COLUMN
            }
            self._clear()
            start = group * self.step
            stop = start + self.step
            stop = code.select(stop.compare("slt", self.count), stop, self.count)
            with code.loop(start, stop) as row:
                self._row(row)
            for k, place in self.totals.items():
                value = self._narrow(code.load(place, "double"))
                code.store(value, code.at(self.targets[k], group, code.element))
        return code.function("kernel", self.parameters, "i64 0")

    def _clear(self) -> None:
        zero = self.code.constant(0.0)
        if self.sums:
            self._sweep([], lambda i, mask, whole, _: self._put(zero, self.sums, i, mask, whole))

    def _row(self, row: Value) -> None:
        code = self.code
        start = row * self.columns
        self.pointers = {}
        self.known: dict[Expr, Value] = {}  # what is constant along the row
        self.loaded: dict[Expr, Value] = {}  # of a row in one vector: everything else
        for e in self.order:
            if e.op == "const":
                self.known[e] = code.constant(e.args[0])
            elif e.op == "input":
                self._input(e, row, start)
        elements = [k for k, (kind, _) in enumerate(self.rows.outputs) if kind == ELEMENT]
        self.places = {k: code.at(self.targets[k], start, code.element) for k in elements}
        self.homes = dict(self.kept_in_scratch)
        for e, target in self.kept_in_result.items():
            self.homes[e] = code.at(target, start, code.element)
        self.is_kept: set[Expr] = set()
        for level in range(self.passes + 1):
            for e in self.order:
                if self.level[e] == level and not self.varies[e] and e not in self.known:
                    self._value(e, {})
            if level < self.passes:
                self._reduce(level)
        self._finish(row)

    def _input(self, e: Expr, row: Value, start: Value) -> None:
        name, code = e.args[0], self.code
        kind = self.rows.inputs.get(name)
        if kind == NUMBER:
            self.known[e] = self.number[name]
        elif kind == INDEX:
            index = code.load(code.at(self.data[name], row), "i64")
            code.leave_unless(index.compare("ult", self.columns), "i64 1")
            self.known[e] = code.splat(index.convert("sitofp", code.element))
        elif kind == ROW:
            place = code.at(self.data[name], row, code.element)
            self.known[e] = code.splat(code.load(place, code.element))
        elif kind == ELEMENT:
            self.pointers[e] = code.at(self.data[name], start, code.element)
        elif kind == COLUMN:
            self.pointers[e] = self.data[name]

    def _value(self, e: Expr, found: dict[Expr, Value]) -> Value:
        """A value, computed unless it is there; ``found`` are those of one vector."""
        value = self.known.get(e) or found.get(e)
        if value is None:
            if e.op not in self.rules:
                raise llvm.Unsupported
            value = self.rules[e.op](*[self._value(a, found) for a in e.args])
            (found if self.varies[e] else self.known)[e] = value
        return value

    # ---- passes

    def _reduce(self, level: int) -> None:
        """One pass for all reductions of a level."""
        code = self.code
        reductions = self.reductions[level]
        # a row in one vector is summed in pairs
        wide = code.vector if self.short else with_element(code.vector, "double")
        least = {e: -math.inf if e.op == "row_max" else 0.0 for e in reductions}

        kept: set[Expr] = set()

        def body(i: Value, mask: Value, whole: Value | None, sums: list[Value]) -> list[Value]:
            found = self._load(level, i, mask, whole)
            results = []
            for e, total in zip(reductions, sums, strict=True):
                value = code.select(mask, self._value(e.args[0], found), least[e])
                if e.op == "row_max":
                    results.append(self.rules["maximum"](value, total))
                    continue
                if wide != code.vector:
                    value = value.convert("fpext", wide)
                results.append(total + value)
            if self.merged and level == self.passes - 1:
                self._store_results(found, i, mask, whole)
            else:
                kept.update(e for e in self.homes if e in found and e not in self.is_kept)
                for e in self.homes:
                    if e in kept:
                        self._put(found[e], {0: self.homes[e]}, i, mask, whole)
            return results

        start = [
            code.constant(-math.inf) if e.op == "row_max" else Value(code, "zeroinitializer", wide)
            for e in reductions
        ]
        for e, total in zip(reductions, self._sweep(start, body), strict=True):
            self.known[e] = self._across(e, total)
        self.is_kept |= kept

    def _across(self, e: Expr, value: Value) -> Value:
        """A vector of the sum or maximum of the lanes."""
        code, lanes = self.code, self.code.lanes
        scalar = value.type.split(" x ")[1].rstrip(">")
        while lanes > 1:
            lanes //= 2
            low, high = (self._part(value, range(k, k + lanes)) for k in (0, lanes))
            value = self.rules["maximum"](low, high) if e.op == "row_max" else low + high
        result = code.emit(f"extractelement {value}, i64 0", scalar)
        if e.op == "row_mean":
            result = result / self.columns.convert("sitofp", scalar)
        return code.splat(result if scalar == code.element else self._narrow(result))

    def _part(self, value: Value, lanes: range) -> Value:
        numbers = ", ".join(f"i32 {n}" for n in lanes)
        type = f"<{len(lanes)} x {value.type.split(' x ')[1]}"
        text = f"shufflevector {value}, {value.type} poison, <{len(lanes)} x i32> <{numbers}>"
        return self.code.emit(text, type)

    def _narrow(self, value: Value) -> Value:
        """A float64 number in the type of the elements."""
        return value if self.code.element == "double" else value.convert("fptrunc", "float")

    def _finish(self, row: Value) -> None:
        """Store the results of a row."""
        code = self.code
        for k, (kind, e) in enumerate(self.rows.outputs):
            if kind not in (ROW, TOTAL):
                continue
            value = code.emit(f"extractelement {self.known[e]}, i64 0", code.element)
            if kind == ROW:
                code.store(value, code.at(self.targets[k], row, code.element))
                continue
            value = value if code.element == "double" else value.convert("fpext", "double")
            code.store(code.load(self.totals[k], "double") + value, self.totals[k])

        def body(i: Value, mask: Value, whole: Value | None, _) -> list[Value]:
            self._store_results(self._load(self.passes, i, mask, whole), i, mask, whole)
            return []

        if self.results and not self.merged:
            self._sweep([], body)

    def _store_results(self, found: dict, i: Value, mask: Value, whole: Value | None) -> None:
        """What has a value per element or column, at one vector."""
        for k, (kind, e) in enumerate(self.rows.outputs):
            if kind == ELEMENT:
                self._put(self._value(e, found), {k: self.places[k]}, i, mask, whole)
            elif kind == COLUMN:
                (old,) = self._get([self.sums[k]], i, mask, whole)
                self._put(old + self._value(e, found), {k: self.sums[k]}, i, mask, whole)

    def _sweep(self, carried: list[Value], body) -> list[Value]:
        """``carried = body(i, mask, whole, carried)`` for the vectors of a row.

        The last one shares the code of the others: a second copy would double the compile time.
        """
        code, lanes = self.code, self.code.lanes
        zero = code.integer(0)
        if self.short:
            return body(zero, code.first_lanes(self.columns), None, carried)

        def step(values: list[Value]) -> list[Value]:
            i, *before = values
            rest = self.columns - i
            whole = rest.compare("sge", lanes)
            return [i + lanes, *body(i, code.first_lanes(rest), whole, before)]

        count = (self.columns + (lanes - 1)).bitwise("lshr", lanes.bit_length() - 1)
        return code.fold(count, [zero, *carried], step)[1:]

    def _load(self, level: int, i: Value, mask: Value, whole: Value | None) -> dict[Expr, Value]:
        """The inputs of a pass at one vector."""
        found = self.loaded if self.short else {}
        needed = self.schedule.below(self.schedule.roots[level], self.is_kept)
        places = {e: self.homes[e] if e in self.is_kept else self.pointers.get(e) for e in needed}
        wanted = {e: place for e, place in places.items() if place is not None and e not in found}
        values = self._get(list(wanted.values()), i, mask, whole)
        found.update(zip(wanted, values, strict=True))
        if position in needed:
            found[position] = self._position(i)
        return found

    def _position(self, i: Value) -> Value:
        code = self.code
        lanes = ", ".join(f"{code.element} {k}.0" for k in range(code.lanes))
        first = code.splat(i.convert("sitofp", code.element))
        return first + Value(code, f"<{lanes}>", code.vector)

    def _get(self, pointers: list, i: Value, mask: Value, whole: Value | None) -> list[Value]:
        code = self.code
        places = [code.at(p, i, code.element) for p in pointers]
        if not places:
            return []

        def masked() -> list[Value]:
            return [code.load(p, code.vector, mask) for p in places]

        if whole is None:
            return masked()
        return code.choose(whole, lambda: [code.load(p, code.vector) for p in places], masked)

    def _put(self, value: Value, pointers: dict, i: Value, mask: Value, whole) -> list[Value]:
        code = self.code
        places = [code.at(p, i, code.element) for p in pointers.values()]

        def put(mask: Value | None) -> list[Value]:
            for place in places:
                code.store(value, place, mask)
            return []

        if whole is None:
            return put(mask)
        return code.choose(whole, lambda: put(None), lambda: put(mask))
