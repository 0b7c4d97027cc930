"""Reductions and scans. ``axes`` is a tuple of non-negative axes, or None for all; ``keepdims`` as
in NumPy."""

from __future__ import annotations

from functools import partial
from math import prod

from ..backend.arrays import array_module
from ..codegen import cuda_reduce
from .core import linear, not_differentiable, opaque
from .elementwise import eq, exp, isfinite, log, mul, where
from .rows import ELEMENT, ROW, RowFormula, row_max, row_sum
from .shape import cast, flip, reshape, spread, sum_to


def kept_shape(shape, axes) -> tuple:
    """The shape of a reduction over ``axes`` with ``keepdims``."""
    if axes is None:
        return (1,) * len(shape)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def count(shape, axes) -> int:
    """How many elements each result of a reduction sees."""
    return prod(shape if axes is None else [shape[axis] for axis in axes])


def _keep(g, x, axes, keepdims):
    """Give a reduced cotangent its ones back, so that it broadcasts against the argument."""
    return g if keepdims or axes is None else reshape(g, shape=kept_shape(x.shape, axes))


def _samples(r):
    return [
        ((r(2, 3, 4),), {"axes": None, "keepdims": False}),
        ((r(2, 3, 4),), {"axes": (0, 2), "keepdims": False}),
        ((r(2, 3, 4),), {"axes": (1,), "keepdims": True}),
        ((r(),), {"axes": None, "keepdims": False}),
    ]


def _sum(x, *, axes, keepdims):
    xp = array_module(x)
    return xp.asarray(xp.add.reduce(x, axis=axes, keepdims=keepdims))


sum = linear(
    "sum",
    _sum,
    lambda g, x, *, axes, keepdims: spread(_keep(g, x, axes, keepdims), shape=x.shape),
    samples=_samples,
    cuda=partial(cuda_reduce.reduce, "sum"),
)


def _mean(x, *, axes, keepdims):
    xp = array_module(x)
    n = count(x.shape, axes)
    scale = 1.0 / n if n else float("nan")  # the mean of nothing
    return xp.asarray(xp.add.reduce(x, axis=axes, keepdims=keepdims) * scale)


def _mean_transpose(g, x, *, axes, keepdims):
    n = count(x.shape, axes)
    return spread(mul(_keep(g, x, axes, keepdims), 1.0 / n if n else 1.0), shape=x.shape)


mean = linear(
    "mean", _mean, _mean_transpose, samples=_samples, cuda=partial(cuda_reduce.reduce, "mean")
)


def _extreme_vjp(g, out, x, *, axes, keepdims):
    """Ties share the gradient equally."""
    mask = cast(eq(x, _keep(out, x, axes, keepdims)), dtype=x.dtype)
    ties = sum_to(mask, shape=kept_shape(x.shape, axes))
    return mask * (_keep(g, x, axes, keepdims) / ties)


amax = opaque(
    "amax",
    lambda x, *, axes, keepdims: array_module(x).asarray(x.max(axes, keepdims=keepdims)),
    _extreme_vjp,
    reads=(0, "out"),
    samples=_samples,
    cuda=partial(cuda_reduce.reduce, "max"),
)
amin = opaque(
    "amin",
    lambda x, *, axes, keepdims: array_module(x).asarray(x.min(axes, keepdims=keepdims)),
    _extreme_vjp,
    reads=(0, "out"),
    samples=_samples,
    cuda=partial(cuda_reduce.reduce, "min"),
)


def _logsumexp_of_row(x):
    top = row_max(x)
    top = where(isfinite(top), top, 0)  # a row of -inf, or one with inf
    return log(row_sum(exp(x - top))) + top


def _logsumexp_term(g, y, x):
    return g * exp(x - y)


logsumexp_rows = RowFormula(_logsumexp_of_row, (ROW,), x=ELEMENT)
logsumexp_rows_vjp = RowFormula(lambda x, y, g: _logsumexp_term(g, y, x), x=ELEMENT, y=ROW, g=ROW)


def _logsumexp(x, *, axes, keepdims):
    shape = kept_shape(x.shape, axes)
    last = x.ndim - 1
    if axes != (last,):  # make one last axis of them
        kept = [] if axes is None else [k for k in range(x.ndim) if k not in axes]
        reduced = [k for k in range(x.ndim) if k not in kept]
        sizes = [x.shape[k] for k in kept]
        x = x.transpose(kept + reduced).reshape(*sizes, count(x.shape, reduced))
    out = logsumexp_rows(x)
    if keepdims:
        return out.reshape(shape)
    return out[..., 0] if out.ndim > 1 else out.reshape(())


def _logsumexp_vjp(g, out, x, *, axes, keepdims):
    g, out = (_keep(v, x, axes, keepdims) for v in (g, out))
    if axes == (len(x.shape) - 1,):
        return logsumexp_rows_vjp(x, out, g)
    return _logsumexp_term(g, out, x)


logsumexp = opaque("logsumexp", _logsumexp, _logsumexp_vjp, reads=(0, "out"), samples=_samples)

cumsum = linear(
    "cumsum",
    lambda x, *, axis: x.cumsum(axis),
    lambda g, x, *, axis: flip(cumsum(flip(g, axes=(axis,)), axis=axis), axes=(axis,)),
    samples=lambda r: [((r(3, 4),), {"axis": 1}), ((r(3),), {"axis": 0})],
)

# ---- no gradient: positions and truth


def _place(operation: str):
    def kernel(x, *, axis, keepdims):
        axes = None if axis is None else (axis,)
        return cuda_reduce.reduce(operation, x, axes, keepdims)

    return kernel


argmax = not_differentiable(
    "argmax",
    lambda x, *, axis, keepdims: array_module(x).asarray(x.argmax(axis, keepdims=keepdims)),
    cuda=_place("argmax"),
)
argmin = not_differentiable(
    "argmin",
    lambda x, *, axis, keepdims: array_module(x).asarray(x.argmin(axis, keepdims=keepdims)),
    cuda=_place("argmin"),
)
argsort = not_differentiable(
    "argsort", lambda x, *, axis: array_module(x).argsort(x, axis=axis, kind="stable")
)
any = not_differentiable(
    "any",
    lambda x, *, axes, keepdims: array_module(x).asarray((x != 0).any(axes, keepdims=keepdims)),
    cuda=partial(cuda_reduce.reduce, "any"),
)
all = not_differentiable(
    "all",
    lambda x, *, axes, keepdims: array_module(x).asarray((x != 0).all(axes, keepdims=keepdims)),
    cuda=partial(cuda_reduce.reduce, "all"),
)
