"""Inverses, solutions, determinants and Cholesky factors of (batches of) square matrices.

NumPy computes with LAPACK, CuPy with cuSOLVER. A matrix without a result raises NumPy's LinAlgError
on the CPU; on CUDA nobody waits to see it, and the result has infinities or NaN.
Rules: M. B. Giles, An extended collection of matrix derivative results (2008).
"""

from __future__ import annotations

from ..backend.arrays import array_module
from .core import joint, not_differentiable, opaque
from .elementwise import add, mul, neg
from .linalg import _swap, matmul
from .shape import reshape, sum_to, tril


def _regular(r, *shape):
    """A sample of matrices that are far from singular."""
    x = r(*shape)
    diagonal = range(shape[-1])
    x[..., diagonal, diagonal] += 4.0
    return x


def _samples(r):
    return [((_regular(r, 3, 3),), {}), ((_regular(r, 2, 3, 3),), {}), ((_regular(r, 1, 1),), {})]


def _per_matrix(x):
    """One number per matrix, to multiply matrices by."""
    return reshape(x, shape=(*x.shape, 1, 1))


inv = opaque(
    "inv",
    lambda a: array_module(a).linalg.inv(a),
    lambda g, y, a: neg(matmul(_swap(y), matmul(g, _swap(y)))),
    reads=("out",),
    samples=_samples,
)


def _solve(a, b):
    xp = array_module(a)
    if a.shape[:-2] != b.shape[:-2]:  # CuPy wants batches of one shape
        batch = xp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    return xp.linalg.solve(a, b)


def _solve_gradients(needs, g, x, a, b):
    of_b = solve(_swap(a), g)
    of_a = sum_to(neg(matmul(of_b, _swap(x))), shape=a.shape) if needs[0] else None
    return of_a, sum_to(of_b, shape=b.shape) if needs[1] else None


# x with a @ x = b, both (batches of) matrices
solve = joint(
    "solve",
    _solve,
    _solve_gradients,
    arguments=2,
    reads=((0, "out"), (0,)),
    samples=lambda r: [
        ((_regular(r, 3, 3), r(3, 2)), {}),
        ((_regular(r, 2, 3, 3), r(2, 3, 1)), {}),
        ((_regular(r, 3, 3), r(2, 3, 2)), {}),
        ((_regular(r, 2, 3, 3), r(3, 2)), {}),
    ],
)

det = opaque(
    "det",
    lambda a: array_module(a).asarray(array_module(a).linalg.det(a)),
    lambda g, y, a: mul(_per_matrix(mul(g, y)), _swap(inv(a))),
    reads=(0, "out"),
    samples=_samples,
)
# the logarithm of the determinant's absolute value, where the determinant itself would overflow
logabsdet = opaque(
    "logabsdet",
    lambda a: array_module(a).asarray(array_module(a).linalg.slogdet(a)[1]),
    lambda g, y, a: mul(_per_matrix(g), _swap(inv(a))),
    reads=(0,),
    samples=_samples,
)
det_sign = not_differentiable(
    "det_sign",
    lambda a: array_module(a).asarray(array_module(a).linalg.slogdet(a)[0]),
    samples=_samples,
)


def _symmetric(a):
    return mul(add(a, _swap(a)), 0.5)


def _cholesky_gradient(g, y, a):
    """inv(y).T @ P @ inv(y) made symmetric, where P is the lower triangle of y.T @ g with its
    diagonal halved."""
    product = matmul(_swap(y), g)
    half = mul(add(tril(product, offset=0), tril(product, offset=-1)), 0.5)
    inverse = inv(y)
    return _symmetric(matmul(_swap(inverse), matmul(half, inverse)))


# the lower factor of (a + a.T) / 2
cholesky = opaque(
    "cholesky",
    lambda a: array_module(a).linalg.cholesky((a + a.swapaxes(-1, -2)) * 0.5),
    _cholesky_gradient,
    reads=("out",),
    samples=_samples,
)
