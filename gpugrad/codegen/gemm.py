"""Products of matrices as native tasks: ``task`` makes one for given arrays.

Small and medium products are computed by own kernels (``gemm_kernels.py``), which also compute what
follows elementwise while the product is in the cache; large ones by NumPy's BLAS (``blas.py``).
"""

from __future__ import annotations

import math
import warnings
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from . import blas, gemm_kernels, vector_math, workers
from .arrays import BOOLEAN, Program, merge_dimensions
from .expr import Expr, variable
from .gemm_kernels import Kernel, Prologue, Tile
from .llvm import ELEMENTS, EXACT, Unsupported, strides_in
from .machine import Machine, machine
from .tasks import Operand, Rows, Task

# The program of a product without an epilogue.
_PLAIN = Program([variable("product")], ["product"], ["product"])
_NUMBERS = (int, float, bool)
_BOOL = np.dtype("bool")

# Multiplications from which threads are worth their dispatch: 5 us of one core.
PARALLEL = 1 << 18
# Units of work that a product of this size is cut into at least, if it has so many rows.
SHARES = 8
# B is read in place for few rows, (1, 784) x (784, 128): 37 instead of 20 GFLOP/s; or if it stays
# in the L1 cache as it is, (32, 64) x (64, 64): 81 instead of 76.
UNPACKED_ROWS, UNPACKED_BYTES = 16, 1 << 14
# NumPy's BLAS computes products of so many multiplications, see docs/performance.md; and smaller
# ones, if A is transposed and a block of it lies spread over more memory than the L2 cache holds:
# own kernels, which do not pack A, reach three quarters of its speed there.
LARGE, MEDIUM, SPREAD = 1 << 25, 1 << 22, 1 << 18
# What BLAS gains, a separate pass for the epilogue costs, unless there are so many terms.
DEEP = 512
# Rows or columns of the result in a thread's share of a product by BLAS, at least; in one of two
# shares, with which a product (64, 1600) x (1600, 64) takes 86 us each instead of 156.
BLAS_SHARE, BLAS_HALF = 96, 32
# B is computed while it is packed for so many rows of A at most: beyond it gains nothing.
# Its kernel has the program twice for every vector that is packed at a time.
PROLOGUE_ROWS, PROLOGUE_STEPS = 64, 8
# What a multiplication takes, and how many rows of A times a panel of B take as long as packing it.
NANOSECONDS, PACKING = 0.02, 4


class Computed(NamedTuple):
    """What an elementwise program of one result makes of arrays that broadcast to a shape, and of
    Python numbers."""

    program: Program
    inputs: Sequence
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> Computed:
        return self.swapaxes(-1, -2)

    def swapaxes(self, first: int, second: int) -> Computed:
        shape = np.broadcast_to(0.0, self.shape).swapaxes(first, second).shape
        inputs = [
            np.broadcast_to(x, self.shape).swapaxes(first, second)
            if x.__class__ is np.ndarray
            else x
            for x in self.inputs
        ]
        return Computed(self.program, inputs, shape)


def task(
    a: np.ndarray,
    b: np.ndarray | Computed,
    out: np.ndarray | Sequence[np.ndarray],
    *,
    alpha: float = 1.0,
    program: Program | None = None,
    inputs: Sequence = (),
) -> Task | None:
    """The task that computes ``out = alpha * a @ b``, or ``out = program(alpha * a @ b, *inputs)``.

    ``a`` is (..., m, k), ``b`` (..., k, n) and every output (..., m, n), with any strides but for
    the last dimension of outputs; batch dimensions of ``a`` and ``b`` broadcast. A transposed
    operand is a view, such as ``a.T``. An elementwise ``program`` takes the product as its first
    input and then ``inputs``: arrays that broadcast to the shape of the product, or Python numbers.
    It has an array in ``out`` for each of its outputs; an output may be an input as well, but
    share memory with nothing else. All arrays are float32 or all float64, but for masks. ``b`` may
    be what is computed while it is read (``Computed``), see ``takes_prologue``.

    The task keeps the arrays. Its table begins with the objects of a, b (or the arrays that it is
    computed from), the input arrays that the program reads and the outputs: others with the same
    strides may take their places. Its numbers are alpha, the Python numbers among the inputs and
    those that b is computed from.

    None where there is no kernel for this, or where BLAS and a separate task are faster. Raises
    ValueError if the shapes do not fit.
    """
    compiler = machine()
    outputs = [out] if isinstance(out, np.ndarray) else list(out)
    product = _product(a, b, outputs, program or _PLAIN, inputs)
    if compiler is None or product is None:
        return None
    if product.shape.prologue is not None:
        return _own_task(compiler, product, alpha)
    found = _blas_task(compiler, product, alpha) if _is_for_blas(product.shape) else None
    if found is None:
        return _own_task(compiler, product, alpha)
    return found if program is None else None


def takes_prologue(program: Program, dtype, matrices: int, m: int, n: int, k: int) -> bool:
    """Whether it gains to compute b while it is packed, in products of so many matrices (m, k) and
    (k, n): own kernels pack every element once, for few rows of a, and the program is so light that
    a pass of its own would take the time that memory takes."""
    compiler = machine()
    if compiler is None or m > PROLOGUE_ROWS or m * n * k >= LARGE or not min(m, n, k):
        return False
    if len(program.steps) > PROLOGUE_STEPS or not EXACT.issuperset(program.steps):
        return False
    tile = _choose_tile(compiler, ELEMENTS[dtype], m, n)
    panels = matrices * -(-n // tile.columns)
    return _blocks(m, matrices * m * n * k, tile, panels) == 1


class _Shape(NamedTuple):
    """All of a product but its memory: loops over two batch dimensions and matrices in them."""

    element: str
    k: int
    n: int
    sizes: tuple[int, ...]  # outer batch dimension, inner one, m
    strides: tuple[tuple[int, ...], ...]  # of the arrays, through the sizes; 0 for b through m
    within: tuple[int, ...]  # strides of a through k, and of b, or its sources, through k and n
    by_columns: bool  # whether neighbours in a column of b are neighbours in memory
    program: Program
    pattern: str  # see Kernel
    prologue: Prologue | None = None

    @property
    def sources(self) -> int:
        """Arrays that b is read from."""
        return len(self.prologue.arrays) if self.prologue else 1

    @property
    def work(self) -> int:
        """Multiplications."""
        return math.prod(self.sizes) * self.n * self.k


class _Product(NamedTuple):
    """A product whose arrays fit together."""

    shape: _Shape
    arrays: list[np.ndarray]  # a, b or its sources, the inputs that are read, outputs
    numbers: list[float]  # among the inputs, then among those of a prologue


def _product(a, b, outputs, program: Program, inputs) -> _Product | None:
    """None for what has no own kernel."""
    (*_, m, k), (*_, inner, n) = a.shape, b.shape
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n)
    if inner != k or any(o.shape != shape for o in outputs):
        shapes = ", ".join(str(o.shape) for o in outputs)
        raise ValueError(f"no product of {a.shape} and {b.shape} has the shape {shapes}")
    if len(outputs) != len(program.outputs) or len(inputs) != len(program.inputs) - 1:
        raise ValueError(
            f"a program of {len(program.inputs)} inputs and {len(program.outputs)} outputs was "
            f"given {len(inputs)} inputs beside the product and {len(outputs)} outputs"
        )
    dtype = a.dtype
    pattern = _pattern(program, program.inputs[1:], inputs, dtype, len(shape))
    if pattern is None or dtype not in ELEMENTS or 0 in shape:
        return None
    operand = _computed(b, dtype) if isinstance(b, Computed) else _given(b, dtype)
    if operand is None or not all(map(_writes, outputs, program.outputs, [dtype] * len(outputs))):
        return None
    sources, (prologue, by_columns), within = operand
    read = _arrays_among(inputs, pattern)
    arrays = [a, *sources, *read, *outputs]
    if not all(x.flags.aligned for x in arrays) or not _apart([a, *sources], read, outputs):
        return None
    numbers = _numbers_among(inputs, pattern)
    loops = _loops(shape, len(sources), *[(x.shape, x.strides) for x in arrays])
    if loops is None:
        return None
    if prologue is not None:
        numbers += _numbers_among(b.inputs, prologue.pattern)
        outer, inner, rows = loops[0]
        gains = takes_prologue(prologue.program, dtype, outer * inner, rows, n, k)
        if not gains or math.prod(b.shape[:-2]) != outer * inner:
            return None
    within = (a.strides[-1], *within)
    found = _Shape(ELEMENTS[dtype], k, n, *loops, within, by_columns, program, pattern, prologue)
    return _Product(found, arrays, [float(x) for x in numbers])


class _Right(NamedTuple):
    """What b is read from: arrays, how (see ``Kernel``), and their strides through k and n."""

    sources: list[np.ndarray]
    kind: tuple[Prologue | None, bool]
    within: list[int]


def _given(b: np.ndarray, dtype) -> _Right | None:
    (*_, k, n), (*_, b_k, b_column) = b.shape, b.strides
    rowwise = b_column == b.itemsize or n == 1 or k == 0
    by_columns = b_k == b.itemsize or k == 1
    if b.dtype != dtype or not (rowwise or by_columns):
        return None
    return _Right([b], (None, not rowwise), [b_k, b_column])


def _computed(b: Computed, dtype) -> _Right | None:
    """The same for what is computed: sources are read along rows or along columns, all alike."""
    program, inputs, ndim = b.program, b.inputs, len(b.shape)
    for by_columns in (False, True) if b.shape[-1] > 1 else (True, False):
        pattern = _pattern(program, program.inputs, inputs, dtype, ndim, -2 if by_columns else -1)
        if pattern is not None:
            sources = _arrays_among(inputs, pattern)
            strides = [strides_in(x.shape, x.strides, ndim)[-2:] for x in sources]
            right = _Right(sources, (Prologue(program, pattern), by_columns), [*chain(*strides)])
            return right if sources else None
    return None


def _arrays_among(inputs: Sequence, pattern: str) -> list[np.ndarray]:
    return [x for x, kind in zip(inputs, pattern, strict=True) if kind in "vVbB"]


def _numbers_among(inputs: Sequence, pattern: str) -> list[float]:
    return [x for x, kind in zip(inputs, pattern, strict=True) if kind == "n"]


def _pattern(
    program: Program, names: Sequence[str], inputs: Sequence, dtype, ndim: int, axis: int = -1
) -> str | None:
    """A letter for each of some inputs, see ``Kernel``; None if one does not fit."""
    pattern = ""
    for x, name in zip(inputs, names, strict=True):
        if name not in program.used:
            pattern += "-"
        elif x.__class__ in _NUMBERS:
            pattern += "n"
        elif x.__class__ is not np.ndarray or x.dtype not in (dtype, _BOOL) or x.ndim > ndim:
            return None
        else:
            kind = "b" if x.dtype == _BOOL else "v"
            step = strides_in(x.shape, x.strides, ndim)[axis]
            if step not in (0, x.itemsize):
                return None
            pattern += kind if step else kind.upper()
    return pattern


def _writes(out: np.ndarray, e: Expr, dtype) -> bool:
    """Whether an array can take the result of an expression."""
    wanted = _BOOL if e.op in BOOLEAN else dtype
    along = out.shape[-1] == 1 or out.strides[-1] == out.itemsize
    return out.dtype == wanted and along and out.flags.writeable


def _apart(operands: list, read: list, outputs: list) -> bool:
    """Whether outputs share no memory with what is read after they are written: an input may be
    the same array."""
    for k, out in enumerate(outputs):
        for x in (*operands, *outputs[:k]):
            if np.may_share_memory(out, x):
                return False
        for x in read:
            if x is not out and np.may_share_memory(out, x) and _place(x) != _place(out):
                return False
    return True


def _place(x: np.ndarray) -> tuple:
    return x.ctypes.data, x.shape, x.strides, x.dtype


@lru_cache(4096)
def _loops(
    shape, sources: int, *arrays
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]] | None:
    """Sizes of two batch dimensions and of m, and the strides of arrays through them: a, what b is
    read from, and others, given by shapes and strides. None if two batch dimensions do not do.
    Those that b has not are rows of one larger matrix."""
    steps = [strides_in(*x, len(shape))[:-1] for x in arrays]
    for of_b in steps[1 : 1 + sources]:
        of_b[-1] = 0
    sizes, kept = merge_dimensions(shape[:-1], steps)
    if not sizes or kept[1][-1]:  # m is 1, and was left out
        sizes.append(1)
        for steps_of_one in kept:
            steps_of_one.append(0)
    missing = 3 - len(sizes)
    if missing < 0:
        return None
    return (1,) * missing + tuple(sizes), tuple([(0,) * missing + tuple(s) for s in kept])


# ------------------------------------------------------------------------------------------------
# own kernels

# Tiles by the number of vector registers: all but a few hold sums. The last is for few rows.
_TILES = {16: ((6, 2), (4, 3), (12, 1), (1, 8)), 32: ((8, 3), (12, 2), (6, 4), (1, 8))}


@lru_cache(8)
def _registers(compiler: Machine) -> int:
    wide = compiler.has("avx512f") or compiler.triple.startswith(("aarch64", "arm64"))
    return 32 if wide else 16


def _choose_tile(compiler: Machine, element: str, m: int, n: int) -> Tile:
    """The tile that computes a matrix in the fewest cycles."""
    lanes = compiler.lanes(element) // 2  # of one register

    def cycles(shape: tuple[int, int]) -> float:
        """Of one step of k: two multiplications or two loads each; a sum waits for 4 cycles."""
        rows, vectors = shape
        one = max(rows * vectors / 2, (rows + vectors) / 2, 4)
        return -(-m // rows) * -(-n // (vectors * lanes)) * one

    return Tile(element, lanes, *min(_TILES[_registers(compiler)], key=cycles))


def _own_task(compiler: Machine, product: _Product, alpha: float) -> Task | None:
    """A call of an own kernel; None if the program has none."""
    plan = _plan(compiler, product.shape)
    if plan is None:
        return None
    table = array("q", map(id, product.arrays))
    table.extend(plan.words)
    numbers = array("d", [alpha, *product.numbers])
    task = Task(plan.function, table, numbers, plan.parts, tuple(product.arrays))
    return task._replace(rows=_rows_of(product, plan, task))


def _rows_of(product: _Product, plan: _Plan, task: Task) -> Rows | None:
    """Rows of the result need the same rows of a and of what the program reads; all of b, if there
    is one matrix, else the matrices that belong to theirs. None for arrays that are gone through
    backwards, for empty ones, and for one matrix that is computed."""
    shape, strides = product.shape, product.shape.strides
    if not shape.k or min(*shape.within, *chain(*strides)) < 0:
        return None
    a, others = product.arrays[0], product.arrays[1 + shape.sources :]
    a_k, *steps = shape.within
    right = zip(product.arrays[1:], steps[::2], steps[1::2], strict=False)
    widths = [
        (shape.k - 1) * a_k + a.itemsize,
        *[(shape.k - 1) * b_k + (shape.n - 1) * b_column + x.itemsize
          for x, b_k, b_column in right],
        *[(1 if kind in "VB" else shape.n) * x.itemsize
          for x, kind in zip(others, _kinds(shape), strict=True)],
    ]  # fmt: skip
    outer, inner, m = sizes = shape.sizes
    if shape.prologue and outer * inner == 1:
        return None  # every share of the rows would compute B again
    matrices, tile, fixed = outer * inner, plan.tile, 0 if plan.direct else PACKING
    if matrices > 1:  # cut between them
        widths = [w + (m - 1) * s[-1] for w, s in zip(widths, strides, strict=True)]
        sizes, strides, tile, fixed = sizes[:2], [s[:2] for s in strides], 1, 0
    else:
        sizes, strides = sizes[2:], [s[2:] for s in strides]
    written, first = len(product.arrays) - len(shape.program.outputs), len(product.arrays)
    operands = tuple(
        Operand(*operand, k >= written)
        for k, operand in enumerate(zip(product.arrays, strides, widths, strict=True))
    )

    def cut(count: int) -> Task:
        each, lines = (plan.units // count, 0) if matrices > 1 else (0, m // count)
        table = array("q", task.table)
        table[first : first + 3] = array("q", [count, each, lines])
        return task._replace(table=table)

    elements = matrices * m * shape.n * vector_math.nanoseconds(shape.program)
    if shape.prologue:
        of_b = vector_math.nanoseconds(shape.prologue.program)
        elements += matrices * shape.k * shape.n * of_b
    return Rows(sizes, operands, cut, shape.work * NANOSECONDS + elements, fixed, tile)


def _kinds(shape: _Shape) -> str:
    """The letters of the inputs that are arrays, and of the outputs."""
    return "".join(x for x in shape.pattern if x in "vVbB") + "v" * len(shape.program.outputs)


class _Plan(NamedTuple):
    """The kernel for products of a shape, what their tables say beside the arrays, and how many
    parts the work has."""

    function: int
    words: tuple[int, ...]
    parts: int
    units: int
    tile: int  # rows
    direct: bool


@lru_cache(4096)
def _plan(compiler: Machine, shape: _Shape) -> _Plan | None:
    """Made once: the steps of a recurrent network are products of one shape."""
    tile = _choose_tile(compiler, shape.element, shape.sizes[-1], shape.n)
    kernel = Kernel(tile, shape.by_columns, shape.program, shape.pattern, shape.prologue)
    function = _function(compiler, kernel)
    if function is None:
        return None
    words = _words(shape, tile)
    parts = min(words["shares"], workers.PARTS) if shape.work >= PARALLEL else 1
    table = [words[name] for name in gemm_kernels.WORDS]
    table += chain(*shape.strides[2:], shape.within[3:])
    direct = bool(words["direct"]) and not (shape.by_columns or shape.prologue)
    return _Plan(function, tuple(table), parts, words["shares"], tile.rows, direct)


def _words(shape: _Shape, tile: Tile) -> dict[str, int]:
    """What the table says beside the arrays: sizes, blocks and strides."""
    outer, inner, m = shape.sizes
    panels = -(-shape.n // tile.columns)
    blocks = _blocks(m, shape.work, tile, outer * inner * panels)
    block = _rounded(-(-m // blocks), tile.rows)
    blocks = -(-m // block)
    pieces = max(1, -(-shape.k // tile.depth))
    depth = max(1, _rounded(-(-shape.k // pieces), tile.lanes))
    a_k, b_k, b_column, *_ = shape.within
    return {
        "shares": outer * inner * blocks * panels, "each": 1, "lines": 0,
        "inner": inner, "blocks": blocks, "panels": panels, "m": m, "n": shape.n, "k": shape.k,
        "block": block, "depth": depth,
        "direct": block <= UNPACKED_ROWS or 0 <= shape.k * b_k <= UNPACKED_BYTES,
        **_named("a", shape.strides[0]), "a_k": a_k,
        **_named("b", shape.strides[1]), "b_k": b_k, "b_column": b_column,
    }  # fmt: skip


def _blocks(m: int, work: int, tile: Tile, panels: int) -> int:
    """Blocks of the m rows of each matrix: few, but enough to share ``panels`` of them among
    threads."""
    fewest = -(-m // tile.block)
    if work < PARALLEL or fewest * panels >= SHARES:
        return fewest
    return max(fewest, min(-(-SHARES // panels), m // (4 * tile.rows)))


def _named(name: str, strides: Sequence[int]) -> dict[str, int]:
    return {f"{name}_{s}": v for s, v in zip(("outer", "inner", "row"), strides, strict=True)}


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _function(compiler: Machine, kernel: Kernel) -> int | None:
    """The address of a kernel, made on first use; None if there is none for its program."""
    made = kernel.program.native
    key = ("gemm", *kernel[:2], kernel.pattern, kernel.prologue)
    if key not in made:
        try:
            made[key] = compiler.kernel(gemm_kernels.text, kernel)
        except Unsupported:
            made[key] = None
        except RuntimeError as error:  # slower, not wrong
            warnings.warn(f"no native kernel, LLVM refuses it: {error}", stacklevel=2)
            made[key] = None
    return made[key]


# ------------------------------------------------------------------------------------------------
# BLAS


def _is_for_blas(shape: _Shape) -> bool:
    if shape.program is not _PLAIN and shape.k < DEEP:
        return False
    turned = shape.strides[0][-1] == (8 if shape.element == "double" else 4)
    spread = turned and abs(shape.within[0]) * shape.k >= SPREAD
    return shape.sizes[-1] * shape.n * shape.k >= (MEDIUM if spread else LARGE)


def _blas_task(compiler: Machine, product: _Product, alpha: float) -> Task | None:
    """The product, without its program, by NumPy's BLAS; None without one, or if the elements do
    not lie as it wants."""
    given = product.shape
    function = blas.find(given.element)
    arrays = [*product.arrays[:2], product.arrays[-1]]
    strides = [*given.strides[:2], given.strides[-1]]
    (outer, inner, m), n, k = given.sizes, given.n, given.k
    shapes = ((m, k), (k, n), (m, n))
    rows = (strides[0][-1], arrays[1].strides[-2], strides[2][-1])
    stored = [
        blas.layout(shape, (row, x.strides[-1]), x.itemsize)
        for shape, row, x in zip(shapes, rows, arrays, strict=True)
    ]
    if function is None or None in stored or stored[2][0] != blas.NORMAL:
        return None
    (store_a, lda), (store_b, ldb), (_, ldc) = stored
    words = [*map(id, arrays), function.address, store_a, store_b, m, n, k, lda, ldb, ldc]
    steps = (
        (1, rows[0], 0, rows[2]) if m >= n else (0, 0, arrays[1].strides[-1], arrays[2].itemsize)
    )
    words += [outer, inner, *steps, *chain(*[s[:2] for s in strides])]
    address = blas.kernel(compiler, given.element, function.integer)
    longest = max(m, n) if blas.thread_functions() else 1
    parts = max(longest // BLAS_SHARE, min(2, longest // BLAS_HALF))
    parts = min(workers.PARTS, parts)
    return Task(address, array("q", words), array("d", [alpha]), max(1, parts), arrays, True)
