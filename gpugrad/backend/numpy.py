"""The CPU backend: NumPy arrays, recycled memory, and how an array program is launched over
threads."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import lru_cache
from math import prod

import numpy as np

from ..config import settings
from .device import CPU
from .memory import LARGE, exclusive, pool

xp = np
name = "numpy"
ndarray = np.ndarray
array_types = (np.ndarray,)

__all__ = [
    "array_types",
    "asarray",
    "broadcast_to",
    "device_of",
    "dot",
    "empty",
    "exclusive",
    "get_num_threads",
    "launch",
    "name",
    "on_device",
    "reshape",
    "set_num_threads",
    "spread",
    "sum_leading",
    "synchronize",
    "take_rows",
    "to_numpy",
    "xp",
    "zeros",
]

# Elements of one block: 4096 float32 are 16 KiB, so that two inputs and an output stay in a 48 KiB
# L1 cache.
BLOCK = 8192
# Elements from which two threads beat one: a dispatch to a waiting thread costs 20-40 us here.
PARALLEL = 1 << 18


def device_of(array):
    return CPU


def on_device(d):
    return nullcontext()


def synchronize(d=None) -> None:
    """Wait for outstanding work; CPU operations are complete when they return."""


def asarray(data, dtype=None):
    return np.asarray(data, dtype)


def to_numpy(array):
    return array


def empty(shape, dtype):
    return pool.empty(shape, dtype)


def zeros(shape, dtype):
    """Zeros; large ones in recycled memory, which costs less than fresh pages."""
    out = pool.empty(shape, dtype)
    out.fill(0)
    return out


def reshape(array, shape):
    """A view in another shape where strides allow it, else a copy in recycled memory."""
    if array.nbytes < LARGE or array.flags.c_contiguous:
        return array.reshape(shape)
    try:
        return np.reshape(array, shape, copy=False)
    except ValueError:
        out = pool.empty(array.shape, array.dtype)
        out[...] = array
        return out.reshape(shape)


@lru_cache(256)
def _ones(n: int, dtype):
    return np.ones(n, dtype)


def sum_leading(array, lead: int):
    """The sum over the first axes. As a product with ones it takes a quarter of the time of
    ``add.reduce`` and rounds less."""
    shape = array.shape[lead:]
    columns = prod(shape)
    if array.dtype.kind != "f" or array.itemsize < 4 or not columns or not array.size:
        return np.asarray(np.add.reduce(array, axis=tuple(range(lead))))
    rows = array.reshape(-1, columns)
    return _ones(rows.shape[0], array.dtype).dot(rows).reshape(shape)


def take_rows(array, index):
    """``array[index]``; large results in recycled memory, rows copied whole: 3 times faster."""
    shape = index.shape + array.shape[1:]
    large = prod(shape) * array.itemsize >= LARGE and index.size and array.shape[0]
    if not large or int(index.min()) < 0 or int(index.max()) >= array.shape[0]:
        return array[index]  # which counts negative positions from the end, or raises
    return np.take(array, index, 0, pool.empty(shape, array.dtype), "clip")


def dot(a, b):
    """The product of two matrices; ``ndarray.dot`` has half the overhead of ``matmul`` (0.6 us)."""
    rows, columns = a.shape[0], b.shape[1]
    if rows * columns < LARGE // 4 or a.dtype is not b.dtype:
        return a.dot(b)
    return a.dot(b, pool.empty((rows, columns), a.dtype))


def broadcast_to(array, shape):
    """A read-only view in a larger shape; a third of the cost of ``numpy.broadcast_to`` (4 us)."""
    old = array.shape
    lead = len(shape) - len(old)
    if lead < 0 or not array.flags.c_contiguous or array.__class__ is not np.ndarray:
        return np.broadcast_to(array, shape)
    strides = [0] * lead
    for n, step, wanted in zip(old, array.strides, shape[lead:], strict=True):
        if n != wanted and n != 1:
            return np.broadcast_to(array, shape)  # which raises
        strides.append(step if n == wanted else 0)
    view = np.ndarray(shape, array.dtype, array, 0, strides)
    view.flags.writeable = False
    return view


def spread(array, shape):
    """``broadcast_to`` for values that are only read: a copy while that is cheaper than a view."""
    out = np.empty(shape, array.dtype)
    if out.nbytes >= LARGE:
        return broadcast_to(array, shape)
    out[...] = array
    return out


def default_threads() -> int:
    """Threads from OMP_NUM_THREADS, else the cores this process may use."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """Number of threads large elementwise work is spread over."""
    if settings.num_threads is None:
        settings.num_threads = default_threads()
    return settings.num_threads


def set_num_threads(n: int) -> None:
    """Set the number of threads for large elementwise work (BLAS reads its own environment
    variables)."""
    if not isinstance(n, int) or n < 1:
        raise RuntimeError(f"set_num_threads expects a positive integer, got {n!r}")
    settings.num_threads = n


# (process, threads, executor): a fork makes its own
_workers: list[tuple] = []


def _executor(threads: int):
    key = (os.getpid(), threads)
    if not _workers or _workers[0][:2] != key:
        from concurrent.futures import ThreadPoolExecutor  # 8 ms, for large arrays only

        _workers[:] = [(*key, ThreadPoolExecutor(threads, thread_name_prefix="gpugrad"))]
    return _workers[0][2]


def is_parallel(size: int) -> bool:
    """Whether ``run_blocks`` uses several threads."""
    return size >= PARALLEL and get_num_threads() > 1


def run_blocks(run_range, size: int) -> None:
    """Call ``run_range(start, stop)`` over ``range(size)``, on several threads when it is large."""
    if not is_parallel(size):
        run_range(0, size)
        return
    threads = get_num_threads()
    per_thread = -(-size // (threads * BLOCK)) * BLOCK
    starts = range(per_thread, size, per_thread)
    executor = _executor(threads)
    futures = [executor.submit(run_range, s, min(s + per_thread, size)) for s in starts]
    run_range(0, min(per_thread, size))
    for future in futures:
        future.result()


def run_parts(run_part, size: int, least: int) -> None:
    """Call ``run_part(k, parts)`` for every ``k < parts``: one part per thread from ``least``
    elements on."""
    parts = get_num_threads() if size >= least else 1
    if parts == 1:
        run_part(0, 1)
        return
    executor = _executor(parts)
    futures = [executor.submit(run_part, k, parts) for k in range(1, parts)]
    run_part(0, parts)
    for future in futures:
        future.result()


def blockable(arrays) -> bool:
    """Whether one flat loop can serve all these arrays: same shape and all C-contiguous."""
    first = arrays[0]
    shape = first.shape
    return all(a.flags.c_contiguous and a.shape == shape for a in arrays)


def launch(block, arguments, outputs, scratch_dtypes) -> None:
    """Run ``block(arguments..., outputs..., scratch...)`` over same-shaped contiguous arrays in
    cache-sized pieces.

    Arguments that are not arrays with dimensions (Python numbers, None, zero-dimensional arrays)
    are passed whole. ``outputs`` may be among the arguments (an update in place). Temporaries live
    in a scratch of one block, so that a chain of ten operations reads and writes main memory once.
    """
    flat = [a.reshape(-1) if a.__class__ is ndarray and a.ndim else a for a in arguments]
    sliced = [a.__class__ is ndarray and a.ndim == 1 for a in flat]
    flat_out = [a.reshape(-1) for a in outputs]
    # settings of floating-point errors belong to a thread: hand the caller's on
    errors = np.geterr()

    def run_range(start, stop):
        scratch = [np.empty(min(BLOCK, stop - start), d) for d in scratch_dtypes]
        with np.errstate(**errors):
            for s in range(start, stop, BLOCK):
                e = min(s + BLOCK, stop)
                parts = [a[s:e] if cut else a for a, cut in zip(flat, sliced, strict=True)]
                block(*parts, *[o[s:e] for o in flat_out], *[t[: e - s] for t in scratch])

    run_blocks(run_range, flat_out[0].size)
