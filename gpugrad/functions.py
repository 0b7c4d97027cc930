"""torch's functions of tensors, with torch's signatures, over the table of operations; and the
methods made of them."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from typing import Any

from . import creation, dtypes
from .autocasting import policy_of
from .autograd.engine import _post_hooks, _retained
from .autograd.engine import backward as _backward
from .autograd.engine import register_hook as _register_hook
from .autograd.engine import retain_grad as _retain_grad
from .backend import arrays as backend_arrays
from .backend import cupy as cuda_backend
from .backend.device import CPU, as_device
from .backend.device import device as device_class
from .backend.numpy import xp as np
from .codegen.expr import Expr
from .config import FollowedInteger, modes
from .eager import (
    binary,
    bump_version,
    check_writable,
    decide,
    elementwise,
    recording,
    run_arrays,
    same_device,
    shape_of_values,
    unary,
    verify,
)
from .eager import write as _write
from .lifted import are_lifted, like
from .lifted import write as write_lifted
from .ops import elementwise as e
from .ops import index as index_ops
from .ops import linalg, reduce, shape
from .ops import nn as nn_ops
from .tensor import Tensor, _read, constant, over, wrap

_INT = (int, np.integer, FollowedInteger)


# ------------------------------------------------------------------------------------------------
# elementwise


def _public(op, make):
    """The public function of an elementwise row: its short path under its own name."""
    function = op.short = make(op)
    function.__name__ = function.__qualname__ = op.name
    function.__doc__ = f"Elementwise {op.name} with broadcasting and torch's type promotion."
    function.op = op
    return function


exp, exp2, expm1 = _public(e.exp, unary), _public(e.exp2, unary), _public(e.expm1, unary)
log, log2, log10, log1p = (_public(op, unary) for op in (e.log, e.log2, e.log10, e.log1p))
sqrt, rsqrt, square, reciprocal = (
    _public(op, unary) for op in (e.sqrt, e.rsqrt, e.square, e.reciprocal)
)
sin, cos, tan = _public(e.sin, unary), _public(e.cos, unary), _public(e.tan, unary)
asin, acos, atan = _public(e.asin, unary), _public(e.acos, unary), _public(e.atan, unary)
sinh, cosh, tanh = _public(e.sinh, unary), _public(e.cosh, unary), _public(e.tanh, unary)
asinh, acosh, atanh = _public(e.asinh, unary), _public(e.acosh, unary), _public(e.atanh, unary)
neg, abs, sign = _public(e.neg, unary), _public(e.abs, unary), _public(e.sign, unary)
floor, ceil, trunc = _public(e.floor, unary), _public(e.ceil, unary), _public(e.trunc, unary)
erf, sigmoid, relu = _public(e.erf, unary), _public(e.sigmoid, unary), _public(e.relu, unary)
positive = _public(e.positive, unary)
isnan, isinf, isfinite = (
    _public(e.isnan, unary),
    _public(e.isinf, unary),
    _public(e.isfinite, unary),
)
logical_not = _public(e.logical_not, unary)
mul, true_divide = _public(e.mul, binary), _public(e.div, binary)
_add, _sub = _public(e.add, binary), _public(e.sub, binary)
maximum, minimum = _public(e.maximum, binary), _public(e.minimum, binary)
remainder, fmod, floor_divide = (
    _public(op, binary) for op in (e.remainder, e.fmod, e.floor_divide)
)
atan2, hypot, logaddexp = (
    _public(e.atan2, binary),
    _public(e.hypot, binary),
    _public(e.logaddexp, binary),
)
lt, le, gt, ge, eq, ne = (_public(op, binary) for op in (e.lt, e.le, e.gt, e.ge, e.eq, e.ne))
logical_and, logical_or, logical_xor = (
    _public(op, binary) for op in (e.logical_and, e.logical_or, e.logical_xor)
)
absolute, negative, multiply = abs, neg, mul
arcsin, arccos, arctan, arctan2 = asin, acos, atan, atan2
fix, greater, less, greater_equal, less_equal, not_equal = trunc, gt, lt, ge, le, ne


def add(input, other, *, alpha=1) -> Tensor:
    """``input + alpha * other``, with broadcasting.

    >>> import gpugrad as gg
    >>> gg.add(gg.tensor([1.0]), gg.tensor([2.0]), alpha=10)
    tensor([21.])
    """
    return _add(
        input,
        other if alpha == 1 else mul(other, alpha) if isinstance(other, Tensor) else other * alpha,
    )


def sub(input, other, *, alpha=1) -> Tensor:
    """``input - alpha * other``, with broadcasting."""
    return _sub(
        input,
        other if alpha == 1 else mul(other, alpha) if isinstance(other, Tensor) else other * alpha,
    )


subtract = sub


def div(input, other, *, rounding_mode: str | None = None) -> Tensor:
    """``input / other``; ``rounding_mode`` "floor" or "trunc" rounds the quotient."""
    if rounding_mode is None:
        return true_divide(input, other)
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode == "trunc":
        quotient = trunc(true_divide(input, other))
        kinds = [getattr(v, "dtype", None) or dtypes.of_scalar(v) for v in (input, other)]
        return quotient.to(dtype=dtypes.promote_types(*kinds))
    raise RuntimeError(
        f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found "
        f"'{rounding_mode}'"
    )


divide = div
_power = _public(e.pow, binary)


def pow(input, exponent) -> Tensor:
    """``input ** exponent``; small integer and half exponents take cheaper ways.

    Raises RuntimeError for integers to negative integer powers.
    """
    if modes.special and (policy := policy_of("pow", input, exponent)):
        return policy(pow, input, exponent)
    if exponent.__class__ in (int, float) and isinstance(input, Tensor):
        if exponent == 2:
            return square(input)
        if exponent == 1:
            return positive(input)
        if dtypes.is_floating(input.dtype):
            if exponent == 0.5:
                return sqrt(input)
            if exponent == -1:
                return reciprocal(input)
            if exponent == 3:
                return input * square(input)
            if exponent == 0:  # the general derivative would divide by zeros of the input
                return where(creation.ones_like(input, dtype=dtypes.bool_), 1.0, input)
        elif exponent.__class__ is int and exponent < 0:
            raise RuntimeError("Integers to negative integer powers are not allowed.")
    return _power(input, exponent)


def where(condition, input=None, other=None):
    """``input`` where the condition holds, else ``other``; with one argument, the indices of its
    nonzero elements."""
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    if isinstance(condition, Expr):
        return elementwise(e.where, (condition, input, other))
    condition = condition if isinstance(condition, Tensor) else creation.as_tensor(condition)
    if condition.dtype != dtypes.bool_:
        raise RuntimeError(
            f"where expected condition to be a boolean tensor, but got a tensor with dtype "
            f"{condition.dtype}"
        )
    return elementwise(e.where, (condition, input, other))


def clamp(input, min=None, max=None) -> Tensor:
    """Limit values to [min, max]; either bound may be None, a number or a tensor."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    if min is not None:
        input = elementwise(e.clamp_min, (input, min))
    return input if max is None else elementwise(e.clamp_max, (input, max))


clip = clamp


def lerp(input, end, weight) -> Tensor:
    """``input + weight * (end - input)``."""
    number = not isinstance(weight, Tensor) and isinstance(input, Tensor)
    if number and dtypes.is_floating(input.dtype):
        # as a number it would make the result float64: the row compares it with 0.5
        weight = creation.full((), weight, dtype=input.dtype, device=input.device)
    return elementwise(e.lerp, (input, end, weight))


def round(input, *, decimals: int = 0) -> Tensor:
    """Round to the nearest integer (halves to even) or to ``decimals`` digits."""
    if input.dtype.kind in "iu" and decimals >= 0:
        return clone(input)
    if decimals == 0:
        return elementwise(e.round, (input,))
    factor = 10.0**decimals
    return elementwise(e.round, (input * factor,)) / factor


def addcmul(input, tensor1, tensor2, *, value=1) -> Tensor:
    """``input + value * tensor1 * tensor2``."""
    if modes.special and (policy := policy_of("addcmul", input, tensor1, tensor2)):
        return policy(addcmul, input, tensor1, tensor2, value=value)
    return input + (tensor1 * tensor2 if value == 1 else tensor1 * tensor2 * value)


def addcdiv(input, tensor1, tensor2, *, value=1) -> Tensor:
    """``input + value * tensor1 / tensor2``."""
    if modes.special and (policy := policy_of("addcdiv", input, tensor1, tensor2)):
        return policy(addcdiv, input, tensor1, tensor2, value=value)
    return input + (tensor1 / tensor2 if value == 1 else tensor1 / tensor2 * value)


def isclose(
    input, other, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """Elementwise ``|input - other| <= atol + rtol * |other|``."""
    same_device("isclose", (input.array, other.array))
    return run_arrays(_isclose, input, other, rtol=rtol, atol=atol, equal_nan=equal_nan)


def _isclose(a, b, *, rtol, atol, equal_nan):
    return backend_arrays.array_module(a).isclose(a, b, rtol, atol, equal_nan)


def allclose(
    input, other, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Whether all elements are close (see ``isclose``)."""
    return bool(all(isclose(input, other, rtol, atol, equal_nan)))


def equal(input, other) -> bool:
    """Whether two tensors have the same shape and values."""
    if input.shape != other.shape:
        return False
    same_device("equal", (input.array, other.array))
    return decide(_equal, input, other)


def _equal(a, b):
    return backend_arrays.array_module(a).asarray((a == b).all())


def nan_to_num(input, nan: float = 0.0, posinf=None, neginf=None) -> Tensor:
    """Replace NaN and infinities by numbers (infinities by the dtype's largest, unless given)."""
    if not dtypes.is_floating(input.dtype):
        return clone(input)
    limits = dtypes.finfo(input.dtype)
    x = where(isnan(input), nan, input)
    x = where(x == float("inf"), float(limits.max) if posinf is None else posinf, x)
    return where(x == -float("inf"), float(limits.min) if neginf is None else neginf, x)


# ------------------------------------------------------------------------------------------------
# dtype and device


def to(
    input,
    *args,
    device: Any = None,
    dtype: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
) -> Tensor:
    """Move to a device and/or convert to a dtype: ``x.to("cuda")``, ``x.to(gg.float64)``,
    ``x.to(other)``.

    Returns the tensor itself if nothing changes (unless ``copy``). Gradients flow back through the
    move. "cuda" without a number is the current CUDA device. Copies to a GPU never wait for it.
    With ``non_blocking`` they read page-locked memory (``pin_memory()``) in place, so that it must
    not be overwritten before they are done; and a copy to the CPU does not wait either: its values
    are there after ``cuda.synchronize()`` or an event.
    """
    flags = []
    for a in args:
        if isinstance(a, Tensor):
            device, dtype = a.device, a.dtype
        elif isinstance(a, (str, device_class)) and _names_device(a):
            device = as_device(a)
        elif isinstance(a, builtins.bool):
            flags.append(a)
        elif isinstance(a, builtins.int):
            device = as_device(a)
        elif a is not None:
            try:
                dtype = dtypes.as_dtype(a)
            except TypeError as error:
                raise (RuntimeError if isinstance(a, str) else TypeError)(
                    f"to() takes a device, a dtype or a tensor, got {a!r}"
                ) from error
    if flags:  # torch's order
        non_blocking, copy = flags[0], copy or True in flags[1:]
    result = input
    if dtype is not None and input.dtype != (dtype := dtypes.as_dtype(dtype)):
        result = shape.cast(result, dtype=dtype)
    if device is not None:
        target, source = _with_number(as_device(device)), input.device
        if target.type != source.type or (target != source and target.type == "cuda"):
            result = to_device(result, device=target, source=source, non_blocking=non_blocking)
    return clone(result) if copy and result is input else result


def _names_device(a) -> bool:
    return isinstance(a, device_class) or a.split(":")[0] in ("cpu", "cuda", "auto")


def _with_number(d: device_class) -> device_class:
    return d if d.type == "cpu" else cuda_backend.require(d)


to_device: Any = shape.linear(
    "to_device",
    lambda x, *, device, source, non_blocking=False: backend_arrays.to_device(
        x, device, non_blocking
    ),
    lambda g, x, *, device, source, non_blocking=False: to_device(g, device=source, source=device),
    samples=lambda r: [((r(2, 3),), {"device": CPU, "source": CPU})],
)


def type(input, dtype=None):
    """The dtype's name, or the tensor converted to a dtype."""
    return str(input.dtype) if dtype is None else to(input, dtype=dtype)


def result_type(a, b):
    """The dtype of an elementwise operation of two tensors or numbers, by torch's rules."""
    pairs = []
    for v in (a, b):
        pairs.append(
            (v.dtype, 2 if v.ndim else 1) if isinstance(v, Tensor) else (dtypes.of_scalar(v), 0)
        )
    return dtypes.result_type_of(pairs)


def _converter(dtype, name):
    def convert(self) -> Tensor:
        return to(self, dtype=dtype)

    convert.__name__ = name
    convert.__doc__ = f"The tensor as {dtype}."
    return convert


def bfloat16(self) -> Tensor:
    """The tensor as bfloat16."""
    return to(self, dtype=dtypes.bfloat16)


def cpu(self) -> Tensor:
    """The tensor on the CPU."""
    return to(self, device="cpu")


def cuda(self, device=None, non_blocking: bool = False) -> Tensor:
    """The tensor on a CUDA device, the current one unless given."""
    return to(
        self, device="cuda" if device is None else as_device(device), non_blocking=non_blocking
    )


def pin_memory(self, device=None) -> Tensor:
    """The tensor in page-locked memory, from which copies to a GPU are faster and may overlap with
    work (``to("cuda", non_blocking=True)``). Raises RuntimeError for CUDA tensors, DeviceError
    without CUDA."""
    if self.is_cuda:
        raise RuntimeError(f"cannot pin '{self.device}' tensor: only CPU tensors can be pinned")
    cuda_backend.require(device_class("cuda"))
    from .backend import cuda_transfer

    if cuda_transfer.is_pinned(self.array):
        return self
    return wrap(cuda_transfer.pinned_copy(self.array))


def is_pinned(self, device=None) -> builtins.bool:
    """Whether the tensor lies in page-locked memory."""
    if self.is_cuda or not cuda_backend.is_available():
        return False
    from .backend import cuda_transfer

    return cuda_transfer.is_pinned(self.array)


def record_stream(self, stream) -> None:
    """Do not give the memory of a CUDA tensor to another before work that a stream is doing with it
    is done. For tensors used on another stream than the one they were made on."""
    if not self.is_cuda:
        raise RuntimeError("record_stream() expects a CUDA tensor")
    from .backend import cuda_transfer

    cuda_transfer.record_stream(self.array, stream.cupy)


# ------------------------------------------------------------------------------------------------
# copies and history


def clone(input) -> Tensor:
    """A copy with its own memory; gradients flow back to the original."""
    return _copy(input)


_copy = shape.linear(
    "clone", lambda x: x.copy(), lambda g, x: g, samples=lambda r: [((r(2, 3),), {})]
)


def detach(self) -> Tensor:
    """The same memory without history."""
    return self.detach() if self._level else creation.share(self)


def detach_(self) -> Tensor:
    """Cut this tensor from its history, in place."""
    self._node = None
    return self


def contiguous(self) -> Tensor:
    """The tensor itself if its memory is in order, else a copy that is."""
    return self if self.array.flags.c_contiguous else _contiguous(self)


_contiguous = shape.linear(
    "contiguous",
    lambda x: backend_arrays.array_module(x).ascontiguousarray(x),
    lambda g, x: g,
    samples=lambda r: [((r(3, 2),), {})],
)


# ------------------------------------------------------------------------------------------------
# dimensions


def _dim(d: Any, ndim: int) -> int:
    """A dimension as a non-negative number, with torch's IndexError."""
    limit = builtins.max(ndim, 1)
    if d.__class__ is not int:
        d = operator.index(d)
    if not -limit <= d < limit:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-limit}, {limit - 1}], but got "
            f"{d})"
        )
    return d % limit


def _dims(dim, ndim: int) -> tuple[int, ...] | None:
    """One or several dimensions as a sorted tuple; None and () mean all."""
    if dim is None:
        return None
    if isinstance(dim, _INT):
        axis = _dim(dim, ndim)
        return (axis,) if ndim else None
    dims = tuple(_dim(d, ndim) for d in dim)
    if len(set(dims)) != len(dims):
        raise RuntimeError(f"dim {dim} appears multiple times in the list of dims")
    return tuple(sorted(dims)) or None


def _sizes(args) -> tuple:
    if len(args) == 1 and not isinstance(args[0], (*_INT, Tensor)):
        args = args[0]
    return tuple([n if n.__class__ is int else operator.index(n) for n in args])


def _known_shape(sizes, numel: int, old) -> tuple:
    """Fill in a -1; torch's error if the sizes do not fit."""
    known, unknown = 1, sizes.count(-1)
    for n in sizes:
        if n != -1:
            known *= n
    if unknown == 1 and known and numel % known == 0:
        sizes = tuple([numel // known if n == -1 else n for n in sizes])
        known = numel
    if unknown > 1:
        raise RuntimeError("only one dimension can be inferred")
    if known != numel or (sizes and builtins.min(sizes) < 0):
        raise RuntimeError(
            f"shape '{list(sizes)}' is invalid for input of size {numel} (shape {tuple(old)})"
        )
    return sizes


def reshape(input, *size) -> Tensor:
    """The values in another shape: a view where possible, else a copy; one size may be -1."""
    sizes = _known_shape(_sizes(size), input.array.size, input.shape)
    return shape.reshape(input, shape=sizes)


def view(self, *size) -> Tensor:
    """A view in another shape, or (``view(dtype)``) of the same bytes as another dtype; never a
    copy."""
    if len(size) == 1 and not isinstance(size[0], (*_INT, tuple, list)):
        if modes.special and modes.local.recording is not None:
            modes.local.recording.fail("view(dtype) looks at the bytes of a tensor")
        return wrap(self.array.view(dtypes.as_dtype(size[0])))
    result = reshape(self, *size)
    if result._view is None and not result._level:
        raise RuntimeError(
            "view size is not compatible with input tensor's size and stride (at least one "
            "dimension spans across two "
            "contiguous subspaces). Use .reshape(...) instead."
        )
    return result


def view_as(self, other) -> Tensor:
    """``view(other.shape)``."""
    return view(self, *other.shape)


def reshape_as(self, other) -> Tensor:
    """``reshape(other.shape)``."""
    return reshape(self, *other.shape)


def flatten(input, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Merge the dimensions from ``start_dim`` to ``end_dim`` into one."""
    sizes = tuple(input.shape)
    if not sizes:
        return reshape(input, 1)
    first, last = _dim(start_dim, len(sizes)), _dim(end_dim, len(sizes))
    if first > last:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    merged = 1
    for n in sizes[first : last + 1]:
        merged *= n
    return shape.reshape(input, shape=(*sizes[:first], merged, *sizes[last + 1 :]))


def unflatten(input, dim: int, sizes) -> Tensor:
    """Split one dimension into several (one size may be -1)."""
    dim = _dim(dim, input.ndim)
    sizes = _known_shape(tuple(sizes), input.shape[dim], (input.shape[dim],))
    return reshape(input, *input.shape[:dim], *sizes, *input.shape[dim + 1 :])


def ravel(input) -> Tensor:
    """All values in one dimension."""
    return reshape(input, -1)


def permute(input, *args, dims=None) -> Tensor:
    """A view with the dimensions in another order."""
    dims = tuple(_dim(d, input.ndim) for d in _sizes(args if dims is None else (dims,)))
    if sorted(dims) != list(range(input.ndim)):
        raise RuntimeError(
            f"permute(dims): the dims {dims} are not an order of the {input.ndim} dimensions of "
            f"the tensor"
        )
    return shape.permute(input, axes=dims)


def transpose(input, dim0: int, dim1: int) -> Tensor:
    """A view with two dimensions exchanged."""
    axes = list(range(input.ndim))
    a, b = _dim(dim0, input.ndim), _dim(dim1, input.ndim)
    if axes:
        axes[a], axes[b] = axes[b], axes[a]
    return shape.permute(input, axes=tuple(axes))


swapaxes = swapdims = transpose


def t(input) -> Tensor:
    """The transpose of a matrix."""
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return transpose(input, 0, 1) if input.ndim == 2 else input


def movedim(input, source, destination) -> Tensor:
    """A view with some dimensions moved to other positions."""
    sources = [_dim(d, input.ndim) for d in ((source,) if isinstance(source, _INT) else source)]
    targets = [
        _dim(d, input.ndim)
        for d in ((destination,) if isinstance(destination, _INT) else destination)
    ]
    if len(sources) != len(targets):
        raise RuntimeError(
            f"movedim: Invalid source or destination dims: {sources} and {targets} must have the "
            f"same number of elements"
        )
    for dims in (sources, targets):
        if len(set(dims)) != len(dims):
            raise RuntimeError(f"movedim: repeated dim in {dims}")
    rest = [d for d in range(input.ndim) if d not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        rest.insert(target, origin)
    return shape.permute(input, axes=tuple(rest))


def unsqueeze(input, dim: int) -> Tensor:
    """A view with a dimension of size 1 inserted."""
    dim = _dim(dim, input.ndim + 1)
    return shape.reshape(input, shape=(*input.shape[:dim], 1, *input.shape[dim:]))


def squeeze(input, dim=None) -> Tensor:
    """A view without its dimensions of size 1 (only those given, if any)."""
    dims = set(range(input.ndim)) if dim is None else set(_dims(dim, input.ndim) or ())
    kept = tuple(n for i, n in enumerate(input.shape) if not (i in dims and n == 1))
    return shape.reshape(input, shape=kept)


def expand(self, *sizes) -> Tensor:
    """A view broadcast to a larger shape; -1 keeps a size."""
    sizes = _sizes(sizes)
    lead = len(sizes) - self.ndim
    if lead < 0:
        raise RuntimeError(
            f"expand: the number of sizes ({len(sizes)}) must be at least the dimensions "
            f"({self.ndim})"
        )
    full = tuple(self.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(sizes))
    for i, n in enumerate(self.shape):
        if n not in (1, full[lead + i]):
            raise RuntimeError(
                f"The expanded size of the tensor ({full[lead + i]}) must match the existing size "
                f"({n}) at non-singleton "
                f"dimension {lead + i}.  Target sizes: {list(full)}.  Tensor sizes: "
                f"{list(self.shape)}"
            )
    return shape.broadcast_to(self, shape=full)


def expand_as(self, other) -> Tensor:
    """``expand(other.shape)``."""
    return expand(self, *other.shape)


def broadcast_to(input, size) -> Tensor:
    """``expand(size)`` as a function."""
    return expand(input, *size)


def broadcast_tensors(*tensors) -> tuple[Tensor, ...]:
    """All tensors expanded to their common shape."""
    shapes = [tuple(x.shape) for x in tensors]
    try:
        common = np.broadcast_shapes(*shapes)
    except ValueError:
        raise RuntimeError(f"shapes {shapes} do not broadcast together") from None
    return tuple(expand(x, *common) for x in tensors)


def sum_to_size(self, *size) -> Tensor:
    """Sum the dimensions that broadcasting ``size`` to this shape would stretch."""
    return shape.sum_to(self, shape=_sizes(size))


def repeat(self, *sizes) -> Tensor:
    """Copies of the tensor laid out along every dimension."""
    sizes = _sizes(sizes)
    lead = len(sizes) - self.ndim
    if lead < 0:
        raise RuntimeError(
            "Number of dimensions of repeat dims can not be smaller than number of dimensions of "
            "tensor"
        )
    if builtins.any(r < 0 for r in sizes):
        raise RuntimeError(f"repeat: numbers of copies must not be negative, got {sizes}")
    old = (1,) * lead + tuple(self.shape)
    x = reshape(self, *[n for s in old for n in (1, s)])
    x = shape.broadcast_to(
        x, shape=tuple(n for r, s in zip(sizes, old, strict=True) for n in (r, s))
    )
    return reshape(x, *[r * s for r, s in zip(sizes, old, strict=True)])


def tile(input, *args, dims=None) -> Tensor:
    """NumPy's name for ``repeat``; missing dimensions count as 1."""
    dims = _sizes(args if dims is None else (dims,))
    return repeat(input, *((1,) * builtins.max(0, input.ndim - len(dims)) + dims))


def repeat_interleave(input, repeats, dim: int | None = None) -> Tensor:
    """Every position along a dimension (of the flattened tensor, without ``dim``) so many times in
    a row: one number, or a vector with a number for each."""
    if dim is None:
        input, dim = reshape(input, -1), 0
    dim = _dim(dim, input.ndim)
    if isinstance(repeats, Tensor):
        shape_of_values("repeat_interleave with a tensor of counts")
        counts, n = backend_arrays.to_numpy(repeats.array), input.shape[dim]
        if counts.dtype.kind not in "iu" or counts.ndim > 1 or counts.size not in (1, n):
            raise RuntimeError(
                f"repeats must be an integer vector of {n} (or one) elements, got {counts.dtype} "
                f"of shape {counts.shape}"
            )
        if (counts < 0).any():
            raise RuntimeError("repeats can not be negative")
        positions = np.repeat(np.arange(n), np.broadcast_to(counts.reshape(-1), (n,)))
        return index_select(input, dim, wrap(positions))
    if repeats < 0:
        raise RuntimeError("repeats can not be negative")
    x = unsqueeze(input, dim + 1)
    x = shape.broadcast_to(x, shape=(*x.shape[: dim + 1], repeats, *x.shape[dim + 2 :]))
    return reshape(x, *input.shape[:dim], input.shape[dim] * repeats, *input.shape[dim + 1 :])


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along an existing dimension."""
    if modes.special and (policy := policy_of("cat", tensors)):
        return policy(cat, tensors, dim)
    tensors = list(tensors)
    if not tensors:
        raise ValueError("torch.cat(): expected a non-empty list of Tensors")
    target = dtypes.result_type_of([(x.dtype, 2) for x in tensors])
    tensors = [x if x.dtype == target else shape.cast(x, dtype=target) for x in tensors]
    # torch lets an empty vector join anything, a relic from before empty tensors had shapes
    tensors = [x for x in tensors if x.shape != (0,)] or tensors[:1]
    axis = _dim(dim, tensors[0].ndim)
    _check_joinable(tensors, axis)
    return shape.cat(*tensors, axis=axis)


concat = concatenate = cat


def _check_joinable(tensors, axis) -> None:
    first = tensors[0]
    for k, x in enumerate(tensors):
        if x.ndim == 0:
            raise RuntimeError(f"zero-dimensional tensor (at position {k}) cannot be concatenated")
        same = x.ndim == first.ndim and builtins.all(
            a == b for i, (a, b) in enumerate(zip(x.shape, first.shape, strict=False)) if i != axis
        )
        if not same:
            raise RuntimeError(
                f"Sizes of tensors must match except in dimension {axis}. Expected shapes like "
                f"{tuple(first.shape)} but got "
                f"{tuple(x.shape)} for tensor number {k} in the list."
            )


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along a new dimension."""
    if modes.special and (policy := policy_of("stack", tensors)):
        return policy(stack, tensors, dim)
    tensors = list(tensors)
    if not tensors:
        raise RuntimeError("stack expects a non-empty TensorList")
    for k, x in enumerate(tensors):
        if x.shape != tensors[0].shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(tensors[0].shape)} at "
                f"entry 0 and "
                f"{list(x.shape)} at entry {k}"
            )
    return cat([unsqueeze(x, dim) for x in tensors], _dim(dim, tensors[0].ndim + 1))


def split(tensor, split_size_or_sections, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of consecutive pieces, of one size or of the sizes in a list."""
    dim = _dim(dim, tensor.ndim)
    n = tensor.shape[dim]
    if isinstance(split_size_or_sections, _INT):
        size = operator.index(split_size_or_sections)
        if size <= 0 and n:
            raise RuntimeError(f"split expects split_size be positive, but got split_size={size}")
        sizes = [builtins.min(size, n - s) for s in range(0, n, size)] or [0]
    else:
        sizes = [operator.index(size) for size in split_size_or_sections]
        if builtins.sum(sizes) != n:
            raise RuntimeError(
                f"split_with_sizes expects split_sizes to sum exactly to {n} (input tensor's size "
                f"at dimension {dim}), "
                f"but got split_sizes={sizes}"
            )
    pieces, start = [], 0
    for size in sizes:
        pieces.append(narrow(tensor, dim, start, size))
        start += size
    return tuple(pieces)


def chunk(input, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` views of equal size (the last may be smaller)."""
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    n = input.shape[_dim(dim, input.ndim)]
    return split(input, -(-n // chunks), dim) if n else split(input, [0] * chunks, dim)


def narrow(input, dim: int, start: int, length: int) -> Tensor:
    """A view of ``length`` positions along a dimension."""
    dim = _dim(dim, input.ndim)
    n = input.shape[dim] if input.ndim else 0
    if length < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    if not -n <= start <= n:
        raise IndexError(f"start out of range (expected to be in [-{n}, {n}], but got {start})")
    start += n if start < 0 else 0
    if start + length > n:
        raise RuntimeError(
            f"start ({start}) + length ({length}) exceeds dimension size ({n}) of shape "
            f"{tuple(input.shape)}."
        )
    return shape.getslice(input, index=(slice(None),) * dim + (slice(start, start + length),))


def select(input, dim: int, index: int) -> Tensor:
    """A view of one position along a dimension."""
    dim = _dim(dim, input.ndim)
    return _getitem(input, (slice(None),) * dim + (index,))


def unbind(input, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of every position along a dimension."""
    return tuple(select(input, dim, i) for i in range(input.shape[_dim(dim, input.ndim)]))


def flip(input, *args, dims=None) -> Tensor:
    """The order along some dimensions reversed (a copy)."""
    axes = tuple(_dim(d, input.ndim) for d in _sizes(args if dims is None else (dims,)))
    if len(set(axes)) != len(axes):
        raise RuntimeError(f"dim {axes} appears multiple times in the list of dims")
    return shape.flip(input, axes=axes)


def roll(input, shifts, dims=None) -> Tensor:
    """Shift positions along dimensions; what leaves at the end comes in at the start."""
    if dims is None:
        if not isinstance(shifts, _INT) and len(shifts) != 1:
            raise RuntimeError(f"shifts and dimensions must align. shifts: {shifts}, dims: None")
        return reshape(roll(reshape(input, -1), shifts, 0), *input.shape)
    shifts = _sizes((shifts,))
    dims = (dims,) if isinstance(dims, _INT) else tuple(dims)
    if len(shifts) != len(dims):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {shifts}, dims: {dims}")
    return shape.roll(input, shifts=shifts, axes=tuple(_dim(d, input.ndim) for d in dims))


def _check_matrices(name, x) -> None:
    if x.ndim < 2:
        raise RuntimeError(f"{name}: input tensor must have at least 2 dimensions, got {x.ndim}")


def triu(input, diagonal: int = 0) -> Tensor:
    """The upper triangle of matrices, zeros below."""
    _check_matrices("triu", input)
    return shape.triu(input, offset=diagonal)


def tril(input, diagonal: int = 0) -> Tensor:
    """The lower triangle of matrices, zeros above."""
    _check_matrices("tril", input)
    return shape.tril(input, offset=diagonal)


def diagonal(input, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A diagonal of every matrix, as the last dimension."""
    axis1, axis2 = _dim(dim1, input.ndim), _dim(dim2, input.ndim)
    if axis1 == axis2:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    return shape.diagonal(input, offset=offset, axis1=axis1, axis2=axis2)


def diag(input, diagonal: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix with this diagonal."""
    if input.ndim == 2:
        return shape.diagonal(input, offset=diagonal, axis1=0, axis2=1)
    if input.ndim != 1:
        raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")
    n = input.shape[0] + builtins.abs(diagonal)
    return shape.diagonal_scatter(input, shape=(n, n), offset=diagonal, axis1=0, axis2=1)


def trace(input) -> Tensor:
    """The sum of the diagonal of a matrix."""
    if modes.special and (policy := policy_of("trace", input)):
        return policy(trace, input)
    _check_ndim("trace", input, 2)
    return sum(diagonal(input))


# ------------------------------------------------------------------------------------------------
# reductions


def _check_floating(name, input) -> None:
    if not dtypes.is_differentiable(input.dtype):
        raise RuntimeError(
            f"{name}(): the input must be of a floating point or complex dtype, got {input.dtype}; "
            f"convert it with .float() first"
        )


def _float_input(input, dtype):
    if dtype is not None:
        return to(input, dtype=dtype)
    return input


def _accumulator(input, dtype):
    """The input in the dtype that sums and products are computed in: integers in int64."""
    if dtype is None and input.dtype.kind in "biu":
        dtype = dtypes.int64
    return input if dtype is None else to(input, dtype=dtype)


def sum(input, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    """Sum over all elements or some dimensions; integers and booleans sum in int64."""
    if modes.special and dtype is None and (policy := policy_of("sum", input)):
        return policy(sum, input, dim, keepdim)
    if dtype is not None or input.array.dtype.kind != "f":
        input = _accumulator(input, dtype)
    axes = None if dim is None else _dims(dim, input.array.ndim)
    return reduce.sum(input, axes=axes, keepdims=keepdim)


def mean(input, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    """Mean over all elements or some dimensions."""
    if dtype is not None or input.array.dtype.kind != "f":
        input = _float_input(input, dtype)
        _check_floating("mean", input)
    axes = None if dim is None else _dims(dim, input.array.ndim)
    return reduce.mean(input, axes=axes, keepdims=keepdim)


def prod(input, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    """Product over all elements or one dimension, as a tree of products: exact gradients also at
    zeros."""
    if modes.special and dtype is None and (policy := policy_of("prod", input)):
        return policy(prod, input, dim, keepdim)
    input = _accumulator(input, dtype)
    x, axis = (reshape(input, -1), 0) if dim is None else (input, _dim(dim, input.ndim))
    if not x.ndim:
        return positive(x)
    if x.shape[axis] == 0:
        x = reduce.sum(x, axes=(axis,), keepdims=True) + 1
    while x.shape[axis] > 1:
        n = x.shape[axis]
        half = n // 2
        rest = [narrow(x, axis, 2 * half, 1)] if n % 2 else []
        product = narrow(x, axis, 0, half) * narrow(x, axis, half, half)
        x = cat([product, *rest], axis) if rest else product
    if dim is None:
        return reshape(x, *((1,) * input.ndim if keepdim else ()))
    return x if keepdim else squeeze(x, axis)


def amax(input, dim=(), keepdim: bool = False) -> Tensor:
    """Largest value over dimensions; ties share the gradient."""
    return _nonempty(reduce.amax, input, dim, keepdim)


def amin(input, dim=(), keepdim: bool = False) -> Tensor:
    """Smallest value over dimensions; ties share the gradient."""
    return _nonempty(reduce.amin, input, dim, keepdim)


def _nonempty(op, input, dim, keepdim):
    axes = _dims(None if dim == () else dim, input.ndim)
    if 0 in (input.shape if axes is None else [input.shape[a] for a in axes]):
        raise (RuntimeError if axes is None else IndexError)(
            f"{op.name}(): Expected reduction dim to have non-zero size, got shape "
            f"{tuple(input.shape)}"
        )
    return op(input, axes=axes, keepdims=keepdim)


class _Named(tuple):
    """A result pair with torch's field names."""

    __slots__ = ()
    values = property(lambda self: self[0])
    indices = property(lambda self: self[1])

    def __repr__(self):
        return f"(values={self[0]!r}, indices={self[1]!r})"


def _pick(input, positions, dim, keepdim):
    """Values and indices of one position along a dimension."""
    if not input.ndim:
        return _Named((clone(input), reshape(positions, ())))
    values = gather(input, dim, positions)
    if not keepdim:
        values, positions = squeeze(values, dim), squeeze(positions, dim)
    return _Named((values, positions))


def max(input, dim=None, keepdim: bool = False):
    """The largest value; with an int ``dim`` the pair (values, indices); with a tensor, elementwise
    ``maximum``."""
    if isinstance(dim, Tensor):
        return maximum(input, dim)
    if dim is None:
        return amax(input)
    return _pick(input, argmax(input, dim, True), dim, keepdim)


def min(input, dim=None, keepdim: bool = False):
    """The smallest value; with an int ``dim`` the pair (values, indices); with a tensor,
    elementwise ``minimum``."""
    if isinstance(dim, Tensor):
        return minimum(input, dim)
    if dim is None:
        return amin(input)
    return _pick(input, argmin(input, dim, True), dim, keepdim)


def _arg(op, input, dim, keepdim):
    if input.array.size == 0:
        raise IndexError(
            f"{op.name}(): Expected reduction dim to have non-zero size, got shape "
            f"{tuple(input.shape)}"
        )
    if dim is None:
        result = op(reshape(detach(input), -1), axis=0, keepdims=False)
        return reshape(result, *(1,) * input.ndim) if keepdim else result
    axis = _dim(dim, input.ndim)
    if not input.ndim:
        return op(reshape(detach(input), 1), axis=0, keepdims=False)
    return op(input, axis=axis, keepdims=keepdim)


def argmax(input, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index of the largest value, of all elements or along a dimension."""
    return _arg(reduce.argmax, input, dim, keepdim)


def argmin(input, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index of the smallest value, of all elements or along a dimension."""
    return _arg(reduce.argmin, input, dim, keepdim)


def any(input, dim=None, keepdim: bool = False) -> Tensor:
    """Whether any element is nonzero."""
    return reduce.any(input, axes=_dims(dim, input.ndim), keepdims=keepdim)


def all(input, dim=None, keepdim: bool = False) -> Tensor:
    """Whether all elements are nonzero."""
    return reduce.all(input, axes=_dims(dim, input.ndim), keepdims=keepdim)


def count_nonzero(input, dim=None) -> Tensor:
    """How many elements are nonzero."""
    return sum(ne(input, 0), dim)


def logsumexp(input, dim, keepdim: bool = False) -> Tensor:
    """``log(sum(exp(input)))`` over dimensions, without overflow."""
    if modes.special and (policy := policy_of("logsumexp", input)):
        return policy(logsumexp, input, dim, keepdim)
    if input.dtype.kind in "biu":
        input = shape.cast(input, dtype=dtypes.get_default_dtype())
    return reduce.logsumexp(input, axes=_dims(dim, input.ndim), keepdims=keepdim)


def var(
    input, dim=None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float = 1
) -> Tensor:
    """Variance over all elements or some dimensions, dividing by n - correction."""
    if isinstance(dim, bool):  # torch's var(input, unbiased)
        dim, unbiased = None, dim
    if unbiased is not None:
        correction = 1 if unbiased else 0
    _check_floating("var", input)
    axes = _dims(dim, input.ndim)
    n = reduce.count(input.shape, axes)
    centred = input - reduce.mean(input, axes=axes, keepdims=True)
    total = reduce.sum(square(centred), axes=axes, keepdims=keepdim)
    return total / builtins.max(n - correction, 0) if n > correction else total * float("nan")


def std(
    input, dim=None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float = 1
) -> Tensor:
    """Standard deviation: the square root of ``var``."""
    return sqrt(var(input, dim, unbiased, keepdim, correction=correction))


def var_mean(
    input, dim=None, *, correction: float = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """``var`` and ``mean``."""
    return var(input, dim, correction=correction, keepdim=keepdim), mean(input, dim, keepdim)


def norm(input, p: Any = 2, dim=None, keepdim: bool = False) -> Tensor:
    """The p-norm of the elements; its gradient is 0 at 0, as torch's."""
    if modes.special and (policy := policy_of("norm", input)):
        return policy(norm, input, p, dim, keepdim)
    _check_floating("norm", input)
    if p in (None, "fro"):
        p = 2
    if p == float("inf"):
        return amax(abs(input), () if dim is None else dim, keepdim)
    if p == -float("inf"):
        return amin(abs(input), () if dim is None else dim, keepdim)
    if p == 0:
        return sum(where(ne(input, 0), 1.0, sign(input)), dim, keepdim)
    if p == 1:
        return sum(abs(input), dim, keepdim)
    total = sum(square(input) if p == 2 else pow(abs(input), p), dim, keepdim)
    zero = eq(total, 0)
    safe = where(zero, 1.0, total)  # keeps the infinite slope of the root at 0 out of the gradient
    return where(zero, 0.0, sqrt(safe) if p == 2 else pow(safe, 1.0 / p))


def cumsum(input, dim: int, *, dtype=None) -> Tensor:
    """Running sums along a dimension; integers and booleans sum in int64."""
    if modes.special and dtype is None and (policy := policy_of("cumsum", input)):
        return policy(cumsum, input, dim)
    input = _accumulator(input, dtype)
    axis = _dim(dim, input.ndim)
    return reduce.cumsum(input, axis=axis) if input.ndim else clone(input)


def median(input, dim: int | None = None, keepdim: bool = False):
    """The (lower) median of all elements; with a ``dim`` the pair (values, indices) along it."""
    if dim is None:
        flat = reshape(input, -1)
        return _median(flat, 0, False)[0]
    return _median(input, dim, keepdim)


def _median(input, dim, keepdim):
    """Values and indices of the middle of the sorted order; NaN, if there is one."""
    if not input.ndim:
        return _pick(input, creation.zeros(dtype=dtypes.int64), 0, keepdim)
    axis = _dim(dim, input.ndim)
    n = input.shape[axis]
    if not n:
        raise IndexError(
            f"median(): Expected reduction dim {dim} to have non-zero size, got shape "
            f"{tuple(input.shape)}"
        )
    order = argsort(input, axis)
    middle = narrow(order, axis, (n - 1) // 2, 1)
    last = narrow(order, axis, n - 1, 1)  # NaN sorts last
    if dtypes.is_floating(input.dtype):
        middle = where(isnan(gather(detach(input), axis, last)), last, middle)
    return _pick(input, middle, axis, keepdim)


def sort(input, dim: int = -1, descending: bool = False, stable: bool = True):
    """Values in order along a dimension, and their indices; always stable."""
    if not input.ndim:
        _dim(dim, 0)
        return _Named((clone(input), creation.zeros(dtype=dtypes.int64)))
    order = argsort(input, dim, descending)
    return _Named((gather(input, dim, order), order))


def argsort(input, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """Indices that put a dimension in order; always stable."""
    axis = _dim(dim, input.ndim)
    if not input.ndim:
        return creation.zeros(dtype=dtypes.int64, device=input.device)
    if not descending:
        return reduce.argsort(input, axis=axis)
    backwards = flip(reduce.argsort(flip(detach(input), axis), axis=axis), axis)
    return (input.shape[axis] - 1) - backwards


def topk(input, k: int, dim: int = -1, largest: bool = True, sorted: bool = True):
    """The ``k`` largest (or smallest) values along a dimension, in order, and their indices."""
    if not 0 <= k <= input.shape[_dim(dim, input.ndim)]:
        raise RuntimeError(f"selected index k out of range: k={k} for shape {tuple(input.shape)}")
    order = narrow(argsort(input, dim, largest), dim, 0, k)
    return _Named((gather(input, dim, order), order))


def unique(input) -> Tensor:
    """The different values, in order; the gradient of each goes to its first occurrence."""
    shape_of_values("unique")
    xp = backend_arrays.array_module(input.array)
    if input._node is None:
        return wrap(xp.unique(input.array))
    return reshape(input, -1)[wrap(xp.unique(input.array, return_index=True)[1])]


def bincount(input, weights=None, minlength: int = 0) -> Tensor:
    """How often each non-negative integer occurs, or the sum of the weights of its occurrences."""
    shape_of_values("bincount")
    if input.ndim != 1 or input.dtype.kind not in "iu" or (input.array < 0).any():
        raise RuntimeError("bincount only supports 1-d non-negative integral inputs.")
    if weights is not None and weights.shape != input.shape:
        raise RuntimeError("weights should be 1-d and have the same length as input")
    if weights is not None and weights._node is not None:
        size = builtins.max(minlength, int(input.array.max()) + 1 if input.numel() else 0)
        return scatter_add(creation.zeros(size, dtype=weights.dtype), 0, input, weights)
    found = backend_arrays.array_module(input.array).bincount(
        input.array, None if weights is None else weights.array, minlength=minlength
    )
    keep = weights is not None and weights.dtype == dtypes.float32
    return wrap(found.astype(dtypes.float32) if keep else found)


def softmax(input, dim: int, *, dtype=None) -> Tensor:
    """``exp(x) / sum(exp(x))`` along a dimension, without overflow."""
    if modes.special and dtype is None and (policy := policy_of("softmax", input)):
        return policy(softmax, input, dim)
    input, axis = _float_input(input, dtype), _dim(dim, input.ndim)
    _check_floating("softmax", input)
    if not input.ndim:
        return reshape(nn_ops.softmax(reshape(input, 1), axis=0), ())
    return nn_ops.softmax(input, axis=axis)


def log_softmax(input, dim: int, *, dtype=None) -> Tensor:
    """The logarithm of ``softmax``, computed directly."""
    if modes.special and dtype is None and (policy := policy_of("log_softmax", input)):
        return policy(log_softmax, input, dim)
    input, axis = _float_input(input, dtype), _dim(dim, input.ndim)
    _check_floating("log_softmax", input)
    if not input.ndim:
        return reshape(nn_ops.log_softmax(reshape(input, 1), axis=0), ())
    return nn_ops.log_softmax(input, axis=axis)


# ------------------------------------------------------------------------------------------------
# products


def _check_same_dtype(name, *tensors) -> None:
    if len({x.dtype for x in tensors}) > 1:
        found = " and ".join(str(x.dtype) for x in tensors)
        raise RuntimeError(
            f"{name}: expected all tensors to have the same dtype, but got {found}; convert one "
            f"with .to(dtype)"
        )


def _check_devices(name, *tensors) -> None:
    if builtins.all(isinstance(x.array, np.ndarray) for x in tensors):
        return
    same_device(name, [x.array for x in tensors])


def matmul(input, other) -> Tensor:
    """Matrix product: vectors, matrices, and batches with broadcasting, as NumPy and torch define
    it.

    Raises RuntimeError naming both shapes if the inner sizes differ, or if the dtypes differ.
    """
    if modes.special and (policy := policy_of("matmul", input, other)):
        return policy(matmul, input, other)
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        input, other = creation.as_tensor(input), creation.as_tensor(other)
    a, b = input.array, other.array
    if a.dtype is not b.dtype:
        _check_same_dtype("matmul", input, other)
    if a.__class__ is not np.ndarray or b.__class__ is not np.ndarray:
        _check_devices("matmul", input, other)
    if not a.ndim or not b.ndim:
        raise RuntimeError(
            f"both arguments to matmul need to be at least 1D, but they are {a.ndim}D and {b.ndim}D"
        )
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({_x(a.shape)} and {_x(b.shape)}): the "
            f"last size of the first must "
            f"equal the second-to-last of the second.{_matmul_hint(a.shape, b.shape)}"
        )
    try:
        return linalg.matmul(input, other)
    except ValueError:
        raise RuntimeError(
            f"matmul: the batch dimensions of shapes {tuple(a.shape)} and {tuple(b.shape)} do not "
            f"broadcast together"
        ) from None


def _x(shape) -> str:
    return "x".join(str(n) for n in shape)


def _matmul_hint(a, b) -> str:
    if len(a) > 2 and len(b) == 2 and int(np.prod(a[1:])) == b[0]:
        return " Did you forget to flatten the first, e.g. torch.flatten(x, 1)?"
    if len(b) == 2 and a[-1] == b[-1]:
        return " Did you forget to transpose the second (.T)?"
    return ""


def mm(input, mat2) -> Tensor:
    """Product of two matrices."""
    _check_ndim("mm", input, 2)
    _check_ndim("mm", mat2, 2)
    return matmul(input, mat2)


def bmm(input, mat2) -> Tensor:
    """Product of two batches of matrices."""
    _check_ndim("bmm", input, 3)
    _check_ndim("bmm", mat2, 3)
    if input.shape[0] != mat2.shape[0]:
        raise RuntimeError(
            f"bmm: batches of {input.shape[0]} and {mat2.shape[0]} matrices, of shapes "
            f"{tuple(input.shape)} and {tuple(mat2.shape)}"
        )
    return matmul(input, mat2)


def mv(input, vec) -> Tensor:
    """Product of a matrix and a vector."""
    if modes.special and (policy := policy_of("mv", input, vec)):
        return policy(mv, input, vec)
    _check_ndim("mv", input, 2)
    _check_ndim("mv", vec, 1)
    return matmul(input, vec)


def dot(input, tensor) -> Tensor:
    """Inner product of two vectors."""
    if modes.special and (policy := policy_of("dot", input, tensor)):
        return policy(dot, input, tensor)
    _check_ndim("dot", input, 1)
    _check_ndim("dot", tensor, 1)
    return matmul(input, tensor)


def _check_ndim(name, x, ndim) -> None:
    if x.ndim != ndim:
        raise RuntimeError(
            f"{name}: expected a {ndim}-D tensor, but got {x.ndim}-D with shape {tuple(x.shape)}"
        )


def outer(input, vec2) -> Tensor:
    """All products of two vectors' elements."""
    _check_ndim("outer", input, 1)
    _check_ndim("outer", vec2, 1)
    return unsqueeze(input, 1) * unsqueeze(vec2, 0)


def addmm(input, mat1, mat2, *, beta=1, alpha=1) -> Tensor:
    """``beta * input + alpha * (mat1 @ mat2)``."""
    if modes.special and (policy := policy_of("addmm", input, mat1, mat2)):
        return policy(addmm, input, mat1, mat2, beta=beta, alpha=alpha)
    product = mm(mat1, mat2)
    input = expand(input, *product.shape)
    return add(input if beta == 1 else input * beta, product, alpha=alpha)


def tensordot(a, b, dims=2) -> Tensor:
    """Sum over pairs of dimensions: the last ``dims`` of a with the first of b, or two lists of
    dimensions."""
    if modes.special and (policy := policy_of("tensordot", a, b)):
        return policy(tensordot, a, b, dims)
    if isinstance(dims, _INT):
        dims = (list(range(a.ndim - dims, a.ndim)), list(range(dims)))
    of_a, of_b = ([_dim(d, x.ndim) for d in ds] for ds, x in zip(dims, (a, b), strict=True))
    free_a = [d for d in range(a.ndim) if d not in of_a]
    free_b = [d for d in range(b.ndim) if d not in of_b]
    n = int(np.prod([a.shape[d] for d in of_a], dtype=np.int64))
    left = reshape(permute(a, *free_a, *of_a), -1, n) if n else reshape(a, -1, n)
    right = reshape(permute(b, *of_b, *free_b), n, -1)
    return reshape(
        matmul(left, right), *[a.shape[d] for d in free_a], *[b.shape[d] for d in free_b]
    )


def einsum(equation: str, *operands) -> Tensor:
    """Sums of products by index letters: ``einsum("bij,bjk->bik", a, b)``; any number of operands,
    no ellipsis.

    Repeated letters within an operand take its diagonal. Operands are contracted from left to
    right.
    """
    # a product of two operands is one of matrices; sums of one are not
    if modes.special and "," in equation and (policy := policy_of("einsum", operands)):
        return policy(einsum, equation, *operands)
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    terms, result = _parse_einsum(equation, operands)
    tensors = []
    for k, (x, letters) in enumerate(zip(operands, terms, strict=True)):
        x, letters = _einsum_diagonals(x, letters)
        others = result + "".join(terms[:k] + terms[k + 1 :])
        alone = tuple(i for i, c in enumerate(letters) if c not in others)
        if alone:
            x = sum(x, alone)
            letters = "".join(c for c in letters if c in others)
        tensors.append((x, letters))
    x, letters = tensors[0]
    for k, (y, more) in enumerate(tensors[1:], 1):
        later = result + "".join(t[1] for t in tensors[k + 1 :])
        kept = "".join(dict.fromkeys(c for c in letters + more if c in later))
        x, letters = linalg.einsum2(x, y, subscripts=(letters, more, kept)), kept
    return permute(x, *[letters.index(c) for c in result]) if letters != result else x


def _parse_einsum(equation, operands):
    equation = equation.replace(" ", "")
    if "." in equation:
        raise RuntimeError("einsum(): an ellipsis is not supported; name every index")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise RuntimeError(
            f"einsum(): the equation has {len(terms)} terms but there are {len(operands)} operands"
        )
    if not arrow:  # the letters that occur once, in alphabetical order
        joined = "".join(terms)
        result = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        if len(term) != x.ndim:
            raise RuntimeError(
                f"einsum(): the term {term!r} names {len(term)} dimensions of an operand with "
                f"shape {tuple(x.shape)}"
            )
        for c, n in zip(term, x.shape, strict=True):
            if sizes.setdefault(c, n) != n:
                raise RuntimeError(f"einsum(): index {c!r} has size {sizes[c]} and {n}")
    for c in result:
        if c not in sizes or result.count(c) > 1:
            raise RuntimeError(
                f"einsum(): output index {c!r} must occur once in the output and in some operand"
            )
    return terms, result


def _einsum_diagonals(x, letters):
    for c in dict.fromkeys(letters):
        while letters.count(c) > 1:
            i = letters.index(c)
            j = letters.index(c, i + 1)
            x = diagonal(x, 0, i, j)
            letters = letters[:i] + letters[i + 1 : j] + letters[j + 1 :] + c
    return x, letters


# ------------------------------------------------------------------------------------------------
# indexing


def _normalise_index(index, x) -> tuple[tuple, list]:
    """Split an index into a pattern of slices with holes, and the index arrays for the holes."""
    index = index if isinstance(index, tuple) else (index,)
    pattern: list = []
    indices: list = []
    for part in index:
        if part is None or part is Ellipsis or isinstance(part, slice):
            pattern.append(_plain_slice(part) if isinstance(part, slice) else part)
        elif isinstance(part, _INT) and not isinstance(part, (bool, np.bool_)):
            pattern.append(int(part))
        elif _is_number(part):
            _read("a tensor as an index")
            pattern.append(int(part.array))
        else:
            pattern.append(index_ops.HOLE)
            indices.append(_index_array(part, x))
    return tuple(pattern), indices


def _is_number(part) -> bool:
    """Whether an index is a zero-dimensional integer tensor in the memory of the CPU."""
    array = getattr(part, "array", None)
    return isinstance(array, np.ndarray) and not array.ndim and array.dtype.kind in "iu"


def _plain_slice(s: slice) -> slice:
    parts = [p if p is None else p.__index__() for p in (s.start, s.stop, s.step)]
    return slice(*parts)


def _index_array(part, x):
    """An index on the device of ``x``. A tensor stays one: its record notices if it is overwritten
    before backward reads it."""
    array = part.array if isinstance(part, Tensor) else part
    if array.__class__ is backend_arrays.StandIn:
        return part
    if not backend_arrays.is_array(array):
        array = np.asarray(array)
        if array.size == 0 and array.dtype.kind == "f":
            array = array.astype(np.int64)
        array = constant(array).array
    if array.dtype.kind not in "biu":
        raise IndexError(
            f"tensors used as indices must be long, int, byte or bool tensors, got {array.dtype}"
        )
    if array is not part and isinstance(array, np.ndarray) == isinstance(x.array, np.ndarray):
        return part if isinstance(part, Tensor) else array
    if isinstance(x.array, np.ndarray):
        return backend_arrays.to_numpy(array)
    return backend_arrays.to_device(array, x.device)


def _getitem(self, index) -> Tensor:
    """``x[index]``: a view for integers and slices, a copy for index arrays and masks; both
    differentiable."""
    indices: Sequence
    if index.__class__ is int:
        pattern, indices = (index,), ()
    else:
        pattern, indices = _normalise_index(index, self)
    try:
        if not indices:
            return shape.getslice(self, index=pattern)
        if builtins.any(part.__class__ is int for part in pattern):
            first, pattern = _numbers_first(pattern, indices)
            self = shape.getslice(self, index=first)
        return index_ops.take(self, *indices, pattern=pattern)
    except IndexError as error:
        raise IndexError(f"{error} (tensor of shape {tuple(self.shape)})") from None


def _numbers_first(pattern, indices) -> tuple[tuple, tuple]:
    """An index with numbers and arrays as two: the numbers, then the arrays, as torch does it.

    NumPy counts a number as an index array: ``x[0, :, i]`` would have the axis of ``i`` first.
    """
    first: list = []
    rest: list = []
    arrays = iter(indices)
    for part in pattern:
        if part.__class__ is int:
            first.append(part)
            continue
        rest.append(part)
        if part == index_ops.HOLE:
            array = next(arrays)
            first += [slice(None)] * (array.ndim if array.dtype.kind == "b" else 1)
        elif part is not None:
            first.append(part if part is Ellipsis else slice(None))
    return tuple(first), tuple(rest)


def _setitem(self, index, value) -> None:
    """``x[index] = value``, in place and differentiable in both."""
    pattern, indices = _normalise_index(index, self)
    check_writable(self)
    if indices and builtins.any(part.__class__ is int for part in pattern):
        first, pattern = _numbers_first(pattern, indices)
        self = shape.getslice(self, index=first)
    if not isinstance(value, Tensor):
        value = creation.as_tensor(value) if not backend_arrays.is_array(value) else over(value)
    if value.dtype != self.dtype:
        value = shape.cast(value, dtype=self.dtype)
    if self.is_cuda or value.is_cuda:
        value = to(value, device=self.device)
    if modes.special and are_lifted(self, value, *indices):
        write_lifted(self, index_ops.put(self, value, *indices, pattern=pattern))
        return
    if (modes.special and modes.local.recording is not None) or (
        recording()
        and (value._node is not None or self._node is not None or self._view is not None)
    ):
        _recorded_setitem(self, pattern, indices, value)
        return
    try:
        places = [i.array if isinstance(i, Tensor) else i for i in indices]
        if self.is_cuda:
            with backend_arrays.there(self.array):
                index_ops.assign(self.array, value.array, places, pattern)
        else:
            index_ops.assign(self.array, value.array, places, pattern)
    except ValueError as error:
        raise RuntimeError(
            f"shape mismatch in assignment to an index of a tensor of shape {tuple(self.shape)}: "
            f"{error}"
        ) from None
    bump_version(self)


def _recorded_setitem(self, pattern, indices, value) -> None:
    target = wrap(self.array)
    target._node = self._node
    try:
        result = index_ops.put(target, value, *indices, pattern=pattern)
    except ValueError as error:
        raise RuntimeError(
            f"shape mismatch in assignment to an index of a tensor of shape {tuple(self.shape)}: "
            f"{error}"
        ) from None
    write(self, result)


def gather(input, dim: int, index) -> Tensor:
    """``out[i][j] = input[index[i][j]][j]`` (for dim 0): pick along a dimension."""
    axis = _dim(dim, input.ndim)
    _check_index("gather", input, axis, index)
    if not input.ndim:
        return index_ops.take(reshape(input, 1), reshape(index, ()), pattern=(index_ops.HOLE,))
    return index_ops.gather(input, index, axis=axis)


def _check_index(name, input, axis, index, src=None) -> None:
    """An index of gather and scatter: integers in range, no larger than what it runs over."""
    if index.dtype.kind not in "iu":
        raise RuntimeError(f"{name}(): Expected dtype int64 for index, got {index.dtype}")
    if index.ndim != input.ndim or (src is not None and src.ndim != input.ndim):
        raise RuntimeError("Index tensor must have the same number of dimensions as input tensor")
    for d, n in enumerate(index.shape):
        if (d != axis and n > input.shape[d]) or (src is not None and n > src.shape[d]):
            other = "" if src is None else f" and src {tuple(src.shape)}"
            raise RuntimeError(
                f"{name}(): index of shape {tuple(index.shape)} is larger than the input "
                f"{tuple(input.shape)} apart from dimension {axis}{other}"
            )
    if src is not None:
        _check_same_dtype(name, input, src)
    if name == "scatter" or not index.is_cuda:  # the kernels of the others check
        _check_range(name, index, input.shape[axis] if input.ndim else 1, RuntimeError)


def _check_range(name, index, size, error=IndexError) -> None:
    verify(_check_range_of, index, name=name, size=size, error=error)


def _check_range_of(array, *, name, size, error) -> None:
    if not isinstance(array, np.ndarray):
        message = f"{name}(): index {{value}} is out of bounds for dimension with size {{bound}}"
        index_ops.check_range(array, size, message, error)
    elif array.size:
        low, high = array.min(), array.max()
        if low < 0 or high >= size:
            bad = int(low) if low < 0 else int(high)
            raise error(f"{name}(): index {bad} is out of bounds for dimension with size {size}")


def take_along_dim(input, indices, dim: int | None = None) -> Tensor:
    """NumPy's ``take_along_axis``: ``gather`` with broadcasting; without ``dim``, of the flattened
    input."""
    if dim is None:
        return gather(reshape(input, -1), 0, reshape(indices, -1))
    axis = _dim(dim, input.ndim)
    if input.ndim != indices.ndim:
        raise RuntimeError(
            f"torch.take_along_dim(): input and indices should have the same number of dimensions, "
            f"but got {input.ndim} dimensions for input, and {indices.ndim} dimensions for indices"
        )
    common = list(
        np.broadcast_shapes(
            (*input.shape[:axis], 1, *input.shape[axis + 1 :]),
            (*indices.shape[:axis], 1, *indices.shape[axis + 1 :]),
        )
    )
    common[axis] = input.shape[axis]
    input = expand(input, *common)
    common[axis] = indices.shape[axis]
    return gather(input, dim, expand(indices, *common))


def scatter_add(input, dim: int, index, src) -> Tensor:
    """``input`` with ``src`` added at the positions ``gather`` would read; repeated positions add
    up."""
    if modes.special and (policy := policy_of("scatter_add", input, src)):
        return policy(scatter_add, input, dim, index, src)
    axis = _dim(dim, input.ndim)
    _check_index("scatter_add", input, axis, index, src)
    src = src[tuple(slice(0, n) for n in index.shape)]
    return input + index_ops.scatter_add(src, index, axis=axis, shape=tuple(input.shape))


def scatter(input, dim: int, index, src) -> Tensor:
    """``input`` with ``src`` (a tensor or a number) written at the positions ``gather`` would
    read."""
    axis = _dim(dim, input.ndim)
    _check_index("scatter", input, axis, index, src if isinstance(src, Tensor) else None)
    grid = index_ops._grid(index, axis, backend_arrays.array_module(index.array))
    if isinstance(src, Tensor):
        src = src[tuple(slice(0, n) for n in index.shape)]
    else:
        src = creation.full((), src, dtype=input.dtype, device=input.device)
    places = [i if i is index else constant(i) for i in grid]
    return index_ops.put(input, src, *places, pattern=(index_ops.HOLE,) * input.ndim)


def index_select(input, dim: int, index) -> Tensor:
    """Positions along a dimension, by a vector of indices."""
    axis = _dim(dim, input.ndim)
    _check_vector("index_select", index)
    _check_range("index_select", index, input.shape[axis] if input.ndim else 1)
    if not input.ndim:
        return reshape(input, 1)[index][0]
    return _getitem(input, (slice(None),) * axis + (reshape(index, -1),))


def _check_vector(name, index) -> None:
    if index.ndim > 1:
        raise IndexError(f"{name}(): Index is supposed to be a vector, got {index.ndim}D")
    if index.dtype.kind not in "iu":
        raise RuntimeError(f"{name}(): Expected dtype int32/int64 for index, got {index.dtype}")


def index_add(input, dim: int, index, source, *, alpha=1) -> Tensor:
    """``input`` with ``alpha * source`` added at positions along a dimension."""
    axis = _dim(dim, input.ndim)
    _check_vector("index_add", index)
    _check_range("index_add", index, input.shape[axis] if input.ndim else 1, RuntimeError)
    _check_same_dtype("index_add", input, source)
    if tuple(source.shape) != (*input.shape[:axis], index.numel(), *input.shape[axis + 1 :]):
        raise RuntimeError(
            f"index_add(): source of shape {tuple(source.shape)} does not fit {index.numel()} "
            f"positions along dimension {axis} of shape {tuple(input.shape)}"
        )
    pattern = (slice(None),) * axis + (index_ops.HOLE,)
    return input + index_ops.put_add(
        source * alpha, index, pattern=pattern, shape=tuple(input.shape)
    )


def masked_fill(input, mask, value) -> Tensor:
    """``value`` (a number or a zero-dimensional tensor) where the mask holds, else the input."""
    if isinstance(value, Tensor) and value.ndim:
        raise RuntimeError(
            f"masked_fill_ only supports a 0-dimensional value tensor, but got tensor with "
            f"{value.ndim} dimension(s); use where(mask, value, input)"
        )
    return (
        where(mask, value, input)
        if not isinstance(value, Tensor)
        else where(mask, value.to(dtype=input.dtype), input)
    )


def masked_select(input, mask) -> Tensor:
    """The elements where the mask holds, in one dimension."""
    if mask.dtype != dtypes.bool_:
        raise RuntimeError(f"masked_select: expected BoolTensor for mask, got {mask.dtype}")
    input, mask = broadcast_tensors(input, mask)
    return _getitem(input, mask)


def nonzero(input, *, as_tuple: bool = False):
    """Indices of the nonzero elements: a row each, or one tensor per dimension."""
    found = index_ops.nonzero(detach(input))
    return tuple(unbind(found, 1)) if as_tuple else found


# ------------------------------------------------------------------------------------------------
# in-place


def write(x: Tensor, value: Tensor) -> Tensor:
    """Make ``value`` the new content of ``x``."""
    return write_lifted(x, value) if modes.special else _write(x, value)


def _fast_in_place(op):
    """``x.op_(other)``: without recording one array call into x's memory, else the operation and a
    recorded write."""
    name = op.op.name
    array_name = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "true_divide"}[name]
    reads_self = name in ("mul", "div")  # for the gradient of the other factor

    numpy_function = getattr(np, array_name)

    def in_place(self, other):
        if modes.special and are_lifted(self, other):
            return write_lifted(self, op(clone(self) if reads_self else self, other))
        x, recorded = self.array, not modes.unusual or modes.local.grad
        if modes.special and modes.local.recording is not None:
            pass  # a recorder sees operations and writes
        elif not recorded or (self._node is None and self._view is None):
            if isinstance(other, Tensor):
                y = other.array
                plain = (other._node is None or not recorded) and y.dtype == x.dtype
                plain = plain and y.__class__ is x.__class__
            else:
                y = other
                plain = isinstance(y, (int, float)) and x.dtype.kind == "f"
            if plain:
                try:
                    if x.__class__ is np.ndarray:
                        numpy_function(x, y, x)
                    else:
                        with backend_arrays.there(x):
                            getattr(backend_arrays.array_module(x), array_name)(x, y, x)
                except ValueError:
                    return write(self, op(self, other))  # which explains the shapes
                bump_version(self)
                return self
        keep = reads_self and isinstance(other, Tensor) and other._node is not None and recording()
        return write(self, op(clone(self) if keep else self, other))

    return in_place


_add_in_place = _fast_in_place(_add)
_sub_in_place = _fast_in_place(_sub)
_mul_in_place = _fast_in_place(mul)
_div_in_place = _fast_in_place(true_divide)


def add_(self, other, *, alpha=1) -> Tensor:
    """``self += alpha * other``."""
    return _add_in_place(self, other if alpha == 1 else other * alpha)


def sub_(self, other, *, alpha=1) -> Tensor:
    """``self -= alpha * other``."""
    return _sub_in_place(self, other if alpha == 1 else other * alpha)


def mul_(self, other) -> Tensor:
    """``self *= other``."""
    return _mul_in_place(self, other)


def div_(self, other) -> Tensor:
    """``self /= other``."""
    return _div_in_place(self, other)


def copy_(self, src, non_blocking: bool = False) -> Tensor:
    """Overwrite with the values of another tensor (broadcast, converted, moved between devices)."""
    src = src if isinstance(src, Tensor) else creation.as_tensor(src)
    if src.dtype != self.dtype:
        src = shape.cast(src, dtype=self.dtype)
    if self.is_cuda:
        src = to(src, device=self.device, non_blocking=non_blocking)
    elif src.is_cuda:  # the values are needed now
        src = to(src, device=CPU)
    return write(self, src)


def zero_(self) -> Tensor:
    """Overwrite with zeros."""
    return fill_(self, 0)


def fill_(self, value) -> Tensor:
    """Overwrite with one number."""
    if isinstance(value, Tensor):
        return write(self, value)
    if self._level:
        return write(self, creation.full((), value, dtype=self.dtype, device=self.device))
    if recording() and (self._node is not None or self._view is not None):
        return write(self, creation.full_like(self, value))
    if modes.special and modes.local.recording is not None:
        return write(self, creation.full_like(self, value))
    if self.is_cuda:
        with backend_arrays.there(self.array):
            self.array.fill(value)
    else:
        self.array.fill(value)
    bump_version(self)
    return self


def overwrite(x: Tensor, function, *args, **kwargs) -> Tensor:
    """``x`` with the values of ``function(x, ...)``, in place and on the tape.

    Where the derivative may read what is overwritten, it reads a copy, as in torch. Raises
    RuntimeError for a leaf that requires a gradient.
    """
    check_writable(x)
    tensors = [v for v in (x, *args, *kwargs.values()) if isinstance(v, Tensor)]
    keep = recording() and builtins.any(v.requires_grad for v in tensors)
    if keep and len(tensors) == 1 and (op := getattr(function, "op", None)) is not None:
        keep = bool(op.rule((True,)).read)  # exp, relu: the result is enough
    return write(x, function(clone(x) if keep else x, *args, **kwargs))


def _in_place_of(function):
    """``x.function_(...)`` from ``function(x, ...)``."""

    def in_place(self, *args, **kwargs):
        return overwrite(self, function, *args, **kwargs)

    in_place.__name__ = f"{function.__name__}_"
    in_place.__doc__ = f"In-place ``{function.__name__}``."
    return in_place


def uniform_(self, from_: float = 0.0, to: float = 1.0, *, generator=None) -> Tensor:
    """Overwrite with uniform random numbers in [from_, to)."""
    drawn = creation.rand(*self.shape, generator=generator, dtype=self.dtype, device=self.device)
    return write(self, drawn * (to - from_) + from_)


def normal_(self, mean: float = 0.0, std: float = 1.0, *, generator=None) -> Tensor:
    """Overwrite with normal random numbers."""
    drawn = creation.randn(*self.shape, generator=generator, dtype=self.dtype, device=self.device)
    return write(self, drawn * std + mean)


def bernoulli_(self, p: float = 0.5, *, generator=None) -> Tensor:
    """Overwrite with ones (with probability p) and zeros."""
    drawn = creation.rand(*self.shape, generator=generator, device=self.device)
    return write(self, (drawn < p).to(dtype=self.dtype))


# ------------------------------------------------------------------------------------------------
# the tape, as methods


def backward(
    self, gradient=None, retain_graph=None, create_graph: bool = False, inputs=None
) -> None:
    """Accumulate the gradients of this tensor into the ``.grad`` of the leaves it was computed
    from.

    ``gradient`` is its cotangent (needed unless it has one element). Raises RuntimeError if nothing
    was recorded, if the graph was already freed (``retain_graph``), or if a saved value was changed
    in place.
    """
    _backward(self, gradient, retain_graph, create_graph, inputs)


def register_hook(self, hook):
    """Call ``hook(grad)`` when this tensor's gradient is complete; a returned tensor replaces
    it."""
    if self._node is None:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    return _register_hook(self._node, hook)


def register_post_accumulate_grad_hook(self, hook):
    """Call ``hook(tensor)`` after a gradient has been added to ``.grad`` of this leaf."""
    if not self.is_leaf or self._node is None:
        raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
    return _register_hook(self._node, hook, _post_hooks)


# ------------------------------------------------------------------------------------------------
# operators and methods


def _reflected(function):
    def operator(self, other):
        return function(other, self)

    return operator


def _operator(function):
    """An operator that leaves operands it does not know to the other side."""

    def operator(self, other):
        if isinstance(
            other, (Tensor, int, float, complex, np.ndarray, np.generic)
        ) or backend_arrays.is_array(other):
            return function(self, other)
        return NotImplemented

    return operator


def _bitwise(logical, name):
    """``&``, ``|``, ``^``: logical on booleans, bitwise on integers."""

    def operator(self, other):
        a = self.array
        b = other.array if isinstance(other, Tensor) else other
        if (
            logical is not None
            and a.dtype.kind == "b"
            and (isinstance(b, bool) or getattr(b, "dtype", None) == dtypes.bool_)
        ):
            return logical(self, other)
        if a.dtype.kind not in "biu":
            raise RuntimeError(
                f'"{name}" is not implemented for {a.dtype}; compare first, e.g. (x > 0) & (y > 0)'
            )
        same_device(name, (a, b))
        return run_arrays(_array_function, self, other, name=name)

    return operator


def _array_function(*arrays, name: str):
    return getattr(backend_arrays.array_module(arrays[0]), name)(*arrays)


def _invert(self):
    if self.dtype.kind == "b":
        return logical_not(self)
    return run_arrays(_array_function, self, name="invert")


def _install(methods: dict) -> None:
    for name, function in methods.items():
        setattr(Tensor, name, function)


_install(
    {
        "__add__": _add, "__radd__": _add, "__sub__": _sub, "__rsub__": _reflected(_sub),
        "__mul__": mul, "__rmul__": mul, "__truediv__": true_divide,
        "__rtruediv__": _reflected(true_divide),
        "__floordiv__": floor_divide, "__rfloordiv__": _reflected(floor_divide),
        "__mod__": remainder, "__rmod__": _reflected(remainder),
        "__pow__": pow, "__rpow__": _reflected(_power), "__matmul__": matmul,
        "__rmatmul__": _reflected(matmul),
        "__neg__": neg, "__pos__": positive, "__abs__": abs, "__invert__": _invert,
        "__eq__": _operator(eq), "__ne__": _operator(ne), "__lt__": lt, "__le__": le, "__gt__": gt,
        "__ge__": ge,
        "__and__": _bitwise(logical_and, "bitwise_and"), "__or__": _bitwise(logical_or,
        "bitwise_or"),
        "__xor__": _bitwise(logical_xor, "bitwise_xor"),
        "__iadd__": _add_in_place, "__isub__": _sub_in_place, "__imul__": _mul_in_place,
        "__itruediv__": _div_in_place,
        "__ipow__": _in_place_of(pow), "__getitem__": _getitem, "__setitem__": _setitem,
        "__lshift__": _bitwise(None, "left_shift"), "__rshift__": _bitwise(None, "right_shift"),
        "__rxor__": _bitwise(logical_xor, "bitwise_xor"),
        "__rand__": _bitwise(logical_and, "bitwise_and"), "__ror__": _bitwise(logical_or,
        "bitwise_or"),
    }
)  # fmt: skip

_METHODS = """
    abs absolute acos acosh add addcdiv addcmul addmm all allclose amax amin any argmax argmin
    argsort asin asinh atan atan2
    atanh bernoulli bfloat16 bmm broadcast_to ceil chunk clamp clip clone contiguous copy_ cos cosh
    count_nonzero cpu cuda cumsum
    detach detach_ diag diagonal div divide dot eq equal erf exp exp2 expand expand_as expm1 flatten
    flip floor floor_divide
    fmod gather ge gt hypot index_add index_select isclose isfinite isinf isnan le lerp log log10
    log1p log2 log_softmax
    logaddexp logical_and logical_not logical_or logical_xor logsumexp lt masked_fill masked_select
    matmul max maximum mean
    median min minimum mm movedim mul multiply mv nan_to_num narrow ne neg negative nonzero norm
    outer permute pow prod ravel
    reciprocal relu remainder repeat repeat_interleave reshape reshape_as roll round rsqrt scatter
    scatter_add select sigmoid
    sign sin sinh softmax sort split sqrt square squeeze std sub subtract sum sum_to_size swapaxes
    swapdims t take_along_dim
    tan tanh tile to topk trace transpose tril triu true_divide trunc type unbind unflatten unique
    unsqueeze var view view_as
    add_ sub_ mul_ div_ zero_ fill_ uniform_ normal_ bernoulli_ backward register_hook
    register_post_accumulate_grad_hook pin_memory is_pinned record_stream
"""
_install({name: (creation.__dict__.get(name) or globals()[name]) for name in _METHODS.split()})
_install(
    {
        f"{function.__name__}_": _in_place_of(function)
        for function in (
            abs, addcdiv, addcmul, ceil, clamp, cos, erf, exp, floor, index_add, lerp, log,
            masked_fill, neg, pow,
            reciprocal, relu, remainder, round, rsqrt, scatter, scatter_add, sigmoid, sin, sqrt,
            square, tanh, tril, triu, trunc,
        )
    }
)  # fmt: skip
_install(
    {
        name: _converter(dtype, name)
        for name, dtype in {
            "float": dtypes.float32, "double": dtypes.float64, "half": dtypes.float16,
            "long": dtypes.int64,
            "int": dtypes.int32, "short": dtypes.int16, "char": dtypes.int8, "byte": dtypes.uint8,
            "bool": dtypes.bool_,
        }.items()
    }
)  # fmt: skip


def _new_like(make):
    def method(self, *size, dtype=None, device=None, requires_grad: bool = False):
        dtype, device = dtype or self.dtype, device or self.device
        made = make(*size, dtype=dtype, device=device, requires_grad=requires_grad)
        return like(self, made) if self._level else made

    return method


_install(
    {
        "new_zeros": _new_like(creation.zeros),
        "new_ones": _new_like(creation.ones),
        "new_empty": _new_like(creation.empty),
        "new_full": _new_like(creation.full),
        "new_tensor": lambda self, data, **kwargs: creation.tensor(
            data, **{"dtype": self.dtype, "device": self.device, **kwargs}
        ),
        "retain_grad": _retain_grad,
        "retains_grad": property(lambda self: self._node in _retained),
        "T": property(lambda self: shape.permute(self, axes=tuple(reversed(range(self.ndim))))),
        "mT": property(lambda self: transpose(self, -2, -1)),
    }
)
