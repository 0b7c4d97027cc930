"""Marks for NVIDIA's profilers; nothing happens without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..backend import cupy as backend


def range_push(msg: str) -> None:
    """Begin a range, shown in the profiler under this name."""
    if backend.is_available():
        backend.cupy().cuda.nvtx.RangePush(msg)


def range_pop() -> None:
    """End the range begun last."""
    if backend.is_available():
        backend.cupy().cuda.nvtx.RangePop()


def mark(msg: str) -> None:
    """Mark a moment."""
    if backend.is_available():
        backend.cupy().cuda.nvtx.Mark(msg)


@contextmanager
def range(msg: str) -> Iterator[None]:
    """A range around a ``with`` block (or a function that it decorates)."""
    range_push(msg)
    try:
        yield
    finally:
        range_pop()
