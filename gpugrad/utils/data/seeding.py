"""Where the randomness of samples comes from: one generator per batch.

The loader draws one seed per epoch and gives batch ``k`` a generator seeded from ``(seed, k)``. A
random transform that draws from :func:`sample_generator` therefore sees the same numbers whether
the batch is made in the consumer, in a prefetch thread, or again after a resume in the middle of
the epoch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gpugrad as gg

__all__ = ["batch_generator", "draw_seed", "sample_generator"]

_local = threading.local()
_MASK64 = (1 << 64) - 1


def sample_generator() -> gg.Generator | None:
    """Return the generator for transforms: the current batch's, or None (global) outside a loader.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.utils.data import sample_generator
        >>> shift = gg.randint(-2, 3, (2,), generator=sample_generator())
        >>> tuple(shift.shape)
        (2,)
    """
    return getattr(_local, "generator", None)


@contextmanager
def batch_generator(epoch_seed: int, batch: int) -> Iterator[None]:
    """Seed this thread's :func:`sample_generator` from ``(epoch_seed, batch)``."""
    before = sample_generator()
    _local.generator = gg.Generator().manual_seed(_mix(epoch_seed, batch))
    try:
        yield
    finally:
        _local.generator = before


def draw_seed(generator: gg.Generator | None) -> int:
    """Draw one seed in [0, 2**63 - 1) from ``generator`` (None: the global one)."""
    return int(gg.randint(0, 2**63 - 1, (), generator=generator).item())


def _mix(epoch_seed: int, batch: int) -> int:
    """Hash a pair to 63 bits by SplitMix64's finaliser (Steele, Lea, Flood 2014)."""
    z = (epoch_seed + (batch + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (z ^ (z >> 31)) >> 1
