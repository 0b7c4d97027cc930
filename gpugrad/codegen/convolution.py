"""Native convolutions: an override of ``ops/convolution.py`` where compiled loops are faster.

Every function answers None where there is no such kernel, or where it would not pay: without LLVM,
for other dtypes or array modules, for little work, and where the reference's matrix products are
faster. Which way a call goes depends on shapes and dtypes only, never on what was called before.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from math import inf

import numpy as np

from ..backend import numpy as backend
from . import convolution_kernels as kernels
from .convolution_epilogues import PLAIN, Epilogue
from .convolution_kernels import InputTile, Layer, Tile, WeightTile
from .llvm import Unsupported
from .machine import ELEMENTS, machine

# Multiplications from which a kernel is worth its compilation: 5 us here, 50 for the reference.
LEAST_WORK = 1 << 18
# Multiplications from which two threads beat one: 360 us. Handing half of the work to another
# thread and waiting for it costs 60 us, and twice that where threads outnumber idle cores.
PARALLEL = 1 << 24
# Multiplications of one chunk of a weight gradient, and how many chunks there are at most.
CHUNK = 1 << 21
CHUNKS = 16
# Kernels wider than this would be long texts, and so would input gradients of more inner loops than
# this: 11x11 taps with a stride of 4 have 16 and would take 220 ms to compile.
WIDEST = 16
BODIES = 8
# Bytes of images that a tile of a weight gradient goes through: most of an L1 cache of 32 KiB for
# rows of one image, half of it for several images. Fewer rows than these are not worth a tile.
CACHE = 24 << 10
LEAST_ROWS = 4
MOST_IMAGES = 8

# From here on matrix products are faster: channels of a 1x1 kernel, and weights of a layer whose
# rows fill less than half a vector.
POINTWISE_CHANNELS = 16
NARROW_WEIGHTS = 1 << 14

_Kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)
_WeightKernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 4)


class Compiled:
    """A kernel for one layer and the scratch it needs."""

    def __init__(self, layer: Layer, tile, text: Callable, scratch: Callable, kind, *epilogue):
        self.layer, self.tile = layer, tile
        self.result = (layer.filters, *layer.out)  # the shape of a cotangent but for the batch
        self.scratch = scratch(layer, tile)
        self.function = kind(machine().kernel(text, layer, tile, *epilogue))


# ------------------------------------------------------------------------------------------------
# the three operations


def forward(x, w, *, stride, padding, dilation, groups):
    """The convolution, or None where the reference is to compute it."""
    kernel = _kernel(_forward_kernel, x, w, x.shape, w.shape, stride, padding, dilation, groups)
    if kernel is None:
        return None
    y = backend.empty((x.shape[0], *kernel.result), x.dtype)
    _over_images(kernel, x, w, y)
    return y


def input_gradient(g, w, *, shape, stride, padding, dilation, groups):
    """The cotangent of the input, or None where the reference is to compute it."""
    kernel = _kernel(_input_kernel, g, w, shape, w.shape, stride, padding, dilation, groups)
    if kernel is None or g.shape != (shape[0], *kernel.result):
        return None
    layer, gx = kernel.layer, backend.empty(shape, g.dtype)
    if kernels.input_gradient_weights(layer).packed:
        w = w.reshape(layer.groups, layer.width, *w.shape[1:]).transpose(0, 2, 3, 1, 4)
    _over_images(kernel, g, w, gx)
    return gx


def weight_gradient(g, x, *, shape, stride, padding, dilation, groups):
    """The cotangent of the weights, or None where the reference is to compute it."""
    kernel = _kernel(_weight_kernel, g, x, x.shape, shape, stride, padding, dilation, groups)
    if kernel is None or g.shape != (x.shape[0], *kernel.result):
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


def _kernel(make, a, b, *sizes) -> Compiled | None:
    """The kernel for two NumPy arrays, or None."""
    if a.__class__ is not np.ndarray or b.__class__ is not np.ndarray or a.dtype != b.dtype:
        return None
    return _chosen(make, a.dtype, *sizes)


@lru_cache(4096)
def _chosen(make, dtype, x_shape, w_shape, *options) -> Compiled | None:
    """One look-up by everything a call says: half the overhead of looking for the layer first."""
    layer = native_layer(dtype, x_shape, w_shape, *options)
    return None if layer is None else make(layer)


def native_layer(dtype, x_shape, w_shape, *options) -> Layer | None:
    """The layer of a convolution of images and weights, if kernels are to compute it. The options
    are stride, padding, dilation, groups."""
    element = ELEMENTS.get(dtype)
    if element is None or len(x_shape) != 4:
        return None
    layer = _layer(element, x_shape[1:], w_shape, *options)
    if layer is None or x_shape[0] * layer.work < LEAST_WORK or machine() is None:
        return None
    return None if _better_as_products(layer) else layer


@lru_cache(4096)
def with_epilogue(make, layer: Layer, epilogue: Epilogue) -> Compiled | None:
    """The kernel of a layer that computes an epilogue, too; None where there is none. ``make`` is
    ``_forward_kernel`` or ``_input_kernel``."""
    try:
        return make(layer, epilogue)
    except Unsupported:
        return None
    except RuntimeError as error:  # slower, not wrong
        warnings.warn(f"no native kernel, LLVM refuses it: {error}", stacklevel=2)
        return None


@lru_cache(4096)
def _better_as_products(layer: Layer) -> bool:
    """Whether the matrix products of the reference are faster. Measured with 8 lanes, forward,
    input gradient and weight gradient, in us, kernels / reference:

    1x1, 256 to 64 channels, (4, 256, 56, 56)   8000, 13000, 10800 / 5500, 6000, 6000
    1x1, 8 to 16 channels, (16, 8, 28, 28)      80, 140, 130 / 95, 90, 95
    3x3, 256 channels, (32, 256, 3, 3)          18300, 24800, 31000 / 11300, 13500, 11000
    3x3, 16 channels, (32, 16, 3, 3)            50, 50, 65 / 110, 210, 120
    3x3, 64 channels, (32, 64, 4, 4)            870, 790, 1100 / 1190, 1700, 1200
    """
    pointwise = layer.kernel == layer.stride == (1, 1) and layer.out == layer.image
    narrow = 2 * layer.out[1] < max(_register_file(layer.element)[1])
    if pointwise and min(layer.depth, layer.width) >= POINTWISE_CHANNELS:
        return True
    return narrow and layer.taps * layer.width >= NARROW_WEIGHTS


@lru_cache(4096)
def _layer(element, x_shape, w_shape, stride, padding, dilation, groups) -> Layer | None:
    out = tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x_shape[1:], padding, dilation, w_shape[2:], stride, strict=True)
    )
    sizes = (*out, *x_shape, *w_shape, *stride, *dilation, groups)
    if min(sizes) < 1 or min(*padding[0], *padding[1]) < 0 or w_shape[3] > WIDEST:
        return None
    if w_shape[0] % groups or w_shape[1] * groups != x_shape[0]:
        return None  # the reference has the words for it
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


def _cycles(a: int, b: int, registers: int) -> float:
    """Cycles of the products of ``a`` with ``b`` vectors; infinite if there are too few registers.

    Two products a cycle; a good half of one for a load, as many lie across two cache lines; and no
    less than 4, as a sum waits 4 cycles for itself.
    """
    if a * b + min(a, b) + 1 > registers:
        return inf
    return max(a * b / 2, 0.6 * (a + b), 4.0)


def _cheapest(candidates):
    """The tile of least cost among ``(cost, tile)``; among equals that of the shortest vectors,
    which do not reach past the end of a row."""
    return min(candidates, key=lambda pair: (pair[0], pair[1].lanes))[1]


@lru_cache(4096)
def _forward_kernel(layer: Layer, epilogue: Epilogue = PLAIN) -> Compiled | None:
    tile = _cheapest(_forward_tiles(layer))
    text, scratch = kernels.forward_text, kernels.forward_scratch
    return Compiled(layer, tile, text, scratch, _Kernel, epilogue)


def _forward_tiles(layer: Layer):
    registers, lanes = _register_file(layer.element)
    for n, vectors, rows, channels in product(lanes, range(1, 7), range(1, 9), range(1, 13)):
        if vectors > kernels.column_vectors(layer, n):
            continue
        if rows > layer.out[0] or channels > layer.width:
            continue
        x = rows * vectors
        cycles = _cycles(x, channels, registers)
        if cycles < inf:
            tiles = -(-layer.out[0] // rows) * -(-layer.out[1] // (vectors * n))
            tiles *= -(-layer.width // channels)
            cost = tiles * (layer.taps * cycles + 20 + x * channels)
            yield cost, Tile(n, channels, rows, vectors)


@lru_cache(4096)
def _weight_kernel(layer: Layer) -> Compiled | None:
    tile = _cheapest(_weight_tiles(layer))
    x, g = kernels.weight_frames(layer, tile.lanes)
    size = 8 if layer.element == "double" else 4
    images = CACHE // 2 // (size * (x.plane + tile.channels * g.plane))
    rows = CACHE // (size * (layer.stride[0] * x.pitch + tile.channels * g.pitch))
    tile = tile._replace(
        images=max(1, min(MOST_IMAGES, images)), rows=max(LEAST_ROWS, min(layer.out[0], rows))
    )
    return Compiled(layer, tile, kernels.weight_text, kernels.weight_scratch, _WeightKernel)


def _weight_tiles(layer: Layer):
    registers, lanes = _register_file(layer.element)
    for n, channels, taps in product(lanes, range(1, 13), range(1, layer.kernel[1] + 1)):
        if layer.width % channels:
            continue
        parts = [len(p) for p in kernels.pieces(layer.kernel[1], taps)]
        cycles = sum(_cycles(channels, part, registers) for part in parts)
        if cycles < inf:
            vectors = layer.out[0] * kernels.column_vectors(layer, n)
            cost = vectors * cycles + len(parts) * (10 + channels * taps)
            yield cost * layer.width // channels, WeightTile(n, channels, max(parts), 1, 1)


@lru_cache(4096)
def _input_kernel(layer: Layer, epilogue: Epilogue = PLAIN) -> Compiled | None:
    tile = _cheapest(_input_tiles(layer))
    bodies = len(kernels.row_phases(layer)) * len(kernels.pieces(layer.kernel[1], tile.taps))
    if bodies > BODIES:
        return None
    text, scratch = kernels.input_gradient_text, kernels.input_gradient_scratch
    return Compiled(layer, tile, text, scratch, _Kernel, epilogue)


def _input_tiles(layer: Layer):
    registers, lanes = _register_file(layer.element)
    phases, columns = kernels.row_phases(layer), layer.kernel[1]
    sizes = product(lanes, range(1, columns + 1), range(1, 9), range(1, 13))
    for n, taps, rows, vectors in sizes:
        whole = kernels.column_vectors(layer, n)
        if rows > layer.image[0] or vectors > whole:
            continue
        parts = [len(p) for p in kernels.pieces(columns, taps)]
        x = rows * vectors
        cycles = sum(_cycles(x, part, registers) for part in parts)
        if cycles < inf:
            # a tile of rows meets rows - 1 kernel rows that only some of its rows need
            steps = sum(-(-p.count // rows) * (p.taps + (rows - 1) / 2) for p in phases)
            tiles = sum(-(-p.count // rows) for p in phases)
            cost = steps * layer.width * cycles + tiles * len(parts) * (30 + 6 * x * taps)
            yield cost * -(-whole // vectors), InputTile(n, max(parts), rows, vectors)
