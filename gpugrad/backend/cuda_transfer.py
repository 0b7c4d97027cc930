"""Copies between host and devices, and between devices.

Nothing here waits for a device but ``to_host`` without ``non_blocking``: the values are needed
then. Host memory that is not page-locked is copied through page-locked staging memory, because the
driver would wait for the copy otherwise; staging memory is kept until the copy is done.
"""

from __future__ import annotations

import sys
from collections import deque
from math import prod

import numpy as np

from . import cupy as backend

# Bytes up to which values are staged. Beyond, the driver's own staging is used: CuPy's page-locked
# pool rounds up to a power of two and keeps what it has.
STAGED = 32 << 20

_in_flight: deque = deque()  # (event, what must live until it has happened)


def keep_until_done(thing, stream) -> None:
    """Hold a reference until the work queued on a stream so far is done."""
    release_done()
    event = backend.cupy().cuda.Event(disable_timing=True)
    event.record(stream)
    _in_flight.append((event, thing))


def release_done() -> None:
    """Drop what is held for copies that are done (in the order they were begun)."""
    try:
        while _in_flight and _in_flight[0][0].done:
            _in_flight.popleft()
    except IndexError:  # another thread was faster
        pass


def pinned_empty(shape, dtype) -> np.ndarray:
    """An uninitialised array in page-locked memory."""
    dtype = np.dtype(dtype)
    size = prod(shape)
    memory = backend.cupy().cuda.alloc_pinned_memory(max(size * dtype.itemsize, 1))
    return np.frombuffer(memory, dtype, size).reshape(shape)


def pinned_copy(values: np.ndarray) -> np.ndarray:
    """A C-contiguous copy in page-locked memory."""
    copy = pinned_empty(values.shape, values.dtype)
    copy[...] = values
    return copy


def is_pinned(values: np.ndarray) -> bool:
    """Whether an array lies in page-locked memory."""
    return bool(backend.cupy().cuda.pinned_memory.is_memory_pinned(values.ctypes.data))


def from_host(values: np.ndarray, index: int, non_blocking: bool = False):
    """A CuPy array on a device with these values.

    The copy is queued on the current stream of the device and the host goes on. Values in
    page-locked memory are read in place with ``non_blocking``, so that they must not be changed
    before the copy is done; all others may be changed at once.
    """
    cupy = backend.cupy()
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    with backend.at(index):
        if values.flags.f_contiguous and not values.flags.c_contiguous:
            return from_host(values.T, index, non_blocking).T
        try:
            out = cupy.ndarray(values.shape, values.dtype)
        except (TypeError, ValueError) as error:
            raise backend.unsupported(values.dtype, error) from None
        if not values.ndim:
            out.fill(values[()])  # a number is an argument of the kernel that fills
        elif values.size:
            _send(values, out, cupy.cuda.get_current_stream(), non_blocking)
        return out


def _send(values: np.ndarray, out, stream, non_blocking: bool) -> None:
    if stream.ptr and stream.is_capturing():
        raise RuntimeError(
            "values of the CPU cannot be copied to a GPU while a CUDA graph is captured: make the "
            "tensor before, and overwrite it (copy_) before each replay"
        )
    if non_blocking and values.flags.c_contiguous and is_pinned(values):
        source = values
    elif values.nbytes <= STAGED:
        source = pinned_copy(values)
    else:  # returns when the driver has read the values
        source = np.ascontiguousarray(values)
        if is_pinned(source):
            source = source.copy()
    out.data.copy_from_host_async(source.ctypes.data, source.nbytes, stream)
    keep_until_done(source, stream)


def to_host(array, non_blocking: bool = False) -> np.ndarray:
    """The values of a CuPy array in host memory.

    With ``non_blocking`` the copy into page-locked memory is queued on the current stream of the
    array's device; the values are there when that stream has been waited for.
    """
    with backend.on_device_of(array):
        if not non_blocking or not array.size:
            return backend.to_numpy(array)
        cupy = backend.cupy()
        source = cupy.ascontiguousarray(array)
        values = pinned_empty(source.shape, source.dtype)
        stream = cupy.cuda.get_current_stream()
        backend.refuse_capture(stream)
        source.data.copy_to_host_async(values.ctypes.data, values.nbytes, stream)
        keep_until_done((values, source), stream)
        return values


def to_other(array, index: int):
    """A copy of a CuPy array on another device.

    The copy waits for the array's stream, and that stream waits for the copy, so that both devices
    may go on at once.
    """
    cupy = backend.cupy()
    with backend.on_device_of(array):
        source = array if array.flags.c_contiguous else cupy.ascontiguousarray(array)
        from_stream = cupy.cuda.get_current_stream()
        written = cupy.cuda.Event(disable_timing=True)
        written.record(from_stream)
    with backend.at(index):
        out = cupy.ndarray(source.shape, source.dtype)
        stream = cupy.cuda.get_current_stream()
        if source.size:
            stream.wait_event(written)
            out.data.copy_from_device_async(source.data, source.nbytes, stream)
        copied = cupy.cuda.Event(disable_timing=True)
        copied.record(stream)
    with backend.on_device_of(array):
        from_stream.wait_event(copied)
    return out


class _StreamUse:
    """Lives in a block of memory; when the block is freed, the stream it was allocated on (and will
    be used on next) waits for the work that another stream has queued by then."""

    __slots__ = ("allocated_on", "device", "used_on")

    def __init__(self, allocated_on, used_on, device: int):
        self.allocated_on, self.used_on, self.device = allocated_on, used_on, device

    def __del__(self, is_finalizing=sys.is_finalizing):
        if is_finalizing():
            return
        cuda = backend.cupy().cuda
        with backend.at(self.device):
            event = cuda.Event(disable_timing=True)
            event.record(self.used_on)
            self.allocated_on.wait_event(event)


def record_stream(array, stream) -> None:
    """Keep the memory of an array from being used again before a stream is done with it."""
    block = array.data.mem
    with backend.on_device_of(array):
        current = backend.cupy().cuda.get_current_stream()
        use = _StreamUse(current, stream, array.data.device_id)
    try:
        uses = block.__dict__.setdefault("gpugrad_uses", {})
    except AttributeError:  # memory of another library: hold the array itself
        keep_until_done(array, stream)
        return
    uses[stream.ptr] = use
