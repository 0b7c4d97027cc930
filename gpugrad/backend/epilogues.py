"""Products of matrices with what follows them in the same kernel: bias, relu, gelu, gradients.

These are cuBLASLt's epilogues. They compute what their names say with two differences from torch's
functions, which is why ``relu(linear(x))`` does not become one of them unasked: relu of NaN is 0
here, and gelu is the approximation by tanh. The result is rounded once, after the function.

Where cuBLASLt has no algorithm with an epilogue for a dtype or device, the product and the function
run one after the other and give the same values.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from . import cublas
from . import cupy as backend
from .cublas import BIAS_ALIGNMENT

_RELU_BITS = 128  # the leading dimension of relu's mask is a multiple of these
_GELU_ELEMENTS = 8  # that of gelu's input of these


class Saved(NamedTuple):
    """What the gradient of an activation reads.

    ``packed``: for relu the bits of cuBLASLt's mask, for gelu its input with rows of a multiple of
    8 elements; None where the forward pass ran in two steps. ``values``: relu's output or gelu's
    input.
    """

    activation: str
    packed: Any
    values: Any


def affine(x, w, b):
    """``x @ w.T + b``, in one call where possible; None where cuBLASLt is not to compute it."""
    found = _with_bias("linear+bias", "bias", x, w, b)
    if found is not None:
        return found[0]
    out = cublas.linear(x, w)
    if out is not None:
        with backend.on_device_of(out):
            out += b
    return out


def activated(x, w, b, activation: str, save: bool = True):
    """``activation(x @ w.T + b)`` for "relu" or "gelu" (tanh), and what its gradient reads.

    ``x`` is (..., in), ``w`` (out, in), ``b`` (out,). Returns (values, Saved), or (values, None)
    without ``save``.
    """
    _check(activation)
    epilogue = f"{activation}_{'aux_' if save else ''}bias"
    found = _with_bias(f"linear+{epilogue}", epilogue, x, w, b)
    if found is not None:
        out, packed = found
        columns = w.shape[0]
        values = out if activation == "relu" or packed is None else packed[:, :columns]
        return out, Saved(activation, packed, values) if save else None
    z = cublas.linear(x, w)
    z = (x @ w.T if z is None else z) + b
    out = _relu(z) if activation == "relu" else _gelu(z)
    values = out if activation == "relu" else z.reshape(-1, w.shape[0])
    return out, Saved(activation, None, values) if save else None


def activated_input(g, w, saved: Saved, bias: bool = True):
    """The gradient before an activation: ``(g @ w) * activation'``, and its sum over rows.

    ``g`` (..., out) is the cotangent of the *next* layer's output and ``w`` (out, in) that layer's
    weight; ``saved`` is of the layer whose ``in`` outputs it reads. Returns (gradient, gradient of
    that layer's bias, or None without ``bias``).
    """
    found = _input_in_one(g, w, saved, bias)
    if found is not None:
        return found
    product = cublas.linear_input(g, w)
    product = g @ w if product is None else product
    slope = (saved.values > 0) if saved.activation == "relu" else _gelu_slope(saved.values)
    out = product * slope.reshape(product.shape).astype(product.dtype, copy=False)
    if not bias:
        return out, None
    wide = "f" if out.dtype.itemsize == 2 else out.dtype
    return out, out.reshape(-1, w.shape[1]).sum(axis=0, dtype=wide).astype(out.dtype, copy=False)


def weight_and_bias(g, x):
    """``g.T @ x`` and the sum of ``g`` over rows, in one call; None where cuBLASLt has none.

    ``g`` is (..., out), ``x`` (..., in): the gradients of a layer's weight and bias.
    """
    plan = cublas._find("weight+bgradb", _plan_weight_and_bias, g, x)
    if plan is None or plan.problem is None:
        return None
    with backend.at(plan.device):
        out, bias = backend.empty(plan.shape, g.dtype), backend.empty(g.shape[-1:], g.dtype)
        plan.run_with(g, x, out, bias, None)
    return out, bias


def _plan_weight_and_bias(g, x):
    return cublas._plan_linear_weight(g, x, epilogue="bgradb")


# ------------------------------------------------------------------------------------------------


def _planner(plan, epilogue: str, multiple: int = 0):
    """``plan`` for an epilogue whose auxiliary rows are a multiple of so many elements."""

    def make(x, w):
        columns = w.shape[1] if plan is cublas._plan_linear_input else w.shape[0]
        return plan(
            x, w, epilogue=epilogue, ld_aux=-(-columns // multiple) * multiple if multiple else 0
        )

    return make


_MULTIPLES = {"relu": _RELU_BITS, "gelu": _GELU_ELEMENTS}
_FORWARD = {
    "bias": _planner(cublas._plan_linear, "bias"),
    **{f"{a}_bias": _planner(cublas._plan_linear, f"{a}_bias") for a in _MULTIPLES},
    **{
        f"{a}_aux_bias": _planner(cublas._plan_linear, f"{a}_aux_bias", n)
        for a, n in _MULTIPLES.items()
    },
}
_BACKWARD = {
    f"d{a}{bgrad}": _planner(cublas._plan_linear_input, f"d{a}{bgrad}", n)
    for a, n in _MULTIPLES.items()
    for bgrad in ("", "_bgrad")
}


def _with_bias(kind: str, epilogue: str, x, w, b):
    """(values, packed buffer or None) of a product with a bias and an epilogue, or None."""
    if b.dtype.num != x.dtype.num or not b.flags.c_contiguous or b.data.ptr % BIAS_ALIGNMENT:
        return None
    plan = cublas._find(kind, _FORWARD[epilogue], x, w)
    if plan is None or plan.problem is None:
        return None
    with backend.at(plan.device):
        out, packed = backend.empty(plan.shape, x.dtype), None
        ld = plan.problem.ld_aux
        if ld:
            rows = prod(x.shape[:-1])
            bits = "relu" in epilogue
            packed = backend.empty((rows, ld // 8 if bits else ld), "uint8" if bits else x.dtype)
        plan.run_with(x, w, out, b, packed)
    return out, packed


def _input_in_one(g, w, saved: Saved, bias: bool):
    if saved.packed is None:
        return None
    epilogue = f"d{saved.activation}{'_bgrad' if bias else ''}"
    plan = cublas._find(f"input+{epilogue}", _BACKWARD[epilogue], g, w)
    if plan is None or plan.problem is None:
        return None
    with backend.at(plan.device):
        out = backend.empty(plan.shape, g.dtype)
        gradient = backend.empty(w.shape[1:], g.dtype) if bias else None
        plan.run_with(g, w, out, gradient, saved.packed)
    return out, gradient


def _check(activation: str) -> None:
    if activation not in ("relu", "gelu"):
        raise ValueError(f"no epilogue for {activation!r}: there are 'relu' and 'gelu'")


# ---- the functions where they run after the product


def _wide(x):
    return x.astype("f") if x.dtype.itemsize == 2 else x


def _relu(z):
    return backend.cupy().where(z > 0, z, backend.zeros((), z.dtype))


_SQRT_2_OVER_PI = 0.7978845608028654


def _gelu(z):
    tanh = backend.cupy().tanh
    x = _wide(z)
    inner = _SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)
    return (0.5 * x * (1.0 + tanh(inner))).astype(z.dtype, copy=False)


def _gelu_slope(z):
    tanh = backend.cupy().tanh
    x = _wide(z)
    t = tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _SQRT_2_OVER_PI * (1.0 + 0.134145 * x * x)
