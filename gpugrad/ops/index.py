"""Reading and writing by index arrays. Index arrays are positional arguments without gradient."""

from __future__ import annotations

from ..backend.arrays import array_module, backend_of, is_array
from ..backend.numpy import xp as np
from ..codegen import cuda_index
from ..codegen.cuda_index import HOLE as HOLE
from .core import linear, not_differentiable, opaque
from .elementwise import ne, where
from .shape import reshape, sum_to


def _fill(pattern, indices) -> tuple:
    remaining = iter(indices)
    return tuple(next(remaining) if part is HOLE else part for part in pattern)


def _take_samples(r):
    i, j = r.integers(4, 2, 3), r.integers(5, 3)
    return [
        ((r(4, 5), i), {"pattern": (HOLE,)}),
        ((r(4, 5), i, j), {"pattern": (HOLE, HOLE)}),
        ((r(4, 2, 5), r.integers(4, 3), j), {"pattern": (HOLE, slice(None), HOLE)}),
        ((r(4, 5), r(4, 5) > 0), {"pattern": (HOLE,)}),
    ]


def _take(x, *indices, pattern):
    if pattern == (HOLE,) and indices[0].dtype.kind in "iu":
        return backend_of(x).take_rows(x, indices[0])
    return x[_fill(pattern, indices)]


take = linear(
    "take",
    _take,
    lambda g, x, *indices, pattern: put_add(g, *indices, pattern=pattern, shape=x.shape),
    samples=_take_samples,
    cuda=cuda_index.take,
)
take.shaped_by_values = lambda x, *indices: any(i.dtype.kind == "b" for i in indices)


def _put_add(g, *indices, pattern, shape):
    """Zeros with ``g`` added at an index; repeated positions add up."""
    xp = array_module(g)
    if pattern == (HOLE,) and indices[0].dtype.kind in "iu" and len(shape) > 1:
        return _add_rows(g, indices[0], shape, xp)
    out = backend_of(g).zeros(shape, g.dtype)
    xp.add.at(out, _fill(pattern, indices), g)
    return out


def _add_rows(g, rows, shape, xp):
    """Sum rows of ``g`` into a table, in the order of their positions (deterministic)."""
    out = backend_of(g).zeros(shape, g.dtype)
    flat = rows.reshape(-1) % shape[0] if shape[0] else rows.reshape(-1)
    if not flat.size:
        return out
    order = xp.argsort(flat, kind="stable")
    ordered = flat[order]
    first = xp.concatenate([xp.ones(1, bool), ordered[1:] != ordered[:-1]])
    starts = xp.flatnonzero(first)
    table, values = out.reshape(shape[0], -1), g.reshape(flat.size, -1)
    if starts.size == flat.size:
        table[flat] = values
    elif xp.__name__ == "numpy":
        _add_rounds(table, values, flat, order, first, starts, xp)
    else:
        table[ordered[starts]] = _segment_sums(values[order], starts, xp)
    return out


def _add_rounds(table, values, flat, order, first, starts, xp):
    """Round k adds the k-th occurrence of every row; ``add.reduceat`` costs 7 ns an element, a
    round 1 ns. Rows that occur very often are left to it."""
    occurrence = xp.arange(flat.size) - starts[xp.cumsum(first) - 1]
    rounds = min(int(occurrence.max()) + 1, 64)
    for k in range(rounds):
        chosen = order[occurrence == k]
        if k:
            table[flat[chosen]] += values[chosen]
        else:
            table[flat[chosen]] = values[chosen]
    rest = occurrence >= rounds
    if rest.any():
        chosen = order[rest]
        rows = flat[chosen]
        begins = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), rows[1:] != rows[:-1]]))
        table[rows[begins]] += xp.add.reduceat(values[chosen], begins, axis=0)


def _segment_sums(values, starts, xp):
    """Sums of consecutive rows. CuPy has no reduceat: differences of a cumulative sum in float64
    keep the precision of float32 sums."""
    ends = xp.concatenate([starts[1:], xp.asarray([values.shape[0]])])
    running = xp.cumsum(values.astype(xp.float64), axis=0)
    sums = running[ends - 1]
    sums[1:] -= running[starts[1:] - 1]
    return sums.astype(values.dtype)


put_add = linear(
    "put_add",
    _put_add,
    lambda g, x, *indices, pattern, shape: take(g, *indices, pattern=pattern),
    samples=lambda r: [
        ((r(2, 3, 5), r.integers(4, 2, 3)), {"pattern": (HOLE,), "shape": (4, 5)}),
        ((r(3), r.integers(4, 3), r.integers(5, 3)), {"pattern": (HOLE, HOLE), "shape": (4, 5)}),
    ],
    cuda=cuda_index.put_add,
)

# ---- rows of a table, one of which may have no gradient


def _embedding_add(g, index, *, shape, padding):
    """Zeros with the rows of ``g`` added at an index; nothing is added to row ``padding``."""
    out = _add_rows(g, index, shape, array_module(g))
    if padding is not None:
        out[padding] = 0
    return out


def _embedding_add_transpose(h, g, index, *, shape, padding):
    rows = take(h, index, pattern=(HOLE,))
    if padding is None:
        return rows
    kept = reshape(ne(index, padding), shape=(*index.shape, 1))
    return where(kept, rows, 0.0)


embedding_add = linear(
    "embedding_add",
    _embedding_add,
    _embedding_add_transpose,
    samples=lambda r: [
        ((r(2, 3, 5), r.integers(4, 2, 3)), {"shape": (4, 5), "padding": None}),
        ((r(7, 5), r.integers(4, 7)), {"shape": (4, 5), "padding": 1}),
    ],
    cuda=cuda_index.embedding_add,
)
embedding = opaque(
    "embedding",
    lambda weight, index, *, padding: backend_of(weight).take_rows(weight, index),
    lambda g, out, weight, index, *, padding: embedding_add(
        g, index, shape=weight.shape, padding=padding
    ),
    reads=(),
    samples=lambda r: [
        ((r(4, 5), r.integers(4, 2, 3)), {"padding": None}),
        ((r(4, 5), r.integers(3, 7)), {"padding": 3}),  # which changes no gradient
    ],
    cuda=cuda_index.embedding,
)
embedding.transparent = True


def _put(x, v, *indices, pattern):
    out = x.copy()
    out[_fill(pattern, indices)] = v
    return out


def _put_transpose(g, x, v, *indices, pattern):
    """The written positions get no gradient; the value gets what they would have got."""
    xp = array_module(getattr(g, "array", g))
    kept = put(xp.ones(x.shape, bool), xp.zeros((), bool), *indices, pattern=pattern)
    return where(kept, g, 0.0), sum_to(take(g, *indices, pattern=pattern), shape=v.shape)


def _put_samples(r):
    return [
        ((r(4, 5), r(2, 5), r.permutation(4)[:2]), {"pattern": (HOLE,)}),
        ((r(4, 5), r()), {"pattern": (slice(1, 3), 2)}),
        ((r(4, 5), r(5)), {"pattern": (slice(0, 4, 2),)}),
        ((r(4, 5), r(), r(4, 5) > 0), {"pattern": (HOLE,)}),
    ]


check_range = cuda_index.check_range


def assign(array, value, indices, pattern) -> None:
    """``array[pattern filled with indices] = value``; of values at one position the last stays."""
    on_cuda = array.__class__ is not np.ndarray and indices and is_array(value)
    if not on_cuda or not cuda_index.assign(array, value, indices, pattern):
        array[_fill(pattern, indices)] = value


put = linear("put", _put, _put_transpose, linear_args=2, samples=_put_samples, cuda=cuda_index.put)


def _grid(index, axis, xp):
    """Index arrays that address ``index`` along ``axis`` and run along the other axes."""
    parts = []
    for k, n in enumerate(index.shape):
        if k == axis:
            parts.append(index)
        else:
            parts.append(xp.arange(n).reshape([-1 if i == k else 1 for i in range(index.ndim)]))
    return tuple(parts)


gather = linear(
    "gather",
    lambda x, index, *, axis: x[_grid(index, axis, array_module(x))],
    lambda g, x, index, *, axis: scatter_add(g, index, axis=axis, shape=x.shape),
    samples=lambda r: [
        ((r(3, 4), r.integers(4, 3, 2)), {"axis": 1}),
        ((r(3, 4), r.integers(3, 2, 4)), {"axis": 0}),
    ],
    cuda=cuda_index.gather,
)


def _scatter_add(g, index, *, axis, shape):
    xp = array_module(g)
    out = xp.zeros(shape, g.dtype)
    place = _grid(index, axis, xp)
    if index.shape[axis] == 1:  # one position per row: nothing can repeat
        out[place] = g
    else:
        xp.add.at(out, place, g)
    return out


scatter_add = linear(
    "scatter_add",
    _scatter_add,
    lambda g, x, index, *, axis, shape: gather(g, index, axis=axis),
    samples=lambda r: [
        ((r(3, 2), r.integers(4, 3, 2)), {"axis": 1, "shape": (3, 4)}),
        ((r(3, 1), r.integers(4, 3, 1)), {"axis": 1, "shape": (3, 4)}),
    ],
    cuda=cuda_index.scatter_add,
)


def _places(index, axis, xp):
    """Index arrays that address one element along ``axis`` for every position of ``index``."""
    parts = [
        xp.arange(n).reshape([-1 if i == k else 1 for i in range(index.ndim)])
        for k, n in enumerate(index.shape)
    ]
    return (*parts[:axis], index, *parts[axis:])


def _pick(x, index, scale, *, axis, total):
    """``scale * x[..., index, ...]``: one element along ``axis`` per position; ``total`` sums
    them."""
    xp = array_module(x)
    picked = x[_places(index, axis, xp)] * scale
    return xp.asarray(xp.add.reduce(picked, axis=None)) if total else picked


def _unpick(g, index, scale, *, shape, axis, total):
    xp = array_module(g)
    out = backend_of(g).zeros(shape, g.dtype)
    out[_places(index, axis, xp)] = g * scale
    return out


def _pick_samples(r):
    return [
        ((r(3, 4), r.integers(4, 3), r(3)), {"axis": 1, "total": False}),
        ((r(3, 4, 2), r.integers(4, 3, 2), r(3, 2)), {"axis": 1, "total": True}),
        ((r(3, 4), r.integers(4, 3), -0.5), {"axis": 1, "total": True}),
    ]


def _unpick_samples(r):
    return [
        ((r() if p["total"] else r(*index.shape), index, scale), {**p, "shape": x.shape})
        for (x, index, scale), p in _pick_samples(r)
    ]


pick = linear(
    "pick",
    _pick,
    lambda g, x, index, scale, **p: unpick(g, index, scale, shape=x.shape, **p),
    samples=_pick_samples,
    cuda=cuda_index.pick,
)
unpick = linear(
    "unpick",
    _unpick,
    lambda h, g, index, scale, *, shape, **p: pick(h, index, scale, **p),
    samples=_unpick_samples,
    cuda=cuda_index.unpick,
)
nonzero = not_differentiable("nonzero", lambda x: array_module(x).argwhere(x))
nonzero.shaped_by_values = lambda x: True
