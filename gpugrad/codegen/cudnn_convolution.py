"""Convolutions as graphs of cuDNN: float16, bfloat16 and float32 on CUDA arrays.

Arrays keep their layout: results of channels-last images, which lie in memory as (N, H, W, C), are
channels-last. Every function answers None where cuDNN is missing, switched off or has no engine;
then the kernels of ``kernels/convolution.cu`` compute.
"""

from __future__ import annotations

from ..backend import cudnn
from ..backend import cupy as backend

_A, _B, _RESULT = 1, 2, 3  # uids of the two operands and the result


def forward(x, w, stride, padding, dilation, groups):
    """The convolution of images with filters, or None."""
    size = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True)
    ]
    shape = (x.shape[0], w.shape[0], *size)
    return _run("conv_fprop", ("image", "weight"), x, w, shape, stride, padding, dilation, groups)


def input_gradient(g, w, shape, stride, padding, dilation, groups):
    """The cotangent of the images, or None."""
    return _run("conv_dgrad", ("loss", "filter"), g, w, shape, stride, padding, dilation, groups)


def weight_gradient(g, x, shape, stride, padding, dilation, groups):
    """The cotangent of the filters, or None."""
    return _run("conv_wgrad", ("loss", "image"), g, x, shape, stride, padding, dilation, groups)


def _run(operation, names, a, b, shape, stride, padding, dilation, groups):
    if not cudnn.usable() or cudnn.data_type(a.dtype) is None:
        return None
    if 0 in (*a.shape, *b.shape, *shape) or min(min(p) for p in padding) < 0:
        return None
    a, b = _dense(a), _dense(b)
    # the layout of filters says nothing about that of their cotangent
    result = _empty_like(a if operation != "conv_wgrad" else None, shape, a.dtype)
    options = {
        "pre_padding": [p[0] for p in padding],
        "post_padding": [p[1] for p in padding],
        "stride": list(stride),
        "dilation": list(dilation),
    }

    def make(graph) -> None:
        operands = [cudnn.tensor(graph, uid, array) for uid, array in ((_A, a), (_B, b))]
        y = getattr(graph, operation)(**dict(zip(names, operands, strict=True)), **options)
        cudnn.result(y, _RESULT, result)

    arrays = {_A: a, _B: b, _RESULT: result}
    layouts = tuple((array.shape, array.strides) for array in arrays.values())
    key = (operation, a.dtype.name, layouts, stride, padding, dilation, groups)
    return result if cudnn.run(key, make, arrays) else None


def _dense(a):
    """The array, or a copy in C order of one that has gaps or begins at an odd place."""
    if a.data.ptr % cudnn.ALIGNMENT:
        return a.copy(order="C")
    return a if _is_channels_last(a) else backend.contiguous(a)


def _is_channels_last(a) -> bool:
    """Whether an array of channels lies in memory as (N, H, W, C), and not in C order as well."""
    return not a.flags.c_contiguous and a.transpose(0, 2, 3, 1).flags.c_contiguous


def _empty_like(model, shape, dtype):
    """A new array, channels-last if the model is."""
    if model is None or not _is_channels_last(model):
        return backend.empty(shape, dtype)
    n, c, h, w = shape
    return backend.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)
