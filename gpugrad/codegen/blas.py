"""NumPy's BLAS as a native kernel: products of large matrices, called without Python.

The functions are those of the library that NumPy itself is linked with. Its address stands in the
table of a task, not in the code: the code is kept on disk, and another process has the library
elsewhere.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import numpy as np

from .ir import Code, Value
from .machine import Machine

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
def find(element: str) -> Gemm | None:
    """The product of matrices in NumPy's BLAS; None where it cannot be found, as on Windows.

    A symbol looked up in NumPy's extension module is also sought in the libraries that it needs.
    """
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    except (AttributeError, OSError):
        return None
    for name, integer in _NAMES:
        function = getattr(library, name.format(_LETTERS[element]), None)
        if function is not None:
            return Gemm(ctypes.cast(function, ctypes.c_void_p).value or 0, integer)
    return None


# Words of the table: the array objects; the function; how A and B are stored; sizes of the product;
# leading dimensions in elements; sizes of the two batch dimensions; bytes between rows of op(A) and
# of C; bytes between matrices along the batch dimensions.
WORDS = (
    "a", "b", "c", "function", "store_a", "store_b", "m", "n", "k", "lda", "ldb", "ldc", "outer",
    "inner", "row_a", "row_c", "a_outer", "a_inner", "b_outer", "b_inner", "c_outer", "c_inner",
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


def text(compiler: Machine, element: str, integer: str) -> str:
    """``kernel(table, numbers, first, last)``: C = alpha op(A) op(B) for every matrix of a batch.

    ``numbers`` holds alpha. Threads share the rows of C.
    """
    code = Code(element, 1)
    names = (("table", "ptr"), ("numbers", "ptr"), ("first", "i64"), ("last", "i64"))
    parameters = [code.parameter(*p) for p in names]
    table, numbers, first, last = parameters
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

    start, stop = ((word["m"] * share).bitwise("lshr", 16) for share in (first, last))
    rows = stop - start
    sizes = [narrow(v, integer) for v in (rows, word["n"], word["k"])]
    leading = [narrow(word[x], integer) for x in ("lda", "ldb", "ldc")]
    stored = [narrow(word[x], "i32") for x in ("store_a", "store_b")]
    code.leave_unless(rows.compare("sgt", 0), "void")
    zero = code.integer(0)
    with code.loop(zero, word["outer"]) as o, code.loop(zero, word["inner"]) as i:
        matrices = [
            code.at(base, o * word[f"{x}_outer"] + i * word[f"{x}_inner"], "i8")
            for x, base in zip("abc", data, strict=True)
        ]
        a, b, c = matrices
        a = code.at(a, start * word["row_a"], "i8")
        c = code.at(c, start * word["row_c"], "i8")
        arguments = [f"i32 {ROW_MAJOR}", *stored, *sizes, alpha, a, leading[0], b, leading[1]]
        arguments += [code.like(alpha, 0.0), c, leading[2]]
        code.do(f"call void {word['function'].name}({', '.join(map(str, arguments))})")
    return code.function("kernel", parameters)
