"""Numbers that change, in the device's memory: for kernels whose arguments are fixed.

Kernels of a captured graph have the arguments they were captured with. A learning rate or a place
in a stream of random numbers is therefore read from memory, and one launch writes all of them
before a replay. They are arguments of that launch, so that nothing is copied from the host.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from ..backend import cupy as backend
from . import cuda_module
from .cuda import Number

# Words of one launch: the smallest that holds them is used. 4096 bytes of arguments hold 510.
_CAPACITIES = (8, 64, 480)
_THREADS = 128


@cache
def _kernel(capacity: int) -> cuda_module.Launcher:
    return cuda_module.load_file("words.cu", "write_words", (f"CAPACITY={capacity}",))


class Words:
    """Words of 8 bytes on the current device: float64 numbers and 64-bit integers.

    ``write()`` sends those in ``floats`` and ``integers``, which are one memory of the host, to the
    device: one launch for up to 480 of them.
    """

    def __init__(self, count: int):
        self._device = backend.cupy().zeros(max(count, 1), np.float64)
        self.floats = np.zeros(count, np.float64)
        self.integers = self.floats.view(np.uint64)
        self._parts = [
            self._part(start, min(_CAPACITIES[-1], count - start))
            for start in range(0, count, _CAPACITIES[-1])
        ]

    def number(self, place: int) -> Number:
        """One of the numbers, as an argument of array programs."""
        return Number(self._device[place : place + 1].reshape(()))

    def on_device(self, place: int, count: int):
        """Some of the words as an int64 array."""
        return self._device[place : place + count].view(np.int64)

    def _part(self, start: int, count: int) -> tuple:
        """A launch: the kernel, and the table of its arguments' addresses."""
        capacity = next(c for c in _CAPACITIES if count <= c)
        words = np.zeros(capacity, np.uint64)
        target, number = array("Q", [self._device.data.ptr + 8 * start]), array("i", [count])
        table = array("Q", [words.ctypes.data, target.buffer_info()[0], number.buffer_info()[0]])
        kernel = _kernel(capacity).on(backend.current_device())
        place = slice(start, start + count)
        return kernel, words[:count], place, table.buffer_info()[0], (words, target, number, table)

    def write(self) -> None:
        """Queue the launch on the current stream."""
        from cupy_backends.cuda.api import driver

        stream = backend.current_stream().ptr
        for kernel, words, place, table, _ in self._parts:
            words[:] = self.integers[place]
            driver.launchKernel(kernel.ptr, 1, 1, 1, _THREADS, 1, 1, 0, stream, table, 0)


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of the kernels."""
    for capacity in _CAPACITIES:
        yield f"{capacity} words", _kernel(capacity).text, "write_words"


def bits(values: Sequence[int]) -> list[int]:
    """Integers of either sign as unsigned ones with the same 64 bits."""
    return [v & 0xFFFFFFFFFFFFFFFF for v in values]
