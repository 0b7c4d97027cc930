"""Native convolutions: an override of ``ops/convolution.py`` where compiled loops are faster.

Every function answers None where there is no such kernel, or where it would not pay: without LLVM,
for other dtypes or array modules, for little work, and where the reference's matrix products are
faster. Which way a call goes depends on shapes and dtypes only, never on what was called before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from itertools import product

import numpy as np

from ..backend import numpy as backend
from . import convolution_kernels as kernels
from .convolution_kernels import InputTile, Layer, Tile, WeightTile
from .machine import machine

# Multiplications from which a kernel is worth its compilation: 5 us here, 50 for the reference.
LEAST_WORK = 1 << 18
# Multiplications from which two threads beat one: 100 us, a dispatch costs 20 to 40.
PARALLEL = 1 << 22
# Multiplications of one chunk of a weight gradient, and how many chunks there are at most.
CHUNK = 1 << 21
CHUNKS = 16
# Kernels wider than this would be long texts.
WIDEST = 16
# Bytes of the planes, of some images, that a tile of a weight gradient reads: half an L1 cache.
IMAGES = 16 << 10
MOST_IMAGES = 8

_ELEMENTS = {np.dtype("float32"): "float", np.dtype("float64"): "double"}
_Kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)
_WeightKernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 4)


class Compiled:
    """A kernel for one layer and the scratch it needs."""

    def __init__(self, layer: Layer, tile, text: Callable, scratch: Callable, kind=_Kernel):
        compiler = machine()
        self.layer, self.tile = layer, tile
        self.scratch = scratch(layer, tile)
        self.function = kind(compiler.load(text(compiler, layer, tile)))


# ------------------------------------------------------------------------------------------------
# the three operations


def forward(x, w, *, stride, padding, dilation, groups):
    """The convolution, or None where the reference is to compute it."""
    kernel = _kernel(_forward_kernel, x, w, x.shape, w.shape, stride, padding, dilation, groups)
    if kernel is None:
        return None
    y = backend.empty((x.shape[0], kernel.layer.filters, *kernel.layer.out), x.dtype)
    _over_images(kernel, x, w, y)
    return y


def input_gradient(g, w, *, shape, stride, padding, dilation, groups):
    """The cotangent of the input, or None where the reference is to compute it."""
    kernel = _kernel(_input_kernel, g, w, shape, w.shape, stride, padding, dilation, groups)
    if kernel is None:
        return None
    gx = backend.empty(shape, g.dtype)
    _over_images(kernel, g, w, gx)
    return gx


def weight_gradient(g, x, *, shape, stride, padding, dilation, groups):
    """The cotangent of the weights, or None where the reference is to compute it."""
    kernel = _kernel(_weight_kernel, g, x, x.shape, shape, stride, padding, dilation, groups)
    if kernel is None:
        return None
    batch, function = x.shape[0], kernel.function
    g, x = np.ascontiguousarray(g), np.ascontiguousarray(x)
    layer, tile = kernel.layer, kernel.tile
    per_chunk, chunks = _chunks(layer, tile, batch)
    sums = backend.zeros((chunks, *_tiled_shape(layer, tile)), x.dtype)

    def part(k: int, parts: int) -> None:
        scratch = backend.empty((kernel.scratch,), x.dtype)
        first, last = chunks * k // parts, chunks * (k + 1) // parts
        function(id(g), id(x), id(sums), id(scratch), first, last, per_chunk, batch)

    backend.run_parts(part, batch * layer.work, PARALLEL)
    total = sums[0] if chunks == 1 else np.add.reduce(sums, axis=0)
    # (group, tile, input channel, kernel row, channel of the tile, kernel column)
    return np.ascontiguousarray(total.transpose(0, 1, 4, 2, 3, 5)).reshape(shape)


def _tiled_shape(layer: Layer, tile: WeightTile) -> tuple[int, ...]:
    """How the kernel orders the weights."""
    tiles = layer.width // tile.channels
    return (layer.groups, tiles, layer.depth, layer.kernel[0], tile.channels, layer.kernel[1])


def _over_images(kernel: Compiled, a, w, out) -> None:
    """Run a kernel over a batch, every thread on images of its own."""
    a, w = np.ascontiguousarray(a), np.ascontiguousarray(w)
    batch, function = a.shape[0], kernel.function

    def part(k: int, parts: int) -> None:
        scratch = backend.empty((kernel.scratch,), a.dtype)
        first, last = batch * k // parts, batch * (k + 1) // parts
        function(id(a), id(w), id(out), id(scratch), first, last)

    backend.run_parts(part, batch * kernel.layer.work, PARALLEL)


def _chunks(layer: Layer, tile: WeightTile, batch: int) -> tuple[int, int]:
    """Images per chunk and chunks: a sum in a fixed order, whatever the number of threads."""
    wanted = min(CHUNKS, max(1, batch * layer.work // CHUNK))
    per_chunk = kernels.rounded(-(-batch // wanted), tile.images)
    return per_chunk, -(-batch // per_chunk)


# ------------------------------------------------------------------------------------------------
# which layers, and how


def _kernel(make, a, b, x_shape, w_shape, stride, padding, dilation, groups) -> Compiled | None:
    """The kernel for two NumPy arrays, or None."""
    if a.__class__ is not np.ndarray or b.__class__ is not np.ndarray or a.dtype != b.dtype:
        return None
    element = _ELEMENTS.get(a.dtype)
    if element is None or len(x_shape) != 4:
        return None
    layer = _layer(element, x_shape[1:], w_shape, stride, padding, dilation, groups)
    if layer is None or x_shape[0] * layer.work < LEAST_WORK or machine() is None:
        return None
    return make(layer)


@lru_cache(4096)
def _layer(element, x_shape, w_shape, stride, padding, dilation, groups) -> Layer | None:
    out = tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x_shape[1:], padding, dilation, w_shape[2:], stride, strict=True)
    )
    if min(*out, *x_shape, *w_shape, *stride) < 1 or w_shape[3] > WIDEST:
        return None
    start = tuple(before for before, _ in padding)
    return Layer(
        element, x_shape[0], w_shape[0], groups, x_shape[1:], out, w_shape[2:], stride, start,
        dilation,
    )  # fmt: skip


def _register_file(element: str) -> tuple[int, list[int]]:
    """Vector registers, and the numbers of lanes to choose from."""
    compiler = machine()
    lanes = compiler.lanes(element) // 2
    plenty = compiler.has("avx512f") or not compiler.triple.startswith(("x86", "i686"))
    return 32 if plenty else 16, [n for n in (lanes, lanes // 2, lanes // 4) if n > 1]


def _cycles(sums: int, loads: float, registers: int, held: int) -> float | None:
    """Cycles of one tap of a tile, or None if it does not fit: two multiplications or two loads
    each, and no less than 4, as a sum waits 4 cycles for itself."""
    if sums + held + 1 > registers:
        return None
    return max(sums / 2, loads / 2, 4.0)


def _cheapest(candidates):
    """The tile of least cost among ``(cost, tile)``; the first among equals."""
    return min(candidates, key=lambda pair: pair[0])[1]


@lru_cache(4096)
def _forward_kernel(layer: Layer) -> Compiled | None:
    tile = _cheapest(_forward_tiles(layer))
    return Compiled(layer, tile, kernels.forward_text, kernels.forward_scratch)


def _forward_tiles(layer: Layer):
    registers, lanes = _register_file(layer.element)
    for n, vectors, rows, channels in product(lanes, range(1, 7), range(1, 9), range(1, 13)):
        if vectors > kernels.column_vectors(layer, n):
            continue
        if rows > layer.out[0] or channels > layer.width:
            continue
        x = rows * vectors
        cycles = _cycles(x * channels, x + channels, registers, min(x, channels))
        if cycles is not None:
            tiles = -(-layer.out[0] // rows) * -(-layer.out[1] // (vectors * n))
            tiles *= -(-layer.width // channels)
            cost = tiles * (layer.taps * cycles + 20 + x * channels)
            yield cost, Tile(n, channels, rows, vectors)


@lru_cache(4096)
def _weight_kernel(layer: Layer) -> Compiled | None:
    tile = _cheapest(_weight_tiles(layer))
    x, g = kernels.weight_frames(layer, tile.lanes)
    size = 8 if layer.element == "double" else 4
    images = IMAGES // (size * (x.plane + tile.channels * g.plane))
    tile = tile._replace(images=max(1, min(MOST_IMAGES, images)))
    return Compiled(layer, tile, kernels.weight_text, kernels.weight_scratch, _WeightKernel)


def _weight_tiles(layer: Layer):
    registers, lanes = _register_file(layer.element)
    for n, channels, taps in product(lanes, range(1, 13), range(1, layer.kernel[1] + 1)):
        if layer.width % channels:
            continue
        parts = -(-layer.kernel[1] // taps)
        taps = -(-layer.kernel[1] // parts)
        cycles = _cycles(channels * taps, channels + taps, registers, min(channels, taps))
        if cycles is not None:
            vectors = layer.out[0] * kernels.column_vectors(layer, n)
            cost = layer.width // channels * parts * (vectors * cycles + 10 + channels * taps)
            yield cost, WeightTile(n, channels, taps, 1)


@lru_cache(4096)
def _input_kernel(layer: Layer) -> Compiled | None:
    if layer.stride != (1, 1):
        return None
    tile = _cheapest(_input_tiles(layer))
    return Compiled(layer, tile, kernels.input_gradient_text, kernels.input_gradient_scratch)


def _input_tiles(layer: Layer):
    registers, lanes = _register_file(layer.element)
    kernel_rows, kernel_columns = layer.kernel
    for n, taps, rows, vectors in product(
        lanes, range(1, kernel_columns + 1), range(1, 9), range(1, 13)
    ):
        whole = kernels.column_vectors(layer, n)
        if rows > layer.image[0] or vectors > whole or whole % vectors:
            continue
        parts = -(-kernel_columns // taps)
        taps = -(-kernel_columns // parts)
        x = rows * vectors
        cycles = _cycles(x * taps, x + taps, registers, min(x, taps))
        if cycles is not None:
            # a tile of rows meets rows - 1 kernel rows that only some of its rows need
            steps = layer.width * (kernel_rows + (rows - 1) / 2)
            tiles = -(-layer.image[0] // rows) * whole // vectors * parts
            yield tiles * (steps * cycles + 30 + 6 * x * taps), InputTile(n, taps, rows, vectors)
