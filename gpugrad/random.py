"""Random numbers from a counter: Philox4x32-10, the same bits on every device.

A generator is a key (the seed) and a position. Number ``i`` of the stream depends on these alone,
so a state is two integers, resuming is exact, and a GPU can compute any part of the stream by
itself.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants of
Random123's philox4x32.
"""

from __future__ import annotations

import os
import threading

from .backend.arrays import backend_for, new_array
from .backend.device import as_device, device
from .backend.numpy import xp as np
from .dtypes import finfo, float64, int64, settings
from .tensor import Tensor, wrap

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
# Blocks of four numbers computed ahead, so that small requests do not pay 100 array calls each:
# doubled from the first to the second bound as a generator is used.
_AHEAD_FIRST, _AHEAD_LAST = 64, 4096


def philox(seed: int, first_block: int, blocks: int):
    """``blocks`` times four 32-bit numbers of the stream of a seed, as a flat uint32 array."""
    counter = np.arange(first_block, first_block + blocks, dtype=np.uint64)
    mask, shift = np.uint64(_MASK), np.uint64(32)
    c0, c1 = counter & mask, counter >> shift
    c2, c3 = np.zeros(blocks, np.uint64), np.zeros(blocks, np.uint64)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    a, b = np.uint64(_MULTIPLIERS[0]), np.uint64(_MULTIPLIERS[1])
    for _ in range(_ROUNDS):
        p0, p1 = c0 * a, c2 * b
        c0, c2 = (p1 >> shift) ^ c1 ^ np.uint64(k0), (p0 >> shift) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & mask, p0 & mask
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32).reshape(-1)


class Generator:
    """A stream of random numbers: ``Generator().manual_seed(0)``.

    >>> import gpugrad as gg
    >>> g = gg.Generator().manual_seed(1)
    >>> a = gg.rand(3, generator=g)
    >>> bool((gg.rand(3, generator=g.manual_seed(1)) == a).all())
    True
    """

    def __init__(self, device: str | device = "cpu"):
        self.device = as_device(device)
        self._lock = threading.Lock()
        self._buffer = np.empty(0, np.uint32)
        self._start = 0  # stream position of the buffer
        self._seed = self._position = 0
        self._ahead = _AHEAD_FIRST
        self.manual_seed(67280421310721)  # torch's default seed

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of a seed (any Python integer; its low 64 bits count)."""
        with self._lock:
            self._seed = int(seed) & 0xFFFFFFFFFFFFFFFF
            self._position = 0
            self._buffer = np.empty(0, np.uint32)
            self._start = 0
            self._ahead = _AHEAD_FIRST
        return self

    def seed(self) -> int:
        """Seed from the operating system; returns the seed."""
        seed = int.from_bytes(os.urandom(8), "little")
        self.manual_seed(seed)
        return seed

    def initial_seed(self) -> int:
        return self._seed

    def get_state(self) -> Tensor:
        """Seed and position as an int64 tensor."""
        values = [self._seed & _MASK, self._seed >> 32, self._position]
        return wrap(np.array(values, np.int64))

    def set_state(self, state: Tensor) -> Generator:
        """Continue at a state ``get_state`` returned."""
        values = getattr(state, "array", state)
        if values.shape != (3,) or values.dtype != int64:
            raise TypeError(
                "RNG state must be the int64 tensor of 3 values that get_state() returned"
            )
        low, high, position = (int(v) for v in values)
        self.manual_seed(low | high << 32)
        self._position = position
        return self

    def bits(self, n: int):
        """The next ``n`` 32-bit numbers."""
        with self._lock:
            first, last = self._position, self._position + n
            self._position = last
            buffer, start = self._buffer, self._start
            if first < start or last > start + buffer.size:
                block = first // 4
                blocks = max(-(-last // 4) - block, self._ahead)
                self._ahead = min(2 * self._ahead, _AHEAD_LAST)
                buffer = self._buffer = philox(self._seed, block, blocks)
                start = self._start = 4 * block
        return buffer[first - start : last - start]

    # ---- distributions, as arrays of the CPU

    def uniform(self, shape, dtype):
        """Uniform in [0, 1): 24 random bits for float32 and narrower, 53 for float64."""
        n = int(np.prod(shape, dtype=np.int64))
        if dtype == float64:
            bits = self.bits(2 * n).astype(np.uint64)
            wide = (bits[0::2] << np.uint64(32)) | bits[1::2]
            return ((wide >> np.uint64(11)) * 2.0**-53).reshape(shape)
        values = (self.bits(n) >> np.uint32(8)) * np.float32(2.0**-24)
        if dtype.itemsize < 4:  # rounding to float16 may give 1.0, which the interval excludes
            values = np.minimum(values, 1 - float(finfo(dtype).epsneg))
        return values.astype(dtype, copy=False).reshape(shape)

    def normal(self, shape, dtype):
        """Standard normal by Box and Muller's transform of pairs of uniform numbers."""
        n = int(np.prod(shape, dtype=np.int64))
        wide = dtype if dtype.itemsize >= 4 else settings.default_dtype
        pairs = (n + 1) // 2
        u = self.uniform((2, pairs), wide)
        radius = np.sqrt(-2.0 * np.log1p(-u[0]))  # 1 - u is in (0, 1]: the logarithm is finite
        angle = u[1] * wide.type(2 * np.pi)
        values = np.empty((2, pairs), wide)
        np.multiply(radius, np.cos(angle), values[0])
        np.multiply(radius, np.sin(angle), values[1])
        return values.reshape(-1)[:n].astype(dtype, copy=False).reshape(shape)

    def integers(self, low: int, high: int, shape, dtype):
        """Uniform integers in [low, high)."""
        if high <= low:
            raise RuntimeError(f"random integers need low < high, got low={low} and high={high}")
        n = int(np.prod(shape, dtype=np.int64))
        bits = self.bits(2 * n).astype(np.uint64)
        wide = (bits[0::2] << np.uint64(32)) | bits[1::2]
        # 64 bits modulo the range: the bias is below 2**-32 for ranges below 2**32
        return ((wide % np.uint64(high - low)).astype(np.int64) + low).astype(dtype).reshape(shape)

    def permutation(self, n: int):
        """A random order of 0 .. n-1: the order that sorts 64 random bits."""
        bits = self.bits(2 * n).astype(np.uint64)
        return np.argsort((bits[0::2] << np.uint64(32)) | bits[1::2], kind="stable")


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the default generator; everything random follows from it.

    >>> import gpugrad as gg
    >>> gg.manual_seed(0) is gg.default_generator
    True
    """
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seed the default generator from the operating system."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default generator."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """State of the default generator."""
    return default_generator.get_state()


def set_rng_state(state: Tensor) -> None:
    """Continue the default generator at a state."""
    default_generator.set_state(state)


def on_device(array, d) -> Tensor:
    """A tensor over random CPU values on the device asked for."""
    d = as_device(d)
    return wrap(array if d.type == "cpu" else backend_for(d).asarray(new_array(array, None, d)))
