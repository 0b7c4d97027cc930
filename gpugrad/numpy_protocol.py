"""NumPy's functions on tensors: ``np.sin(t)``, ``np.stack([t, u])``, ``array * t`` are recorded.

NumPy asks the tensor (``__array_ufunc__``, ``__array_function__``), which looks the function up
here. Ufuncs are found in the table of operations, whose primitives carry NumPy's names; the others
are the adapters below, with NumPy's signatures. Dtypes follow torch's promotion, as everywhere. A
function that is not here raises TypeError rather than leave the tape unseen.

Results go to ``out=`` as an in-place write if it is a tensor. An array cannot remember where its
values came from: ``array += t`` and ``out=array`` take the values of a tensor that records nothing
and raise TypeError for one that requires a gradient.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable
from typing import Any

from . import creation, dtypes, functions
from .backend.arrays import is_array
from .backend.numpy import xp as np
from .eager import write
from .tensor import Tensor

_functions: dict[Any, Callable] = {}
_ufuncs: dict[Any, Callable] = {}
_NUMBERS = (bool, int, float, complex)


def _array_ufunc(self, ufunc, method, *inputs, out=None, **options):
    """Part of NumPy's protocol: a ufunc was called with a tensor among its arguments."""
    name = f"numpy.{ufunc.__name__}"
    if method != "__call__":
        raise _unknown(f"{name}.{method}")
    function = (_ufuncs or _find_ufuncs()).get(ufunc)
    if function is None:
        raise _unknown(name)
    if options:
        raise TypeError(f"{name} of tensors does not take {', '.join(map(repr, options))}")
    result = function(*[_operand(x) for x in inputs])
    return result if out is None else _deliver(result, out[0], name)


def _array_function(self, func, types, args, kwargs):
    """Part of NumPy's protocol: a function that is no ufunc was called with a tensor."""
    if not builtins.all(issubclass(t, (Tensor, np.ndarray)) for t in types):
        return NotImplemented
    function = (_functions or _find_functions()).get(func)
    if function is None:
        raise _unknown(f"{func.__module__}.{func.__name__}")
    out = kwargs.pop("out", None)
    result = function(*args, **kwargs)
    return result if out is None else _deliver(result, out, f"numpy.{func.__name__}")


def _unknown(name: str) -> TypeError:
    return TypeError(
        f"{name} does not take gpugrad tensors. Use gpugrad's own functions, or "
        f"t.detach().numpy() for an array without gradient"
    )


def _deliver(result, out, name: str):
    if isinstance(out, Tensor):
        return write(out, result)
    if result.requires_grad:
        raise TypeError(
            f"{name}: the result requires a gradient, which an array given as out= (also by `array "
            f"+= tensor`) cannot record. Write `array = array + tensor`, or use tensor.detach()"
        )
    np.copyto(out, result.array, casting="same_kind")
    return out


def _operand(x):
    """Tensors, arrays and Python numbers as they are; NumPy's numbers as Python's, lists as
    tensors."""
    if isinstance(x, np.generic):
        return x.item()
    return x if isinstance(x, (Tensor, *_NUMBERS)) or is_array(x) else creation.as_tensor(x)


def _find_ufuncs() -> dict[Any, Callable]:
    from .codegen.expr import PRIMITIVES
    from .ops.core import REGISTRY

    found: dict[Any, Callable] = {}
    for name in REGISTRY:
        primitive = PRIMITIVES.get(name)
        ufunc = getattr(np, name if primitive is None else primitive.array_name, None)
        function = getattr(functions, name, None)
        if isinstance(ufunc, np.ufunc) and function is not None:
            found[ufunc] = function
    found[np.matmul] = lambda a, b: functions.matmul(_tensor(a), _tensor(b))
    found[np.bitwise_and] = lambda a, b: _swapped(a, b, "__and__")
    found[np.bitwise_or] = lambda a, b: _swapped(a, b, "__or__")
    found[np.bitwise_xor] = lambda a, b: _swapped(a, b, "__xor__")
    found[np.invert] = lambda a: ~a
    _ufuncs.update(found)
    return _ufuncs


def _swapped(a, b, operator: str):
    """A commutative operator of two arguments, one of which is a tensor."""
    return getattr(a, operator)(b) if isinstance(a, Tensor) else getattr(b, operator)(a)


# ------------------------------------------------------------------------------------------------
# functions that are no ufuncs, with NumPy's signatures

_adapters: list[tuple[tuple[str, ...], Callable]] = []


def _of(*names: str):
    """Declare NumPy's function(s) of these names; those that an older NumPy lacks are left out."""

    def declare(function: Callable) -> Callable:
        function.__qualname__ = f"numpy.{names[0]}"  # for Python's own messages about arguments
        _adapters.append((names, function))
        return function

    return declare


def _find_functions() -> dict[Any, Callable]:
    for names, function in _adapters:
        for name in names:
            place: Any = np
            for part in name.split("."):
                place = getattr(place, part, None)
            if place is not None:
                _functions[place] = function
    return _functions


def _tensor(x) -> Tensor:
    return x if isinstance(x, Tensor) else creation.as_tensor(x)


def _floating(a: Tensor, dtype) -> Tensor:
    """NumPy's means of integers are float64."""
    a = _tensor(a)
    if dtype is None and a.dtype.kind in "biu":
        dtype = dtypes.float64
    return a if dtype is None else a.to(dtype=dtype)


def _flat_or(a, axis):
    """NumPy's ``axis=None``: the flattened tensor."""
    a = _tensor(a)
    return (a.reshape(-1), 0) if axis is None else (a, axis)


def _all_axes(a: Tensor, axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(a.ndim))
    return (axis,) if isinstance(axis, int) else tuple(axis)


def _c_order(order) -> None:
    if order not in ("C", "K", "A"):
        raise TypeError(f"of gpugrad tensors only order='C' is supported, got {order!r}")


@_of("sum")
def _sum(a, axis=None, dtype=None, keepdims=False):
    return functions.sum(_tensor(a), axis, keepdims, dtype=dtype)


@_of("prod")
def _prod(a, axis=None, dtype=None, keepdims=False):
    a = _tensor(a)
    if axis is None or isinstance(axis, int):
        return functions.prod(a, axis, keepdims, dtype=dtype)
    for d in sorted(d % a.ndim for d in axis)[::-1]:
        a = functions.prod(a, d, keepdims, dtype=dtype)
    return a


@_of("mean")
def _mean(a, axis=None, dtype=None, keepdims=False):
    return functions.mean(_floating(a, dtype), axis, keepdims)


@_of("var")
def _var(a, axis=None, dtype=None, ddof=0, keepdims=False, *, correction=None):
    ddof = ddof if correction is None else correction
    return functions.var(_floating(a, dtype), axis, keepdim=keepdims, correction=ddof)


@_of("std")
def _std(a, axis=None, dtype=None, ddof=0, keepdims=False, *, correction=None):
    return functions.sqrt(_var(a, axis, dtype, ddof, keepdims, correction=correction))


@_of("max", "amax")
def _max(a, axis=None, keepdims=False):
    return functions.amax(_tensor(a), () if axis is None else axis, keepdims)


@_of("min", "amin")
def _min(a, axis=None, keepdims=False):
    return functions.amin(_tensor(a), () if axis is None else axis, keepdims)


@_of("any")
def _any(a, axis=None, keepdims=False):
    return functions.any(_tensor(a), axis, keepdims)


@_of("all")
def _all(a, axis=None, keepdims=False):
    return functions.all(_tensor(a), axis, keepdims)


@_of("argmax")
def _argmax(a, axis=None, *, keepdims=False):
    return functions.argmax(_tensor(a), axis, keepdims)


@_of("argmin")
def _argmin(a, axis=None, *, keepdims=False):
    return functions.argmin(_tensor(a), axis, keepdims)


@_of("count_nonzero")
def _count_nonzero(a, axis=None):
    return functions.count_nonzero(_tensor(a), axis)


@_of("cumsum")
def _cumsum(a, axis=None, dtype=None):
    a, axis = _flat_or(a, axis)
    return functions.cumsum(a, axis, dtype=dtype)


@_of("sort")
def _sort(a, axis=-1):
    return functions.sort(*_flat_or(a, axis))[0]


@_of("argsort")
def _argsort(a, axis=-1):
    return functions.argsort(*_flat_or(a, axis))


@_of("where")
def _where(condition, *choices):
    condition = _tensor(condition)
    if not choices:
        return functions.nonzero(condition, as_tuple=True)
    x, y = choices
    if condition.dtype != dtypes.bool_:
        condition = functions.ne(condition, 0)
    return functions.where(condition, _operand(x), _operand(y))


@_of("nonzero")
def _nonzero(a):
    return functions.nonzero(_tensor(a), as_tuple=True)


@_of("clip")
def _clip(a, a_min=None, a_max=None, *, min=None, max=None):
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    return functions.clamp(_tensor(a), low, high)


@_of("round", "around")
def _round(a, decimals=0):
    return functions.round(_tensor(a), decimals=decimals)


@_of("nan_to_num")
def _nan_to_num(x, nan=0.0, posinf=None, neginf=None):
    return functions.nan_to_num(_tensor(x), nan, posinf, neginf)


@_of("reshape")
def _reshape(a, shape, order="C"):
    _c_order(order)
    return functions.reshape(a, *((shape,) if isinstance(shape, int) else shape))


@_of("ravel")
def _ravel(a, order="C"):
    _c_order(order)
    return functions.ravel(a)


@_of("transpose", "permute_dims")
def _transpose(a, axes=None):
    return functions.permute(a, *(range(a.ndim)[::-1] if axes is None else axes))


@_of("swapaxes")
def _swapaxes(a, axis1, axis2):
    return functions.transpose(a, axis1, axis2)


@_of("matrix_transpose")
def _matrix_transpose(x, /):
    return functions.transpose(x, -2, -1)


@_of("moveaxis")
def _moveaxis(a, source, destination):
    return functions.movedim(a, source, destination)


@_of("expand_dims")
def _expand_dims(a, axis):
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    ndim = a.ndim + len(axes)
    for d in sorted(d % ndim for d in axes):
        a = functions.unsqueeze(a, d)
    return a


@_of("squeeze")
def _squeeze(a, axis=None):
    for d in () if axis is None else _all_axes(a, axis):
        if a.shape[d] != 1:
            raise ValueError(
                f"cannot select an axis to squeeze out which has size not equal to one: axis {d} "
                f"of shape {tuple(a.shape)}"
            )
    return functions.squeeze(a, axis)


@_of("broadcast_to")
def _broadcast_to(array, shape):
    return functions.expand(array, *((shape,) if isinstance(shape, int) else shape))


@_of("broadcast_arrays")
def _broadcast_arrays(*args):
    return functions.broadcast_tensors(*[_tensor(a) for a in args])


@_of("concatenate", "concat")
def _concatenate(arrays, axis=0, dtype=None):
    tensors = [_tensor(a) for a in arrays]
    if axis is None:
        tensors, axis = [x.reshape(-1) for x in tensors], 0
    result = functions.cat(tensors, axis)
    return result if dtype is None else result.to(dtype=dtype)


@_of("stack")
def _stack(arrays, axis=0):
    tensors = [_tensor(a) for a in arrays]
    return functions.stack(tensors, axis)


@_of("vstack")
def _vstack(tup):
    return functions.cat([x if x.ndim > 1 else x.reshape(1, -1) for x in map(_tensor, tup)], 0)


@_of("hstack")
def _hstack(tup):
    tensors = [x if x.ndim else x.reshape(1) for x in map(_tensor, tup)]
    return functions.cat(tensors, 0 if tensors[0].ndim == 1 else 1)


@_of("split", "array_split")
def _split(ary, indices_or_sections, axis=0):
    n = ary.shape[axis]
    if isinstance(indices_or_sections, int):
        parts = indices_or_sections
        if n % parts:
            raise ValueError(
                f"array split does not result in an equal division: {n} positions in {parts} parts"
            )
        sizes = [n // parts] * parts
    else:
        ends = [slice(0, i).indices(n)[1] for i in indices_or_sections]
        ends = [0, *ends, n]
        sizes = [builtins.max(b - a, 0) for a, b in itertools.pairwise(ends)]
    return list(functions.split(ary, sizes, axis))


@_of("tile")
def _tile(A, reps):
    return functions.tile(A, (reps,) if isinstance(reps, int) else reps)


@_of("repeat")
def _repeat(a, repeats, axis=None):
    a, axis = _flat_or(a, axis)
    repeats = repeats if isinstance(repeats, int) else _tensor(repeats)
    return functions.repeat_interleave(a, repeats, axis)


@_of("roll")
def _roll(a, shift, axis=None):
    return functions.roll(a, shift, axis)


@_of("flip")
def _flip(m, axis=None):
    return functions.flip(m, *_all_axes(m, axis))


@_of("take")
def _take(a, indices, axis=None):
    a, axis = _flat_or(a, axis)
    return a[(slice(None),) * (axis % a.ndim) + (indices,)]


@_of("take_along_axis")
def _take_along_axis(arr, indices, axis=-1):
    arr, axis = _flat_or(arr, axis)
    return functions.take_along_dim(arr, _tensor(indices), axis)


@_of("tril")
def _tril(m, k=0):
    return functions.tril(m, k)


@_of("triu")
def _triu(m, k=0):
    return functions.triu(m, k)


@_of("diag")
def _diag(v, k=0):
    return functions.diag(v, k)


@_of("diagonal")
def _diagonal(a, offset=0, axis1=0, axis2=1):
    return functions.diagonal(a, offset, axis1, axis2)


@_of("trace")
def _trace(a, offset=0, axis1=0, axis2=1):
    return functions.sum(functions.diagonal(a, offset, axis1, axis2), -1)


@_of("dot")
def _dot(a, b):
    a, b = _tensor(a), _tensor(b)
    if not a.ndim or not b.ndim:
        return a * b
    if a.ndim <= 2 and b.ndim <= 2:
        return functions.matmul(a, b)
    return functions.tensordot(a, b, ([-1], [-2 if b.ndim > 1 else -1]))


@_of("inner")
def _inner(a, b):
    a, b = _tensor(a), _tensor(b)
    return a * b if not a.ndim or not b.ndim else functions.tensordot(a, b, ([-1], [-1]))


@_of("outer")
def _outer(a, b):
    return functions.outer(_tensor(a).reshape(-1), _tensor(b).reshape(-1))


@_of("tensordot")
def _tensordot(a, b, axes=2):
    if not isinstance(axes, int):
        axes = tuple([d] if isinstance(d, int) else list(d) for d in axes)
    return functions.tensordot(_tensor(a), _tensor(b), axes)


@_of("einsum")
def _einsum(*operands):
    subscripts, *arrays = operands
    return functions.einsum(subscripts, *[_tensor(a) for a in arrays])


@_of("linalg.norm")
def _norm(x, ord=None, axis=None, keepdims=False):
    matrix = (x.ndim == 2 and axis is None) or (axis is not None and not isinstance(axis, int))
    if ord not in (None, "fro") and (matrix or (axis is None and x.ndim > 2)):
        raise TypeError(
            f"numpy.linalg.norm of a gpugrad matrix takes ord=None or 'fro', got {ord!r}; vectors "
            f"(one axis) take any order"
        )
    return functions.norm(x, 2 if ord in (None, "fro") else ord, axis, keepdims)


@_of("isclose")
def _isclose(a, b, rtol=1e-05, atol=1e-08, equal_nan=False):
    return functions.isclose(_tensor(a), _tensor(b), rtol, atol, equal_nan)


@_of("allclose")
def _allclose(a, b, rtol=1e-05, atol=1e-08, equal_nan=False):
    return functions.allclose(_tensor(a), _tensor(b), rtol, atol, equal_nan)


@_of("array_equal")
def _array_equal(a1, a2):
    return functions.equal(_tensor(a1), _tensor(a2))


@_of("copy")
def _copy(a, order="K"):
    _c_order(order)
    return functions.clone(a)


@_of("astype")
def _astype(x, dtype, /, *, copy=True):
    return functions.to(x, dtype=dtype, copy=copy)


@_of("zeros_like")
def _zeros_like(a, dtype=None):
    return creation.zeros_like(a, dtype=dtype)


@_of("ones_like")
def _ones_like(a, dtype=None):
    return creation.ones_like(a, dtype=dtype)


@_of("empty_like")
def _empty_like(prototype, dtype=None):
    return creation.empty_like(prototype, dtype=dtype)


@_of("full_like")
def _full_like(a, fill_value, dtype=None):
    return creation.full_like(a, fill_value, dtype=dtype)


@_of("shape")
def _shape(a):
    return tuple(a.shape)


@_of("ndim")
def _ndim(a):
    return a.ndim


@_of("size")
def _size(a, axis=None):
    return a.numel() if axis is None else a.shape[axis]


# What these make is text or a file: nothing that could be on a tape.


@_of("save")
def _save(file, arr, **options):
    np.save(file, arr.numpy(), **options)


@_of("savetxt")
def _savetxt(fname, X, *args, **options):
    np.savetxt(fname, X.numpy(), *args, **options)


@_of("array2string")
def _array2string(a, *args, **options):
    return np.array2string(a.detach().cpu().numpy(), *args, **options)


def _cupy_ufunc(self, kernel, *args, **options):
    """The same for CuPy, whose ufuncs ask here first: ``cupy_array - tensor``, ``cupy.sin(t)``."""
    name = kernel.name.removeprefix("cupy_")
    ufunc = getattr(np, name, None)
    if not isinstance(ufunc, np.ufunc):
        raise TypeError(
            f"a CuPy kernel ({kernel.name}) was called with a tensor, which it cannot record: give "
            f"it tensor.detach().array, or write the kernel with gpugrad.kernel"
        )
    inputs, out = args[: ufunc.nin], args[ufunc.nin :]
    if out:
        options["out"] = out
    elif options.get("out") is not None and not isinstance(options["out"], tuple):
        options["out"] = (options["out"],)
    return self.__array_ufunc__(ufunc, "__call__", *inputs, **options)


functions._install(
    {
        "__array_ufunc__": _array_ufunc,
        "__array_function__": _array_function,
        "__cupy_override_elementwise_kernel__": _cupy_ufunc,
    }
)
