"""Recycled buffers for large CPU arrays.

A fresh allocation of some megabytes costs more than the arithmetic that fills it, because the
operating system hands out pages one fault at a time (measured: ``a + b`` on 10 M float32 takes 5.4
ms into fresh memory and 3.2 ms into used memory). The pool keeps a reference to every buffer it
ever handed out and hands it out again once nobody else refers to it; the reference count that
Python keeps anyway is the whole bookkeeping.
"""

from __future__ import annotations

import sys
import threading
from math import prod

import numpy as np

# bytes; below this malloc recycles memory by itself and costs less than a look into the pool
LARGE = 1 << 16
_KEEP_IDLE = 256 << 20  # idle bytes the pool may keep when it has to grow

_getrefcount = sys.getrefcount
# Without the GIL reference counts are split between threads and say nothing about sharing.
_exact_refcounts = "free-threading build" not in sys.version


def _size_class(nbytes: int) -> int:
    """Round up to an eighth of a power of two: at most 12 % waste, few classes."""
    step = 1 << max(nbytes.bit_length() - 4, 12)
    return (nbytes + step - 1) // step * step


class Pool:
    """Buffers by size class; ``empty`` returns an array over one that nobody uses, making it if
    need be."""

    def __init__(self):
        self._buffers: dict[int, list[np.ndarray]] = {}
        self._ids: set[int] = set()
        self._lock = threading.Lock()
        probe = [np.empty(1, np.uint8)]
        self._unused = _getrefcount(probe[0])  # the count of a buffer that only its list refers to

    def empty(self, shape, dtype) -> np.ndarray:
        """An uninitialised C-contiguous array; a large one reuses memory."""
        nbytes = prod(shape) * dtype.itemsize
        if nbytes < LARGE or not _exact_refcounts:
            return np.empty(shape, dtype)
        size = _size_class(nbytes)
        with self._lock:
            bucket = self._buffers.setdefault(size, [])
            for index in range(len(bucket)):
                if _getrefcount(bucket[index]) == self._unused:
                    return np.ndarray(shape, dtype, bucket[index])
            self._trim(_KEEP_IDLE)
            bucket = self._buffers.setdefault(size, [])
            bucket.append(np.empty(size, np.uint8))
            self._ids.add(id(bucket[-1]))
            return np.ndarray(shape, dtype, bucket[-1])

    def owns(self, buffer) -> bool:
        return id(buffer) in self._ids

    def _idle(self) -> int:
        return sum(
            size
            for size, bucket in self._buffers.items()
            for index in range(len(bucket))
            if _getrefcount(bucket[index]) == self._unused
        )

    def _trim(self, keep: int) -> int:
        """Drop all idle buffers if they hold more than ``keep`` bytes; returns the bytes
        dropped."""
        idle = self._idle()
        if idle <= keep:
            return 0
        for size, bucket in list(self._buffers.items()):
            kept = [
                bucket[index]
                for index in range(len(bucket))
                if _getrefcount(bucket[index]) != self._unused
            ]
            self._buffers[size] = kept
        self._ids = {id(buffer) for bucket in self._buffers.values() for buffer in bucket}
        return idle

    def release(self) -> int:
        """Give idle buffers back to the operating system; returns the bytes freed."""
        with self._lock:
            return self._trim(0)

    def stats(self) -> dict[str, int]:
        """Bytes held and bytes idle."""
        with self._lock:
            held = sum(size * len(bucket) for size, bucket in self._buffers.items())
            return {"held": held, "idle": self._idle()}


pool = Pool()


counts_references = _exact_refcounts


def references(items, k: int) -> int:
    """How many references there are to ``items[k]``: a number to compare with another of these."""
    return _getrefcount(items[k])


def _own_count(array) -> int:
    return _getrefcount(array)


def _base_count(array) -> int:
    return _getrefcount(array.base)


def _counts_of_sole_references() -> tuple[int, int]:
    """What ``exclusive`` counts for an array that one local variable of its caller refers to.

    Measured once through calls of the same depth, because the number differs between Python
    versions.
    """

    def counts(array):
        return _own_count(array), _base_count(array)

    view = np.empty(2)[:1]
    return counts(view)


_OWN, _BASE = _counts_of_sole_references()


def exclusive(array) -> bool:
    """Whether the caller's one variable is the only way to reach this memory, so that it may be
    overwritten.

    A false "no" costs a copy. There is no false "yes": every reference from Python is counted, and
    memory that does not belong to an ndarray (a buffer of another library) is never exclusive.
    """
    if not _exact_refcounts or _own_count(array) > _OWN:
        return False
    if array.__class__ is not np.ndarray:
        from . import cupy

        return cupy.owns_alone(array)
    flags = array.flags
    if not flags.writeable:
        return False
    if array.base is None:
        return flags.owndata
    if array.base.__class__ is not np.ndarray or array.base.base is not None:
        return False
    limit = _BASE + 1 if pool.owns(array.base) else _BASE
    return array.base.flags.owndata and _base_count(array) <= limit
