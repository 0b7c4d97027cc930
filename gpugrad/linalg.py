"""torch.linalg's functions of square matrices and norms: ``gpugrad.linalg``.

Matrices are the last two dimensions, batches come before. All have gradients of every order, for
float32 and float64. NumPy computes on the CPU and CuPy's cuSOLVER on CUDA; a singular matrix raises
LinAlgError on the CPU and gives infinities or NaN on CUDA, where to look would mean to wait.
"""

from __future__ import annotations

import builtins
from typing import Any, NamedTuple

from . import functions
from .backend.numpy import xp as np
from .errors import LinAlgError
from .ops import matrices
from .tensor import Tensor

__all__ = ["LinAlgError", "cholesky", "det", "inv", "norm", "slogdet", "solve", "vector_norm"]


class SLogDet(NamedTuple):
    """Sign of a determinant and logarithm of its absolute value."""

    sign: Tensor
    logabsdet: Tensor


def _check(name: str, *matrices: Tensor) -> None:
    for x in matrices:
        if x.dtype.kind != "f" or x.dtype.itemsize < 4:
            raise RuntimeError(
                f"linalg.{name}: expected float32 or float64, got {x.dtype}; convert it with "
                f".float()"
            )
    functions._check_same_dtype(f"linalg.{name}", *matrices)
    functions._check_devices(f"linalg.{name}", *matrices)


def _check_square(name: str, A: Tensor) -> None:
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise RuntimeError(
            f"linalg.{name}: A must be batches of square matrices, but its shape is "
            f"{tuple(A.shape)}"
        )


def _run(name: str, op, *arguments):
    try:
        return op(*arguments)
    except np.linalg.LinAlgError as error:
        shapes = " and ".join(str(tuple(a.shape)) for a in arguments)
        raise LinAlgError(f"linalg.{name} of {shapes}: {str(error).lower()}") from None


def inv(A: Tensor) -> Tensor:
    """The inverse of square matrices (..., n, n). Raises LinAlgError for a singular one (CPU).

    >>> import gpugrad as gg
    >>> gg.linalg.inv(gg.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tensor([[0.5 , 0.  ],
            [0.  , 0.25]])
    """
    _check("inv", A)
    _check_square("inv", A)
    return _run("inv", matrices.inv, A)


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """The X with ``A @ X = B``, or ``X @ A = B`` without ``left``.

    ``A`` is (..., n, n); ``B`` a vector (n,), a batch of vectors with the batch of ``A``, or
    matrices (..., n, k). Raises LinAlgError for a singular ``A`` (CPU).

    >>> import gpugrad as gg
    >>> gg.linalg.solve(gg.tensor([[2.0, 0.0], [0.0, 4.0]]), gg.tensor([2.0, 2.0]))
    tensor([1. , 0.5])
    """
    _check("solve", A, B)
    _check_square("solve", A)
    vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    if not left:
        if vector:
            raise RuntimeError("linalg.solve: vectors can be solved for with left=True only")
        x = solve(functions.transpose(A, -2, -1), functions.transpose(B, -2, -1))
        return functions.transpose(x, -2, -1)
    columns = functions.unsqueeze(B, -1) if vector else B
    if columns.ndim < 2 or columns.shape[-2] != A.shape[-1]:
        raise RuntimeError(
            f"linalg.solve: A of shape {tuple(A.shape)} and B of shape {tuple(B.shape)} do not fit"
        )
    x = _run("solve", matrices.solve, A, columns)
    return functions.squeeze(x, -1) if vector else x


def det(A: Tensor) -> Tensor:
    """Determinants of square matrices (..., n, n). Its gradient needs them to be invertible.

    >>> import gpugrad as gg
    >>> gg.linalg.det(gg.tensor([[2.0, 1.0], [1.0, 3.0]])).item()
    5.0
    """
    _check("det", A)
    _check_square("det", A)
    return _run("det", matrices.det, A)


def slogdet(A: Tensor) -> SLogDet:
    """Sign and logarithm of the absolute value of determinants, where they would overflow.

    The pair ``(sign, logabsdet)``; a singular matrix has sign 0 and -inf.
    """
    _check("slogdet", A)
    _check_square("slogdet", A)
    return SLogDet(matrices.det_sign(A), matrices.logabsdet(A))


def cholesky(A: Tensor, *, upper: bool = False) -> Tensor:
    """The lower triangular L with ``L @ L.T = A`` for positive definite matrices (..., n, n).

    Read as ``(A + A.T) / 2``, so that the gradient is symmetric; ``upper`` gives ``L.T``. Raises
    LinAlgError for a matrix that is not positive definite (CPU).
    """
    _check("cholesky", A)
    _check_square("cholesky", A)
    factor = _run("cholesky", matrices.cholesky, A)
    return functions.transpose(factor, -2, -1) if upper else factor


def vector_norm(x: Tensor, ord: Any = 2, dim=None, keepdim: bool = False) -> Tensor:
    """The norm of order ``ord`` (any number or inf) of vectors along ``dim``, of all elements
    unless given."""
    return functions.norm(x, ord, dim, keepdim)


def norm(A: Tensor, ord: Any = None, dim=None, keepdim: bool = False) -> Tensor:
    """A norm of vectors (one ``dim``) or of matrices (two).

    ``ord`` None is the 2-norm of all elements, or of those along ``dim``. With an ``ord``: of
    vectors any number; of matrices "fro", 1, -1 (sums of columns), inf and -inf (sums of rows).
    Raises RuntimeError for the norms that need singular values (2, -2, "nuc").
    """
    if ord is None:
        return functions.norm(A, 2, dim, keepdim)
    if dim is None:
        if A.ndim not in (1, 2):
            raise RuntimeError(
                f"linalg.norm: with ord={ord!r} and no dim, A must be 1-D or 2-D, got {A.ndim}-D"
            )
        dim = tuple(range(A.ndim))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if len(dims) == 1:
        return functions.norm(A, ord, dims[0], keepdim)
    if ord == "fro":
        return functions.norm(A, 2, dims, keepdim)
    if ord not in (1, -1, float("inf"), -float("inf")):
        raise RuntimeError(
            f"linalg.norm: the matrix norm {ord!r} is not implemented; there are 'fro', 1, -1, inf "
            f"and -inf"
        )
    rows, columns = (d % A.ndim for d in dims)
    summed, kept = (rows, columns) if builtins.abs(ord) == 1 else (columns, rows)
    sums = functions.sum(functions.abs(A), summed, keepdim=True)
    extreme = functions.amax if ord > 0 else functions.amin
    out = extreme(sums, kept, True)
    return out if keepdim else functions.squeeze(out, (rows, columns))
