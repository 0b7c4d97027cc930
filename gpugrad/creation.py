"""Making tensors: from data, filled, and random."""

from __future__ import annotations

import math
import operator

from . import dtypes, random
from .backend import arrays as backend_arrays
from .backend import cupy as cuda_backend
from .backend.device import as_device
from .backend.numpy import xp as np
from .batching import draw
from .config import FollowedInteger, modes, settings
from .eager import run_arrays, verify
from .lifted import like
from .ops.core import REGISTRY
from .random import Generator
from .tensor import Tensor, _read, constant, over, share_memory, wrap


def _finish(t: Tensor, requires_grad: bool) -> Tensor:
    constant(t.array)
    return t.requires_grad_() if requires_grad else t


def _shape(size) -> tuple[int, ...]:
    """A shape given as ``f(2, 3)`` or ``f((2, 3))``."""
    if len(size) == 1 and isinstance(size[0], (tuple, list)):
        size = size[0]
    shape = tuple([operator.index(n) for n in size])
    if any(n < 0 for n in shape):
        raise RuntimeError(f"Trying to create tensor with negative dimension: {list(shape)}")
    return shape


def _infer_dtype(array, data):
    """torch's dtype for Python data: float64 read from Python floats becomes the default dtype."""
    if isinstance(data, (np.ndarray, np.generic)):
        return array.dtype
    if array.dtype.kind == "f":
        leaf = data
        while isinstance(leaf, (list, tuple)) and leaf:
            leaf = leaf[0]
        return array.dtype if isinstance(leaf, (np.ndarray, np.generic)) else settings.default_dtype
    if array.dtype.kind == "c":
        return dtypes.of_scalar(1j)
    return array.dtype


def tensor(data, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor with its own copy of the data (numbers, nested lists, arrays, tensors).

    Python floats become the default dtype (float32), integers int64, booleans bool; arrays keep
    their dtype, also those of other libraries (torch, jax, pandas: DLPack or ``__array__``).
    Raises ValueError for ragged lists, TypeError for data that is no number or has a dtype NumPy
    lacks (float8), BufferError for a tensor of another library that records a gradient.

    >>> import gpugrad as gg
    >>> gg.tensor([[1.0, 2.0], [3.0, 4.0]]).shape
    (2, 2)
    """
    if _is_followed(data):
        dtype = dtype or dtypes.of_scalar(data.value)
        data = data.recorded
    target = _target(data, device)
    if isinstance(data, Tensor):
        data = data.array
    elif _is_foreign(data):
        data = _foreign_array(data)
    if backend_arrays.is_array(data):
        target = target or backend_arrays.device_of(data)
        if modes.special and modes.local.recording is not None:
            copy = REGISTRY["cast"](over(data), dtype=np.dtype(dtype or data.dtype))
            return _finish(copy.to(device=target), requires_grad)
        with backend_arrays.there(data):
            array = data.copy() if dtype is None else data.astype(dtype)
        return _finish(wrap(backend_arrays.to_device(array, target)), requires_grad)
    data = _unwrap_nested(data)
    if dtype.__class__ is str:
        dtype = dtypes.as_dtype(dtype)
    try:
        array = np.array(data)
    except ValueError as error:
        raise ValueError(f"expected a sequence of equal length at every level: {error}") from None
    if not dtypes.is_number(array.dtype):
        raise TypeError(
            f"cannot make a tensor of {type(data).__name__} with elements like {data!r:.60}"
        )
    array = array.astype(dtype or _infer_dtype(array, data), copy=False)
    if array.size == 0 and dtype is None:
        array = array.astype(settings.default_dtype)
    return _finish(wrap(backend_arrays.to_device(array, as_device(device))), requires_grad)


def _target(data, device):
    """Where an array goes: NumPy's to the default device, as in torch; None for others, which stay
    where they are."""
    return as_device(device) if device is not None or isinstance(data, np.ndarray) else None


def _unwrap_nested(data):
    """Nested lists with tensors among them, as nested lists of numbers and arrays."""
    if isinstance(data, (list, tuple)):
        return [_unwrap_nested(d) for d in data]
    if isinstance(data, Tensor):
        _read("a tensor in a list")
        return backend_arrays.to_numpy(data.array)
    if _is_followed(data):
        _read("a number in a list")
        return data.value
    return backend_arrays.to_numpy(_foreign_array(data)) if _is_foreign(data) else data


def _is_followed(data) -> bool:
    """Whether data are a number that a recorder follows (static/numbers.py)."""
    return bool(modes.special) and hasattr(data, "recorded")


_NUMBERS = (bool, int, float, complex, list, tuple)
_INTERFACES = ("__dlpack__", "__array__", "__cuda_array_interface__")


def _is_foreign(data) -> bool:
    """Whether data are an array of a library that is neither NumPy nor CuPy."""
    return (
        data.__class__ not in _NUMBERS
        and not _is_followed(data)
        and any(hasattr(data, name) for name in _INTERFACES)
        and not isinstance(data, np.generic)
        and not backend_arrays.is_array(data)
    )


def _foreign_array(data):
    """An array over the memory of another library's, by DLPack if it speaks it."""
    if hasattr(data, "__dlpack__"):
        return from_dlpack(data).array
    if hasattr(data, "__cuda_array_interface__"):
        return cuda_backend.asarray(data)
    return np.asarray(data)


def as_tensor(data, dtype=None, device=None) -> Tensor:
    """A tensor over the data, sharing memory (and history) whenever dtype and device allow it.

    Arrays of other libraries are shared as well, through DLPack. Errors are those of ``tensor``.

    >>> import numpy as np, gpugrad as gg
    >>> a = np.zeros(2)
    >>> gg.as_tensor(a)[0] = 7.0
    >>> a
    array([7., 0.])
    """
    if isinstance(data, Tensor):
        if (dtype is None or data.dtype == dtype) and (
            device is None or data.device == as_device(device)
        ):
            return data
        return data.to(device=device, dtype=dtype)
    target = _target(data, device)
    if _is_foreign(data):
        data = _foreign_array(data)
    if backend_arrays.is_array(data):
        array = data if dtype is None else data.astype(dtype, copy=False)
        return over(array if target is None else backend_arrays.to_device(array, target))
    return tensor(data, dtype=dtype, device=device)


def asarray(data, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """``as_tensor`` with ``requires_grad``."""
    t = as_tensor(data, dtype, device)
    return t.requires_grad_() if requires_grad else t


def from_numpy(array) -> Tensor:
    """A tensor over a NumPy array, sharing its memory and keeping its dtype.

    >>> import numpy as np, gpugrad as gg
    >>> a = np.zeros(2)
    >>> gg.from_numpy(a).array is a
    True
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(array).__name__})")
    if not dtypes.is_number(array.dtype):
        raise TypeError(
            f"can't convert np.ndarray of type {array.dtype}; supported are booleans, integers, "
            f"floats, complex"
        )
    return over(array)


def from_dlpack(source) -> Tensor:
    """A tensor over the memory of any object that speaks DLPack (torch, jax, CuPy, NumPy ...).

    Raises TypeError for a dtype that NumPy lacks, BufferError if the owner refuses (torch: tensors
    that require a gradient) or the memory is on a device that is neither CPU nor CUDA.

    >>> import numpy as np, gpugrad as gg
    >>> a = np.arange(3.0)
    >>> gg.from_dlpack(a).data_ptr() == a.ctypes.data
    True
    """
    kind = int(source.__dlpack_device__()[0])
    if kind in _ON_CUDA:
        from .backend.cupy import cupy

        return wrap(cupy().from_dlpack(source))
    if kind not in _ON_CPU:
        raise BufferError(
            f"from_dlpack: the memory is on a device of DLPack's type {kind}; copy it to the CPU "
            f"or to a CUDA device first"
        )
    try:
        array = _from_dlpack(source)
    except RuntimeError as error:
        raise TypeError(
            f"from_dlpack: NumPy has no dtype for {getattr(source, 'dtype', 'these data')} "
            f"({error}); convert it first, e.g. to float32"
        ) from None
    if not array.flags.writeable and hasattr(source, "__array__"):
        array = np.asarray(source)  # NumPy marks what comes by DLPack before version 1 read-only
    return wrap(array)


def _from_dlpack(source):
    """A NumPy array over memory of the CPU."""
    if str(getattr(source, "dtype", "")).endswith("bfloat16"):
        from .backend import dlpack

        return dlpack.take(source)
    return np.from_dlpack(source)


_ON_CPU, _ON_CUDA = (1, 3, 11), (2, 13)  # DLDeviceType; pinned memory is the CPU's


def _new(make, size, dtype, device, requires_grad) -> Tensor:
    d = as_device(device)
    if dtype.__class__ is str:
        dtype = dtypes.as_dtype(dtype)
    if d.type == "cpu":
        return _finish(wrap(make(np, size, dtype or settings.default_dtype)), requires_grad)
    backend = backend_arrays.backend_for(d)
    with backend.on_device(d):
        return _finish(
            wrap(make(backend.cupy(), size, dtype or settings.default_dtype)), requires_grad
        )


def zeros(*size, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros: ``zeros(2, 3)`` or ``zeros((2, 3))``."""
    return _new(lambda xp, s, d: xp.zeros(s, d), _shape(size), dtype, device, requires_grad)


def ones(*size, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones."""
    return _new(lambda xp, s, d: xp.ones(s, d), _shape(size), dtype, device, requires_grad)


def empty(*size, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of uninitialised values."""
    return _new(lambda xp, s, d: xp.empty(s, d), _shape(size), dtype, device, requires_grad)


def full(size, fill_value, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor filled with one number; its dtype follows the number unless given."""
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    if _is_followed(value):
        one = tensor(value, dtype=dtype, device=device)
        return _finish(one.expand(size).clone(), requires_grad)  # type: ignore[attr-defined]
    dtype = dtype or dtypes.of_scalar(value)
    return _new(
        lambda xp, s, d: xp.full(s, value, d),
        _shape((size,)) if not isinstance(size, int) else (size,),
        dtype,
        device,
        requires_grad,
    )


def zeros_like(input, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """Zeros with the shape (and dtype and device, unless given) of another tensor."""
    dtype, device = dtype or input.dtype, device or input.device
    made = zeros(*input.shape, dtype=dtype, device=device, requires_grad=requires_grad)
    return like(input, made) if input._level else made


def ones_like(input, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """Ones with the shape (and dtype and device, unless given) of another tensor."""
    dtype, device = dtype or input.dtype, device or input.device
    made = ones(*input.shape, dtype=dtype, device=device, requires_grad=requires_grad)
    return like(input, made) if input._level else made


def empty_like(input, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """Uninitialised values with the shape (and dtype and device, unless given) of another
    tensor."""
    dtype, device = dtype or input.dtype, device or input.device
    made = empty(*input.shape, dtype=dtype, device=device, requires_grad=requires_grad)
    return like(input, made) if input._level else made


def full_like(input, fill_value, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """One number with the shape (and dtype and device, unless given) of another tensor."""
    dtype, device = dtype or input.dtype, device or input.device
    size = tuple(input.shape)
    made = full(size, fill_value, dtype=dtype, device=device, requires_grad=requires_grad)
    return like(input, made) if input._level else made


def arange(
    start, end=None, step=1, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """Numbers from ``start`` (0 if only one bound is given) up to ``end``, without it."""
    start, end, step = (v.item() if isinstance(v, Tensor) else v for v in (start, end, step))
    if end is None:
        start, end = 0, start
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) * step < 0:
        raise RuntimeError(
            f"upper bound and lower bound inconsistent with step sign: arange({start}, {end}, "
            f"{step})"
        )
    if dtype is None:
        integral = all(isinstance(v, (int, FollowedInteger)) for v in (start, end, step))
        if integral:
            start, end, step = map(operator.index, (start, end, step))
        dtype = dtypes.int64 if integral else settings.default_dtype
    return _new(
        lambda xp, s, d: xp.arange(start, end, step).astype(d, copy=False),
        None,
        dtype,
        device,
        requires_grad,
    )


def _check_count(name, n) -> None:
    if n < 0:
        raise RuntimeError(f"{name} must be non-negative, got {n}")


def linspace(
    start, end, steps: int, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """``steps`` evenly spaced numbers from ``start`` to ``end``, both included."""
    _check_count("linspace: number of steps", steps)
    return _new(
        lambda xp, s, d: xp.linspace(start, end, steps).astype(d, copy=False),
        None,
        dtype,
        device,
        requires_grad,
    )


def logspace(
    start,
    end,
    steps: int,
    base: float = 10.0,
    *,
    dtype=None,
    device=None,
    requires_grad: bool = False,
) -> Tensor:
    """``base`` to the power of ``linspace(start, end, steps)``."""
    _check_count("logspace: number of steps", steps)
    return _new(
        lambda xp, s, d: xp.logspace(start, end, steps, base=base).astype(d, copy=False),
        None,
        dtype,
        device,
        requires_grad,
    )


def eye(
    n: int, m: int | None = None, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """The identity matrix, or ``n`` by ``m`` with ones on the diagonal."""
    _check_count("eye: number of rows", n)
    _check_count("eye: number of columns", n if m is None else m)
    return _new(lambda xp, s, d: xp.eye(n, m, dtype=d), None, dtype, device, requires_grad)


def meshgrid(*tensors, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinates of a grid, one tensor per axis."""
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = tuple(tensors[0])
    if indexing not in ("ij", "xy"):
        raise RuntimeError(
            f"meshgrid: indexing must be one of 'xy' or 'ij', but received {indexing}"
        )
    sizes = [t.numel() for t in tensors]
    axes = list(range(len(sizes)))
    if indexing == "xy" and len(sizes) > 1:
        axes[:2] = 1, 0
    shape = [sizes[axis] for axis in axes]
    lines = [
        t.reshape([-1 if k == axis else 1 for k in range(len(axes))])
        for t, axis in zip(tensors, axes)
    ]
    return tuple(line.broadcast_to(shape).clone() for line in lines)


# ---- random


def _random(make, size, dtype, device, requires_grad, generator) -> Tensor:
    dtype = dtypes.as_dtype(dtype or settings.default_dtype)
    shape = _shape(size)
    drawn = draw(lambda lead: make(generator, lead + shape, dtype, device))
    return drawn.requires_grad_() if requires_grad else drawn


def rand(
    *size, generator: Generator | None = None, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """Uniform random numbers in [0, 1)."""
    return _random(random.uniform, size, dtype, device, requires_grad, generator)


def randn(
    *size, generator: Generator | None = None, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """Standard normal random numbers."""
    return _random(random.normal, size, dtype, device, requires_grad, generator)


def randint(
    *args,
    low=None,
    high=None,
    size=None,
    generator: Generator | None = None,
    dtype=None,
    device=None,
) -> Tensor:
    """Random integers: ``randint(high, size)`` from 0, or ``randint(low, high, size)``; ``high`` is
    excluded. All three have these names too."""
    given = list(args)
    if size is None:
        size = given.pop()
    if high is None:
        high = given.pop()
    if low is None:
        low = given.pop() if given else 0
    if given:
        raise TypeError(f"randint() takes low, high and size, got {args} and more")
    dtype = np.dtype(dtype or dtypes.int64)
    low, high, shape = int(low), int(high), _shape((size,))
    return draw(lambda lead: random.integers(generator, low, high, lead + shape, dtype, device))


def randperm(n: int, *, generator: Generator | None = None, dtype=None, device=None) -> Tensor:
    """A random order of the integers 0 to n-1."""
    _check_count("randperm: n", n)
    dtype = dtype or dtypes.int64

    def make(lead):
        orders = [random.permutation(generator, n, dtype, device) for _ in range(math.prod(lead))]
        if not lead:
            return orders[0]
        return REGISTRY["reshape"](REGISTRY["cat"](*orders, axis=0), shape=(*lead, n))

    return draw(make)


def normal(
    mean=0.0, std=1.0, size=None, *, generator: Generator | None = None, dtype=None, device=None
) -> Tensor:
    """Normal random numbers; the shape is ``size`` or that of ``mean`` and ``std``."""
    verify(_check_spread, std if isinstance(std, Tensor) else np.asarray(std))
    if size is None:
        size = np.broadcast_shapes(*[tuple(v.shape) for v in (mean, std) if isinstance(v, Tensor)])
    return randn(size, generator=generator, dtype=dtype, device=device) * std + mean


def _check_spread(std) -> None:
    if isinstance(std, np.ndarray) and (std < 0).any():
        raise RuntimeError(f"normal expects all elements of std >= 0.0, got {std}")


def rand_like(input, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """Uniform random numbers with the shape of another tensor."""
    return rand(
        *input.shape,
        dtype=dtype or input.dtype,
        device=device or input.device,
        requires_grad=requires_grad,
    )


def randn_like(input, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """Standard normal random numbers with the shape of another tensor."""
    return randn(
        *input.shape,
        dtype=dtype or input.dtype,
        device=device or input.device,
        requires_grad=requires_grad,
    )


def bernoulli(input, *, generator: Generator | None = None) -> Tensor:
    """Ones with the given probabilities, zeros else; in the dtype of the probabilities."""
    verify(_check_probabilities, input)
    drawn = rand(*input.shape, generator=generator, device=input.device)
    return (drawn < input.detach()).to(dtype=input.dtype)


def _check_probabilities(p) -> None:
    if isinstance(p, np.ndarray) and not ((p >= 0) & (p <= 1)).all():
        raise RuntimeError("bernoulli expects probabilities between 0 and 1")


def multinomial(
    input, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with the given (unnormalised) probabilities along the last dimension."""
    weights = input.detach().to(device="cpu", dtype=dtypes.float64)
    verify(_check_weights, weights, drawn=None if replacement else num_samples)
    size = (*weights.shape[:-1], num_samples) if replacement else weights.shape
    drawn = draw(lambda lead: random.uniform(generator, lead + size, dtypes.float64, "cpu"))
    if replacement:
        return run_arrays(_positions_in, weights, drawn).to(device=input.device)
    return run_arrays(_first_arrivals, weights, drawn, count=num_samples).to(device=input.device)


def _check_weights(weights, *, drawn: int | None) -> None:
    if (weights < 0).any() or not np.isfinite(weights).all() or not (weights.sum(-1) > 0).all():
        raise RuntimeError(
            "probability tensor contains either `inf`, `nan` or element < 0, or sums to 0"
        )
    if drawn is not None and drawn > (weights > 0).sum(-1).min():
        raise RuntimeError(
            "cannot sample n_sample > prob_dist.size(-1) samples without replacement"
        )


def _positions_in(weights, drawn):
    """Where uniform numbers fall among weights that are laid end to end."""
    edges = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    return (drawn[..., None] >= edges[..., None, :]).sum(-1).astype(np.int64)


def _first_arrivals(weights, drawn, *, count: int):
    """Exponential races: the smallest arrival times win."""
    with np.errstate(divide="ignore"):
        times = -np.log1p(-drawn) / weights
    return np.argsort(times, axis=-1, kind="stable")[..., :count].astype(np.int64)


def share(tensor: Tensor) -> Tensor:
    """A tensor without history over the same memory and version (``detach``)."""
    if modes.special and modes.local.recording is not None:
        modes.local.recording.see(tensor)
    t = wrap(tensor.array)
    share_memory(t, tensor)
    return t


__all__ = [
    "arange",
    "as_tensor",
    "asarray",
    "bernoulli",
    "empty",
    "empty_like",
    "eye",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "linspace",
    "logspace",
    "meshgrid",
    "multinomial",
    "normal",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
]
