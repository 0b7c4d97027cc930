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
from .gemm_kernels import Kernel, Tile
from .llvm import ELEMENTS, Unsupported, strides_in
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
# What a multiplication takes, and how many rows of A times a panel of B take as long as packing it.
NANOSECONDS, PACKING = 0.02, 4


def task(
    a: np.ndarray,
    b: np.ndarray,
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
    share memory with nothing else. All arrays are float32 or all float64, but for masks.

    The task keeps the arrays. Its table begins with the objects of a, b, the input arrays that the
    program reads and the outputs: others with the same strides may take their places. Its numbers
    are alpha and the Python numbers among the inputs.

    None where there is no kernel for this, or where BLAS and a separate task are faster. Raises
    ValueError if the shapes do not fit.
    """
    compiler = machine()
    outputs = [out] if isinstance(out, np.ndarray) else list(out)
    product = _product(a, b, outputs, program or _PLAIN, inputs)
    if compiler is None or product is None:
        return None
    found = _blas_task(compiler, product, alpha) if _is_for_blas(product.shape) else None
    if found is None:
        return _own_task(compiler, product, alpha)
    return found if program is None else None


class _Shape(NamedTuple):
    """All of a product but its memory: loops over two batch dimensions and matrices in them."""

    element: str
    k: int
    n: int
    sizes: tuple[int, ...]  # outer batch dimension, inner one, m
    strides: tuple[tuple[int, ...], ...]  # of the arrays, through the sizes; 0 for b through m
    within: tuple[int, int, int]  # strides of a through k, and of b through k and n
    by_columns: bool  # whether neighbours in a column of b are neighbours in memory
    program: Program
    pattern: str  # see Kernel

    @property
    def work(self) -> int:
        """Multiplications."""
        return math.prod(self.sizes) * self.n * self.k


class _Product(NamedTuple):
    """A product whose arrays fit together."""

    shape: _Shape
    arrays: list[np.ndarray]  # a, b, the inputs that are read, outputs
    numbers: list[float]  # among the inputs


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
    pattern = _pattern(program, inputs, dtype, len(shape))
    if pattern is None or dtype not in ELEMENTS or b.dtype != dtype or 0 in shape:
        return None
    if not all(map(_writes, outputs, program.outputs, [dtype] * len(outputs))):
        return None
    read = [x for x, kind in zip(inputs, pattern, strict=True) if kind in "vVbB"]
    arrays = [a, b, *read, *outputs]
    if not all(x.flags.aligned for x in arrays) or not _apart(a, b, read, outputs):
        return None
    numbers = [x for x, kind in zip(inputs, pattern, strict=True) if kind == "n"]
    loops = _loops(shape, *[(x.shape, x.strides) for x in arrays])
    b_k, b_column = b.strides[-2:]
    rowwise = b_column == b.itemsize or n == 1 or k == 0
    by_columns = b_k == b.itemsize or k == 1
    if loops is None or not (rowwise or by_columns):
        return None
    within = (a.strides[-1], b_k, b_column)
    found = _Shape(ELEMENTS[dtype], k, n, *loops, within, not rowwise, program, pattern)
    return _Product(found, arrays, [float(x) for x in numbers])


def _pattern(program: Program, inputs: Sequence, dtype, ndim: int) -> str | None:
    """A letter for every input beside the product, see ``Kernel``; None if one does not fit."""
    pattern = ""
    for x, name in zip(inputs, program.inputs[1:], strict=True):
        if name not in program.used:
            pattern += "-"
        elif x.__class__ in _NUMBERS:
            pattern += "n"
        elif x.__class__ is not np.ndarray or x.dtype not in (dtype, _BOOL) or x.ndim > ndim:
            return None
        else:
            kind = "b" if x.dtype == _BOOL else "v"
            step = strides_in(x.shape, x.strides, ndim)[-1]
            if step not in (0, x.itemsize):
                return None
            pattern += kind if step else kind.upper()
    return pattern


def _writes(out: np.ndarray, e: Expr, dtype) -> bool:
    """Whether an array can take the result of an expression."""
    wanted = _BOOL if e.op in BOOLEAN else dtype
    along = out.shape[-1] == 1 or out.strides[-1] == out.itemsize
    return out.dtype == wanted and along and out.flags.writeable


def _apart(a, b, read: list, outputs: list) -> bool:
    """Whether outputs share no memory with what is read after they are written: an input may be
    the same array."""
    for k, out in enumerate(outputs):
        for x in (a, b, *outputs[:k]):
            if np.may_share_memory(out, x):
                return False
        for x in read:
            if x is not out and np.may_share_memory(out, x) and _place(x) != _place(out):
                return False
    return True


def _place(x: np.ndarray) -> tuple:
    return x.ctypes.data, x.shape, x.strides, x.dtype


@lru_cache(4096)
def _loops(shape, *arrays) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]] | None:
    """Sizes of two batch dimensions and of m, and the strides of arrays through them: a, b, and
    others, given by shapes and strides. None if two batch dimensions do not do. Those that b has
    not are rows of one larger matrix."""
    steps = [strides_in(*x, len(shape))[:-1] for x in arrays]
    steps[1][-1] = 0
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
    backwards, and for empty ones."""
    shape, strides = product.shape, product.shape.strides
    if not shape.k or min(*shape.within, *chain(*strides)) < 0:
        return None
    a, _, *others = product.arrays
    size, (a_k, b_k, b_column) = a.itemsize, shape.within
    widths = [
        (shape.k - 1) * a_k + size,
        (shape.k - 1) * b_k + (shape.n - 1) * b_column + size,
        *[(1 if kind in "VB" else shape.n) * x.itemsize
          for x, kind in zip(others, _kinds(shape), strict=True)],
    ]  # fmt: skip
    outer, inner, m = sizes = shape.sizes
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
    function = _function(compiler, Kernel(tile, shape.by_columns, shape.program, shape.pattern))
    if function is None:
        return None
    words = _words(shape, tile)
    parts = min(words["shares"], workers.PARTS) if shape.work >= PARALLEL else 1
    table = [words[name] for name in gemm_kernels.WORDS]
    table += chain(*shape.strides[2:])
    direct = bool(words["direct"]) and not shape.by_columns
    return _Plan(function, tuple(table), parts, words["shares"], tile.rows, direct)


def _words(shape: _Shape, tile: Tile) -> dict[str, int]:
    """What the table says beside the arrays: sizes, blocks and strides."""
    outer, inner, m = shape.sizes
    panels = -(-shape.n // tile.columns)
    blocks = _blocks(shape, tile, outer * inner * panels)
    block = _rounded(-(-m // blocks), tile.rows)
    blocks = -(-m // block)
    pieces = max(1, -(-shape.k // tile.depth))
    depth = max(1, _rounded(-(-shape.k // pieces), tile.lanes))
    a_k, b_k, b_column = shape.within
    return {
        "shares": outer * inner * blocks * panels, "each": 1, "lines": 0,
        "inner": inner, "blocks": blocks, "panels": panels, "m": m, "n": shape.n, "k": shape.k,
        "block": block, "depth": depth,
        "direct": block <= UNPACKED_ROWS or 0 <= shape.k * b_k <= UNPACKED_BYTES,
        **_named("a", shape.strides[0]), "a_k": a_k,
        **_named("b", shape.strides[1]), "b_k": b_k, "b_column": b_column,
    }  # fmt: skip


def _blocks(shape: _Shape, tile: Tile, panels: int) -> int:
    """Blocks of rows of each matrix: few, but enough to share ``panels`` of them among threads."""
    m = shape.sizes[-1]
    fewest = -(-m // tile.block)
    if shape.work < PARALLEL or fewest * panels >= SHARES:
        return fewest
    return max(fewest, min(-(-SHARES // panels), m // (4 * tile.rows)))


def _named(name: str, strides: Sequence[int]) -> dict[str, int]:
    return {f"{name}_{s}": v for s, v in zip(("outer", "inner", "row"), strides, strict=True)}


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _function(compiler: Machine, kernel: Kernel) -> int | None:
    """The address of a kernel, made on first use; None if there is none for its program."""
    made = kernel.program.native
    key = ("gemm", *kernel[:2], kernel.pattern)
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
