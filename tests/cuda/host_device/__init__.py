"""The real CuPy wheel on a "device" made of host memory, for tests without a GPU.

``activate()`` before CuPy is imported; then ``import cupy`` and ``device="cuda"`` work: two devices
with 4 GiB each, streams, events, stream capture, graphs, pinned memory, kernels compiled by g++
(tests/cuda/shim) and what gpugrad needs of cuBLAS and cuSOLVER. What cannot run here is the machine
code inside NVIDIA's libraries and CuPy's wheel: cuFFT, cuRAND, cuSPARSE, eigenvalues and singular
values, CUB; sorting is NumPy's (``sorting.py``).

What it adds to a GPU: ``counters()`` of launches, allocations, copies and waits; ``watch`` for who
makes them; fresh device memory is poisoned and ends at a guard page; ``deferred()`` runs queued
work as late as CUDA allows, ``scheduled()`` runs threads, blocks and graph nodes in other orders;
``capacity()`` limits memory. What it does not show: speed, races that need real concurrency (the
shim's ThreadSanitizer build does), and rounding of the GPU's own functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from typing import NamedTuple

from . import build

_device: ctypes.CDLL | None = None


def active() -> bool:
    return _device is not None


def activate() -> None:
    """Make CuPy, which must not have been imported, use the host-memory device."""
    global _device
    if active():
        return
    if "cupy" in sys.modules:
        raise RuntimeError("the host-memory device must be activated before CuPy is imported")
    folder = build.libraries()
    # CUB is machine code inside the wheel; CuPy's own kernels do without it.
    os.environ["CUPY_ACCELERATORS"] = ""
    _device = _open(folder / "libcuda.so.1")
    # CuPy takes a library that is loaded under the right name, before it searches NVIDIA's wheels.
    for path in sorted(folder.glob("lib*.so.*")):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    _replace_runtime(folder)
    from . import sorting

    sorting.install()
    from . import compiling

    compiling.install()


def _open(path) -> ctypes.CDLL:
    device = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    device.host_device_counter.restype = ctypes.c_longlong
    device.host_device_counter_names.restype = ctypes.c_char_p
    device.host_device_overrun.restype = ctypes.c_char_p
    device.host_device_used.restype = ctypes.c_size_t
    device.host_device_allocations.restype = ctypes.c_size_t
    device.host_device_capacity.restype = ctypes.c_size_t
    device.host_device_set_capacity.argtypes = [ctypes.c_size_t]
    device.host_device_set_exact.argtypes = [ctypes.c_int, ctypes.c_size_t]
    return device


def _replace_runtime(folder) -> None:
    """Import our build of CuPy's module of the CUDA runtime under its name."""
    import cupy_backends.cuda.api

    name = "cupy_backends.cuda.api.runtime"
    path = folder / f"runtime{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    cupy_backends.cuda.api.runtime = module


def device() -> ctypes.CDLL:
    """The library of the device, for what has no function here."""
    if _device is None:
        raise RuntimeError("the host-memory device is not active: GPUGRAD_TEST_DEVICE=host")
    return _device


# ---- counters ------------------------------------------------------------------------------------


def counters() -> dict[str, int]:
    """How often the device did what, since the process began.

    ``launches`` of kernels by the host, ``kernels`` run (those of graphs too), ``graph_launches``,
    ``library_calls`` (cuBLAS), ``mallocs``, ``frees``, ``host_mallocs`` (pinned), ``syncs`` (the
    host waited), ``queries`` (it asked), copies ``h2d``, ``d2h``, ``d2d``, ``h2d_bytes``,
    ``d2h_bytes``, ``memsets``.
    """
    names = device().host_device_counter_names().decode().split()
    return {name: device().host_device_counter(i) for i, name in enumerate(names)}


class Counted(dict):
    """Differences of the counters; names as attributes. Filled when the block ends."""

    __getattr__ = dict.__getitem__


@contextlib.contextmanager
def counting() -> Iterator[Counted]:
    """``with counting() as n: ...`` then ``n.launches``."""
    before, result = counters(), Counted()
    try:
        yield result
    finally:
        result.update({name: n - before[name] for name, n in counters().items()})


class Event(NamedTuple):
    """Something the host did: "sync", "h2d", "d2h", "malloc", "free"."""

    what: str
    bytes: int
    where: str  # the lines that led there

    def __str__(self):
        return f"{self.what} ({self.bytes} bytes)\n{self.where}"


@contextlib.contextmanager
def watch(*wanted: str) -> Iterator[list[Event]]:
    """A list of what of this kind happened in the block, with the lines that made it happen."""
    events: list[Event] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_size_t)
    def note(what, size):
        if what.decode() in wanted:
            lines = traceback.extract_stack()[:-1]
            kept = [
                f for f in lines if "site-packages" not in f.filename or "gpugrad" in f.filename
            ]
            events.append(Event(what.decode(), size, "".join(traceback.format_list(kept[-6:]))))

    device().host_device_watch(note)
    try:
        yield events
    finally:
        device().host_device_watch(None)


# ---- what tests switch ---------------------------------------------------------------------------

ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}


@contextlib.contextmanager
def scheduled(order: str, seed: int = 0) -> Iterator[None]:
    """Threads, blocks and independent nodes of graphs in another order."""
    device().host_device_schedule(ORDERS[order], seed)
    try:
        yield
    finally:
        device().host_device_schedule(0, 0)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Queued work runs only when somebody waits for it, so that a missing wait shows.

    An error of a kernel is raised by the wait that runs it, as on a GPU.
    """
    device().host_device_defer(1)
    try:
        yield
    finally:
        device().host_device_defer(0)


@contextlib.contextmanager
def capacity(nbytes: int) -> Iterator[None]:
    """Devices with less memory: what does not fit is cudaErrorMemoryAllocation."""
    before = device().host_device_capacity()
    device().host_device_set_capacity(nbytes)
    try:
        yield
    finally:
        device().host_device_set_capacity(before)


def used(number: int = 0) -> int:
    """Bytes allocated on a device, those that CuPy's pool keeps included."""
    return device().host_device_used(number)


def overrun() -> str:
    """What wrote beside an allocation, as far as it was freed since the last call; else empty."""
    return device().host_device_overrun().decode()


@contextlib.contextmanager
def exact_allocations(alignment: int = 16) -> Iterator[None]:
    """Every CuPy array its own allocation: poisoned, and ending at a guard page.

    CuPy's pool hands out used memory in pieces of 512 bytes, which hides both. The guard page comes
    after at most ``alignment - 1`` bytes of poison; 256 is what ``cudaMalloc`` grants and libraries
    expect. A kernel that writes into the poison beside some array is an error as well.
    """
    import cupy

    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(None)
    device().host_device_set_exact(1, alignment)
    try:
        yield
    finally:
        device().host_device_set_exact(0, 16)
        cupy.cuda.set_allocator(before)
