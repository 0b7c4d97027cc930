"""Operations of neural networks that are not worth composing: softmax, norms, convolution,
pooling."""

from __future__ import annotations

from functools import cache

from ..backend.arrays import array_module, backend_of, is_cuda
from ..codegen import cuda_batch_norm, cuda_convolution, cuda_pooling
from ..codegen import pooling as native
from ..config import modes
from . import convolution, reduce
from .core import bilinear, joint, linear, not_differentiable, opaque
from .elementwise import eq, exp, ge, log, ne, rsqrt, square, sub, where
from .index import pick
from .rows import (
    COLUMN,
    ELEMENT,
    HOLE,
    INDEX,
    NUMBER,
    ROW,
    TOTAL,
    RowFormula,
    along,
    position,
    row_max,
    row_mean,
    row_sum,
)
from .shape import cast, reshape

# ---- softmax: formulas over rows, which the axis is moved to


def _softmax(x):
    e = exp(x - row_max(x))
    return e / row_sum(e)


def _log_softmax(x):
    centred = x - row_max(x)
    return centred - log(row_sum(exp(centred)))


softmax_rows = RowFormula(_softmax, x=ELEMENT)
softmax_rows_vjp = RowFormula(lambda g, y: y * (g - row_sum(g * y)), g=ELEMENT, y=ELEMENT)
log_softmax_rows = RowFormula(_log_softmax, x=ELEMENT)
log_softmax_rows_vjp = RowFormula(lambda g, y: g - exp(y) * row_sum(g), g=ELEMENT, y=ELEMENT)


def _axis_samples(r):
    return [((r(3, 4),), {"axis": 1}), ((r(2, 3, 4),), {"axis": 0}), ((r(5),), {"axis": 0})]


softmax = opaque(
    "softmax",
    lambda x, *, axis: along(softmax_rows, axis, x),
    lambda g, y, x, *, axis: along(softmax_rows_vjp, axis, g, y),
    reads=("out",),
    samples=_axis_samples,
)
log_softmax = opaque(
    "log_softmax",
    lambda x, *, axis: along(log_softmax_rows, axis, x),
    lambda g, y, x, *, axis: along(log_softmax_rows_vjp, axis, g, y),
    reads=("out",),
    samples=_axis_samples,
)

# ---- negative log-likelihood of class indices: log_softmax and pick in one pass each way


def _log_probability(x, value):
    """Of a logit, or of the mean of several, in a row of logits."""
    top = row_max(x)
    return value - top - log(row_sum(exp(x - top)))


def _nll(x, target, scale):
    return scale * _log_probability(x, row_sum(where(eq(position, target), x, 0)))


def _nll_vjp(wanted, probabilities, factor):
    return factor * sub(wanted, probabilities)  # of CuPy arrays, too, ``-`` knows no tensors


def _nll_rows_vjp(x, target, g, scale):
    return _nll_vjp(eq(position, target), _softmax(x), g * scale)


_nll_inputs = {"x": ELEMENT, "target": INDEX, "scale": NUMBER}
nll_total = RowFormula(_nll, (TOTAL,), **_nll_inputs)
nll_each = RowFormula(_nll, (ROW,), **_nll_inputs)
nll_total_vjp = RowFormula(_nll_rows_vjp, x=ELEMENT, target=INDEX, g=NUMBER, scale=NUMBER)
nll_each_vjp = RowFormula(_nll_rows_vjp, x=ELEMENT, target=INDEX, g=ROW, scale=NUMBER)


def _nll_of_logits(x, target, *, scale, total):
    """``scale * log_softmax(x)[i, target[i]]``, summed if ``total``; IndexError for a target that
    is no class."""
    if modes.special and modes.local.recording is not None:
        found = (nll_total if total else nll_each)(x, target, scale)
        return found if total else reshape(found, shape=found.shape[:-1])
    program = (nll_total if total else nll_each).program
    if is_cuda(x):
        found = program(x, target, scale)
        return found if total else found[:, 0]
    found = program.native((x, target, scale))
    if found is not None:
        return found[0] if total else found[0][:, 0]
    if target.size and not bool(((target >= 0) & (target < x.shape[1])).all()):
        raise IndexError("a target is no class")
    # without LLVM: 14 ms for (4096, 1000), the formula over rows 20
    return pick(log_softmax_rows(x), target, scale, axis=1, total=total)


def _nll_of_logits_vjp(g, out, x, target, *, scale, total):
    if hasattr(g, "array"):  # tensors
        g = g if total else reshape(g, shape=(*g.shape, 1))
        return _nll_vjp(_one_hot(target, x), softmax(x, axis=1), g * scale)
    if modes.special and modes.local.recording is not None:
        if total:
            return nll_total_vjp(x, target, g, scale)
        return nll_each_vjp(x, target, reshape(g, shape=(*g.shape, 1)), scale)
    if not total:
        return nll_each_vjp.program(x, target, g[:, None], scale)
    if is_cuda(g):  # which the kernel reads: the host need not wait for it
        return nll_total_vjp.program(x, target, g, scale)
    return nll_total_vjp.program(x, target, float(g) * scale, 1.0)


def _one_hot(target, x):
    """Like ``x`` with ones at the columns ``target``."""
    columns = array_module(getattr(x, "array", x)).arange(x.shape[1])
    return cast(eq(columns, reshape(target, shape=(*target.shape, 1))), dtype=x.dtype)


nll_of_logits = opaque(
    "nll_of_logits",
    _nll_of_logits,
    _nll_of_logits_vjp,
    samples=lambda r: [
        ((r(3, 4), r.integers(4, 3)), {"scale": -0.5, "total": True}),
        ((r(3, 4), r.integers(4, 3)), {"scale": -1.0, "total": False}),
    ],
)

# ---- cross entropy: the same with targets to ignore, their number, and smoothed labels


def _cross_entropy(x, target, hole, count, smoothing=0):
    loss = _nll(x, target, -(1 - smoothing))
    if smoothing != 0:
        loss = loss - smoothing * _log_probability(x, row_mean(x))
    return where(ge(target, 0), loss, 0) / count


def _cross_entropy_rows_vjp(x, target, hole, g, count, smoothing, share):
    """``share`` is the smoothing over the number of classes."""
    wanted = where(eq(position, target), 1 - smoothing, 0) + share
    return where(ge(target, 0), _nll_vjp(wanted, _softmax(x), -g / count), 0)


_cross_entropy_inputs = {"x": ELEMENT, "target": INDEX, "hole": HOLE}


@cache
def cross_entropy_rows(total: bool, smoothed: bool) -> RowFormula:
    numbers = {"count": NUMBER, **({"smoothing": NUMBER} if smoothed else {})}
    kind = TOTAL if total else ROW
    return RowFormula(_cross_entropy, (kind,), **_cross_entropy_inputs, **numbers)


@cache
def cross_entropy_rows_vjp(total: bool) -> RowFormula:
    numbers = {"count": NUMBER, "smoothing": NUMBER, "share": NUMBER}
    g = NUMBER if total else ROW
    return RowFormula(_cross_entropy_rows_vjp, **_cross_entropy_inputs, g=g, **numbers)


def _cross_entropy_of_logits(x, target, *count, hole, smoothing, total):
    """The cross entropy of each row with its target, over ``count`` (an array of one number, or
    none: 1), summed if ``total``; 0 where the target is ``hole``."""
    numbers = (*(count or (1.0,)), *([smoothing] if smoothing else []))
    found = cross_entropy_rows(total, bool(smoothing)).program(x, target, hole, *numbers)
    found = found if total else found[:, 0]
    return found if found.dtype == x.dtype else found.astype(x.dtype)


def _cross_entropy_of_logits_vjp(g, out, x, target, *count, hole, smoothing, total):
    g = g if total else reshape(g, shape=(*g.shape, 1))
    (n,) = count or (1.0,)
    share = smoothing / x.shape[1]
    if hasattr(g, "array"):  # tensors
        kept = reshape(cast(ne(target, hole), dtype=x.dtype), shape=(*target.shape, 1))
        wanted = _one_hot(target, x) * (1 - smoothing) + share
        return _nll_vjp(wanted, softmax(x, axis=1), -(g * kept) / n)
    found = cross_entropy_rows_vjp(total).program(x, target, hole, g, n, smoothing, share)
    return found if found.dtype == x.dtype else found.astype(x.dtype)


cross_entropy_of_logits = opaque(
    "cross_entropy_of_logits",
    _cross_entropy_of_logits,
    _cross_entropy_of_logits_vjp,
    samples=lambda r: [
        ((r(3, 4), r.integers(4, 3)), {"hole": 1, "smoothing": 0.0, "total": False}),
        ((r(3, 4), r.integers(4, 3)), {"hole": -100, "smoothing": 0.25, "total": True}),
        ((r(3, 4), r.integers(4, 3), 0 * r(1) + 2), {"hole": 2, "smoothing": 0.1, "total": True}),
    ],
)

# ---- normalisation of rows


def _scaled_row(x, eps):
    """A row minus its mean, and the inverse of its standard deviation."""
    centred = x - row_mean(x)
    return centred, rsqrt(row_mean(square(centred)) + eps)


def _layer_norm(x, weight, bias, eps):
    centred, inverse = _scaled_row(x, eps)
    return centred * inverse * weight + bias


def _layer_norm_vjp(g, x, weight, eps):
    centred, inverse = _scaled_row(x, eps)
    y = centred * inverse
    h = g * weight
    # the mean of h * y, with a reduction that need not wait for the standard deviation
    shared = row_mean(h * centred) * inverse
    return inverse * (h - row_mean(h) - y * shared), g * y, g


def _rms_norm(x, weight, eps):
    return x * rsqrt(row_mean(square(x)) + eps) * weight


def _rms_norm_vjp(g, x, weight, eps):
    inverse = rsqrt(row_mean(square(x)) + eps)
    y = x * inverse
    h = g * weight
    return inverse * (h - y * (row_mean(h * x) * inverse)), g * y


@cache
def _norm_rule(function, needs) -> RowFormula:
    """The cotangents of a norm that are needed: of the elements, the weight, the bias."""
    kinds = (ELEMENT, COLUMN, COLUMN)[: len(needs)]
    return RowFormula(
        lambda *args: [d for d, need in zip(function(*args), needs, strict=True) if need],
        [kind for kind, need in zip(kinds, needs, strict=True) if need],
        g=ELEMENT, x=ELEMENT, weight=COLUMN, eps=NUMBER,
    )  # fmt: skip


def _norm_vjp(function):
    def rule(needs, g, out, x, weight, *bias, eps):
        found = _norm_rule(function, needs)(g, x, weight, eps)
        found = iter(found if sum(needs) > 1 else [found])
        return [next(found) if need else None for need in needs]

    return rule


layer_norm_rows = RowFormula(_layer_norm, x=ELEMENT, weight=COLUMN, bias=COLUMN, eps=NUMBER)
rms_norm_rows = RowFormula(_rms_norm, x=ELEMENT, weight=COLUMN, eps=NUMBER)
layer_norm = joint(
    "layer_norm",
    lambda x, weight, bias, *, eps: layer_norm_rows(x, weight, bias, eps),
    _norm_vjp(_layer_norm_vjp),
    arguments=3,
    reads=(0, 1),
    samples=lambda r: [((r(3, 5), r(5), r(5)), {"eps": 0.1}), ((r(4), r(4), r(4)), {"eps": 0.1})],
)
rms_norm = joint(
    "rms_norm",
    lambda x, weight, *, eps: rms_norm_rows(x, weight, eps),
    _norm_vjp(_rms_norm_vjp),
    arguments=2,
    reads=(0, 1),
    samples=lambda r: [((r(2, 3, 5), r(5)), {"eps": 0.1})],
)
standardize_rows = RowFormula(lambda x, eps: _layer_norm(x, 1, 0, eps), x=ELEMENT, eps=NUMBER)
standardize_rows_vjp = RowFormula(
    lambda g, x, eps: _layer_norm_vjp(g, x, 1, eps)[0], g=ELEMENT, x=ELEMENT, eps=NUMBER
)
standardize = opaque(
    "standardize",
    lambda x, *, eps: standardize_rows(x, eps),
    lambda g, out, x, *, eps: standardize_rows_vjp(g, x, eps),
    samples=lambda r: [((r(3, 5),), {"eps": 0.1})],
)
for _op in (softmax, log_softmax, layer_norm, rms_norm, standardize, nll_of_logits):
    _op.transparent = True

# ---- normalisation of channels, axis 1 of (N, C, ...)


def _per_channel(v, x):
    """A vector over channels, shaped to broadcast against ``x``."""
    return reshape(v, shape=(1, -1) + (1,) * (len(x.shape) - 2))


def _moments_of_channels(x):
    """Centred ``x`` and its variance, both with the dimensions of ``x``."""
    axes = (0, *range(2, len(x.shape)))
    centred = x - reduce.mean(x, axes=axes, keepdims=True)
    return centred, reduce.mean(square(centred), axes=axes, keepdims=True)


def _channel_moments(x, *running, momentum=0.0):
    xp = array_module(x)
    wide = x if x.dtype.name == "float64" else x.astype("float32")
    axes = (0, *range(2, x.ndim))
    found = xp.stack([wide.mean(axes), wide.var(axes)])
    n = x.size // x.shape[1]
    for average, moment, scale in zip(running, found, (1.0, n / (n - 1) if running else 1.0)):
        average[...] = average * (1 - momentum) + moment * (momentum * scale)
    return found


channel_moments = not_differentiable(
    "channel_moments",
    _channel_moments,
    samples=lambda r: [((r(3, 4, 5),), {}), ((r(6, 3),), {})],
    cuda=cuda_batch_norm.moments,
)


def _normalized(x, mean, variance, eps, training):
    """Channels of zero mean and unit variance, and the inverse standard deviation."""
    if training:
        centred, variance = _moments_of_channels(x)
    else:
        centred, variance = x - _per_channel(mean, x), _per_channel(variance, x)
    inverse = rsqrt(variance + eps)
    return centred * inverse, inverse


def _batch_norm(x, weight, bias, mean, variance, *, eps, training):
    y, _ = _normalized(x, mean, variance, eps, training)
    y = y * _per_channel(weight, x) + _per_channel(bias, x)
    return _in_dtype_of(x, y)


def _batch_norm_vjp(needs, g, out, x, weight, bias, mean, variance, *, eps, training):
    if not hasattr(g, "array"):  # arrays, not tensors
        found = cuda_batch_norm.backward(
            g, x, weight, mean, variance, needs=needs[:3], eps=eps, training=training
        )
        if found is not None:
            return [*found, None, None]
    y, inverse = _normalized(x, mean, variance, eps, training)
    axes = (0, *range(2, len(x.shape)))
    gx = h = g * _per_channel(weight, x)
    if training:
        shared = y * reduce.mean(h * y, axes=axes, keepdims=True)
        gx = h - reduce.mean(h, axes=axes, keepdims=True) - shared
    found = [
        (gx * inverse, x) if needs[0] else None,
        (reduce.sum(g * y, axes=axes, keepdims=False), weight) if needs[1] else None,
        (reduce.sum(g, axes=axes, keepdims=False), bias) if needs[2] else None,
    ]
    return [pair and _in_dtype_of(pair[1], pair[0]) for pair in (*found, None, None)]


def _in_dtype_of(x, value):
    return value if value.dtype == x.dtype else cast(value, dtype=x.dtype)


def _batch_norm_samples(r):
    x = r(4, 3, 2)
    own = (x, r(3), r(3), x.mean((0, 2)), x.var((0, 2)))
    given = (x, r(3), r(3), r(3), r(3) ** 2)
    return [(own, {"eps": 0.1, "training": True}), (given, {"eps": 0.1, "training": False})]


# With ``training``, mean and variance must be those of x and the derivative goes through them; they
# are given so that a kernel need not find them again (the reference does). Else they are constants.
batch_norm = joint(
    "batch_norm",
    _batch_norm,
    _batch_norm_vjp,
    arguments=3,
    reads=(0, 1),
    samples=_batch_norm_samples,
    cuda=cuda_batch_norm.batch_norm,
)

# ---- convolution: three bilinear operations that are each other's transposes


def _conv_samples(r):
    plain = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    general = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
    return [((r(2, 3, 5, 6), r(4, 3, 2, 3)), plain), ((r(2, 4, 6, 7), r(6, 2, 3, 2)), general)]


def _conv_input_samples(r):
    return [
        ((r(*convolution.output_shape(x.shape, w.shape, **p)), w), {**p, "shape": x.shape})
        for (x, w), p in _conv_samples(r)
    ]


def _conv_weight_samples(r):
    return [
        ((r(*convolution.output_shape(x.shape, w.shape, **p)), x), {**p, "shape": w.shape})
        for (x, w), p in _conv_samples(r)
    ]


conv = bilinear(
    "conv",
    convolution.forward,
    lambda g, x, w, **p: conv_input(g, w, shape=x.shape, **p),
    lambda g, x, w, **p: conv_weight(g, x, shape=w.shape, **p),
    samples=_conv_samples,
    cuda=cuda_convolution.forward,
)
conv_input = bilinear(
    "conv_input",
    convolution.input_gradient,
    lambda h, g, w, *, shape, **p: conv(h, w, **p),
    lambda h, g, w, *, shape, **p: conv_weight(g, h, shape=w.shape, **p),
    samples=_conv_input_samples,
    cuda=cuda_convolution.input_gradient,
)
conv_weight = bilinear(
    "conv_weight",
    convolution.weight_gradient,
    lambda h, g, x, *, shape, **p: conv(x, h, **p),
    lambda h, g, x, *, shape, **p: conv_input(g, h, shape=x.shape, **p),
    samples=_conv_weight_samples,
    cuda=cuda_convolution.weight_gradient,
)

# ---- pooling over the last two axes; padding has been done before


def _window(x, i, j, out_size, stride, dilation):
    """The elements at offset (i, j) of every window."""
    top, left = i * dilation[0], j * dilation[1]
    return x[
        ...,
        top : top + (out_size[0] - 1) * stride[0] + 1 : stride[0],
        left : left + (out_size[1] - 1) * stride[1] + 1 : stride[1],
    ]


def pooled_size(size, kernel, stride, dilation) -> tuple[int, int]:
    """Windows that fit along both axes."""
    return tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    )


def _max_of_rows(x, kernel, stride, dilation, out_w, xp):
    """Maximum over the columns of every window, for every row of the image."""
    span = (out_w - 1) * stride[1] + 1
    columns = [
        x[..., j * dilation[1] : j * dilation[1] + span : stride[1]] for j in range(kernel[1])
    ]
    if len(columns) == 1:
        return columns[0]
    out = xp.maximum(columns[0], columns[1])
    for column in columns[2:]:
        xp.maximum(out, column, out=out)
    return out


def _row_slices(rows, kernel, stride, dilation, out_h):
    span = (out_h - 1) * stride[0] + 1
    return [
        rows[..., i * dilation[0] : i * dilation[0] + span : stride[0], :] for i in range(kernel[0])
    ]


def _max_pool(x, *, kernel, stride, dilation):
    override = native.max_pool(x, kernel=kernel, stride=stride, dilation=dilation)
    if override is not None:
        return override
    xp = array_module(x)
    out_h, out_w = pooled_size(x.shape[-2:], kernel, stride, dilation)
    rows = _max_of_rows(x, kernel, stride, dilation, out_w, xp)
    parts = _row_slices(rows, kernel, stride, dilation, out_h)
    if len(parts) == 1:
        return xp.array(parts[0])
    out = xp.maximum(parts[0], parts[1])
    for part in parts[2:]:
        xp.maximum(out, part, out=out)
    return out


def _maximum_masks(x, out, kernel, stride, dilation):
    """For every offset in a window: where it holds the first maximum in reading order (torch's tie
    rule)."""
    remaining = None
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            hit = _window(x, i, j, out.shape[-2:], stride, dilation) == out
            if remaining is None:
                remaining = ~hit
            else:
                hit &= remaining
                remaining ^= hit
            yield i, j, hit


def _max_pool_scatter(g, x, out, *, kernel, stride, dilation):
    """Send each cotangent to the first maximum of its window."""
    override = native.max_pool_scatter(g, x, out, kernel=kernel, stride=stride, dilation=dilation)
    if override is not None:
        return override
    xp = array_module(g)
    size = g.shape[-2:]
    tiled = tuple(n * k for n, k in zip(size, kernel, strict=True))
    covered = kernel == stride and dilation == (1, 1) and x.shape[-2:] == tiled
    gx = backend_of(g).empty(x.shape, g.dtype) if covered else xp.zeros(x.shape, g.dtype)
    for i, j, hit in _maximum_masks(x, out, kernel, stride, dilation):
        target = _window(gx, i, j, size, stride, dilation)
        if covered:  # windows tile the image: every element is written exactly once
            xp.multiply(g, hit, target)
        else:
            target += g * hit
    return gx


def _max_pool_gather(h, x, out, *, kernel, stride, dilation):
    result = array_module(h).zeros(out.shape, h.dtype)
    for i, j, hit in _maximum_masks(x, out, kernel, stride, dilation):
        result += _window(h, i, j, out.shape[-2:], stride, dilation) * hit
    return result


def _pool_samples(r):
    return [
        ((r(2, 3, 4, 6),), {"kernel": (2, 2), "stride": (2, 2), "dilation": (1, 1)}),
        ((r(2, 7, 8),), {"kernel": (3, 2), "stride": (2, 1), "dilation": (1, 2)}),
    ]


def _pool_transpose_samples(r):
    samples = []
    for (x,), p in _pool_samples(r):
        out = _max_pool(x, **p)
        samples.append(((r(*out.shape), x, out), p))
    return samples


def _pool_gather_samples(r):
    return [((r(*x.shape), x, out), p) for (_, x, out), p in _pool_transpose_samples(r)]


max_pool_scatter = linear(
    "max_pool_scatter",
    _max_pool_scatter,
    lambda h, g, x, out, **p: max_pool_gather(h, x, out, **p),
    samples=_pool_transpose_samples,
    cuda=cuda_pooling.max_pool_scatter,
)
max_pool_gather = linear(
    "max_pool_gather",
    _max_pool_gather,
    lambda g, h, x, out, **p: max_pool_scatter(g, x, out, **p),
    samples=_pool_gather_samples,
    cuda=cuda_pooling.max_pool_gather,
)
max_pool = opaque(
    "max_pool",
    _max_pool,
    lambda g, out, x, **p: max_pool_scatter(g, x, out, **p),
    reads=(0, "out"),
    samples=_pool_samples,
    cuda=cuda_pooling.max_pool,
)
max_pool.transparent = True  # its rule


def _sum_pool(x, *, kernel, stride, dilation):
    override = native.sum_pool(x, kernel=kernel, stride=stride, dilation=dilation)
    if override is not None:
        return override
    size = pooled_size(x.shape[-2:], kernel, stride, dilation)
    out = _window(x, 0, 0, size, stride, dilation).copy()
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            if i or j:
                out += _window(x, i, j, size, stride, dilation)
    return out


def _sum_pool_transpose(g, *, shape, kernel, stride, dilation):
    sizes = {"kernel": kernel, "stride": stride, "dilation": dilation}
    override = native.sum_unpool(g, shape=shape, **sizes)
    if override is not None:
        return override
    gx = array_module(g).zeros(shape, g.dtype)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            target = _window(gx, i, j, g.shape[-2:], stride, dilation)
            target += g
    return gx


sum_pool = linear(
    "sum_pool",
    _sum_pool,
    lambda g, x, **p: sum_unpool(g, shape=x.shape, **p),
    samples=_pool_samples,
    cuda=cuda_pooling.sum_pool,
)
sum_unpool = linear(
    "sum_unpool",
    _sum_pool_transpose,
    lambda h, g, *, shape, **p: sum_pool(h, **p),
    samples=lambda r: [
        (
            (r(2, 2, 3),),
            {"shape": (2, 4, 6), "kernel": (2, 2), "stride": (2, 2), "dilation": (1, 1)},
        )
    ],
    cuda=cuda_pooling.sum_unpool,
)
