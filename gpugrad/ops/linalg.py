"""Products of matrices."""

from __future__ import annotations

from math import prod

from ..backend import cublas, epilogues
from ..backend.arrays import array_module, backend_of, is_cuda
from .core import bilinear, joint
from .shape import broadcast_to, permute, reshape, sum_to


def _matmul(a, b):
    """The array module's matmul; two matrices take the backend's shorter way."""
    if a.ndim == 2 and b.ndim == 2:
        return backend_of(a).dot(a, b)
    xp = array_module(a)
    if a.ndim < 2 or b.ndim < 2 or a.dtype != b.dtype:
        return xp.asarray(xp.matmul(a, b))
    batch = a.shape[:-2]
    if batch != b.shape[:-2]:
        batch = xp.broadcast_shapes(batch, b.shape[:-2])
    out = backend_of(a).empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    return xp.matmul(a, b, out=out)


def _swap(x):
    """The last two axes exchanged."""
    axes = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
    return permute(x, axes=axes)


def _column(x):
    return reshape(x, shape=(*x.shape, 1))


def _row(x):
    return reshape(x, shape=(*x.shape[:-1], 1, x.shape[-1]))


def _matrices(g, a, b):
    """The product as one of matrices: a vector on the left is a row, on the right a column."""
    if b.ndim == 1:
        g = _column(g)
    if a.ndim == 1:
        g = _row(g)
    return g


def _transpose_a(g, a, b):
    """d(a @ b) to a."""
    g = _matrices(g, a, b)
    b = _row(b) if b.ndim == 1 else _swap(b)
    return _as_operand(matmul(g, b), a, -2)


def _transpose_b(g, a, b):
    g = _matrices(g, a, b)
    a = _column(a) if a.ndim == 1 else _swap(a)
    return _as_operand(matmul(a, g), b, -1)


def _as_operand(product, x, added_axis):
    """Drop the axis a vector was given, and sum the batch axes that were broadcast."""
    if x.ndim == 1:
        shape = list(product.shape)
        del shape[added_axis]
        product = reshape(product, shape=tuple(shape))
    return product if product.shape == x.shape else sum_to(product, shape=x.shape)


matmul = bilinear(
    "matmul",
    _matmul,
    _transpose_a,
    _transpose_b,
    samples=lambda r: [
        ((r(2, 3), r(3, 4)), {}),
        ((r(5, 2, 3), r(3, 4)), {}),
        ((r(2, 3), r(5, 3, 4)), {}),
        ((r(5, 1, 2, 3), r(6, 3, 4)), {}),
        ((r(3), r(3)), {}),
        ((r(2, 3), r(3)), {}),
        ((r(3), r(3, 4)), {}),
        ((r(5, 2, 3), r(3)), {}),
        ((r(3), r(5, 3, 4)), {}),
    ],
    cuda=cublas.matmul,
)


# ---- products of a layer: rows of x (any leading axes) with a weight (out, in). Three bilinear
# operations that are each other's transposes; one product of matrices each, without a record or a
# view of the transposed weight.


def _rows(x):
    """All leading axes merged into one."""
    return x if x.ndim == 2 else backend_of(x).reshape(x, (prod(x.shape[:-1]), x.shape[-1]))


def _by_rows(x, matrix):
    out = backend_of(x).dot(_rows(x), matrix)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], matrix.shape[1])


def _linear_samples(r):
    return [
        ((r(2, 3), r(4, 3)), {}),
        ((r(3), r(4, 3)), {}),
        ((r(5, 2, 3), r(4, 3)), {}),
        ((r(2, 0, 3), r(4, 3)), {}),
    ]


def _linear(x, w):
    return _by_rows(x, w.T)


linear = bilinear(
    "linear",
    _linear,
    lambda g, x, w: linear_input(g, w),
    lambda g, x, w: linear_weight(g, x),
    samples=_linear_samples,
    cuda=cublas.linear,
)
linear_input = bilinear(
    "linear_input",
    _by_rows,
    lambda h, g, w: linear(h, w),
    lambda h, g, w: linear_weight(g, h),
    samples=lambda r: [((r(*_linear(x, w).shape), w), p) for (x, w), p in _linear_samples(r)],
    cuda=cublas.linear_input,
)
linear_weight = bilinear(
    "linear_weight",
    lambda g, x: backend_of(g).dot(_rows(g).T, _rows(x)),
    lambda h, g, x: linear(x, h),
    lambda h, g, x: linear_input(g, h),
    samples=lambda r: [((r(*_linear(x, w).shape), x), p) for (x, w), p in _linear_samples(r)],
    cuda=cublas.linear_weight,
)


def _affine(x, w, b):
    out = _linear(x, w)
    out += b
    return out


def _affine_gradients(needs, g, out, x, w, b):
    wanted_x, wanted_w, wanted_b = needs
    of_x = linear_input(g, w) if wanted_x else None
    if wanted_w and wanted_b and is_cuda(g) and is_cuda(x):
        found = epilogues.weight_and_bias(g, x)
        if found is not None:
            return (of_x, *found)
    of_w = linear_weight(g, x) if wanted_w else None
    return of_x, of_w, sum_to(g, shape=b.shape) if wanted_b else None


# x @ w.T + b: the bias is added in the memory of the product, and one record does for both
affine = joint(
    "affine",
    _affine,
    _affine_gradients,
    arguments=3,
    reads=((1,), (0,), ()),
    samples=lambda r: [
        ((r(2, 3), r(4, 3), r(4)), {}),
        ((r(3), r(4, 3), r(4)), {}),
        ((r(5, 2, 3), r(4, 3), r(4)), {}),
    ],
    cuda=epilogues.affine,
)
affine.transparent = True


def _einsum(a, b, *, subscripts):
    """Two operands; ``subscripts`` is (indices of a, of b, of the result), none repeated within an
    operand."""
    of_a, of_b, of_out = subscripts
    return array_module(a).einsum(f"{of_a},{of_b}->{of_out}", a, b, optimize=True)


def _einsum_as_matmul(a, b, *, subscripts):
    """The same as a product of batches of matrices, which can be captured; None where an operand
    has an index of its own that is summed."""
    of_a, of_b, of_out = subscripts
    if any(c not in of_out and (c in of_a) != (c in of_b) for c in of_a + of_b):
        return None
    batch = [c for c in of_a if c in of_b and c in of_out]
    inner = [c for c in of_a if c in of_b and c not in of_out]
    rows = [c for c in of_a if c not in of_b]
    columns = [c for c in of_b if c not in of_a]
    product = cublas.matmul(
        _as_matrices(a, of_a, batch, rows, inner), _as_matrices(b, of_b, batch, inner, columns)
    )
    if product is None:
        return None
    sizes = dict(zip(of_a + of_b, a.shape + b.shape, strict=True))
    found = [*batch, *rows, *columns]
    product = product.reshape([sizes[c] for c in found])
    return product.transpose([found.index(c) for c in of_out])


def _as_matrices(x, letters, batch, rows, columns):
    """Axes in the order batch, rows, columns, the last two groups merged to one axis each."""
    sizes = dict(zip(letters, x.shape, strict=True))
    ordered = x.transpose([letters.index(c) for c in (*batch, *rows, *columns)])
    merged = (prod(sizes[c] for c in rows), prod(sizes[c] for c in columns))
    return ordered.reshape([sizes[c] for c in batch] + list(merged))


def _einsum_transpose(position):
    def transpose(g, a, b, *, subscripts):
        mine, other = subscripts[position], subscripts[1 - position]
        x, y = (a, b) if position == 0 else (b, a)
        # Indices only this operand has were summed: their cotangent is constant along them.
        reached = "".join(i for i in mine if i in other or i in subscripts[2])
        part = einsum2(g, y, subscripts=(subscripts[2], other, reached))
        if reached == mine:
            return part
        shape = tuple(n if i in reached else 1 for i, n in zip(mine, x.shape, strict=True))
        return broadcast_to(reshape(part, shape=shape), shape=x.shape)

    return transpose


einsum2 = bilinear(
    "einsum2",
    _einsum,
    _einsum_transpose(0),
    _einsum_transpose(1),
    samples=lambda r: [
        ((r(2, 3), r(3, 4)), {"subscripts": ("ij", "jk", "ki")}),
        ((r(5, 2, 3), r(5, 3, 2)), {"subscripts": ("bij", "bji", "b")}),
        ((r(2, 3), r(4)), {"subscripts": ("ij", "k", "ik")}),
    ],
    cuda=_einsum_as_matmul,
)
