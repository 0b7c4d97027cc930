"""Products of matrices as native tasks: ``task`` makes one for given arrays.

Small and medium products are computed by own kernels (``gemm_kernels.py``), which also compute what
follows elementwise while the product is in the cache; large ones by NumPy's BLAS.
"""

from __future__ import annotations

import math
import warnings
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from . import blas, gemm_kernels, workers
from .arrays import BOOLEAN, Program, merge_dimensions
from .expr import variable
from .gemm_kernels import BLOCK, Kernel, Tile
from .llvm import ELEMENTS, Unsupported
from .machine import Machine, machine
from .tasks import Task

# The program of a product without an epilogue.
_PLAIN = Program([variable("product")], ["product"], ["product"])
_NUMBERS = (int, float, bool)
_BOOL = np.dtype("bool")

# Multiplications from which threads are worth their dispatch: 5 us of one core.
PARALLEL = 1 << 18


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
    It has an array in ``out`` for each of its outputs; an output may be an input as well. All
    arrays are float32 or all float64, but for masks.

    The task keeps the arrays. Its table begins with the objects of a, b, the input arrays that the
    program reads and the outputs: others with the same strides may take their places. Its numbers
    are alpha and the Python numbers among the inputs.

    None where there is no kernel for this, or where BLAS and a separate task are faster. Raises
    ValueError if the shapes do not fit.
    """
    compiler = machine()
    outputs = [out] if isinstance(out, np.ndarray) else list(out)
    product = _Product.of(a, b, outputs, program or _PLAIN, inputs)
    if compiler is None or product is None:
        return None
    return _own_task(compiler, product, alpha)


class _Product(NamedTuple):
    """A product whose arrays fit together."""

    element: str
    m: int
    n: int
    k: int
    batch: list[int]  # sizes of two batch dimensions
    arrays: list[np.ndarray]  # a, b, inputs, outputs; all with the same number of dimensions
    strides: list[list[int]]  # of the arrays in the batch dimensions
    program: Program
    pattern: str  # see Kernel
    numbers: list[float]

    @property
    def work(self) -> int:
        return math.prod(self.batch) * self.m * self.n * self.k

    @classmethod
    def of(cls, a, b, outputs, program: Program, inputs) -> _Product | None:
        """None for what has no kernel."""
        (m, k), (inner, n) = a.shape[-2:], b.shape[-2:]
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n)
        if inner != k or any(o.shape != shape for o in outputs):
            shapes = [o.shape for o in outputs]
            raise ValueError(f"no product of {a.shape} and {b.shape} has the shape of {shapes}")
        if len(outputs) != len(program.outputs) or len(inputs) != len(program.inputs) - 1:
            raise ValueError("a program needs all of its inputs and outputs")
        dtype = a.dtype
        if dtype not in ELEMENTS or b.dtype != dtype or 0 in shape:
            return None
        kinds = [_kind(x, name, program) for x, name in zip(inputs, program.inputs[1:], strict=True)]
        pattern = "".join(kinds)
        read = [x for x, kind in zip(inputs, kinds, strict=True) if kind in "vVbB"]
        numbers = [x for x, kind in zip(inputs, kinds, strict=True) if kind == "n"]
        wide = [np.broadcast_to(x, shape) for x in read]
        return None
