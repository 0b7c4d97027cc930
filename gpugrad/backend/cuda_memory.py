"""CUDA memory: how much is held, by which lines of the program, limits, and errors that say so.

CuPy's pool does the work: it keeps freed blocks, by stream, and hands them out again. Here its
``malloc`` is wrapped to note the highest use and, for large blocks, the user's line that asked for
them. Nothing is done when memory is freed: the use is read off the pool, and the note of a block
dies with it, because the block holds the only reference to it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from types import CodeType
from typing import NamedTuple

from ..errors import _PACKAGE, OutOfMemoryError

# Bytes from which the line that asked for a block is remembered. Work on so many bytes takes the
# GPU longer than the 1 us it costs the host.
NOTED = 1 << 20
_LARGEST_HOLDERS = 8  # lines that an out-of-memory error names


class _Note:
    """Which line asked for a block. Lives in the ``__dict__`` of the block and dies with it."""

    __slots__ = ("__weakref__", "code", "device", "instruction", "nbytes", "pointer")


_notes: dict[int, weakref.ref] = {}  # by address; the next block at an address takes the place
# Folders and names of generated code whose lines are not the user's.
_skipped: tuple[str, ...] = (_PACKAGE, "<gpugrad ")


class Statistics:
    """What is counted for one device beyond what its pools know."""

    __slots__ = ("failures", "peak", "peak_reserved", "retries")

    def __init__(self):
        self.peak = self.peak_reserved = self.retries = self.failures = 0


_statistics: dict[int, Statistics] = {}
# Beside CuPy's default pool: those of graphs, which nothing else may use.
_private: list[weakref.ref] = []
_default = None  # CuPy's default pool, once its allocations are noted
_lock = threading.Lock()


def statistics(device: int) -> Statistics:
    found = _statistics.get(device)
    if found is None:
        with _lock:
            found = _statistics.setdefault(device, Statistics())
    return found


# ------------------------------------------------------------------------------------------------
# allocation


def install(cupy) -> None:
    """Note the allocations of CuPy's default pool; an allocator that the user has set is left
    alone."""
    global _default, _skipped
    cuda = cupy.cuda
    if not hasattr(cuda, "set_allocator"):  # a stand-in for CuPy
        return
    pool = cupy.get_default_memory_pool()
    _skipped += (os.path.dirname(cupy.__file__) + os.sep,)
    _default = pool
    if cuda.get_allocator() == pool.malloc:
        cuda.set_allocator(allocator(pool))


def allocator(pool):
    """``malloc`` of a pool with notes (0.3 us, and 2 us more for large blocks)."""
    malloc, used_bytes = pool.malloc, pool.used_bytes

    def allocate(nbytes):
        try:
            pointer = malloc(nbytes)
        except MemoryError:
            pointer = _try_again(pool, nbytes)
        used = allocated() if _private else used_bytes()
        counted = _statistics.get(pointer.device_id) or statistics(pointer.device_id)
        if used > counted.peak:
            counted.peak = used
        if nbytes >= NOTED:
            sample_reserved(counted)
            _note(pointer, nbytes)
        return pointer

    return allocate


class PrivatePool:
    """A pool that shares its blocks with nobody, counted with the others for as long as it lives.

    ``malloc`` is the allocator to use it by, ``kept`` what must live as long as its blocks: the
    streams they were allocated on, because a pool tells streams apart by their addresses.
    """

    __slots__ = ("__weakref__", "kept", "malloc", "pool")

    def __init__(self):
        import cupy

        self.pool = cupy.cuda.MemoryPool()
        limit = _default.get_limit() if _default is not None else 0
        if limit:
            self.pool.set_limit(limit)
        self.malloc = allocator(self.pool)
        self.kept: list = []
        with _lock:
            _private[:] = [r for r in _private if r() is not None] + [weakref.ref(self)]


def pools() -> list:
    """The pools alive whose blocks are counted."""
    private = [p.pool for p in [r() for r in _private] if p is not None]
    return private if _default is None else [_default, *private]


def _try_again(pool, nbytes: int):
    """A second try with all that other pools and garbage hold given back; CuPy's pool has given
    back its own already."""
    import cupy

    counted = statistics(cupy.cuda.runtime.getDevice())
    if not is_capturing():  # a pool may not be emptied while a graph is recorded
        counted.retries += 1
        gc.collect()
        give_back()
        try:
            return pool.malloc(nbytes)
        except MemoryError:
            pass
    counted.failures += 1
    raise _error_class()(_explanation(pool, nbytes)) from None


def is_capturing() -> bool:
    """Whether the current stream records a graph."""
    import cupy

    stream = cupy.cuda.get_current_stream()
    return bool(stream.ptr) and stream.is_capturing()


def _note(pointer, nbytes: int) -> None:
    memory = pointer.mem
    note = _Note()
    try:
        memory.gpugrad_note = note
    except AttributeError:  # a block of an allocator of the user's
        return
    frame = _user_frame()
    note.code, note.instruction = frame.f_code, frame.f_lasti
    note.nbytes, note.device, note.pointer = nbytes, pointer.device_id, pointer.ptr
    _notes[pointer.ptr] = weakref.ref(note)


def _user_frame():
    """The innermost frame that is neither gpugrad's nor CuPy's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_skipped):
        frame = frame.f_back
    return frame


# ------------------------------------------------------------------------------------------------
# questions, each about the current device


def allocated() -> int:
    """Bytes that arrays hold."""
    return sum(pool.used_bytes() for pool in pools())


def reserved() -> int:
    """Bytes taken from the driver: those that arrays hold, and freed blocks kept for the next."""
    return sum(pool.total_bytes() for pool in pools())


def sample_reserved(counted: Statistics) -> None:
    """Note what is reserved. It never shrinks but where memory is given back, before which it is
    noted, too: the small blocks need not be asked."""
    total = reserved()
    if total > counted.peak_reserved:
        counted.peak_reserved = total


def give_back() -> None:
    """Return the blocks that are free to the driver."""
    import cupy

    sample_reserved(statistics(cupy.cuda.runtime.getDevice()))
    cupy.get_default_memory_pool().free_all_blocks()


def reset_peaks(device: int) -> None:
    """Let the peaks start anew at what is held now. The device must be the current one."""
    counted = statistics(device)
    counted.peak, counted.peak_reserved = allocated(), reserved()


class Holder(NamedTuple):
    """The large blocks alive that one line asked for."""

    file: str
    line: int
    nbytes: int
    count: int
    largest: str  # what is known of the largest: dtype, shape and size


def holders(device: int) -> list[Holder]:
    """Who holds large blocks, by line, the largest sum first. Walks over all objects: slow."""
    found = [n for n in (r() for r in list(_notes.values())) if n is not None]
    by_line: dict[tuple[str, int], list[_Note]] = {}
    for note in found:
        if note.device == device:
            by_line.setdefault(_line(note.code, note.instruction), []).append(note)
    described = _descriptions({note.pointer for note in found})
    result = []
    for (file, line), notes in by_line.items():
        largest = max(notes, key=lambda n: n.nbytes)
        text = described.get(largest.pointer, "")
        result.append(Holder(file, line, sum(n.nbytes for n in notes), len(notes), text))
    return sorted(result, key=lambda h: -h.nbytes)


def _line(code: CodeType, instruction: int) -> tuple[str, int]:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return code.co_filename, line
    return code.co_filename, code.co_firstlineno


def _descriptions(pointers: set[int]) -> dict[int, str]:
    """dtype and shape of the largest array over each block, as far as Python knows them."""
    from cupy import ndarray

    sizes: dict[int, int] = {}
    texts: dict[int, str] = {}
    for thing in gc.get_objects():
        if type(thing) is ndarray and thing.data is not None:  # None: being made
            start = thing.data.mem.ptr
            if start in pointers and thing.nbytes >= sizes.get(start, 0):
                sizes[start] = thing.nbytes
                texts[start] = f"{thing.dtype} {tuple(thing.shape)}"
    return texts


def text_of_bytes(n: int) -> str:
    """``1.50 GiB`` and the like."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n} bytes"


def text_of_holders(found: list[Holder]) -> list[str]:
    """One line per holder."""
    return [
        f"  {text_of_bytes(h.nbytes)} in {h.count} array{'s' * (h.count > 1)} made at "
        f"{h.file}:{h.line}" + (f" (largest: {h.largest})" if h.largest else "")
        for h in found
    ]


def _explanation(pool, nbytes: int) -> str:
    import cupy

    device = cupy.cuda.runtime.getDevice()
    free, total = cupy.cuda.runtime.memGetInfo()
    limit = pool.get_limit() if hasattr(pool, "get_limit") else 0
    size = text_of_bytes
    held, taken = allocated(), reserved()
    text = [
        f"CUDA out of memory. Tried to allocate {size(nbytes)} ({nbytes} bytes). GPU {device} has "
        f"a total capacity of {size(total)} of which {size(free)} is free"
        + (f"; this process is limited to {size(limit)}" if limit else "")
        + f". {size(held)} is allocated by arrays, and {size(taken - held)} is reserved but unused."
    ]
    found = holders(device)
    if found:
        text.append("The largest holders, by the line that made them:")
        text += text_of_holders(found[:_LARGEST_HOLDERS])
        rest = held - sum(h.nbytes for h in found[:_LARGEST_HOLDERS])
        text.append(f"  {size(max(rest, 0))} in all others")
    text.append(
        "Make batches smaller, run evaluation under no_grad(), drop references to what is no longer"
        " needed"
        + (", or raise the limit (gpugrad.cuda.set_per_process_memory_fraction)." if limit else ".")
    )
    return "\n".join(text)


_errors: list[type] = []


def _error_class() -> type:
    """gpugrad's OutOfMemoryError that is CuPy's, too: programs that catch either go on working."""
    if not _errors:
        from cupy.cuda.memory import OutOfMemoryError as CuPys

        def new(cls, text):
            return RuntimeError.__new__(cls, text)

        def init(self, text):  # CuPy's takes sizes
            RuntimeError.__init__(self, text)

        def reduce(self):
            return OutOfMemoryError, self.args

        members = {"__new__": new, "__init__": init, "__reduce__": reduce}
        members.update(__module__="gpugrad", __doc__=OutOfMemoryError.__doc__)
        _errors.append(type("OutOfMemoryError", (OutOfMemoryError, CuPys), members))
    return _errors[0]
