"""The CUDA backend: CuPy arrays. CuPy is imported when a CUDA device is first asked for."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from ..errors import DeviceError
from . import device_errors
from .device import device

name = "cupy"
_MISSING = (
    "CUDA was asked for, but CuPy is not installed. Install it for your driver's CUDA version: "
    'pip install "gpugrad[cuda13]" or pip install "gpugrad[cuda12]"; or run on device="cpu".'
)


def cupy():
    """The cupy module, or a clear error with the remedy."""
    module = sys.modules.get("cupy")
    if module is None:
        try:
            import cupy as module
        except ImportError as error:
            raise DeviceError(f"{_MISSING} ({error})") from error
    return module


def is_available() -> bool:
    """Whether CuPy is installed and sees at least one CUDA device. Never raises."""
    return device_count() > 0


def device_count() -> int:
    """Number of CUDA devices CuPy sees; 0 without CuPy or without a driver."""
    try:
        return cupy().cuda.runtime.getDeviceCount()
    except Exception:  # no CuPy, no driver, a driver too old: all mean "none usable"
        return 0


def require(d: device) -> device:
    """The device with its number filled in; an error with the remedy if it cannot be used."""
    module = cupy()
    count = device_count()
    if count == 0:
        raise DeviceError(
            f"device {d} was asked for, but no CUDA device is usable: CuPy {module.__version__} "
            f"found no GPU or no "
            'NVIDIA driver. Run on device="cpu", or check that nvidia-smi works.'
        )
    index = module.cuda.runtime.getDevice() if d.index is None else d.index
    if not 0 <= index < count:
        raise DeviceError(
            f"device cuda:{index} was asked for, but there are only {count} CUDA devices (cuda:0 "
            f"...)"
        )
    return device("cuda", index)


def current_device() -> int:
    """Number of the current CUDA device."""
    return cupy().cuda.runtime.getDevice()


def device_of(array) -> device:
    return device("cuda", array.device.id)


_HERE = nullcontext()


def on_device_of(array):
    """A context in which the device of a CUDA array is the current one."""
    number = array.data.device_id
    module = cupy()
    return _HERE if number == module.cuda.runtime.getDevice() else module.cuda.Device(number)


def on_device(d: device):
    return cupy().cuda.Device(require(d).index)


def synchronize(d=None) -> None:
    """Wait until all work queued on a CUDA device is done; errors that its kernels found are raised
    here."""
    with on_device(device("cuda") if d is None else device(d)) as current:
        current.synchronize()
    device_errors.check()


def asarray(data, dtype=None):
    return cupy().asarray(data, dtype)


def to_numpy(array):
    """The values in host memory; errors that kernels found are raised here."""
    values = array.get()
    device_errors.check()
    return values


def item(array):
    """The value of a one-element array as a Python number; errors that kernels found are raised
    here."""
    value = array.item()
    device_errors.check()
    return value


def zeros(shape, dtype):
    return cupy().zeros(shape, dtype)


def reshape(array, shape):
    """A view in another shape where strides allow it, else a copy."""
    return array.reshape(shape)


def sum_leading(array, lead: int):
    """The sum over the first axes."""
    return array.sum(axis=tuple(range(lead)))


def take_rows(array, index):
    return array[index]


def dot(a, b):
    """The product of two matrices."""
    return cupy().matmul(a, b)


def broadcast_to(array, shape):
    """A view in a larger shape."""
    return cupy().broadcast_to(array, shape)


spread = broadcast_to


def empty(shape, dtype):
    return cupy().empty(shape, dtype)
