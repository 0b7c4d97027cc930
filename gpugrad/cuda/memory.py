"""How much CUDA memory is held, by whom, and limits.

*Allocated* is what arrays hold, *reserved* what was taken from the driver: freed memory is kept for
the next array until ``empty_cache``. Every function takes the device as a number, a name, a device
or None for the current one, and says 0 where there is no CUDA.
"""

from __future__ import annotations

from typing import Any

from ..backend import cupy as backend
from .devices import index_of

_LINES = 10  # lines of code that memory_summary names


def _ask(device: Any, question) -> Any:
    """``question(cuda_memory, index)`` with the device as the current one; 0 without CUDA."""
    if not backend.is_available():
        return 0
    from ..backend import cuda_memory

    index = index_of(device)
    with backend.at(index):
        return question(cuda_memory, index)


def memory_allocated(device: Any = None) -> int:
    """Bytes that arrays hold, in blocks of 512 bytes."""
    return _ask(device, lambda memory, index: memory.allocated())


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that arrays held at once, since the start or ``reset_peak_memory_stats``."""
    return _ask(device, lambda memory, index: memory.statistics(index).peak)


def memory_reserved(device: Any = None) -> int:
    """Bytes taken from the driver."""
    return _ask(device, lambda memory, index: memory.reserved())


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes taken from the driver at once."""
    return memory_stats(device).get("reserved_bytes.all.peak", 0)


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let the two maxima start anew at what is held now."""
    _ask(device, lambda memory, index: memory.reset_peaks(index))


def memory_stats(device: Any = None) -> dict[str, int]:
    """The figures as a dict, with torch's names; empty without CUDA."""

    def collect(memory, index):
        counted = memory.statistics(index)
        memory.sample_reserved(counted)
        return {
            "allocated_bytes.all.current": memory.allocated(),
            "allocated_bytes.all.peak": counted.peak,
            "reserved_bytes.all.current": memory.reserved(),
            "reserved_bytes.all.peak": counted.peak_reserved,
            "num_alloc_retries": counted.retries,
            "num_ooms": counted.failures,
        }

    return _ask(device, collect) or {}


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of a device, as its driver sees them. Raises DeviceError without
    CUDA."""
    with backend.at(index_of(device)):
        free, total = backend.cupy().cuda.runtime.memGetInfo()
        return free, total


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """A table of the figures, and which lines of the program hold large arrays (1 MiB and more).

    ``abbreviated`` leaves out the lines.
    """
    if not backend.is_available():
        return "no CUDA device"
    from ..backend.cuda_memory import holders, text_of_bytes, text_of_holders

    index = index_of(device)
    figures = memory_stats(index)
    free, total = mem_get_info(index)
    rows = [
        ("", "now", "most"),
        *[
            (title, *[text_of_bytes(figures[f"{key}_bytes.all.{when}"]) for when in _WHEN])
            for title, key in (("held by arrays", "allocated"), ("reserved", "reserved"))
        ],
        ("free on the device", text_of_bytes(free), ""),
        ("total on the device", text_of_bytes(total), ""),
        ("tries repeated", str(figures["num_alloc_retries"]), ""),
        ("out-of-memory errors", str(figures["num_ooms"]), ""),
    ]
    lines = [f"{a:<22}{b:>14}{c:>14}".rstrip() for a, b, c in rows]
    lines.insert(0, f"CUDA memory of cuda:{index}")
    lines.insert(2, "-" * 50)
    found = [] if abbreviated else holders(index)
    if found:
        lines.append("Large arrays, by the line that made them:")
        lines += text_of_holders(found[:_LINES])
    return "\n".join(lines)


_WHEN = ("current", "peak")


def empty_cache() -> None:
    """Give freed memory that is kept for the next array back to the driver (all devices)."""
    if not backend.is_available():
        return
    from ..backend import cuda_memory

    for index in range(backend.device_count()):
        with backend.at(index):
            cuda_memory.give_back()
    backend.cupy().get_default_pinned_memory_pool().free_all_blocks()


def set_memory_limit(limit: int | None, device: Any = None) -> None:
    """Take at most so many bytes of a device; None removes the limit.

    Beyond it an OutOfMemoryError says who holds what. Memory of CUDA graphs is limited for itself.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"a memory limit must not be negative, got {limit}")
    size = 0 if limit is None else max(limit, 1)  # 0 is no limit to CuPy
    with backend.at(index_of(device)):
        backend.cupy().get_default_memory_pool().set_limit(size=size)


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Take at most a fraction of a device's memory; see ``set_memory_limit``."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
        raise TypeError("Invalid type for fraction argument, must be `float`")
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    set_memory_limit(int(fraction * mem_get_info(device)[1]), device)
