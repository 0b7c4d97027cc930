"""Products of matrices as native tasks, C = epilogue(alpha A B)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain

import numpy as np

from . import blas
from .arrays import merge_dimensions
from .llvm import ELEMENTS
from .machine import machine
from .tasks import Task


def task(a: np.ndarray, b: np.ndarray, out: np.ndarray, *, alpha: float = 1.0) -> Task | None:
    """The task that computes ``out = alpha * a @ b``; None where there is no kernel for it.

    ``a`` is (..., m, k), ``b`` (..., k, n), ``out`` (..., m, n), all float32 or all float64; the
    batch dimensions of ``a`` and ``b`` broadcast to those of ``out``. A transposed operand is a
    view, such as ``a.T``. The task keeps the arrays. Its table begins with the objects of ``a``,
    ``b`` and ``out``: another array with the same strides may take the place of one.

    Raises ValueError if the shapes do not fit.
    """
    compiler = machine()
    element = ELEMENTS.get(out.dtype)
    if compiler is None or element is None or not a.dtype == b.dtype == out.dtype:
        return None
    batch = _batch(a, b, out)
    if batch is None or 0 in out.shape:
        return None
    return _blas_task(compiler, element, (a, b, out), batch, alpha)


class _Batch:
    """Two batch dimensions, of size 1 where there are fewer, and every array's strides in them."""

    def __init__(self, sizes: list[int], strides: list[list[int]]):
        missing = 2 - len(sizes)
        self.sizes = [1] * missing + sizes
        self.strides = [[0] * missing + s for s in strides]


def _batch(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> _Batch | None:
    """The batch dimensions in at most two loops; None if that is not enough."""
    shape = out.shape[:-2]
    (m, k), (inner, n) = a.shape[-2:], b.shape[-2:]
    if inner != k or out.shape[-2:] != (m, n):
        raise ValueError(f"no product of {a.shape} and {b.shape} has the shape {out.shape}")
    strides = [_batch_strides(x, shape) for x in (a, b, out)]
    sizes, kept = merge_dimensions(shape, strides)
    return _Batch(sizes, kept) if len(sizes) <= 2 else None


def _batch_strides(x: np.ndarray, shape: Sequence[int]) -> list[int]:
    """Strides of the batch dimensions of an array, broadcast to a shape."""
    own = np.broadcast_to(x, (*shape, *x.shape[-2:]))
    return list(own.strides[:-2])


def _blas_task(compiler, element: str, arrays, batch: _Batch, alpha: float) -> Task | None:
    """A call of NumPy's BLAS; None without one, or if the strides are not those of matrices."""
    function = blas.find(element)
    stored = [blas.layout(x) for x in arrays]
    if function is None or None in stored or stored[2][0] != blas.NORMAL:
        return None
    a, b, out = arrays
    (store_a, lda), (store_b, ldb), (_, ldc) = stored
    (m, k), n = a.shape[-2:], b.shape[-1]
    words = [*map(id, arrays), function.address, store_a, store_b, m, n, k, lda, ldb, ldc]
    words += [*batch.sizes, a.strides[-2], out.strides[-2], *chain(*batch.strides)]
    address = compiler.load(blas.text(compiler, element, function.integer))
    return Task(address, array("q", words), array("d", [alpha]), 1, arrays)
