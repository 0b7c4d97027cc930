"""Errors that kernels find: an index out of range, a label that is no class.

A kernel cannot raise. It writes the first error into a record of its device (``report_error`` in
kernels/errors.cuh), uses a harmless value instead, and the program goes on; ``check`` raises it as
a Python exception wherever the host waits for the device anyway. The record is pinned host memory
that the device sees at the same address, so that a check reads one number of the host's memory and
nothing is copied. After the exception the record is empty again and work goes on.

A launch names its *site*: the operation, as a message to be filled in, and the user's line.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from types import CodeType
from typing import NamedTuple

import numpy as np

from ..errors import at, user_frame

# As struct ErrorRecord: the site (0: no error), the offending value, the number it must stay below.
_RECORD = np.dtype([("site", "i4"), ("unused", "i4"), ("value", "i8"), ("bound", "i8")])
# Sites that are told apart; a program has as many as lines that launch such kernels.
_SITES = 1 << 16


class Site(NamedTuple):
    """Where kernels were launched from, and what their errors are."""

    message: str  # with {value} and {bound}
    error: type[Exception]
    code: CodeType
    instruction: int

    def line(self) -> tuple[str, int]:
        """File and line of the launch."""
        for start, end, line in self.code.co_lines():
            if start <= self.instruction < end and line is not None:
                return self.code.co_filename, line
        return self.code.co_filename, self.code.co_firstlineno


_lock = threading.Lock()
_sites: list[Site] = []
_numbers: dict[Site, int] = {}


def site(message: str, error: type[Exception] = IndexError) -> int:
    """The number of a site: a message with ``{value}`` and ``{bound}``, and the calling line of the
    user. 1 to 2 us; the text is made when it is raised."""
    frame = user_frame()
    key = Site(message, error, frame.f_code, frame.f_lasti)
    return _numbers.get(key) or _register(key)


def _register(key: Site) -> int:
    with _lock:
        if key not in _numbers:
            if len(_sites) == _SITES:  # code made again and again: the lines of old sites are lost
                _sites.clear()
                _numbers.clear()
            _sites.append(key)
            _numbers[key] = len(_sites)
        return _numbers[key]


class _Record:
    """The record of a device: as an argument of kernels, and as the host sees it."""

    def __init__(self, device: int):
        from cupy.cuda import memory, runtime

        # with unified addressing the device's address is the host's
        address = runtime.hostAlloc(_RECORD.itemsize, 1 | 2)  # portable, mapped; never freed
        buffer = (ctypes.c_char * _RECORD.itemsize).from_address(address)
        self.device = device
        self.fields = np.frombuffer(buffer, _RECORD)
        self.fields[0] = np.zeros((), _RECORD)
        self.site = memoryview(buffer).cast("B").cast("i")  # the fastest way to read a number
        owned = memory.UnownedMemory(address, _RECORD.itemsize, buffer, device)
        self.argument = _array(memory.MemoryPointer(owned, 0))


def _array(pointer):
    import cupy

    return cupy.ndarray((_RECORD.itemsize // 8,), np.int64, pointer)


_records: dict[int, _Record] = {}


def record():
    """The argument of kernels that report errors: the record of the current device, as a CuPy
    array."""
    device = sys.modules["cupy"].cuda.runtime.getDevice()
    found = _records.get(device)
    if found is None:
        with _lock:
            found = _records.get(device)
            if found is None:
                found = _records[device] = _Record(device)
    return found.argument


def check(device: int | None = None) -> None:
    """Raise the error that kernels of a device (None: of any) have reported, if there is one.

    To be called after the host has waited for the device. 0.1 us.
    """
    for found in _records.values() if device is None else (_records.get(device),):
        if found is not None and found.site[0]:
            _raise(found)


def pending(device: int | None = None) -> bool:
    """Whether a check would raise."""
    return any(r.site[0] and device in (None, r.device) for r in _records.values())


def clear(device: int | None = None) -> None:
    """Forget reported errors."""
    for found in _records.values():
        if device in (None, found.device):
            found.site[0] = 0


def _raise(found: _Record) -> None:
    with _lock:
        if not found.site[0]:
            return  # another thread has raised it
        _wait(found.device)  # the kernel may be between writing the site and the rest
        number, _, value, bound = found.fields[0].item()
        found.site[0] = 0
    where = _sites[number - 1] if number <= len(_sites) else None
    if where is None:
        raise IndexError(f"{value} is out of range: it must be below {bound}")
    text = where.message.format(value=value, bound=bound)
    raise where.error(f"{text} (found by cuda:{found.device} in the call{at(where.line())})")


def _wait(device: int) -> None:
    from cupy.cuda import Device

    with Device(device) as current:
        current.synchronize()
