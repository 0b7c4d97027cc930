"""Random numbers from a counter: Philox4x32-10, the same bits on every device.

A generator is a key (the seed) and a position. Number ``i`` of the stream depends on these alone,
so a state is two integers, resuming is exact, and a GPU can compute any part of the stream by
itself. The bits are made in ``ops/random.py`` and, on a GPU, in ``kernels/philox.cuh``.
"""

from __future__ import annotations

import os
import threading
from math import prod

from .backend import cupy as cuda_backend
from .backend.arrays import backend_for, new_array
from .backend.device import as_device, device
from .backend.numpy import xp as np
from .codegen import cuda_module, cuda_random
from .codegen.cuda_random import Draw
from .config import modes
from .dtypes import finfo, float64, int64, settings
from .ops.random import philox, unit
from .tensor import Tensor, wrap

# Blocks of four numbers computed ahead, so that small requests do not pay 100 array calls each:
# doubled from the first to the second bound as a generator is used.
_MASK = 0xFFFFFFFF
_AHEAD_FIRST, _AHEAD_LAST = 64, 4096


def state_at(seed: int, position: int) -> Tensor:
    """The state of a generator at a position of the stream of a seed."""
    return wrap(np.array([seed & _MASK, seed >> 32, position], np.int64))


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
        self._graph: GraphDraws | None = None  # the CUDA graph that is being captured
        self.manual_seed(67280421310721)  # torch's default seed

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of a seed (any Python integer; its low 64 bits count)."""
        self._start_at(seed, 0)
        if modes.special and modes.local.recording is not None:
            modes.local.recording.seeded(self, int(seed))
        return self

    def _start_at(self, seed: int, position: int) -> None:
        with self._lock:
            self._seed = int(seed) & 0xFFFFFFFFFFFFFFFF
            self._position = position
            self._buffer = np.empty(0, np.uint32)
            self._start = 0
            self._ahead = _AHEAD_FIRST

    def seed(self) -> int:
        """Seed from the operating system; returns the seed."""
        seed = int.from_bytes(os.urandom(8), "little")
        self.manual_seed(seed)
        return seed

    def initial_seed(self) -> int:
        return self._seed

    def get_state(self) -> Tensor:
        """Seed and position as an int64 tensor."""
        state = state_at(self._seed, self._position)
        if modes.special and modes.local.recording is not None:
            modes.local.recording.state_read(self, state)
        return state

    def set_state(self, state: Tensor) -> Generator:
        """Continue at a state ``get_state`` returned."""
        values = getattr(state, "array", state)
        if values.shape != (3,) or values.dtype != int64:
            raise TypeError(
                "RNG state must be the int64 tensor of 3 values that get_state() returned"
            )
        low, high, position = (int(v) for v in values)
        self._start_at(low | high << 32, position)
        if modes.special and modes.local.recording is not None:
            modes.local.recording.state_set(self, state)
        return self

    def bits(self, n: int):
        """The next ``n`` 32-bit numbers."""
        self._refuse_recorder()
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

    def reserve(self, n: int) -> Draw:
        """The place of the next ``n`` 32-bit numbers, for an operation that draws them itself."""
        self._refuse_recorder()
        with self._lock:
            position = self._position
            self._position += n
            graph = self._graph
            if graph is not None:
                return Draw(self._seed, position - graph.start, graph.base)
            return Draw(self._seed, position)

    @staticmethod
    def _refuse_recorder() -> None:
        """A compiled program draws through the functions of this module."""
        if modes.special and modes.local.recording is not None:
            modes.local.recording.drawn()

    # ---- distributions, as arrays of the CPU

    def uniform(self, shape, dtype):
        """Uniform in [0, 1): 24 random bits for float32 and narrower, 53 for float64."""
        n = int(np.prod(shape, dtype=np.int64))
        if dtype == float64:
            bits = self.bits(2 * n).astype(np.uint64)
            wide = (bits[0::2] << np.uint64(32)) | bits[1::2]
            return ((wide >> np.uint64(11)) * 2.0**-53).reshape(shape)
        values = unit(self.bits(n))
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


def _drawn(function):
    """Let a compiled program draw anew at every replay."""

    def draw(generator: Generator | None, *args) -> Tensor:
        generator = generator or default_generator
        if not modes.special or modes.local.recording is None:
            return function(generator, *args)
        key = (function.__name__, *map(str, args))
        return modes.local.recording.draw(generator, key, lambda: function(generator, *args))

    return draw


@_drawn
def permutation(generator: Generator, n: int, dtype, d) -> Tensor:
    """A random order of 0 .. n-1."""
    return on_device(generator.permutation(n).astype(dtype), d)


class GraphDraws:
    """What a CUDA graph draws from a generator: fresh numbers at every replay.

    A kernel's arguments are fixed when a graph is captured, so the seed and the position lie in
    device memory and ``next`` writes them before a replay. Make it before the capture begins: it
    allocates, unless it is given ``base``, an array of two int64 on the device.
    """

    def __init__(self, generator: Generator | None = None, base=None):
        self.generator = generator or default_generator
        self.base = cuda_backend.cupy().zeros(2, int64) if base is None else base
        self.start = self.count = 0

    def begin(self) -> None:
        """The capture begins: places are counted from here."""
        self.start = self.generator._position
        self.generator._graph = self

    def end(self) -> None:
        """The capture is over. It has drawn nothing."""
        if self.generator._graph is self:
            self.generator._graph = None
            self.count = self.generator._position - self.start
            self.generator._position = self.start

    def next(self) -> None:
        """Before a replay: take the next numbers."""
        if self.count:
            seed, position = self.take()
            self.base[0].fill(seed - (seed >> 63 << 64))  # the same bits as int64
            self.base[1].fill(position)

    def take(self) -> tuple[int, int]:
        """Seed and position of the numbers of the next replay."""
        draw = self.generator.reserve(self.count)
        return draw.seed, draw.position


# ------------------------------------------------------------------------------------------------
# distributions on a device


def on_device(array, d) -> Tensor:
    """A tensor over random CPU values on the device asked for."""
    d = as_device(d)
    return wrap(array if d.type == "cpu" else backend_for(d).asarray(new_array(array, None, d)))


def uniform(generator: Generator | None, shape, dtype, d) -> Tensor:
    """Uniform in [0, 1), drawn on the device."""
    return _floats(generator, "uniform", shape, dtype, d)


def normal(generator: Generator | None, shape, dtype, d) -> Tensor:
    """Standard normal, drawn on the device."""
    return _floats(generator, "normal", shape, dtype, d)


@_drawn
def _floats(generator: Generator, name: str, shape, dtype, d) -> Tensor:
    d = as_device(d)
    if d.type == "cpu" or not cuda_module.enabled():
        return on_device(getattr(generator, name)(shape, dtype), d)
    draw = generator.reserve(cuda_random.words_of(shape, dtype, paired=name == "normal"))
    with cuda_backend.on_device(d):
        return wrap(getattr(cuda_random, name)(draw, shape, dtype))


@_drawn
def integers(generator: Generator, low: int, high: int, shape, dtype, d) -> Tensor:
    """Uniform integers in [low, high), drawn on the device."""
    d = as_device(d)
    known = d.type != "cpu" and cuda_module.enabled() and cuda_random.has_integers(dtype)
    if not known or high <= low:
        return on_device(generator.integers(low, high, shape, dtype), d)
    draw = generator.reserve(2 * prod(shape))
    with cuda_backend.on_device(d):
        return wrap(cuda_random.integers(draw, low, high, shape, dtype))
