"""A strict stand-in for CuPy: NumPy computes, CuPy's contract is kept.

``activate()`` puts it in the place of CuPy, without kernels, so that the array functions behind
every operation run on arrays that

- cannot be mixed with NumPy arrays nor turned into them by accident (TypeError),
- have the names and arguments of the real CuPy only, where it is installed (it needs no GPU to be
  imported), and no ``flags.writeable``,
- give arrays of no dimension where NumPy gives scalars, and poisoned memory from ``empty``,
- count what makes the host wait (``synchronisations``): float(), bool(), item(), boolean masks ...,
- raise Undefined where NumPy has an answer and a GPU has none or another: different values at
  repeated positions, indices out of range, overlapping memory, floats that no integer holds.

What CuPy does was read in its sources and documentation; tests/cuda/test_strict.py holds this
module to the real one on the host-memory device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import sys
import types

import numpy as np

try:
    import cupy as real
except Exception:  # absent, or something it needs
    real = None


class Undefined(RuntimeError):
    """NumPy gives an answer here; a GPU gives garbage, or another answer."""


class Counter:
    """How often the host had to wait for the device, and where."""

    def __init__(self):
        self.waits: list[str] = []

    @contextlib.contextmanager
    def watch(self):
        """The waits of a block, as a list that grows."""
        outer, self.waits = self.waits, []
        try:
            yield self.waits
        finally:
            outer.extend(self.waits)
            self.waits = outer


synchronisations = Counter()

# Functions whose results have a size only the device knows, so that CuPy asks it.
WAITING = frozenset(
    (
        "nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress", "bincount",
        "histogram", "setdiff1d", "intersect1d", "union1d", "trim_zeros",
    )
)  # fmt: skip
# dtypes of ufunc.at, by type code (CuPy 14: cupy/_core/_routines_indexing.pyx).
SCATTER = {
    "add": "ilqILQefd",
    "subtract": "iI",
    "maximum": "ilqILQfd",
    "minimum": "ilqILQfd",
    "bitwise_and": "ilqILQ",
    "bitwise_or": "ilqILQ",
    "bitwise_xor": "ilqILQ",
}
DTYPES = "?bhilqBHILQefdFD"
SCALARS = (bool, int, float, complex, np.generic)
NOT_IN_METHODS = frozenset(("where", "initial"))  # arguments of reductions that CuPy lacks


def wait(what: str) -> None:
    synchronisations.waits.append(what)


def check_dtype(dtype) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.char not in DTYPES and dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


# ------------------------------------------------------------------------------------------------
# arrays


class Flags:
    """What CuPy's flags have."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata, self.forc = flags.owndata, flags.forc


class Pointer:
    """``array.data``."""

    device_id = 0

    def __init__(self, array: np.ndarray):
        self.ptr, self.mem, self._host = array.ctypes.data, None, array

    def memset_async(self, value: int, size: int, stream=None) -> None:
        ctypes.memset(self.ptr, value, size)


class ndarray:
    """An array that only this module may look into."""

    __slots__ = ("__weakref__", "_host")
    __hash__ = None
    __array_priority__ = 100

    def __new__(cls, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the stand-in has no memory of its own to point to")
        return empty(shape, dtype, order)

    device = property(lambda self: Device(0))
    data = property(lambda self: Pointer(self._host))
    flags = property(lambda self: Flags(self._host.flags))
    base = property(lambda self: None if self._host.base is None else wrap(self._host.base))
    T = property(lambda self: wrap(self._host.T))
    real = property(lambda self: wrap(self._host.real))
    imag = property(lambda self: wrap(self._host.imag))
    flat = property(lambda self: self.ravel())
    shape, dtype, strides = (
        property(lambda self, name=name: getattr(self._host, name))
        for name in ("shape", "dtype", "strides")
    )
    ndim, size, nbytes, itemsize = (
        property(lambda self, name=name: getattr(self._host, name))
        for name in ("ndim", "size", "nbytes", "itemsize")
    )

    @property
    def __cuda_array_interface__(self):
        shown = self._host.__array_interface__
        return {k: shown[k] for k in ("shape", "typestr", "data", "strides", "version")}

    def __array__(self, *args, **kwargs):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        function = getattr(module, ufunc.__name__)
        call = function if method == "__call__" else getattr(function, method)
        return call(*inputs, **kwargs, **({"out": out[0]} if out else {}))

    def __array_function__(self, function, kinds, args, kwargs):
        return getattr(module, function.__name__)(*args, **kwargs)

    # ---- to the host

    def get(self, stream=None, order="C", out=None, blocking=True):
        wait(".get()")
        values = np.array(self._host, order=order)
        if out is None:
            return values
        out[...] = values
        return out

    def set(self, values, stream=None):
        if not isinstance(values, np.ndarray) or values.shape != self.shape:
            raise TypeError("set() takes a numpy.ndarray of the same shape")
        if values.dtype != self.dtype:
            raise TypeError(f"{values.dtype} array cannot be set to {self.dtype} array")
        self._host[...] = values

    def item(self, *index):
        wait(".item()")
        return self._host.item(*index)

    def tolist(self):
        wait(".tolist()")
        return self._host.tolist()

    def tobytes(self, order="C"):
        wait(".tobytes()")
        return self._host.tobytes(order)

    def _number(self, kind):
        wait(f"{kind.__name__}()")
        return kind(self._host)

    def __bool__(self):
        return self._number(bool)

    def __int__(self):
        return self._number(int)

    def __float__(self):
        return self._number(float)

    def __complex__(self):
        return self._number(complex)

    def __repr__(self):
        wait("repr()")
        return repr(self._host)

    def __str__(self):
        wait("str()")
        return str(self._host)

    def __format__(self, specification):
        wait("format()")
        return format(self._host[()], specification)

    # ---- elements

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        key = as_index(key, self._host)
        found = self._host[key]
        return wrap(found if isinstance(found, np.ndarray) else self._host[(*key, ...)])

    def __setitem__(self, key, value):
        if isinstance(value, (np.ndarray, list, tuple)) and np.ndim(value):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        value = inside(value)
        self._host[as_index(key, self._host, np.asarray(value))] = value

    # ---- methods

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        dtype, values = check_dtype(dtype), self._host
        if values.dtype.kind == "f" and dtype.kind in "iu" and values.size:
            limits = np.iinfo(dtype)
            fits = (np.trunc(values) >= limits.min) & (np.trunc(values) <= limits.max)
            if not (np.isfinite(values) & fits).all():
                raise Undefined(f"{values.dtype} to {dtype} out of range: a GPU saturates")
        return wrap(values.astype(dtype, order=order, copy=copy))

    def fill(self, value):
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        self._host.fill(inside(value))

    def __getattr__(self, name):
        if name.startswith("__") or not hasattr(np.ndarray, name) or _unknown("ndarray", name):
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        method = getattr(self._host, name)
        if not callable(method):
            return outside(method)
        if name in WAITING:
            wait(f".{name}()")

        def call(*args, out=None, **kwargs):
            if not NOT_IN_METHODS.isdisjoint(kwargs):
                raise TypeError(f"{name}() got an unexpected keyword argument")
            args = tuple(map(inside, args))
            return run(method, args, {k: inside(v) for k, v in kwargs.items()}, out)

        return call


def _unknown(owner: str, name: str) -> bool:
    """Whether the real CuPy is here and lacks a name."""
    if real is None:
        return False
    return not hasattr(real.ndarray if owner == "ndarray" else real, name)


_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "matmul": "matmul",
    "lshift": "left_shift", "rshift": "right_shift", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor",
}  # fmt: skip
_COMPARISONS = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def _add_operators() -> None:
    for name, ufunc in {**_BINARY, **_COMPARISONS}.items():
        setattr(ndarray, f"__{name}__", lambda a, b, u=ufunc: ufunc_of(u)(a, b))
    for name, ufunc in _BINARY.items():
        setattr(ndarray, f"__r{name}__", lambda a, b, u=ufunc: ufunc_of(u)(b, a))
        setattr(ndarray, f"__i{name}__", lambda a, b, u=ufunc: ufunc_of(u)(a, b, out=a))
    for name, ufunc in _UNARY.items():
        setattr(ndarray, f"__{name}__", lambda a, u=ufunc: ufunc_of(u)(a))


def as_index(key, target: np.ndarray, value: np.ndarray | None = None) -> tuple:
    """An index for NumPy, after checking what a GPU would not survive."""
    parts = []
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, (list, np.ndarray)):
            wait("an index from host memory")
            part = np.asarray(part)
        else:
            part = inside(part)
        if isinstance(part, np.ndarray) and part.dtype == bool and value is None:
            wait("a boolean mask")
        parts.append(part)
    if any(isinstance(p, np.ndarray) and p.dtype.kind in "iu" for p in parts):
        _check_positions(tuple(parts), target, value)
    return tuple(parts)


def _check_positions(parts: tuple, target: np.ndarray, value: np.ndarray | None) -> None:
    try:
        hit = np.arange(target.size).reshape(target.shape)[parts]
    except IndexError as error:
        raise Undefined(f"{error}; CuPy wraps around silently") from None
    if value is None:
        return
    order = np.argsort(hit, axis=None, kind="stable")
    where, what = hit.ravel()[order], np.broadcast_to(value, hit.shape).ravel()[order]
    if ((where[1:] == where[:-1]) & (what[1:] != what[:-1])).any():
        raise Undefined("different values at a repeated position: which one stays is undefined")


# ------------------------------------------------------------------------------------------------
# crossing the border


def wrap(values: np.ndarray) -> ndarray:
    check_dtype(values.dtype)
    array = object.__new__(ndarray)
    array._host = values
    return array


def inside(value, scalars_only: bool = False):
    """What NumPy may be given; host arrays are refused as CuPy refuses them."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if type(value) in (list, tuple):
        if scalars_only:
            raise TypeError(f"Unsupported type {type(value)}")
        return type(value)(map(inside, value))
    return value


def outside(result):
    """Results are arrays: of no dimension where NumPy gives a scalar."""
    if isinstance(result, (np.ndarray, np.generic, bool)):
        return wrap(np.asarray(result))
    return type(result)(map(outside, result)) if type(result) in (list, tuple) else result


def run(function, args, kwargs, out=None):
    if kwargs.get("dtype") is not None:
        check_dtype(kwargs["dtype"])
    if out is not None:
        _check_overlap(args, out._host)
        kwargs = {**kwargs, "out": out._host}
    with np.errstate(all="ignore"):
        result = function(*args, **kwargs)
    return outside(result) if out is None else out


def _check_overlap(args, out: np.ndarray) -> None:
    """Elements are computed in any order: an input may be the output itself or lie apart."""
    place = (out.ctypes.data, out.strides, out.shape)
    for a in args:
        shared = isinstance(a, np.ndarray) and np.shares_memory(a, out)
        if shared and (a.ctypes.data, a.strides, a.shape) != place:
            raise Undefined("the output overlaps an input at another offset or stride")


# ------------------------------------------------------------------------------------------------
# the module's functions


@functools.cache
def ufunc_of(name: str):
    ufunc = getattr(np, name)

    def call(*args, out=None, **kwargs):
        if set(kwargs) - {"dtype", "casting"}:
            raise TypeError(f"Wrong arguments {kwargs}")
        inputs = tuple(inside(a, scalars_only=True) for a in args[: ufunc.nin])
        out = args[ufunc.nin] if len(args) > ufunc.nin else out
        out = out[0] if isinstance(out, tuple) else out
        if out is not None and not isinstance(out, ndarray):
            raise TypeError("return arrays must be of type cupy.ndarray")
        divides = name in ("floor_divide", "remainder")
        if divides and np.result_type(*inputs).kind in "iu" and not np.all(inputs[1]):
            raise Undefined("integer division by zero")
        return run(ufunc, inputs, kwargs, out)

    def at(target, index, values=None):
        if name not in SCATTER:
            raise NotImplementedError(f"`cupy_{name}.at` is not supported yet")
        if target.dtype.char not in SCATTER[name]:
            raise TypeError(f"cupy.{name}.at does not support {target.dtype}")
        parts = as_index(index, target._host)
        ufunc.at(target._host, parts if isinstance(index, tuple) else parts[0], inside(values))

    def reduce(array, axis=0, dtype=None, out=None, keepdims=False):
        if name not in ("add", "multiply"):
            raise NotImplementedError(f"`cupy_{name}.reduce` is not supported yet")
        return run(ufunc.reduce, (inside(array),),
                   {"axis": axis, "dtype": dtype, "keepdims": keepdims}, out)  # fmt: skip

    call.__name__, call.at, call.reduce = name, at, reduce
    return call


def function_of(name: str, function, known):
    """A function of NumPy with the arguments that CuPy's has."""
    try:
        signature = inspect.signature(known)
    except (TypeError, ValueError):
        signature = None

    @functools.wraps(function)
    def call(*args, out=None, **kwargs):
        if signature is not None:
            signature.bind(*args, **kwargs, **({} if out is None else {"out": out}))
        if name in WAITING or (name == "where" and len(args) == 1):
            wait(name)
        args = tuple(map(inside, args))
        return run(function, args, {k: inside(v) for k, v in kwargs.items()}, out)

    return call


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """From an array of this module, or a copy of host data (which is queued, not waited for)."""
    dtype = None if dtype is None else check_dtype(dtype)
    values = np.asarray(inside(obj)) if not isinstance(obj, np.ndarray) else obj
    copy = copy if isinstance(obj, ndarray) else True
    return wrap(np.array(values, dtype=dtype, copy=copy, order=order, ndmin=ndmin))


def asarray(a, dtype=None, order=None, *, blocking=False):
    return array(a, dtype, None, order or "K")


def ascontiguousarray(a, dtype=None):
    return array(a, dtype, None, "C", ndmin=1)


def empty(shape, dtype=float, order="C"):
    """Memory as a GPU hands it out: with what was there before."""
    values = np.empty(shape, check_dtype(dtype), order)
    kind = values.dtype.kind
    if kind in "iu":
        values.fill(np.iinfo(values.dtype).max)
    else:
        values.fill(True if kind == "b" else np.nan)
    return wrap(values)


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    return empty(prototype.shape if shape is None else shape, dtype or prototype.dtype)


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(order=order, out=out) if isinstance(a, ndarray) else np.asarray(a)


def _as_strided(x, shape=None, strides=None):
    return wrap(np.lib.stride_tricks.as_strided(inside(x), shape, strides))


def _sliding_window_view(x, window_shape, axis=None, *, subok=False, writeable=False):
    return wrap(np.lib.stride_tricks.sliding_window_view(inside(x), window_shape, axis))


lib = types.SimpleNamespace(
    stride_tricks=types.SimpleNamespace(
        as_strided=_as_strided, sliding_window_view=_sliding_window_view
    )
)


def _of_linalg(name):
    """A function of cupy.linalg; where NumPy raises, cuSOLVER leaves NaN and tells nobody."""

    def computed(*arrays):
        values = [inside(a) for a in arrays]
        if len(values) == 2 and values[0].shape[:-1] != values[1].shape[:-1]:
            raise ValueError("a must have (..., M, M) shape and b must have (..., M, K)")
        try:
            result = getattr(np.linalg, name)(*values)
        except np.linalg.LinAlgError:
            result = np.full_like(values[-1], np.nan)
        if isinstance(result, tuple):
            return tuple(wrap(np.asarray(part)) for part in result)
        return wrap(np.asarray(result))

    return computed


linalg = types.SimpleNamespace(
    **{name: _of_linalg(name) for name in ("inv", "solve", "det", "slogdet", "cholesky")}
)


class Device:
    """The one device."""

    def __init__(self, number: int = 0):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def synchronize(self):
        wait("synchronize()")


class _Stream:
    ptr = 0

    def is_capturing(self):
        return False

    def synchronize(self):
        wait("stream.synchronize()")


class _Pinned:
    @staticmethod
    def is_memory_pinned(address):
        return False


class _PooledMemory:
    """What no array of the stand-in has."""


cuda = types.SimpleNamespace(
    Device=Device,
    get_current_stream=_Stream,
    pinned_memory=_Pinned,
    memory=types.SimpleNamespace(PooledMemory=_PooledMemory),
    runtime=types.SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0),
)


class _Module(types.ModuleType):
    """This module: names that are not defined above are NumPy's, as far as CuPy has them."""

    def __getattr__(self, name):
        if name.startswith("__") or not hasattr(np, name) or _unknown("module", name):
            raise AttributeError(f"module 'cupy' has no attribute {name!r}")
        value = getattr(np, name)
        if isinstance(value, np.ufunc):
            value = ufunc_of(name)
        elif isinstance(value, types.ModuleType):
            raise AttributeError(f"the stand-in does not model cupy.{name}")
        elif callable(value) and not isinstance(value, type):
            value = function_of(name, value, getattr(real, name, None))
        setattr(self, name, value)
        return value


_add_operators()
module = types.ModuleType("cupy")  # with CuPy's name, by which gpugrad knows it
module.__class__ = _Module
for _name in (
    "ndarray", "array", "asarray", "ascontiguousarray", "empty", "empty_like", "asnumpy", "cuda",
    "lib", "linalg",
):  # fmt: skip
    setattr(module, _name, globals()[_name])
module.__version__ = "14.2.0"


# ------------------------------------------------------------------------------------------------
# in the place of CuPy


def activate() -> None:
    """Let gpugrad's CUDA backend work on this module."""
    from gpugrad.backend import cuda_memory, cuda_setup, cuda_transfer
    from gpugrad.backend import cupy as backend

    sys.modules["cupy"] = module
    special = types.ModuleType("cupyx.scipy.special")
    special.erf = _erf
    sys.modules["cupyx"] = types.ModuleType("cupyx")
    sys.modules["cupyx.scipy"] = types.ModuleType("cupyx.scipy")
    sys.modules["cupyx.scipy.special"] = special
    cuda_setup.load = lambda: module
    cuda_memory.install = lambda cupy: None
    cuda_transfer.from_host = lambda values, index, non_blocking=False: array(values)
    cuda_transfer.to_host = lambda a, non_blocking=False: a.get()
    backend.forget()


def active() -> bool:
    return sys.modules.get("cupy") is module


def _erf(x, out=None):
    from gpugrad.codegen.special import erf

    return run(erf, (inside(x),), {}, out)
