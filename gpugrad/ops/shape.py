"""Operations that move values without computing: views, joins, padding, casts. All linear."""

from __future__ import annotations

from ..backend.arrays import array_module, backend_of
from ..codegen import cuda_reduce
from ..codegen import sums as native
from .core import linear

# ---- views. The results share memory with the argument wherever NumPy allows it.

alias = linear("alias", lambda x: x[...], lambda g, x: g, samples=lambda r: [((r(2, 3),), {})])
reshape = linear(
    "reshape",
    lambda x, *, shape: backend_of(x).reshape(x, shape),
    lambda g, x, *, shape: reshape(g, shape=x.shape),
    samples=lambda r: [
        ((r(2, 3),), {"shape": (3, 2)}),
        ((r(4),), {"shape": (2, 2, 1)}),
        ((r(),), {"shape": (1,)}),
    ],
)
permute = linear(
    "permute",
    lambda x, *, axes: x.transpose(axes),
    lambda g, x, *, axes: permute(g, axes=_inverse(axes)),
    samples=lambda r: [((r(2, 3, 4),), {"axes": (2, 0, 1)}), ((r(2, 3),), {"axes": (1, 0)})],
)


def _inverse(axes) -> tuple:
    inverse = [0] * len(axes)
    for position, axis in enumerate(axes):
        inverse[axis] = position
    return tuple(inverse)


broadcast_to = linear(
    "broadcast_to",
    lambda x, *, shape: backend_of(x).broadcast_to(x, shape),
    lambda g, x, *, shape: sum_to(g, shape=x.shape),
    samples=lambda r: [
        ((r(3, 1),), {"shape": (2, 3, 4)}),
        ((r(),), {"shape": (2,)}),
        ((r(1),), {"shape": (1,)}),
    ],
)


spread = linear(
    "spread",
    lambda x, *, shape: backend_of(x).spread(x, shape),
    lambda g, x, *, shape: sum_to(g, shape=x.shape),
    samples=lambda r: [((r(3, 1),), {"shape": (2, 3, 4)}), ((r(),), {"shape": (2,)})],
)


def _sum_to(x, *, shape):
    """Sum the axes that broadcasting ``shape`` to ``x.shape`` added or stretched."""
    old = x.shape
    if old == shape:
        return x
    override = native.sum_to(x, shape)
    if override is not None:
        return override
    lead = len(old) - len(shape)
    if lead and old[lead:] == shape:
        return backend_of(x).sum_leading(x, lead)
    axes = list(range(lead))
    for axis, n in enumerate(shape, lead):
        if n == 1 and old[axis] != 1:
            axes.append(axis)
    return array_module(x).add.reduce(x, axis=tuple(axes), keepdims=True).reshape(shape)


sum_to = linear(
    "sum_to",
    _sum_to,
    lambda g, x, *, shape: broadcast_to(g, shape=x.shape),
    samples=lambda r: [((r(2, 3, 4),), {"shape": (3, 1)}), ((r(2, 3),), {"shape": ()})],
    cuda=cuda_reduce.sum_to,
)
flip = linear(
    "flip",
    lambda x, *, axes: array_module(x).flip(x, axes).copy(),
    lambda g, x, *, axes: flip(g, axes=axes),
    samples=lambda r: [((r(2, 3),), {"axes": (0, 1)}), ((r(2, 3),), {"axes": (1,)})],
)
roll = linear(
    "roll",
    lambda x, *, shifts, axes: array_module(x).roll(x, shifts, axes),
    lambda g, x, *, shifts, axes: roll(g, shifts=tuple(-s for s in shifts), axes=axes),
    samples=lambda r: [((r(4, 3),), {"shifts": (1, -2), "axes": (0, 1)})],
)


def _diagonal(x, *, offset, axis1, axis2):
    view = array_module(x).diagonal(x, offset, axis1, axis2)
    if hasattr(view.flags, "writeable"):  # NumPy's is read-only out of caution, torch's is not
        view.flags.writeable = x.flags.writeable
    return view


diagonal = linear(
    "diagonal",
    _diagonal,
    lambda g, x, *, offset, axis1, axis2: diagonal_scatter(
        g, shape=x.shape, offset=offset, axis1=axis1, axis2=axis2
    ),
    samples=lambda r: [((r(3, 4),), {"offset": 1, "axis1": 0, "axis2": 1})],
)


def _diagonal_scatter(g, *, shape, offset, axis1, axis2):
    xp = array_module(g)
    out = xp.zeros(shape, g.dtype)
    view = xp.moveaxis(out, (axis1, axis2), (-2, -1))
    rows = xp.arange(g.shape[-1]) + max(-offset, 0)
    view[..., rows, rows + offset] = g
    return out


diagonal_scatter = linear(
    "diagonal_scatter",
    _diagonal_scatter,
    lambda g, x, *, shape, offset, axis1, axis2: diagonal(
        g, offset=offset, axis1=axis1, axis2=axis2
    ),
    samples=lambda r: [((r(3),), {"shape": (3, 4), "offset": 1, "axis1": 0, "axis2": 1})],
)

# ---- slices: basic indexing, which is a view, and its transpose

getslice = linear(
    "getslice",
    # The ellipsis makes x[0] of a vector a 0-d view; without it NumPy returns a scalar.
    lambda x, *, index: x[index] if Ellipsis in index else x[(*index, Ellipsis)],
    lambda g, x, *, index: putslice(g, shape=x.shape, index=index),
    samples=lambda r: [
        ((r(4, 5),), {"index": (slice(1, 4, 2), slice(None, None, -1))}),
        ((r(4, 5),), {"index": (2, None, Ellipsis)}),
    ],
)


def _putslice(g, *, shape, index):
    out = backend_of(g).zeros(shape, g.dtype)
    out[index] = g
    return out


putslice = linear(
    "putslice",
    _putslice,
    lambda g, x, *, shape, index: getslice(g, index=index),
    samples=lambda r: [((r(2, 5),), {"shape": (4, 5), "index": (slice(0, 4, 2),)})],
)
for _op in (alias, reshape, permute, broadcast_to, diagonal, getslice):
    _op.is_view = True
for _op in (spread, flip, roll, putslice, diagonal_scatter):
    _op.moves = True

# ---- joins and padding


def _split_like(g, xs, axis):
    start, parts = 0, []
    for x in xs:
        stop = start + x.shape[axis]
        parts.append(getslice(g, index=(slice(None),) * axis + (slice(start, stop),)))
        start = stop
    return parts


cat = linear(
    "cat",
    lambda *xs, axis: array_module(xs[0]).concatenate(xs, axis),
    lambda g, *xs, axis: _split_like(g, xs, axis),
    linear_args=None,
    samples=lambda r: [((r(2, 3), r(2, 1)), {"axis": 1}), ((r(1), r(2), r(3)), {"axis": 0})],
)


def _pad(x, *, widths):
    """Zero padding; ``widths`` is ((before, after), ...) and negative widths crop."""
    grow = [(max(b, 0), max(a, 0)) for b, a in widths]
    shape = tuple(n + b + a for n, (b, a) in zip(x.shape, grow, strict=True))
    out = backend_of(x).zeros(shape, x.dtype)
    out[tuple(slice(b, b + n) for n, (b, _) in zip(x.shape, grow, strict=True))] = x
    crop = tuple(slice(max(-b, 0), n - max(-a, 0)) for n, (b, a) in zip(shape, widths, strict=True))
    return out[crop]


pad = linear(
    "pad",
    _pad,
    lambda g, x, *, widths: pad(g, widths=tuple((-b, -a) for b, a in widths)),
    samples=lambda r: [
        ((r(2, 3),), {"widths": ((1, 0), (2, 1))}),
        ((r(4, 4),), {"widths": ((-1, 2), (0, -1))}),
    ],
)

# ---- triangles and casts


triu = linear(
    "triu",
    lambda x, *, offset: array_module(x).triu(x, offset),
    lambda g, x, *, offset: triu(g, offset=offset),
    samples=lambda r: [((r(3, 4),), {"offset": 1}), ((r(2, 3, 3),), {"offset": -1})],
)
tril = linear(
    "tril",
    lambda x, *, offset: array_module(x).tril(x, offset),
    lambda g, x, *, offset: tril(g, offset=offset),
    samples=lambda r: [((r(3, 4),), {"offset": 1}), ((r(2, 3, 3),), {"offset": -1})],
)
cast = linear(
    "cast",
    lambda x, *, dtype: x.astype(dtype),
    lambda g, x, *, dtype: cast(g, dtype=x.dtype),
    samples=lambda r: [((r(2, 3),), {"dtype": r(1).dtype})],
)
for _op in (cat, pad, cast):
    _op.moves = True
