"""Functions of neural networks with torch's signatures: compositions of the table's operations,
hence with all derivatives."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

from . import creation, functions
from .autocasting import policy_of
from .autograd.grad_mode import no_grad
from .backend.arrays import array_module, there
from .backend.arrays import item as array_item
from .backend.numpy import xp as np
from .config import modes
from .dtypes import finfo, is_floating, is_half
from .eager import decide, elementwise, run_arrays, shape_of_values, verify
from .foreach import foreach
from .functions import flatten as flatten
from .functions import log_softmax, overwrite, sigmoid, softmax, tanh
from .ops import attention as attention_ops
from .ops import elementwise as e
from .ops import index as index_ops
from .ops import linalg, shape
from .ops import nn as nn_ops
from .ops import random as random_ops
from .random import default_generator
from .tensor import Tensor, bump_versions, constant, wrap

_pad_zeros = shape.pad
_int64 = np.dtype("int64")

# ------------------------------------------------------------------------------------------------
# activations

logsigmoid = functions._public(e.log_sigmoid, functions.unary)
_relu = functions.relu
_silu, _mish, _relu6, _gelu, _gelu_tanh = (
    functions._public(op, functions.unary) for op in (e.silu, e.mish, e.relu6, e.gelu, e.gelu_tanh)
)


def relu(input, inplace: bool = False) -> Tensor:
    """``max(x, 0)``; the gradient at 0 is 0. ``inplace`` overwrites the input.

    >>> import gpugrad as gg
    >>> import gpugrad.nn.functional as F
    >>> x = gg.tensor([-1.0, 2.0])
    >>> F.relu(x, inplace=True) is x
    True
    >>> x
    tensor([0., 2.])
    """
    return overwrite(input, _relu) if inplace else _relu(input)


def relu6(input, inplace: bool = False) -> Tensor:
    """``min(max(x, 0), 6)``; no gradient at the bounds."""
    return overwrite(input, _relu6) if inplace else _relu6(input)


def silu(input, inplace: bool = False) -> Tensor:
    """``x * sigmoid(x)``. Source: Elfwing et al., 2017."""
    return overwrite(input, _silu) if inplace else _silu(input)


def mish(input, inplace: bool = False) -> Tensor:
    """``x * tanh(softplus(x))``. Source: Misra, 2019."""
    return overwrite(input, _mish) if inplace else _mish(input)


def gelu(input, *, approximate: str = "none") -> Tensor:
    """``x * Phi(x)`` with the normal distribution function, or its tanh approximation
    (``approximate="tanh"``).

    Source: Hendrycks and Gimpel, 2016.
    """
    if approximate == "none":
        return _gelu(input)
    if approximate == "tanh":
        return _gelu_tanh(input)
    raise RuntimeError(f"approximate argument must be either none or tanh, got {approximate!r}")


def leaky_relu(input, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``negative_slope * x``."""
    if inplace:
        return overwrite(input, leaky_relu, negative_slope)
    slope: Any = negative_slope
    if isinstance(input, Tensor) and is_floating(input.dtype):
        # as a number it would make the derivative float64: where(x > 0, 1, slope)
        slope = creation.full((), negative_slope, dtype=input.dtype, device=input.device)
    return elementwise(e.leaky_relu, (input, slope))


def elu(input, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``alpha * (exp(x) - 1)``."""
    if inplace:
        return overwrite(input, elu, alpha)
    return elementwise(e.elu, (input, float(alpha)))


def selu(input, inplace: bool = False) -> Tensor:
    """Self-normalising ELU; constants of Klambauer et al., 2017."""
    if inplace:
        return overwrite(input, selu)
    return elu(input, 1.6732632423543772) * 1.0507009873554805


def softplus(input, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``log(1 + exp(beta x)) / beta``, linear above the threshold."""
    return elementwise(e.softplus, (input, float(beta), float(threshold)))


def hardtanh(input, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Values limited to [min_val, max_val]; no gradient at the bounds."""
    if inplace:
        return overwrite(input, hardtanh, min_val, max_val)
    return elementwise(e.hardtanh, (input, float(min_val), float(max_val)))


def glu(input, dim: int = -1) -> Tensor:
    """The first half times the sigmoid of the second."""
    if input.ndim and input.shape[functions._dim(dim, input.ndim)] % 2:
        raise RuntimeError(
            f"Halving dimension must be even, but dimension {dim} of {tuple(input.shape)} is odd"
        )
    a, b = functions.chunk(input, 2, dim)
    return a * sigmoid(b)


# ------------------------------------------------------------------------------------------------
# linear and embedding


def linear(input, weight, bias=None) -> Tensor:
    """``input @ weight.T + bias``; weight is (out, in).

    Raises RuntimeError naming both shapes if the last size of the input is not ``in``.
    """
    if modes.special and (policy := policy_of("linear", input, weight, bias)):
        return policy(linear, input, weight, bias)
    x, w = input.array, weight.array
    if x.ndim and w.ndim == 2 and x.dtype is w.dtype and x.shape[-1] == w.shape[1]:
        if x.__class__ is not np.ndarray or w.__class__ is not np.ndarray:
            functions._check_devices("linear", input, weight)
        b = None if bias is None else bias.array
        if b is not None and b.shape == w.shape[:1] and b.dtype is x.dtype:
            if b.__class__ is not x.__class__:
                functions._check_devices("linear", input, bias)
            return linalg.affine(input, weight, bias)
        out = linalg.linear(input, weight)
    else:
        out = functions.matmul(input, weight.T)  # a vector as weight, or an error
    return out if bias is None else out + bias


def embedding(input, weight, padding_idx: int | None = None) -> Tensor:
    """Rows of a table by index; the row ``padding_idx`` gets no gradient.

    Raises IndexError if an index is outside the table.
    """
    if input.dtype.kind not in "iu":
        raise RuntimeError(
            f"Expected tensor for argument 'indices' to have an integer dtype, but got "
            f"{input.dtype}"
        )
    verify(_check_rows, input, rows=weight.shape[0])
    if padding_idx is not None:
        padding_idx = padding_idx % weight.shape[0]
    return index_ops.embedding(weight, input, padding=padding_idx)


def _check_rows(indices, *, rows: int) -> None:
    if (
        isinstance(indices, np.ndarray)
        and indices.size
        and (indices.min() < 0 or indices.max() >= rows)
    ):
        bad = indices[(indices < 0) | (indices >= rows)].flat[0]
        raise IndexError(f"index {int(bad)} out of range in embedding: the table has {rows} rows")


_check_rows.bounded_by = "rows"  # type: ignore[attr-defined]  # for native programs


def one_hot(tensor, num_classes: int = -1) -> Tensor:
    """Zeros with a one at each index, in a new last dimension (int64)."""
    if tensor.dtype.kind not in "iu":
        raise RuntimeError(f"one_hot is only applicable to index tensors, got {tensor.dtype}")
    if num_classes == -1:
        shape_of_values("one_hot without num_classes")
        num_classes = int(array_item(tensor.array.max())) + 1
    verify(_check_classes, tensor, classes=num_classes)
    return (
        functions.unsqueeze(tensor, -1) == creation.arange(num_classes, device=tensor.device)
    ).long()


def _check_classes(array, *, classes: int) -> None:
    if not isinstance(array, np.ndarray):
        message = f"Class values must be in [0, {classes - 1}], got {{value}}"
        index_ops.check_range(array, classes, message, RuntimeError)
    elif array.size and (int(array.min()) < 0 or int(array.max()) >= classes):
        raise RuntimeError(
            f"Class values must be in [0, {classes - 1}], got {int(array.min())} to "
            f"{int(array.max())}"
        )


# ------------------------------------------------------------------------------------------------
# dropout


def dropout(
    input, p: float = 0.5, training: bool = True, inplace: bool = False, *, generator=None
) -> Tensor:
    """Zero each element with probability p and scale the others by 1/(1-p); the identity unless
    training."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    if p == 1.0:
        result = input * 0.0
    elif input.is_cuda and not (
        modes.special and (modes.local.batches or modes.local.recording is not None)
    ):  # the gradient draws the same numbers again: nothing is saved
        draw = (generator or default_generator).reserve(input.numel())
        result = random_ops.dropout(input, p=float(p), draw=draw)
    else:
        drawn = creation.rand(*input.shape, generator=generator, device=input.device)
        result = input * ((drawn >= p).to(dtype=input.dtype) * (1.0 / (1.0 - p)))
    return input.copy_(result) if inplace else result


# ------------------------------------------------------------------------------------------------
# convolution, pooling, padding


def _pair(value, n: int = 2) -> tuple[int, ...]:
    return (
        (int(value),) * n if isinstance(value, (int, np.integer)) else tuple(int(v) for v in value)
    )


def _check_conv(input, weight, bias, groups, n: int) -> None:
    """Shapes of a convolution over ``n`` dimensions, with torch's messages."""
    if input.ndim not in (n + 1, n + 2):
        raise RuntimeError(
            f"Expected {n + 1}D (unbatched) or {n + 2}D (batched) input to conv{n}d, but got "
            f"input of size: {list(input.shape)}"
        )
    channels = input.shape[-n - 1]
    if weight.ndim != n + 2 or channels != weight.shape[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(weight.shape)}, expected "
            f"input{list(input.shape)} to have "
            f"{weight.shape[1] * groups} channels, but got {channels} channels instead"
        )
    if weight.shape[0] % groups:
        raise RuntimeError(
            f"expected the {weight.shape[0]} output channels to be divisible by groups={groups}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise RuntimeError(
            f"expected bias of shape ({weight.shape[0]},), but got {tuple(bias.shape)}"
        )
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"Input type ({input.dtype}) and weight type ({weight.dtype}) should be the same"
        )


def _conv_padding(padding, kernel, stride, dilation):
    _check_positive("stride", stride)
    _check_positive("dilation", dilation)
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if isinstance(padding, str):
        raise RuntimeError(f"padding must be 'valid', 'same' or numbers, got {padding!r}")
    if min(_pair(padding, len(kernel))) < 0:
        raise RuntimeError(f"negative padding is not supported, got {padding}")
    return tuple((p, p) for p in _pair(padding, len(kernel)))


def _check_positive(name, sizes) -> None:
    if min(sizes) < 1:
        raise RuntimeError(f"non-positive {name} is not supported, got {tuple(sizes)}")


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups: int = 1) -> Tensor:
    """Cross-correlation of images (N, C, H, W) or (C, H, W) with filters (O, C/groups, kh, kw).

    ``padding`` is a number, a pair, "valid" or "same". Raises RuntimeError if shapes or dtypes do
    not fit.
    """
    if modes.special and (policy := policy_of("conv2d", input, weight, bias)):
        return policy(conv2d, input, weight, bias, stride, padding, dilation, groups)
    _check_conv(input, weight, bias, groups, 2)
    stride, dilation = _pair(stride), _pair(dilation)
    padding = _conv_padding(padding, weight.shape[2:], stride, dilation)
    batched = input if input.ndim == 4 else functions.unsqueeze(input, 0)
    for n, (before, after), k, d in zip(
        batched.shape[2:], padding, weight.shape[2:], dilation, strict=True
    ):
        if n + before + after < d * (k - 1) + 1:
            raise RuntimeError(
                f"Calculated padded input size per channel: {tuple(batched.shape[2:])} with "
                f"padding {padding}. Kernel size: "
                f"{tuple(weight.shape[2:])}. Kernel size can't be greater than actual input size"
            )
    out = nn_ops.conv(
        batched, weight, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    if bias is not None:
        out = out + functions.reshape(bias, -1, 1, 1)
    return out if input.ndim == 4 else functions.squeeze(out, 0)


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups: int = 1) -> Tensor:
    """Cross-correlation of sequences (N, C, L) or (C, L) with filters (O, C/groups, k)."""
    if modes.special and (policy := policy_of("conv1d", input, weight, bias)):
        return policy(conv1d, input, weight, bias, stride, padding, dilation, groups)
    _check_conv(input, weight, bias, groups, 1)
    pad = padding if isinstance(padding, str) else (0, _pair(padding, 1)[0])
    image, filters = functions.unsqueeze(input, -2), functions.unsqueeze(weight, -2)
    out = conv2d(
        image, filters, bias, (1, *_pair(stride, 1)), pad, (1, *_pair(dilation, 1)), groups
    )
    return functions.squeeze(out, -2)


def _check_conv_transpose(input, weight, bias, groups) -> None:
    if input.ndim not in (3, 4) or weight.ndim != 4:
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input and 4D weight to conv_transpose2d, but "
            f"got sizes {list(input.shape)} and {list(weight.shape)}"
        )
    if input.shape[-3] != weight.shape[0] or weight.shape[0] % groups:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(weight.shape)} and groups={groups}, "
            f"expected input {list(input.shape)} to have {weight.shape[0]} channels"
        )
    outputs = weight.shape[1] * groups
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise RuntimeError(f"expected bias of shape ({outputs},), but got {tuple(bias.shape)}")
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"Input type ({input.dtype}) and weight type ({weight.dtype}) should be the same"
        )


def conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups: int = 1, dilation=1
) -> Tensor:
    """The transpose of ``conv2d`` (its gradient to the input); filters are (C, O/groups, kh,
    kw)."""
    if modes.special and (policy := policy_of("conv_transpose2d", input, weight, bias)):
        return policy(
            conv_transpose2d, input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    stride, padding, dilation, extra = (
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        _pair(output_padding),
    )
    _check_conv_transpose(input, weight, bias, groups)
    _check_positive("stride", stride)
    _check_positive("dilation", dilation)
    for x, s, d in zip(extra, stride, dilation, strict=True):
        if not 0 <= x < max(s, d):
            raise RuntimeError(
                f"output padding must be smaller than either stride or dilation, but got "
                f"output_padding={extra}, stride={stride}, dilation={dilation}"
            )
    if input.ndim == 3:
        batched = functions.unsqueeze(input, 0)
        return functions.squeeze(
            conv_transpose2d(
                batched, weight, bias, stride, padding, output_padding, groups, dilation
            ),
            0,
        )
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + x + 1
        for n, s, p, d, k, x in zip(
            input.shape[2:], stride, padding, dilation, weight.shape[2:], extra, strict=True
        )
    )
    out = nn_ops.conv_input(
        input,
        weight,
        shape=(input.shape[0], weight.shape[1] * groups, *size),
        stride=stride,
        padding=tuple((p, p) for p in padding),
        dilation=dilation,
        groups=groups,
    )
    return out if bias is None else out + functions.reshape(bias, -1, 1, 1)


def pad(input, pad, mode: str = "constant", value: float | None = None) -> Tensor:
    """Pad the last dimensions, given as (left, right, top, bottom, ...); modes constant, reflect,
    replicate, circular."""
    if len(pad) % 2 or len(pad) // 2 > input.ndim:
        raise RuntimeError(
            f"Padding length must be even and at most twice the dimensions, got {list(pad)} for "
            f"{input.ndim}D"
        )
    pairs = [(int(pad[2 * i]), int(pad[2 * i + 1])) for i in range(len(pad) // 2)]
    if mode == "constant":
        widths = ((0, 0),) * (input.ndim - len(pairs)) + tuple(reversed(pairs))
        sizes = [n + a + b for n, (a, b) in zip(input.shape, widths, strict=True)]
        if min(sizes, default=0) < 0:
            raise RuntimeError(
                f"The input size {list(input.shape)}, plus negative padding {list(pad)}, resulted "
                f"in a negative output size"
            )
        out = _pad_zeros(input, widths=widths)
        if value:
            inside = _pad_zeros(creation.ones_like(input), widths=widths) == 1
            fill = creation.full((), value, dtype=input.dtype, device=input.device)
            out = functions.where(inside, out, fill)
        return out
    numpy_mode: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}.get(mode)
    if numpy_mode is None:
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    for i, (before, after) in enumerate(pairs):
        axis = input.ndim - 1 - i
        limit = input.shape[axis] - (mode == "reflect")
        if mode != "replicate" and max(before, after) > limit:
            raise RuntimeError(
                f"Padding size {max(before, after)} should be at most {limit} for mode {mode} and "
                f"shape {tuple(input.shape)}"
            )
        positions = np.pad(
            np.arange(input.shape[axis]), (max(before, 0), max(after, 0)), numpy_mode
        )
        positions = positions[max(-before, 0) : len(positions) - max(-after, 0)]
        input = functions.index_select(input, axis, constant(positions))
    return input


def _pool_setup(input, kernel_size, stride, padding, dilation, ceil_mode, fill):
    """Pad for pooling; returns the padded images and the arguments of the operation."""
    kernel = _pair(kernel_size)
    stride = kernel if stride is None else _pair(stride)
    padding, dilation = _pair(padding), _pair(dilation)
    _check_positive("kernel size", kernel)
    _check_positive("stride", stride)
    _check_positive("dilation", dilation)
    if min(padding) < 0:
        raise RuntimeError(f"pad must be non-negative, but got pad: {padding}")
    if input.ndim not in (3, 4):
        raise RuntimeError(
            f"Expected 3D or 4D (batch mode) tensor for pooling, got shape {tuple(input.shape)}"
        )
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise RuntimeError(
            f"pad should be at most half of effective kernel size, but got pad={padding}, "
            f"kernel_size={kernel}"
        )
    widths = []
    for n, k, s, p, d in zip(input.shape[-2:], kernel, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        windows = (n + 2 * p - span) // s + 1
        if ceil_mode and (n + 2 * p - span) % s and windows * s < n + p:
            windows += 1  # a last, partial window that starts inside the image or its left padding
        if windows <= 0:
            raise RuntimeError(
                f"Given input size {tuple(input.shape)} and kernel {kernel}: calculated output "
                f"size is too small"
            )
        widths.append((p, max((windows - 1) * s + span - n - p, 0)))
    if any(w != (0, 0) for w in widths):
        (top, bottom), (left, right) = widths
        if fill == 0.0:
            input = pad(input, (left, right, top, bottom))
        else:
            inside = _pad_zeros(
                creation.ones_like(input), widths=((0, 0),) * (input.ndim - 2) + tuple(widths)
            )
            input = functions.where(inside == 1, pad(input, (left, right, top, bottom)), fill)
    return input, {"kernel": kernel, "stride": stride, "dilation": dilation}, widths


def max_pool2d(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False
) -> Tensor:
    """Largest value of each window; the gradient goes to the first maximum."""
    padded, arguments, _ = _pool_setup(
        input, kernel_size, stride, padding, dilation, ceil_mode, -math.inf
    )
    return nn_ops.max_pool(padded, **arguments)


def avg_pool2d(
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override=None,
) -> Tensor:
    """Mean of each window; padding counts as zeros unless ``count_include_pad`` is off."""
    padded, arguments, widths = _pool_setup(input, kernel_size, stride, padding, 1, ceil_mode, 0.0)
    total = nn_ops.sum_pool(padded, **arguments)
    if divisor_override is not None:
        if not divisor_override:
            raise RuntimeError("divisor must be not zero")
        return total / divisor_override
    kh, kw = arguments["kernel"]
    p = _pair(padding)
    if all(w == (0, 0) for w in widths) or (
        count_include_pad and all(w[1] <= q for w, q in zip(widths, p, strict=True))
    ):
        return total * (1.0 / (kh * kw))
    counted = creation.ones(*input.shape[-2:], dtype=input.dtype, device=input.device)
    inner = tuple((q, q) for q in p) if count_include_pad else ((0, 0), (0, 0))
    if count_include_pad:
        counted = creation.ones(
            *(n + 2 * q for n, q in zip(input.shape[-2:], p, strict=True)),
            dtype=input.dtype,
            device=input.device,
        )
    rest = tuple((w[0] - i[0], w[1] - i[1]) for w, i in zip(widths, inner, strict=True))
    return total / nn_ops.sum_pool(_pad_zeros(counted, widths=rest), **arguments)


def adaptive_avg_pool2d(input, output_size) -> Tensor:
    """Mean over a grid of ``output_size`` regions that cover the image."""
    if input.ndim not in (3, 4):
        raise RuntimeError(
            f"adaptive_avg_pool2d(): Expected 3D or 4D tensor, but got {list(input.shape)}"
        )
    sizes = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    sizes = tuple(n if s is None else s for s, n in zip(sizes, input.shape[-2:], strict=True))
    if all(n % s == 0 for s, n in zip(sizes, input.shape[-2:], strict=True)):
        return avg_pool2d(
            input, tuple(n // s for s, n in zip(sizes, input.shape[-2:], strict=True))
        )
    rows = []
    for i in range(sizes[0]):
        top, bottom = _region(i, input.shape[-2], sizes[0])
        band = functions.narrow(input, -2, top, bottom - top)
        cells = []
        for j in range(sizes[1]):
            left, right = _region(j, input.shape[-1], sizes[1])
            cells.append(functions.mean(functions.narrow(band, -1, left, right - left), (-2, -1)))
        rows.append(functions.stack(cells, -1))
    return functions.stack(rows, -2)


def _region(i: int, n: int, parts: int) -> tuple[int, int]:
    return i * n // parts, -(-(i + 1) * n // parts)


# ------------------------------------------------------------------------------------------------
# normalisation


def _standardize(x, axes: int, eps: float) -> Tensor:
    """Zero mean and unit variance over the last ``axes``."""
    functions._check_floating("layer_norm", x)
    rows = x if axes == 1 else functions.reshape(x, *x.shape[:-axes], -1)
    out = nn_ops.standardize(rows, eps=eps)
    return out if axes == 1 else functions.reshape(out, *x.shape)


def _one_row(dtype, *tensors) -> bool:
    """Whether all tensors are there, have one axis and this floating dtype."""
    return is_floating(dtype) and all(
        t is not None and t.array.ndim == 1 and t.array.dtype == dtype for t in tensors
    )


def _last_dims(input, normalized_shape, weight=None, bias=None) -> tuple[int, ...]:
    normalized_shape = (
        (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    )
    if tuple(input.shape[-len(normalized_shape) :]) != normalized_shape:
        raise RuntimeError(
            f"Given normalized_shape={list(normalized_shape)}, expected input with shape [*, "
            f"{', '.join(map(str, normalized_shape))}], but got input of size{list(input.shape)}"
        )
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and tuple(x.shape) != normalized_shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(x.shape)} and normalized_shape = {list(normalized_shape)}"
            )
    return tuple(range(-len(normalized_shape), 0))


def layer_norm(input, normalized_shape, weight=None, bias=None, eps: float = 1e-05) -> Tensor:
    """Zero mean and unit variance over the last dimensions, then scale and shift. Source: Ba et
    al., 2016."""
    if modes.special and (policy := policy_of("layer_norm", input)):
        return policy(layer_norm, input, normalized_shape, weight, bias, eps)
    axes = len(_last_dims(input, normalized_shape, weight, bias))
    if _one_row(input.dtype, weight, bias):
        functions._check_devices("layer_norm", input, weight, bias)
        return nn_ops.layer_norm(input, weight, bias, eps=eps)
    out = _standardize(input, axes, eps)
    out = out if weight is None else out * weight
    return _like_input(input, out if bias is None else out + bias)


def rms_norm(input, normalized_shape, weight=None, eps: float | None = None) -> Tensor:
    """Unit root mean square over the last dimensions, then scale. Source: Zhang and Sennrich,
    2019."""
    if modes.special and (policy := policy_of("rms_norm", input)):
        return policy(rms_norm, input, normalized_shape, weight, eps)
    eps = float(finfo(input.dtype).eps) if eps is None else eps
    dims = _last_dims(input, normalized_shape, weight)
    if _one_row(input.dtype, weight):
        functions._check_devices("rms_norm", input, weight)
        return nn_ops.rms_norm(input, weight, eps=eps)
    out = input * functions.rsqrt(functions.mean(functions.square(input), dims, True) + eps)
    return out if weight is None else out * weight


def group_norm(input, num_groups: int, weight=None, bias=None, eps: float = 1e-05) -> Tensor:
    """Zero mean and unit variance over groups of channels. Source: Wu and He, 2018."""
    if modes.special and (policy := policy_of("group_norm", input)):
        return policy(group_norm, input, num_groups, weight, bias, eps)
    n, c = input.shape[:2]
    if c % num_groups:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input "
            f"of shape {list(input.shape)} and num_groups={num_groups}"
        )
    _check_channels(c, weight=weight, bias=bias)
    grouped = functions.reshape(input, n, num_groups, -1)
    standard = functions.reshape(_standardize(grouped, 1, eps), *input.shape)
    return _like_input(input, _scale_channels(standard, weight, bias))


def _check_channels(channels: int, **tensors) -> None:
    for name, x in tensors.items():
        if x is not None and tuple(x.shape) != (channels,):
            raise RuntimeError(
                f"{name} should contain {channels} elements, one for each channel, but has shape "
                f"{tuple(x.shape)}"
            )


def _like_input(input, out) -> Tensor:
    """A normalised tensor in the dtype of a 16-bit input: weights may be float32, as in torch."""
    return out.to(dtype=input.dtype) if is_half(input.dtype) and out.dtype != input.dtype else out


def _scale_channels(x, weight, bias):
    shape_ = (1, -1) + (1,) * (x.ndim - 2)
    x = x if weight is None else x * functions.reshape(weight, *shape_)
    return x if bias is None else x + functions.reshape(bias, *shape_)


def batch_norm(
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-05,
) -> Tensor:
    """Zero mean and unit variance per channel over the batch (training) or by the running
    statistics.

    In training the running statistics are updated in place, the variance with its unbiased
    estimate.
    Source: Ioffe and Szegedy, 2015.
    """
    _check_channels(
        input.shape[1], running_mean=running_mean, running_var=running_var, weight=weight, bias=bias
    )
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError(
            "Expected running_mean and running_var to be defined when training=False"
        )
    n = input.numel() // input.shape[1] if input.shape[1] else 0
    if training and n == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size "
            f"{list(input.shape)}"
        )
    if (
        input.is_cuda
        and not modes.local.batches
        and not any(t is not None and t.requires_grad for t in (running_mean, running_var))
    ):
        return _batch_norm_row(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    if is_half(input.dtype):  # statistics in float32, the running ones in their own dtype
        wide = input.float()
        out = batch_norm(wide, running_mean, running_var, weight, bias, training, momentum, eps)
        return out.to(dtype=input.dtype)
    shape_ = (1, -1) + (1,) * (input.ndim - 2)
    if not training and running_mean is not None:
        scale = functions.rsqrt(running_var + eps)
        out = (input - functions.reshape(running_mean, *shape_)) * functions.reshape(scale, *shape_)
        return _scale_channels(out, weight, bias)
    dims = (0, *range(2, input.ndim))
    mean = functions.mean(input, dims, True)
    centred = input - mean
    variance = functions.mean(functions.square(centred), dims, True)
    if training and running_mean is not None:
        with no_grad():
            unbiased = functions.reshape(variance.detach(), -1) * (n / (n - 1))
            running_mean.mul_(1 - momentum).add_(
                functions.reshape(mean.detach(), -1), alpha=momentum
            )
            running_var.mul_(1 - momentum).add_(unbiased, alpha=momentum)
    return _scale_channels(centred * functions.rsqrt(variance + eps), weight, bias)


@cache
def _follow():
    """Running averages as an update of their own, which compiled programs repeat."""

    @foreach
    def follow(average, moment, *, kept, by):
        return average * kept + moment * by

    return follow


def _batch_norm_row(input, running_mean, running_var, weight, bias, training, momentum, eps):
    """``batch_norm`` on CUDA: one operation for the moments and running averages, one to scale."""
    channels = input.shape[1]
    like = {"dtype": input.dtype, "device": input.device}
    weight = creation.ones(channels, **like) if weight is None else weight
    bias = (
        creation.zeros(channels, dtype=weight.dtype, device=input.device) if bias is None else bias
    )
    mean, variance = running_mean, running_var
    if training:
        running = () if running_mean is None else (running_mean, running_var)
        if modes.special and modes.local.recording is not None:
            mean, variance = nn_ops.channel_moments(input.detach())
            if running:
                n = input.numel() // channels
                _follow()([running_mean], [mean], kept=1 - momentum, by=momentum)
                _follow()([running_var], [variance], kept=1 - momentum, by=momentum * n / (n - 1))
        else:
            moments = nn_ops.channel_moments(input.detach(), *running, momentum=momentum)
            bump_versions([running])
            mean, variance = wrap(moments.array[0]), wrap(moments.array[1])
    return nn_ops.batch_norm(input, weight, bias, mean, variance, eps=eps, training=training)


def normalize(input, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """Divide by the p-norm along a dimension, or by ``eps`` if that is larger."""
    return input / functions.clamp(functions.norm(input, p, dim, True), min=eps)


# ------------------------------------------------------------------------------------------------
# losses


def _reduce(loss, reduction: str) -> Tensor:
    if reduction == "mean":
        return functions.mean(loss)
    if reduction == "sum":
        return functions.sum(loss)
    if reduction == "none":
        return loss
    raise ValueError(f"{reduction} is not a valid value for reduction; use 'none', 'mean' or 'sum'")


def mse_loss(input, target, reduction: str = "mean") -> Tensor:
    """Mean of squared differences."""
    if modes.special and (policy := policy_of("mse_loss", input, target)):
        return policy(mse_loss, input, target, reduction)
    return _reduce(functions.square(input - target), reduction)


def l1_loss(input, target, reduction: str = "mean") -> Tensor:
    """Mean of absolute differences."""
    if modes.special and (policy := policy_of("l1_loss", input, target)):
        return policy(l1_loss, input, target, reduction)
    return _reduce(functions.abs(input - target), reduction)


def huber_loss(input, target, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """Quadratic up to ``delta``, linear beyond."""
    if modes.special and (policy := policy_of("huber_loss", input, target)):
        return policy(huber_loss, input, target, reduction, delta)
    d = functions.abs(input - target)
    return _reduce(functions.where(d < delta, 0.5 * d * d, delta * (d - 0.5 * delta)), reduction)


def smooth_l1_loss(input, target, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """Huber's loss divided by ``beta``; ``beta=0`` is ``l1_loss``."""
    if modes.special and (policy := policy_of("smooth_l1_loss", input, target)):
        return policy(smooth_l1_loss, input, target, reduction, beta)
    if beta == 0:
        return l1_loss(input, target, reduction)
    d = functions.abs(input - target)
    return _reduce(functions.where(d < beta, d * d * (0.5 / beta), d - 0.5 * beta), reduction)


def binary_cross_entropy(input, target, weight=None, reduction: str = "mean") -> Tensor:
    """``-(t log p + (1-t) log(1-p))`` of probabilities; logarithms are limited to -100 from below,
    as torch's."""
    if modes.special and (policy := policy_of("binary_cross_entropy", input, target)):
        return policy(binary_cross_entropy, input, target, weight, reduction)
    _same_shape("binary_cross_entropy", input, target)
    verify(_check_unit, input)
    # torch's derivative is (p - t) / max(p (1 - p), 1e-12); at the limit a parabola has it
    fixed = input.detach()
    saturated = fixed * (1 - fixed) < 1e-12
    inner = functions.where(saturated, 0.5, input)
    loss = -(target * functions.log(inner) + (1 - target) * functions.log(1 - inner))
    logs = [functions.log(functions.clamp(v, min=1e-44)) for v in (fixed, 1 - fixed)]
    low, high = (functions.clamp(v, min=-100.0) for v in logs)
    parabola = functions.square(input - target.detach()) * 0.5e12
    edge = -(target * low + (1 - target) * high) + (parabola - parabola.detach())
    loss = functions.where(saturated, edge, loss)
    return _reduce(loss if weight is None else loss * weight, reduction)


def _check_unit(values) -> None:
    if isinstance(values, np.ndarray) and not ((values >= 0) & (values <= 1)).all():
        raise RuntimeError("all elements of input should be between 0 and 1")


def binary_cross_entropy_with_logits(
    input, target, weight=None, reduction: str = "mean", pos_weight=None
) -> Tensor:
    """``binary_cross_entropy(sigmoid(input), target)`` without overflow."""
    if modes.special and (policy := policy_of("binary_cross_entropy_with_logits", input, target)):
        return policy(
            binary_cross_entropy_with_logits, input, target, weight, reduction, pos_weight
        )
    _same_shape("binary_cross_entropy_with_logits", input, target)
    if pos_weight is None:
        loss = (1 - target) * input - logsigmoid(input)
    else:
        loss = (1 - target) * input - (1 + (pos_weight - 1) * target) * logsigmoid(input)
    return _reduce(loss if weight is None else loss * weight, reduction)


def _same_shape(name, input, target) -> None:
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(
            f"{name}: target size ({tuple(target.shape)}) must be the same as input size "
            f"({tuple(input.shape)})"
        )


def kl_div(input, target, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """``target * (log target - input)`` with log-probabilities as input; "batchmean" divides the
    sum by the batch."""
    if modes.special and (policy := policy_of("kl_div", input, target)):
        return policy(kl_div, input, target, reduction, log_target)
    if log_target:
        loss = functions.exp(target) * (target - input)
    else:
        positive = target > 0
        safe = functions.where(positive, target, 1.0)
        loss = functions.where(positive, target * (functions.log(safe) - input), 0.0)
    if reduction == "batchmean":
        return functions.sum(loss) / input.shape[0]
    return _reduce(loss, reduction)


def _check_targets(input, target, ignore_index) -> None:
    """Class indices must be integers in range (or ignore_index)."""
    classes = input.shape[1 if input.ndim > 1 else 0]
    if target.dtype.kind not in "iu":
        raise RuntimeError(f"expected class indices of an integer dtype, but got {target.dtype}")
    verify(_check_range_of_targets, target, classes=classes, ignore_index=ignore_index)


def _check_range_of_targets(values, *, classes: int, ignore_index: int) -> None:
    if not isinstance(values, np.ndarray) or not values.size:
        return
    if values.min() < 0 or values.max() >= classes:
        bad = values[((values < 0) | (values >= classes)) & (values != ignore_index)]
        if bad.size:
            raise IndexError(
                f"Target {int(bad.flat[0])} is out of bounds: there are {classes} classes (0 to "
                f"{classes - 1})"
            )


def nll_loss(
    input, target, weight=None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood of class indices given log-probabilities (N, C, ...) or (C).

    Raises IndexError naming the class if a target is out of range.
    """
    if modes.special and (policy := policy_of("nll_loss", input)):
        return policy(nll_loss, input, target, weight, ignore_index, reduction)
    if input.ndim == 1:
        return functions.reshape(
            nll_loss(
                functions.unsqueeze(input, 0),
                functions.unsqueeze(target, 0),
                weight,
                ignore_index,
                reduction,
            ),
            (),
        )
    if tuple(target.shape) != (input.shape[0], *input.shape[2:]):
        raise ValueError(
            f"Expected target of shape {(input.shape[0], *input.shape[2:])} for input "
            f"{tuple(input.shape)}, got {tuple(target.shape)}"
        )
    if reduction not in ("none", "mean", "sum"):
        _reduce(input, reduction)  # which raises
    if weight is not None:
        _check_channels(input.shape[1], weight=weight)
    total = reduction != "none"
    if weight is None and _all_count(target, input.shape[1], ignore_index):
        scale = -1.0 / (target.numel() or math.nan) if reduction == "mean" else -1.0
        return index_ops.pick(input, target, scale, axis=1, total=total)
    _check_targets(input, target, ignore_index)
    classes = run_arrays(_kept_classes, target, hole=ignore_index)
    weights = () if weight is None else (weight,)
    factor = run_arrays(_weights_of, target, *weights, hole=ignore_index, dtype=input.dtype)
    loss = index_ops.pick(input, classes, -factor, axis=1, total=total)
    return loss / functions.sum(factor) if reduction == "mean" else loss


def _kept_classes(target, *, hole: int):
    """The targets, with class 0 for those that are ignored."""
    return array_module(target).where(target != hole, target, 0)


def _weights_of(target, *weight, hole: int, dtype):
    """How much each target counts: the weight of its class, or 1; 0 if it is ignored."""
    factor = (target != hole).astype(dtype)
    if weight:
        factor *= weight[0][_kept_classes(target, hole=hole)]
    return factor


def _all_count(target, classes: int, ignore_index: int) -> bool:
    """Whether all targets are valid classes, none of them ignored; asked of CPU arrays only."""
    values = target.array
    if not isinstance(values, np.ndarray) or values.dtype != np.int64 or not values.size:
        return False
    if 0 <= ignore_index < classes:
        return False
    if modes.special and modes.local.recording is not None and _all_below(values, bound=classes):
        return True  # the kernel looks again at every call, and a program goes another way then
    return decide(_all_below, target, bound=classes)


def _all_below(values, *, bound: int):
    # one pass: a negative number is a large one when read as unsigned
    return np.maximum.reduce(values.view(np.uint64), axis=None) < bound


def cross_entropy(
    input,
    target,
    weight=None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax and negative log-likelihood in one: of class indices, or of probabilities
    (floating-point target).

    Raises IndexError naming the class if a target is out of range, ValueError if shapes do not fit.
    """
    if modes.special and (policy := policy_of("cross_entropy", input)):
        return policy(
            cross_entropy, input, target, weight, ignore_index, reduction, label_smoothing
        )
    if weight is None and label_smoothing == 0.0:
        loss = _plain_cross_entropy(input, target, ignore_index, reduction)
        if loss is not None:
            return loss
    axis = 1 if input.ndim > 1 else 0
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if weight is None and input.is_cuda:
        loss = _cross_entropy_of_rows(input, target, ignore_index, reduction, label_smoothing)
        if loss is not None:
            return loss
    if is_floating(target.dtype):
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing, axis)
    logp = log_softmax(input, axis)
    loss = nll_loss(logp, target, weight, ignore_index, reduction)
    if label_smoothing == 0.0:
        return loss
    smooth = _smoothing_loss(logp, target, weight, ignore_index, reduction, axis)
    return loss * (1 - label_smoothing) + smooth * label_smoothing


def _plain_cross_entropy(input, target, ignore_index: int, reduction: str):
    """The loss of class indices on the CPU as one operation; None unless the input is a matrix and
    every target a class that counts."""
    x, classes = input.array, target.array
    if (
        classes.__class__ is not np.ndarray
        or classes.dtype != _int64
        or x.__class__ is not np.ndarray
        or not is_floating(x.dtype)
        or x.ndim != 2
        or classes.shape != x.shape[:1]
        or not x.size
        or 0 <= ignore_index < x.shape[1]
    ):
        return None
    if reduction == "mean":
        scale = -1.0 / len(classes)
    elif reduction == "sum" or reduction == "none":
        scale = -1.0
    else:
        return None
    recorder = modes.local.recording if modes.special else None
    if recorder is not None and not _all_count(target, x.shape[1], ignore_index):
        return None  # the program goes on by that
    try:
        return nn_ops.nll_of_logits(input, target, scale=scale, total=reduction != "none")
    except IndexError:
        return None


def _cross_entropy_of_rows(input, target, ignore_index: int, reduction: str, smoothing: float):
    """The loss of class indices on a CUDA device as one operation, without looking at the targets;
    None unless the input is a matrix."""
    x, classes = input.array, target.array
    if (
        classes.dtype.kind not in "iu"
        or not is_floating(x.dtype)
        or x.ndim != 2
        or classes.shape != x.shape[:1]
        or not x.size
        or reduction not in ("none", "mean", "sum")
    ):
        return None
    count: tuple = ()
    if reduction == "mean":
        with there(classes):
            kept = functions.sum(functions.ne(target.detach(), ignore_index))
            count = (kept.to(dtype=x.dtype if x.dtype.itemsize >= 4 else np.float32),)
    return nn_ops.cross_entropy_of_logits(
        input, target, *count, hole=ignore_index, smoothing=smoothing, total=reduction != "none"
    )


def _smoothing_loss(logp, target, weight, ignore_index, reduction, axis):
    """Mean over classes of -log p, with ignored targets left out and torch's weighting."""
    classes = logp.shape[axis]
    shape_ = [1] * logp.ndim
    shape_[axis] = -1
    weighted = logp if weight is None else logp * functions.reshape(weight, *shape_)
    kept = functions.ne(target, ignore_index).to(dtype=logp.dtype)
    loss = -functions.sum(weighted, axis) * kept * (1.0 / classes)
    if reduction != "mean":
        return _reduce(loss, reduction)
    if weight is None:
        return functions.sum(loss) / functions.sum(kept)
    safe = functions.where(kept == 1, target, 0)
    return functions.sum(loss) / functions.sum(weight[safe] * kept)


def _soft_cross_entropy(input, target, weight, reduction, label_smoothing, axis):
    if tuple(target.shape) != tuple(input.shape):
        raise RuntimeError(
            f"cross_entropy: a target of probabilities must have the shape of the input "
            f"{tuple(input.shape)}, but has {tuple(target.shape)}"
        )
    _check_channels(input.shape[axis], weight=weight)
    classes = input.shape[axis]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    logp = log_softmax(input, axis)
    if weight is not None:
        shape_ = [1] * input.ndim
        shape_[axis] = -1
        logp = logp * functions.reshape(weight, *shape_)
    loss = -functions.sum(logp * target, axis)
    if reduction == "mean":
        return functions.sum(loss) / (input.numel() // classes)
    return _reduce(loss, reduction)


# ------------------------------------------------------------------------------------------------
# attention


@lru_cache(8)
def _causal_mask(rows: int, columns: int, device) -> Tensor:
    """True where a key comes no later than its query."""
    return functions.tril(creation.ones(rows, columns, device=device)) == 1


def _one_operation(query, key, value, mask) -> bool:
    """Whether attention is an operation of these arguments: nothing is broadcast or converted but a
    mask, which needs no gradient."""
    q, k, v = query.shape, key.shape, value.shape
    return (
        query.dtype == key.dtype == value.dtype
        and len(q) == len(k) == len(v) >= 2
        and q[:-2] == k[:-2] == v[:-2]
        and q[-1] == k[-1]
        and k[-2] == v[-2]
        and (mask is None or (mask.is_cuda and not mask.requires_grad and mask.ndim <= len(q)))
    )


def scaled_dot_product_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """``softmax(query @ key.T * scale + mask) @ value`` over the last two dimensions. Source:
    Vaswani et al., 2017."""
    if modes.special and (policy := policy_of("scaled_dot_product_attention", query, key, value)):
        return policy(
            scaled_dot_product_attention, query, key, value, attn_mask, dropout_p, is_causal, scale
        )
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if is_causal and attn_mask is not None:
        raise RuntimeError(
            "scaled_dot_product_attention: explicit attn_mask should not be set when is_causal=True"
        )
    if query.is_cuda and dropout_p == 0.0 and _one_operation(query, key, value, attn_mask):
        mask = () if attn_mask is None else (attn_mask,)
        return attention_ops.attention(query, key, value, *mask, scale=scale, causal=is_causal)
    scores = functions.matmul(query * scale, functions.transpose(key, -2, -1))
    if is_causal:
        attn_mask = _causal_mask(*scores.shape[-2:], query.device)
    if attn_mask is not None:
        if attn_mask.dtype.kind == "b":
            scores = functions.where(attn_mask, scores, -math.inf)
        else:
            scores = scores + attn_mask
    weights = softmax(scores, -1)
    return functions.matmul(dropout(weights, dropout_p), value)


def cosine_similarity(x1, x2, dim: int = 1, eps: float = 1e-08) -> Tensor:
    """Cosine of the angle between vectors along a dimension."""
    if modes.special and (policy := policy_of("cosine_similarity", x1, x2)):
        return policy(cosine_similarity, x1, x2, dim, eps)
    dot = functions.sum(x1 * x2, dim)
    lengths = functions.clamp(functions.norm(x1, 2, dim), min=eps) * functions.clamp(
        functions.norm(x2, 2, dim), min=eps
    )
    return dot / lengths


__all__ = [
    "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "conv1d",
    "conv2d", "conv_transpose2d", "cosine_similarity", "cross_entropy", "dropout", "elu",
    "embedding", "flatten", "gelu", "glu",
    "group_norm", "hardtanh", "huber_loss", "kl_div", "l1_loss", "layer_norm", "leaky_relu",
    "linear", "log_softmax",
    "logsigmoid", "max_pool2d", "mish", "mse_loss", "nll_loss", "normalize", "one_hot", "pad",
    "relu", "relu6", "rms_norm",
    "scaled_dot_product_attention", "selu", "sigmoid", "silu", "smooth_l1_loss", "softmax",
    "softplus", "tanh",
]  # fmt: skip
