"""Which backend an array belongs to, and moving arrays between devices."""

from __future__ import annotations

from contextlib import nullcontext
from math import prod

import numpy as np

from ..errors import BatchedValueError
from . import cupy as cuda_backend
from . import numpy as cpu_backend
from .device import CPU, as_device, device

_ndarray = np.ndarray
_HOST = (np.ndarray, np.generic)


class StandIn:
    """One example of a batch of arrays, known by shape and dtype alone: what a tensor has in place
    of its array inside ``func.vmap``, where it is as many arrays as the batch has examples.

    Whatever asks for values fails, because there is no one answer; ``every_value`` gives all.
    """

    # batch: the array of all examples, along its first axis; root: the NumPy or CuPy array at the
    # end of the chain, if a batch of batches has a stand-in itself.
    __slots__ = ("batch", "dtype", "ndim", "root", "shape", "size")
    base = None

    def __init__(self, batch):
        self.batch, self.dtype = batch, batch.dtype
        self.shape, self.ndim = batch.shape[1:], batch.ndim - 1
        self.size = prod(self.shape)
        self.root = batch.root if batch.__class__ is StandIn else batch

    itemsize = property(lambda self: self.dtype.itemsize)
    nbytes = property(lambda self: self.size * self.dtype.itemsize)
    strides = property(lambda self: self.batch.strides[1:])
    flags = property(lambda self: self.batch.flags)

    def item(self):
        raise BatchedValueError(
            "vmap: It looks like you're calling .item() on a Tensor. We don't support vmap over "
            "calling .item() on a Tensor, please try to rewrite what you're doing with other "
            "operations."
        )

    def _refuse(self, *args, **kwargs):
        raise BatchedValueError(
            "vmap: this asks for the values of a Tensor, which are others in every example of the "
            "batch. Please rewrite it with operations of tensors whose results have a shape that "
            "does not depend on values, or call it outside of vmap."
        )

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    def __array_function__(self, function, types, args, kwargs):
        """NumPy's functions of a shape and a dtype alone, of one example; no others."""
        if function.__name__ not in ("zeros_like", "ones_like", "empty_like"):
            self._refuse()
        return getattr(np, function.__name__.removesuffix("_like"))(self.shape, self.dtype)

    __hash__ = object.__hash__


_ASKING = """array array_ufunc bool int float complex index len iter contains getitem setitem
    eq ne lt le gt ge neg abs invert add radd sub rsub mul rmul truediv rtruediv matmul rmatmul
    pow rpow mod rmod floordiv rfloordiv and rand or ror xor rxor"""
for _name in _ASKING.split():
    setattr(StandIn, f"__{_name}__", StandIn._refuse)


def every_value(array):
    """An array with all values of this one: itself, or for a stand-in the values of all
    examples."""
    return array.root if array.__class__ is StandIn else array


def is_array(value) -> bool:
    """Whether the value is an array of one of the backends (NumPy scalars are not)."""
    return isinstance(value, _ndarray) or cuda_backend.is_array(value)


def is_cuda(value) -> bool:
    """Whether the value is an array on a CUDA device; cheap for NumPy arrays."""
    if value.__class__ is _ndarray:
        return False
    value = every_value(value)
    return is_array(value) and not isinstance(value, _ndarray)


def backend_of(array):
    """The backend module of an array."""
    if array.__class__ is _ndarray or isinstance(array, (_ndarray, np.generic)):
        return cpu_backend
    return cuda_backend if array.__class__ is not StandIn else backend_of(array.root)


def array_module(array):
    """numpy or cupy, whichever made the array (NumPy scalars and Python numbers: numpy)."""
    if array.__class__ is _ndarray or isinstance(
        array, (_ndarray, np.generic, int, float, complex)
    ):
        return np
    return cuda_backend.cupy() if array.__class__ is not StandIn else array_module(array.root)


def device_of(array) -> device:
    array = every_value(array)
    return CPU if isinstance(array, _ndarray) else cuda_backend.device_of(array)


def there(array):
    """A context in which the device of an array is the current one."""
    if isinstance(array, _ndarray):
        return _HERE
    if array.__class__ is StandIn:
        return there(array.root)
    return cuda_backend.on_device_of(array)


_HERE = nullcontext()


def is_writable(array) -> bool:
    """Whether an array may be written in place: not if it is read-only, nor if several elements of
    it are one place in memory."""
    if isinstance(array, _ndarray):
        return array.flags.writeable
    return 0 not in array.strides or all(
        step or n == 1 for n, step in zip(array.shape, array.strides)
    )


def backend_for(d: device):
    return cpu_backend if d.type == "cpu" else cuda_backend


def to_numpy(array):
    """The values as a NumPy array (zero copy on the CPU)."""
    if array.__class__ is StandIn:
        array.tolist()  # which explains that it has no values
    return array if isinstance(array, _ndarray) else cuda_backend.to_numpy(array)


def item(array):
    """The value of a one-element array as a Python number (waits for a GPU)."""
    return array.item() if isinstance(array, (*_HOST, StandIn)) else cuda_backend.item(array)


def to_device(array, d: device, non_blocking: bool = False):
    """The array on this device: itself if it is there already, else a copy.

    "cuda" without a number means the current CUDA device, as in torch.
    """
    if isinstance(array, _ndarray):
        if d.type == "cpu":
            return array
        from .cuda_transfer import from_host

        return from_host(array, cuda_backend.require(d).index, non_blocking)
    if d.type == "cpu":
        if not non_blocking:
            return cuda_backend.to_numpy(array)
        from .cuda_transfer import to_host

        return to_host(array, non_blocking)
    index = cuda_backend.require(d).index
    if index == array.data.device_id:
        return array
    from .cuda_transfer import to_other

    return to_other(array, index)


def new_array(data, dtype=None, d: device | None = None):
    """A fresh array with these values on a device."""
    if cuda_backend.is_array(data):
        with cuda_backend.on_device_of(data):
            return to_device(data.astype(data.dtype if dtype is None else dtype), as_device(d))
    return to_device(np.array(data, dtype), as_device(d))


def scalar_array(value, dtype, like):
    """A zero-dimensional array on the device of ``like``."""
    like = every_value(like)
    if isinstance(like, _ndarray):
        return np.array(value, dtype)
    with cuda_backend.on_device_of(like):
        return cuda_backend.full((), value, dtype)
