"""CUDA devices, streams, graphs and memory under torch's names: ``gpugrad.cuda``.

Questions work everywhere: without CuPy or a driver ``is_available()`` is False and the amounts of
memory are 0. What needs a device raises DeviceError, which says what is missing.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from ..backend.cupy import device_count, is_available, synchronize
from ..errors import OutOfMemoryError
from .devices import (
    current_device,
    device,
    device_of,
    get_device_capability,
    get_device_name,
    get_device_properties,
    is_bf16_supported,
    manual_seed,
    manual_seed_all,
    set_device,
)

if _TYPE_CHECKING:
    from . import graphs, memory, nvtx, streams
    from .graphs import (
        CUDAGraph,
        capture,
        graph,
        graph_pool_handle,
        is_current_stream_capturing,
    )
    from .memory import (
        empty_cache,
        max_memory_allocated,
        max_memory_reserved,
        mem_get_info,
        memory_allocated,
        memory_reserved,
        memory_stats,
        memory_summary,
        reset_peak_memory_stats,
        set_memory_limit,
        set_per_process_memory_fraction,
    )
    from .streams import (
        Event,
        ExternalStream,
        Stream,
        current_stream,
        default_stream,
        set_stream,
        stream,
    )

# Imported when first used: programs on a CPU never do.
_LAZY = {
    "graphs": "CUDAGraph capture graph graph_pool_handle is_current_stream_capturing",
    "memory": "empty_cache max_memory_allocated max_memory_reserved mem_get_info memory_allocated "
    "memory_reserved memory_stats memory_summary reset_peak_memory_stats set_memory_limit "
    "set_per_process_memory_fraction",
    "streams": "Event ExternalStream Stream current_stream default_stream set_stream stream",
    "nvtx": "",
}
_HOME = {name: module for module, names in _LAZY.items() for name in names.split()}

__all__ = [
    "CUDAGraph", "Event", "ExternalStream", "OutOfMemoryError", "Stream", "capture",
    "current_device", "current_stream", "default_stream", "device", "device_count", "device_of",
    "empty_cache", "get_device_capability", "get_device_name", "get_device_properties", "graph",
    "graph_pool_handle", "is_available", "is_bf16_supported", "is_current_stream_capturing",
    "manual_seed", "manual_seed_all", "max_memory_allocated", "max_memory_reserved",
    "mem_get_info", "memory_allocated", "memory_reserved", "memory_stats", "memory_summary",
    "nvtx", "reset_peak_memory_stats", "set_device", "set_memory_limit",
    "set_per_process_memory_fraction", "set_stream", "stream", "synchronize",
]  # fmt: skip


def __getattr__(name: str):
    if name in _LAZY or name == "amp":
        return _importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(_importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'gpugrad.cuda' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY, *_HOME])
