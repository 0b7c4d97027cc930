"""CUDA convolutions: an override of ``ops/convolution.py`` for CUDA arrays.

cuDNN computes them where it is installed and switched on (``cudnn_convolution``), else the kernels
of ``kernels/convolution.cu``. Those serve any stride, asymmetric padding, dilation and groups with
one text per dtype and tile: the sizes of a layer are arguments. Sums are accumulated in float32
(float64 for float64) in an order that shapes alone decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import product
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from ..backend import cupy as backend
from . import cuda_module, cudnn_convolution
from .cuda import TYPES
from .cuda_module import Launcher, Unsupported, ceil_div

FLOATS = tuple(name for name in TYPES if name != "bool")

# Beyond, 32-bit places of the kernels would overflow; the distance leaves room for a tile.
_MOST = (1 << 31) - (1 << 16)
_MOST_BLOCKS = (1 << 16) - 1  # along y and z

# Channels of the result per group from which a tile is worth it: below, a thread computes a pixel.
LEAST_CHANNELS = 5
# Weights per group up to which a layer of several groups has one block for each weight.
DIRECT_WEIGHTS = 64

# A sum over pixels is cut so that there are about so many blocks, but into chunks of no less than
# so many products.
BLOCKS = 256
LEAST_CHUNK = 512


class Tile(NamedTuple):
    """Results of a block, depths of a step, and results of a thread."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    @property
    def intensity(self) -> float:
        """Products per value read from shared memory."""
        a, b = self.thread_rows, self.thread_columns
        return a * b / (a + b)


TILES = (
    Tile(32, 32, 16, 2, 2),
    Tile(16, 128, 16, 4, 2),
    Tile(64, 64, 16, 4, 4),
    Tile(128, 128, 8, 8, 8),
)
DIRECT = TILES[0]  # the kernels without a tile are compiled with this one


class Axis(NamedTuple):
    """How results lie over sources along one axis; see ``kernels/convolution.cu``."""

    source: int
    target: int
    kernel: int
    results: int
    taps: int
    start: int
    step: int
    reach: int
    place: int
    spread: int
    first: int
    skip: int


class Layer(NamedTuple):
    """The sizes of a convolution; channels are per group."""

    batch: int
    groups: int
    depth: int
    width: int
    by_result: int
    by_depth: int
    rows: Axis
    columns: Axis

    @property
    def windows(self) -> int:
        return self.batch * self.rows.results * self.columns.results

    @property
    def taps(self) -> int:
        return self.rows.taps * self.columns.taps


# ------------------------------------------------------------------------------------------------
# the three operations


@cuda_module.override("convolution")
def forward(x, w, *, stride, padding, dilation, groups):
    """The convolution of ``x`` (N, C, H, W) with ``w`` (O, C/groups, kh, kw), or None."""
    _check(x, w)
    found = cudnn_convolution.forward(x, w, stride, padding, dilation, groups)
    if found is not None:
        return found
    layer = _forward_layer(x.shape, w.shape, stride, padding, dilation, groups)
    shape = (x.shape[0], w.shape[0], layer.rows.results, layer.columns.results)
    y = backend.empty(shape, x.dtype)
    if y.size:
        _convolve(layer, x, w, y)
    return y


@cuda_module.override("input gradient of a convolution")
def input_gradient(g, w, *, shape, stride, padding, dilation, groups):
    """The cotangent of the input, of ``shape``, from that of the result, or None."""
    _check(g, w)
    found = cudnn_convolution.input_gradient(g, w, shape, stride, padding, dilation, groups)
    if found is not None:
        return found
    layers = _input_layers(g.shape, w.shape, shape, stride, padding, dilation, groups)
    reached = all(layer.depth for layer in layers)
    gx = (backend.empty if reached else backend.zeros)(shape, g.dtype)
    if gx.size:
        for layer in layers:
            if layer.depth:
                _convolve(layer, g, w, gx)
    return gx


@cuda_module.override("weight gradient of a convolution")
def weight_gradient(g, x, *, shape, stride, padding, dilation, groups):
    """The cotangent of the weights, of ``shape``, from that of the result, or None."""
    _check(g, x)
    found = cudnn_convolution.weight_gradient(g, x, shape, stride, padding, dilation, groups)
    if found is not None:
        return found
    layer = _forward_layer(x.shape, shape, stride, padding, dilation, groups)
    if g.size == 0 or prod(shape) == 0:
        return backend.zeros(shape, g.dtype)
    return _filters(layer, g, x, shape)


def _check(a, b) -> None:
    if a.dtype != b.dtype or a.dtype.name not in FLOATS:
        raise Unsupported("dtypes")
    if a.ndim != 4 or b.ndim != 4:
        raise Unsupported("dimensions")


# ------------------------------------------------------------------------------------------------
# layers


@lru_cache(4096)
def _forward_layer(x_shape, w_shape, stride, padding, dilation, groups) -> Layer:
    axes = [
        _axis(*sizes)
        for sizes in zip(x_shape[2:], w_shape[2:], stride, padding, dilation, strict=True)
    ]
    taps = prod(w_shape[2:])
    width = w_shape[0] // groups
    layer = Layer(x_shape[0], groups, w_shape[1], width, w_shape[1] * taps, taps, *axes)
    if w_shape[0] % groups or w_shape[1] * groups != x_shape[1]:
        raise Unsupported("channels that do not fit")
    return _checked(layer)


def _axis(size, kernel, stride, padding, dilation) -> Axis:
    results = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    if results < 1 or min(kernel, stride, dilation) < 1:
        raise Unsupported("a kernel that does not fit")
    return Axis(size, results, kernel, results, kernel, -padding[0], stride, dilation, 0, 1, 0, 1)


@lru_cache(4096)
def _input_layers(g_shape, w_shape, shape, stride, padding, dilation, groups) -> tuple[Layer, ...]:
    """The input gradient as convolutions of stride 1: one for each residue of the places."""
    forward = _forward_layer(shape, w_shape, stride, padding, dilation, groups)
    if g_shape != (shape[0], w_shape[0], forward.rows.results, forward.columns.results):
        raise Unsupported("a cotangent of another shape")
    rows, columns = (
        list(_residues(*sizes))
        for sizes in zip(
            shape[2:], g_shape[2:], w_shape[2:], stride, padding, dilation, strict=True
        )
    )
    taps = prod(w_shape[2:])
    layers = []
    for row, column in product(rows, columns):
        depth = forward.width if row.taps and column.taps else 0
        layer = Layer(
            shape[0], groups, depth, w_shape[1], taps, w_shape[1] * taps, row, column
        )  # fmt: skip
        layers.append(_checked(layer))
    return tuple(layers)


def _residues(size, source, kernel, stride, padding, dilation) -> Iterator[Axis]:
    """Places ``h`` of the input with the same ``(h + padding) % stride`` see the same taps: those
    whose distance from the place is a multiple of the stride."""
    skip = stride // gcd(stride, dilation)
    for residue in range(stride):
        place = (residue - padding[0]) % stride
        results = len(range(place, size, stride))
        if not results:
            continue
        first = next((i for i in range(min(skip, kernel)) if i * dilation % stride == residue), 0)
        reached = first * dilation % stride == residue
        taps = len(range(first, kernel, skip)) if reached else 0
        start = (place + padding[0] - first * dilation) // stride
        reach = -(skip * dilation // stride)
        yield Axis(
            source, size, kernel, results, taps, start, 1, reach, place, stride, first, skip
        )  # fmt: skip


def _checked(layer: Layer) -> Layer:
    rows, columns = layer.rows, layer.columns
    image = (layer.depth + 1) * rows.source * columns.source
    weights = layer.depth * layer.width * rows.kernel * columns.kernel
    windows = layer.batch * rows.results * columns.results
    reach = max(
        abs(axis.start) + axis.results * axis.step + axis.taps * abs(axis.reach)
        for axis in (rows, columns)
    )
    if max(image, weights, windows) > _MOST or reach >= 1 << 29:
        raise Unsupported("more elements than 32 bits count")
    return layer


# ------------------------------------------------------------------------------------------------
# launches


@lru_cache(4096)
def _argument(layer: Layer) -> np.ndarray:
    """The layer as a struct that is passed by value."""
    values = np.array([*layer[:6], *layer.rows, *layer.columns], np.int32)
    return values.view([("values", np.int32, len(values))])


@cache
def _kernel(function: str, dtype: str, tile: Tile) -> Launcher:
    names = ("BM", "BN", "BK", "TM", "TN")
    sizes = [f"{name}={size}" for name, size in zip(names, tile, strict=True)]
    return cuda_module.load_file("convolution.cu", function, [f"STORAGE={TYPES[dtype]}", *sizes])


def _convolve(layer: Layer, x, w, y) -> None:
    """Launch the products that fill ``y``, or its places of one residue."""
    x, w = backend.contiguous(x), backend.contiguous(w)
    args = (x, w, y, _argument(layer))
    if layer.width < LEAST_CHANNELS:
        grid = (ceil_div(layer.windows, 256), layer.groups * layer.width)
        kernel, threads = _kernel("convolve_direct", x.dtype.name, DIRECT), 256
    else:
        tile = _tile(layer.width, layer.windows, layer.groups, x.dtype.itemsize)
        grid = (
            ceil_div(layer.windows, tile.columns),
            ceil_div(layer.width, tile.rows) * layer.groups,
        )
        kernel, threads = _kernel("convolve", x.dtype.name, tile), tile.threads
    if grid[1] > _MOST_BLOCKS:
        raise Unsupported("more channels than blocks")
    kernel(grid, (threads,), args)


def _filters(layer: Layer, g, x, shape):
    """The weight gradient: sums of chunks of the pixels, and their sum."""
    g, x = backend.contiguous(g), backend.contiguous(x)
    columns, name = layer.depth * layer.taps, g.dtype.name
    chunk, chunks = _chunks(layer, columns)
    real = np.dtype("float64" if name == "float64" else "float32")
    sums = backend.empty((chunks, prod(shape)), real)
    args = (g, x, sums, chunk, _argument(layer))
    if _is_direct(layer, columns):
        _kernel("filters_direct", name, DIRECT)((prod(shape), chunks), (256,), args)
    else:
        tile = _tile(layer.width, columns, layer.groups * chunks, g.dtype.itemsize)
        blocks = ceil_div(layer.width, tile.rows) * layer.groups
        if blocks > _MOST_BLOCKS:
            raise Unsupported("more channels than blocks")
        grid = (ceil_div(columns, tile.columns), blocks, chunks)
        _kernel("filters", name, tile)(grid, (tile.threads,), args)
    if chunks == 1 and real == g.dtype:
        return sums.reshape(shape)
    weights = backend.empty(shape, g.dtype)
    grid = (ceil_div(weights.size, 256),)
    _kernel("add_chunks", name, DIRECT)(grid, (256,), (sums, weights, weights.size, chunks))
    return weights


def _is_direct(layer: Layer, columns: int) -> bool:
    return layer.groups > 1 and layer.width * columns <= DIRECT_WEIGHTS


def _chunks(layer: Layer, columns: int) -> tuple[int, int]:
    """Pixels of a chunk, and chunks: by shapes alone, so that a sum has one order on every
    device."""
    if _is_direct(layer, columns):
        blocks = layer.groups * layer.width * columns
    else:
        blocks = layer.groups * ceil_div(layer.width, 64) * ceil_div(columns, 64)
    wanted = min(ceil_div(BLOCKS, blocks), ceil_div(layer.windows, LEAST_CHUNK))
    chunk = ceil_div(ceil_div(layer.windows, wanted), 16) * 16
    return chunk, ceil_div(layer.windows, chunk)


@lru_cache(4096)
def _tile(rows: int, columns: int, others: int, itemsize: int) -> Tile:
    """The tile of least cost: products with what lies beyond the edge, divided by the products per
    value read, and by how many of the processors have a block if they are not enough for all."""

    def cost(tile: Tile) -> float:
        blocks = ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns) * others
        work = blocks * tile.rows * tile.columns
        return work / tile.intensity * max(1.0, BLOCKS / 2 / blocks)

    # 64 sums of 8 bytes would leave no registers for anything else
    return min((t for t in TILES if itemsize < 8 or t.intensity < 4), key=cost)


# ------------------------------------------------------------------------------------------------
# what checks without a GPU go through


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of every kernel, for every dtype and tile it is used with."""
    for dtype in FLOATS:
        for tile in TILES:
            if dtype == "float64" and tile.intensity >= 4:
                continue
            functions = ["convolve", "filters"]
            if tile == DIRECT:
                functions += ["add_chunks", "convolve_direct", "filters_direct"]
            for function in functions:
                size = f"{tile.rows}x{tile.columns}"
                yield f"{function} {dtype} {size}", _kernel(function, dtype, tile).text, function
