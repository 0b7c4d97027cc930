"""NumPy's BLAS as a native kernel: products of large matrices, called without Python.

The functions are those of the library that NumPy itself is linked with. Its address stands in the
table of a task, not in the code: the code is kept on disk, and another process has the library
elsewhere.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from typing import NamedTuple

import numpy as np

from .ir import Code, Value
from .machine import Machine
from .shares import parameters, share

# Names of ``cblas_?gemm`` and the type of their integers. Wheels of NumPy add a prefix and a suffix
# to those of OpenBLAS, so that several copies can be loaded; Accelerate has both integers.
_NAMES = (
    ("scipy_cblas_{}gemm64_", "i64"),
    ("cblas_{}gemm64_", "i64"),
    ("cblas_{}gemm$NEWLAPACK$ILP64", "i64"),
    ("scipy_cblas_{}gemm", "i32"),
    ("cblas_{}gemm$NEWLAPACK", "i32"),
    ("cblas_{}gemm", "i32"),
)
_LETTERS = {"float": "s", "double": "d"}


class Gemm(NamedTuple):
    """A ``cblas_?gemm``: where it is and the type of its integers."""

    address: int
    integer: str


@functools.cache
def _library() -> ctypes.CDLL | None:
    """NumPy's extension module: symbols looked up in it are also sought in the libraries that it
    needs. Not so on Windows."""
    try:
        return ctypes.CDLL(np._core._multiarray_umath.__file__)
    except (AttributeError, OSError):
        return None


@functools.cache
def find(element: str) -> Gemm | None:
    """The product of matrices in NumPy's BLAS; None where it cannot be found."""
    for name, integer in _NAMES:
        function = getattr(_library(), name.format(_LETTERS[element]), None)
        if function is not None:
            return Gemm(ctypes.cast(function, ctypes.c_void_p).value or 0, integer)
    return None


@functools.cache
def thread_functions() -> array | None:
    """The addresses of what gets and sets the threads of OpenBLAS; None for another BLAS.

    Lists of tasks (``tasks.py``) let it have one for the length of a task. Its own threads spin for
    tens of milliseconds after a product, on the cores where the workers of other tasks should be.
    """
    for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", "")):
        names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
        functions = [getattr(_library(), name, None) for name in names]
        if None not in functions:
            return array("q", [ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions])
    return None


# Words of the table: the array objects; the function; how A and B are stored; sizes of the product;
# leading dimensions in elements; sizes of the two batch dimensions; whether threads share the rows
# of C (1) or its columns (0), and how far apart those are in A, B and C; what matrices are apart
# along the batch dimensions. Distances are in bytes.
WORDS = (
    "a", "b", "c", "function", "store_a", "store_b", "m", "n", "k", "lda", "ldb", "ldc", "outer",
    "inner", "by_rows", "step_a", "step_b", "step_c", "a_outer", "a_inner", "b_outer", "b_inner",
    "c_outer", "c_inner",
)  # fmt: skip
ROW_MAJOR, NORMAL, TRANSPOSED = 101, 111, 112  # of CBLAS


def layout(
    shape: tuple[int, int], strides: tuple[int, int], itemsize: int
) -> tuple[int, int] | None:
    """How CBLAS may read a matrix, as it is or transposed, and its leading dimension; None if its
    elements lie otherwise. Strides are in bytes."""
    for store, (rows, columns), (outer, inner) in (
        (NORMAL, shape, strides),
        (TRANSPOSED, shape[::-1], strides[::-1]),
    ):
        leading = outer // itemsize if rows > 1 else max(1, columns)
        if (columns == 1 or inner == itemsize) and leading >= max(1, columns):
            return None if rows > 1 and outer % itemsize else (store, leading)
    return None


@functools.lru_cache(8)
def kernel(compiler: Machine, element: str, integer: str) -> int:
    """The address of the kernel of products by BLAS."""
    return compiler.kernel(text, element, integer)


def text(compiler: Machine, element: str, integer: str) -> str:
    """``kernel(table, numbers, first, last)``: C = alpha op(A) op(B) for every matrix of a batch.

    ``numbers`` holds alpha. Threads share the rows of C, or its columns.
    """
    code = Code(element, 1)
    given = parameters(code)
    table, numbers, first, last = given
    pointers = {"function", "a", "b", "c"}
    word = {
        name: code.load(code.at(table, place), "ptr" if name in pointers else "i64")
        for place, name in enumerate(WORDS)
    }
    alpha = code.load(numbers, "double")
    if element != "double":
        alpha = alpha.convert("fptrunc", element)
    data = [code.load(code.at(word[x], compiler.offsets["data"], "i8"), "ptr") for x in "abc"]

    def narrow(value: Value, type: str) -> Value:
        return value if type == "i64" else value.convert("trunc", type)

    by_rows = word["by_rows"].compare("ne", 0)
    shared = code.select(by_rows, word["m"], word["n"])
    start, stop = (share(code, shared, bound) for bound in (first, last))
    count = stop - start
    m, n = code.select(by_rows, count, word["m"]), code.select(by_rows, word["n"], count)
    sizes = [narrow(v, integer) for v in (m, n, word["k"])]
    leading = [narrow(word[x], integer) for x in ("lda", "ldb", "ldc")]
    stored = [narrow(word[x], "i32") for x in ("store_a", "store_b")]
    code.leave_unless(count.compare("sgt", 0), "void")
    zero = code.integer(0)
    with code.loop(zero, word["outer"]) as o, code.loop(zero, word["inner"]) as i:
        a, b, c = (
            code.at(
                base,
                o * word[f"{x}_outer"] + i * word[f"{x}_inner"] + start * word[f"step_{x}"],
                "i8",
            )
            for x, base in zip("abc", data, strict=True)
        )
        arguments = [f"i32 {ROW_MAJOR}", *stored, *sizes, alpha, a, leading[0], b, leading[1]]
        arguments += [code.like(alpha, 0.0), c, leading[2]]
        code.do(f"call void {word['function'].name}({', '.join(map(str, arguments))})")
    return code.function("kernel", given)
