"""CUDA devices: ``gpugrad.cuda``. Everything here works without CuPy, saying that there is no
device."""

from .backend.cupy import device_count, is_available, require, synchronize
from .backend.device import device as _device


def current_device() -> int:
    """Number of the current CUDA device. Raises DeviceError if there is none."""
    return require(_device("cuda")).index or 0


def empty_cache() -> None:
    """Give unused GPU memory back to the driver."""
    if is_available():
        from .backend.cupy import cupy

        cupy().get_default_memory_pool().free_all_blocks()


__all__ = ["current_device", "device_count", "empty_cache", "is_available", "synchronize"]
