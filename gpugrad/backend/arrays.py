"""Which backend an array belongs to, and moving arrays between devices."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from . import cupy as cuda_backend
from . import numpy as cpu_backend
from .device import CPU, as_device, device

_ndarray = np.ndarray
_HOST = (np.ndarray, np.generic)


def is_array(value) -> bool:
    """Whether the value is an array of one of the backends (NumPy scalars are not)."""
    return isinstance(value, _ndarray) or cuda_backend.is_array(value)


def is_cuda(value) -> bool:
    """Whether the value is an array on a CUDA device; cheap for NumPy arrays."""
    return value.__class__ is not _ndarray and is_array(value) and not isinstance(value, _ndarray)


def backend_of(array):
    """The backend module of an array."""
    if array.__class__ is _ndarray or isinstance(array, (_ndarray, np.generic)):
        return cpu_backend
    return cuda_backend


def array_module(array):
    """numpy or cupy, whichever made the array (NumPy scalars and Python numbers: numpy)."""
    if array.__class__ is _ndarray or isinstance(
        array, (_ndarray, np.generic, int, float, complex)
    ):
        return np
    return cuda_backend.cupy()


def device_of(array) -> device:
    return CPU if isinstance(array, _ndarray) else cuda_backend.device_of(array)


def there(array):
    """A context in which the device of an array is the current one."""
    return _HERE if isinstance(array, _ndarray) else cuda_backend.on_device_of(array)


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
    return array if isinstance(array, _ndarray) else cuda_backend.to_numpy(array)


def item(array):
    """The value of a one-element array as a Python number (waits for a GPU)."""
    return array.item() if isinstance(array, _HOST) else cuda_backend.item(array)


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
    if isinstance(like, _ndarray):
        return np.array(value, dtype)
    with cuda_backend.on_device_of(like):
        return cuda_backend.full((), value, dtype)
