"""Convolution as matrix products of large blocks, for any array module.

An output row is cut into tiles of ``T`` columns. All inputs a tile sees, ``(T-1)*stride +
(k-1)*dilation + 1`` columns of ``k`` rows of every channel, are gathered into one row of a matrix,
and the weights are spread into a banded matrix that produces the ``T`` outputs of every channel at
once:

    Y[(n, i, t), (o, j)] = sum over (c, ki, u) of  A[(n, i, t), (c, ki, u)] * B[(c, ki, u), (o, j)]
    A[(n, i, t), (c, ki, u)] = x[n, c, i*stride + ki*dilation, t*T*stride + u]
    B[(c, ki, j*stride + kj*dilation), (o, j)] = w[o, c, ki, kj]

``T = 1`` is the well-known im2col. Larger tiles multiply by zeros (a factor u/k more arithmetic)
but gather far fewer
and longer runs, which pays while channels are few: on the first layer of LeNet, a whole row per
tile. The tile is chosen
by a cost estimate. Both gradients are products of the same two matrices.

Where LLVM is there, ``codegen/convolution.py`` is asked first; the functions here are its
reference.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend.arrays import array_module, backend_of
from ..codegen import convolution as native

# Costs in nanoseconds, fitted on two cores of an AVX2 machine; only their ratios matter.
_FLOP = 1 / 120  # one multiply-add counts two
_ELEMENT = 0.4  # copying one element
_RUN = 12.0  # starting one contiguous run of a strided copy


class Plan(NamedTuple):
    """Sizes of one convolution, per group."""

    batch: int
    groups: int
    channels: int  # input channels per group
    filters: int  # output channels per group
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    out: tuple[int, int]
    padded: tuple[int, int]
    tile: int
    tiles: int
    span: int  # input columns a tile sees

    @property
    def rows(self) -> int:
        return self.batch * self.out[0] * self.tiles

    @property
    def depth(self) -> int:
        return self.channels * self.kernel[0] * self.span


def output_shape(x_shape, w_shape, *, stride, padding, dilation, groups) -> tuple:
    """Shape of the result of a convolution."""
    size = tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x_shape[2:], padding, dilation, w_shape[2:], stride, strict=True)
    )
    return (x_shape[0], w_shape[0], *size)


_plans: dict[tuple, Plan] = {}


def plan(x_shape, w_shape, stride, padding, dilation, groups) -> Plan:
    """The sizes and the tile of a convolution; remembered per shape."""
    key = (x_shape, w_shape, stride, padding, dilation, groups)
    found = _plans.get(key)
    if found is None:
        if len(_plans) > 4096:
            _plans.clear()
        found = _plans[key] = _make_plan(*key)
    return found


def _make_plan(x_shape, w_shape, stride, padding, dilation, groups) -> Plan:
    out = output_shape(
        x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )[2:]
    candidates = {1, 2, 4, 6, 8, 12, 16, out[1]}
    sizes = (
        x_shape[0],
        groups,
        w_shape[1],
        w_shape[0] // groups,
        w_shape[2:],
        stride,
        dilation,
        out,
    )
    plans = []
    for tile in sorted(t for t in candidates if 1 <= t <= out[1]):
        tiles = -(-out[1] // tile)
        span = (tile - 1) * stride[1] + (w_shape[3] - 1) * dilation[1] + 1
        height = x_shape[2] + sum(padding[0])
        width = max(x_shape[3] + sum(padding[1]), (tiles - 1) * tile * stride[1] + span)
        plans.append(Plan(*sizes, (height, width), tile, tiles, span))
    return min(plans, key=_cost)


def _cost(p: Plan) -> float:
    """Estimated nanoseconds of gathering, multiplying and writing the result in order."""
    gathered = p.groups * p.rows * p.depth
    whole_rows = p.span == p.padded[1] and p.dilation[0] == 1
    run = p.span * p.kernel[0] if whole_rows else p.span
    flops = 2 * gathered * p.filters * p.tile
    written = p.groups * p.rows * p.filters * p.tile
    return flops * _FLOP + gathered * (_ELEMENT + _RUN / run) + written * (_ELEMENT + _RUN / p.tile)


def _pad(x, p: Plan, padding):
    """The image with its zero border, and the columns that complete the last tile."""
    if x.shape[2:] == p.padded:
        return x
    out = array_module(x).zeros((*x.shape[:2], *p.padded), x.dtype)
    (top, _), (left, _) = padding
    out[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    return out


def _gather(x, p: Plan, padding):
    """Matrix A, ``(groups, rows, depth)``."""
    x = _pad(x, p, padding)
    xp = array_module(x)
    sn, sc, sh, sw = x.strides
    view = xp.lib.stride_tricks.as_strided(
        x,
        (p.groups, p.batch, p.out[0], p.tiles, p.channels, p.kernel[0], p.span),
        (
            p.channels * sc,
            sn,
            p.stride[0] * sh,
            p.tile * p.stride[1] * sw,
            sc,
            p.dilation[0] * sh,
            sw,
        ),
    )
    out = backend_of(x).empty(view.shape, x.dtype)
    out[...] = view
    return out.reshape(p.groups, p.rows, p.depth)


def _band(b, p: Plan):
    """The elements of matrix B that hold weights, as (groups, channels, kh, kw, filters, tile); a
    view."""
    xp = array_module(b)
    b = b.reshape(p.groups, p.channels, p.kernel[0], p.span, p.filters, p.tile)
    sg, sc, sk, su, so, sj = b.strides
    return xp.lib.stride_tricks.as_strided(
        b,
        (p.groups, p.channels, *p.kernel, p.filters, p.tile),
        (sg, sc, sk, p.dilation[1] * su, so, p.stride[1] * su + sj),
    )


def _spread(w, p: Plan):
    """Matrix B, ``(groups, depth, filters * tile)``."""
    b = array_module(w).zeros((p.groups, p.depth, p.filters * p.tile), w.dtype)
    by_group = w.reshape(p.groups, p.filters, p.channels, *p.kernel)
    _band(b, p)[...] = by_group.transpose(0, 2, 3, 4, 1)[..., None]
    return b


def _to_rows(g, p: Plan):
    """A cotangent of the result as matrix Y, ``(groups, rows, filters * tile)``."""
    xp = array_module(g)
    shape = (p.groups, p.batch, p.out[0], p.tiles, p.filters, p.tile)
    if p.tiles * p.tile != p.out[1]:
        wide = xp.zeros((*g.shape[:3], p.tiles * p.tile), g.dtype)
        wide[..., : p.out[1]] = g
        g = wide
    by_tile = g.reshape(p.batch, p.groups, p.filters, p.out[0], p.tiles, p.tile)
    out = backend_of(g).empty(shape, g.dtype)
    out[...] = by_tile.transpose(1, 0, 3, 4, 2, 5)
    return out.reshape(p.groups, p.rows, p.filters * p.tile)


def _product(a, b):
    """A batched product over groups; one group takes the plain BLAS call."""
    if a.shape[0] > 1:
        return array_module(a).matmul(a, b)
    out = backend_of(a).empty((1, a.shape[1], b.shape[2]), a.dtype)
    array_module(a).matmul(a[0], b[0], out=out[0])
    return out


def _pointwise(p: Plan, shape) -> bool:
    """Whether every output pixel sees one input pixel, in images large enough for a product each:
    on (4, 64, 56, 56) to 256 channels that takes a fifth of the time of gathering."""
    return p.kernel == (1, 1) and p.out == shape[2:] and p.out[0] * p.out[1] >= _PIXELS


_PIXELS = 32


def _by_pixel(x, p: Plan):
    """Images as matrices ``(batch, groups, channels, pixels)``."""
    return x.reshape(p.batch, p.groups, -1, p.out[0] * p.out[1])


def _by_group(w, p: Plan):
    return w.reshape(p.groups, p.filters, p.channels)


def _matmul(a, b):
    """A product per image and group."""
    xp = array_module(a)
    shape = (b.shape[0], a.shape[-3], a.shape[-2], b.shape[-1])
    return xp.matmul(a, b, out=backend_of(a).empty(shape, a.dtype))


def forward(x, w, *, stride, padding, dilation, groups):
    """Cross-correlation of ``x`` (N, C, H, W) with ``w`` (O, C/groups, kh, kw)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    override = native.forward(x, w, **options)
    if override is not None:
        return override
    p = plan(x.shape, w.shape, stride, padding, dilation, groups)
    if _pointwise(p, x.shape):
        return _matmul(_by_group(w, p), _by_pixel(x, p)).reshape(p.batch, -1, *p.out)
    y = _product(_gather(x, p, padding), _spread(w, p))
    y = y.reshape(p.groups, p.batch, p.out[0], p.tiles, p.filters, p.tile).transpose(
        1, 0, 4, 2, 3, 5
    )
    out = backend_of(x).empty((p.batch, p.groups * p.filters, p.out[0], p.tiles * p.tile), x.dtype)
    out.reshape(y.shape)[...] = y
    return out if p.tiles * p.tile == p.out[1] else out[..., : p.out[1]].copy()


def weight_gradient(g, x, *, shape, stride, padding, dilation, groups):
    """Cotangent of the weights from that of the result and the input."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    override = native.weight_gradient(g, x, shape=shape, **options)
    if override is not None:
        return override
    p = plan(x.shape, shape, stride, padding, dilation, groups)
    if _pointwise(p, x.shape):
        products = _matmul(_by_pixel(g, p), _by_pixel(x, p).swapaxes(-1, -2))
        return array_module(g).add.reduce(products, axis=0).reshape(shape)
    a = _gather(x, p, padding)
    gb = _product(a.transpose(0, 2, 1), _to_rows(g, p))
    gw = _band(gb, p).sum(-1)  # (groups, channels, kh, kw, filters)
    return array_module(g).ascontiguousarray(gw.transpose(0, 4, 1, 2, 3)).reshape(shape)


def input_gradient(g, w, *, shape, stride, padding, dilation, groups):
    """Cotangent of the input from that of the result and the weights."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    override = native.input_gradient(g, w, shape=shape, **options)
    if override is not None:
        return override
    p = plan(shape, w.shape, stride, padding, dilation, groups)
    if _pointwise(p, shape):
        return _matmul(_by_group(w, p).swapaxes(-1, -2), _by_pixel(g, p)).reshape(shape)
    ga = _product(_to_rows(g, p), _spread(w, p).transpose(0, 2, 1))
    ga = ga.reshape(p.groups, p.batch, p.out[0], p.tiles, p.channels, p.kernel[0], p.span)
    ga = ga.transpose(1, 0, 4, 5, 2, 3, 6)  # batch, groups, channels, kh, rows, tiles, span
    step = p.span if p.tiles == 1 else p.tile * p.stride[1]  # columns from one tile to the next
    pieces = -(-p.span // step)
    xp = array_module(g)
    gx = xp.zeros((p.batch, p.groups, p.channels, p.padded[0], p.tiles + pieces - 1, step), g.dtype)
    for ki in range(p.kernel[0]):
        first = ki * p.dilation[0]
        rows = slice(first, first + (p.out[0] - 1) * p.stride[0] + 1, p.stride[0])
        for piece in range(pieces):
            width = min(step, p.span - piece * step)
            target = gx[:, :, :, rows, piece : piece + p.tiles, :width]
            target += ga[:, :, :, ki, :, :, piece * step : piece * step + width]
    columns = (p.tiles + pieces - 1) * step
    gx = gx.reshape(p.batch, p.groups * p.channels, p.padded[0], columns)
    (top, _), (left, _) = padding
    return _crop(gx, shape, top, left, xp)


def _crop(gx, shape, top, left, xp):
    """The part of the padded image that is the image; columns no window reaches have gradient 0."""
    height, width = shape[2:]
    missing = left + width - gx.shape[3]
    if missing > 0:
        wider = xp.zeros((*gx.shape[:3], left + width), gx.dtype)
        wider[..., : gx.shape[3]] = gx
        gx = wider
    part = gx[:, :, top : top + height, left : left + width]
    return part if part.shape == gx.shape else xp.ascontiguousarray(part)
