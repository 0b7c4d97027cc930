"""Attention on CUDA without the matrix of weights, forward and backward (kernels/attention.cuh).

cuDNN computes it where it is installed and switched on (``cudnn_attention``), else the kernels.
Keys and values of up to 128 numbers in every floating-point dtype, arithmetic in float32 (float64
for float64); arrays of up to 4 dimensions in any layout. What does not fit is answered with None.
The logarithmic sums that the forward pass leaves for the backward pass are kept beside the result,
as long as it lives; without them they are computed again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from ..backend import cupy as backend
from ..errors import KernelError
from . import cuda_module, cudnn_attention
from .cuda import TYPES

_STEPS = np.dtype([("batch", "i8"), ("head", "i8"), ("row", "i8"), ("column", "i8")])
# As struct Attention.
ATTENTION = np.dtype(
    [("heads", "i8"), ("queries", "i8"), ("keys", "i8"), ("causal", "i8"), ("scale", "f8")]
    + [(name, _STEPS) for name in ("q", "k", "v", "mask", "out", "g", "dq", "dk", "dv")]
)
_THREADS = 256
# Shared memory of a block that every device from sm_70 on grants.
_SHARED = 64 << 10
# Tiles to be tried, largest first: rows that a block holds and rows that stream by.
_TILES = ((64, 64), (64, 32), (32, 32), (32, 16), (16, 16))
_WIDEST = {4: 64, 8: 32}  # rows by itemsize: with 64 rows of doubles a thread needs 190 registers
_LONGEST = 128
_FILES = {
    "forward": "attention_forward.cu",
    "products_of_rows": "attention_products.cu",
    "backward_query": "attention_query.cu",
    "backward_key": "attention_key.cu",
}
_MASKS = {"none": 0, "bool": 1, "add": 2}


class _Variant(NamedTuple):
    """What the text of a kernel depends on."""

    dtype: str
    head: int
    value: int
    rows: int
    length: int
    mask: str

    @property
    def itemsize(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def shared(self, function: str) -> int:
        """Bytes of shared memory: the tiles of a kernel."""
        held = self.head if function == "forward" else self.head + self.value
        streamed = self.head + self.value + self.rows
        return self.itemsize * (held * (self.rows + 1) + streamed * (self.length + 1))

    def defines(self) -> tuple[str, ...]:
        real = "double" if self.dtype == "float64" else "float"
        return (
            f"ELEMENT={TYPES[self.dtype]}",
            f"REAL={real}",
            f"HEAD={self.head}",
            f"VALUE={self.value}",
            f"ROWS={self.rows}",
            f"LENGTH={self.length}",
            f"MASK={_MASKS[self.mask]}",
        )


@cache
def _variant(function: str, dtype: str, head: int, value: int, mask: str) -> _Variant | None:
    """The largest tiles that fit; None if none do."""
    for rows, length in _TILES:
        variant = _Variant(dtype, head, value, rows, length, mask)
        if rows <= _WIDEST[variant.itemsize] and variant.shared(function) <= _SHARED:
            return variant
    return None


@cache
def _kernel(function: str, variant: _Variant):
    return cuda_module.load_file(_FILES[function], function, variant.defines())


class _Problem:
    """Arrays of one call as (batch, head, row, column)."""

    def __init__(self, q, k, v, mask, scale: float, causal: bool):
        self.q, self.k, self.v, self.mask = _four(q), _four(k), _four(v), mask
        batch, heads, queries, _ = self.q.shape
        self.matrices, self.queries, self.keys = batch * heads, queries, self.k.shape[2]
        self.kind, self.options = "none", {"scale": scale, "causal": causal}
        if mask is not None:
            self.kind = "bool" if mask.dtype == bool else "add"
            self.mask = backend.cupy().broadcast_to(mask, (batch, heads, queries, self.keys))
        self.struct = np.zeros(1, ATTENTION)
        record = self.struct[0]
        record["heads"], record["queries"], record["keys"] = heads, queries, self.keys
        record["causal"], record["scale"] = causal, scale
        for name in ("q", "k", "v", "mask"):
            self.describe(name, getattr(self, name))

    def describe(self, name: str, array) -> None:
        """Tell the kernel the steps of an array."""
        if array is not None:
            self.struct[0][name] = tuple([s // array.itemsize for s in array.strides])

    def variant(self, function: str) -> _Variant | None:
        head, value = self.q.shape[3], self.v.shape[3]
        return _variant(function, self.q.dtype.name, head, value, self.kind)

    def launch(self, function: str, rows: int, args) -> None:
        """A block per tile of rows."""
        variant = self.variant(function)
        assert variant is not None
        blocks = -(-rows // variant.rows) * self.matrices
        shared = variant.shared(function)
        _kernel(function, variant)((blocks,), (_THREADS,), (*args, self.struct), shared)

    def numbers_of_queries(self):
        """An array for one number per query, in the type of arithmetic."""
        real = np.float64 if self.q.dtype == np.float64 else np.float32
        return backend.cupy().ndarray((self.matrices, self.queries), real)


def _four(array):
    """An array of 2 to 4 dimensions with 4."""
    return array.reshape((1,) * (4 - array.ndim) + array.shape) if array.ndim < 4 else array


def _fits(q, k, v, masks) -> bool:
    if not 2 <= q.ndim <= 4 or q.dtype.name not in TYPES or q.dtype == bool:
        return False
    if not (k.dtype == v.dtype == q.dtype and k.ndim == v.ndim == q.ndim):
        return False
    if not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and k.shape[-2] == v.shape[-2]):
        return False
    if q.shape[-1] != k.shape[-1] or max(q.shape[-1], v.shape[-1]) > _LONGEST:
        return False
    if not (q.size and k.size and v.size):
        return False
    if not masks:
        return True
    (mask,) = masks
    wanted = (*q.shape[:-1], k.shape[-2])
    return (
        mask.dtype in (bool, q.dtype)
        and mask.ndim <= q.ndim
        and all(n in (1, m) for n, m in zip(mask.shape[::-1], wanted[::-1], strict=False))
    )


def _problem(q, k, v, masks, scale, causal, functions) -> _Problem | None:
    if not cuda_module.enabled() or not _fits(q, k, v, masks):
        return None
    problem = _Problem(q, k, v, masks[0] if masks else None, scale, causal)
    return problem if all(problem.variant(f) for f in functions) else None


# ------------------------------------------------------------------------------------------------
# the two directions

# Logarithmic sums by the id of a result, as long as it lives.
_sums: dict[int, tuple] = {}


def _keep(out, sums) -> None:
    key = id(out)
    _sums[key] = weakref.ref(out, lambda _: _sums.pop(key, None)), sums


def _kept(out):
    found = _sums.get(id(out))
    return found[1] if found is not None and found[0]() is out else None


def attention(q, k, v, *masks, scale: float, causal: bool):
    """``softmax(q @ k.T * scale + mask) @ v`` over the last two dimensions; None if there is no
    kernel for it."""
    with backend.on_device_of(q):
        problem = _problem(q, k, v, masks, scale, causal, ("forward",))
        if problem is None:
            return None
        try:
            out, sums = _forward(problem, (*q.shape[:-1], v.shape[-1]), q)
        except KernelError as error:
            cuda_module.report(error, "attention")
            return None
    _keep(out, sums)
    return out


def _forward(problem: _Problem, shape, like):
    sums = problem.numbers_of_queries()
    if problem.mask is None:
        q, k, v = problem.q, problem.k, problem.v
        out = cudnn_attention.forward(q, k, v, sums, **problem.options)
        if out is not None:
            return out.reshape(shape), sums
    out = backend.empty_laid_out_as(shape, like)
    problem.describe("out", _four(out))
    mask = problem.q if problem.mask is None else problem.mask
    args = (problem.q, problem.k, problem.v, mask, out, sums)
    problem.launch("forward", problem.queries, args)
    return out, sums


def attention_vjp(needs, g, out, q, k, v, *masks, scale: float, causal: bool):
    """Cotangents of q, k and v (None where not needed); None if there is no kernel for it."""
    with backend.on_device_of(q):
        functions = ("forward", "backward_query", "backward_key")
        problem = _problem(q, k, v, masks, scale, causal, functions)
        if problem is None or g.dtype != q.dtype:
            return None
        try:
            sums = _kept(out)
            if sums is None:
                out, sums = _forward(problem, out.shape, q)
            return _backward(problem, needs, g, out, sums, q, k, v)
        except KernelError as error:
            cuda_module.report(error, "the gradient of attention")
            return None


def _backward(problem: _Problem, needs, g, out, sums, q, k, v) -> list:
    if problem.mask is None:
        arguments = (_four(g), _four(out), sums, problem.q, problem.k, problem.v)
        found = cudnn_attention.backward(*arguments, **problem.options)
        if found is not None:  # cuDNN computes all three
            wanted = zip(needs, found, (q, k, v), strict=True)
            return [d.reshape(a.shape) if need else None for need, d, a in wanted]
    problem.describe("g", _four(g))
    problem.describe("out", _four(out))
    deltas = problem.numbers_of_queries()
    variant = problem.variant("backward_query")
    rows = _kernel("products_of_rows", variant)
    blocks = -(-deltas.size // (_THREADS // 32))
    rows((blocks,), (_THREADS,), (g, out, deltas, deltas.size, problem.struct))
    mask = problem.q if problem.mask is None else problem.mask
    inputs = (problem.q, problem.k, problem.v, mask, g, sums, deltas)
    dq = dk = dv = None
    if needs[0]:
        dq = backend.empty_laid_out_as(q.shape, q)
        problem.describe("dq", _four(dq))
        problem.launch("backward_query", problem.queries, (*inputs, dq))
    if needs[1] or needs[2]:
        dk, dv = backend.empty_laid_out_as(k.shape, k), backend.empty_laid_out_as(v.shape, v)
        problem.describe("dk", _four(dk))
        problem.describe("dv", _four(dv))
        problem.launch("backward_key", problem.keys, (*inputs, dk, dv))
    return [dq, dk if needs[1] else None, dv if needs[2] else None]


# ------------------------------------------------------------------------------------------------
# all kernels, for checks without a GPU


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of the kernels in representative variants."""
    functions = ("forward", "backward_query", "backward_key", "products_of_rows")
    for dtype, head, value, mask in (
        ("float32", 64, 64, "none"),
        ("float32", 128, 128, "bool"),
        ("float32", 40, 24, "add"),
        ("float16", 128, 128, "none"),
        ("bfloat16", 64, 64, "add"),
        ("float64", 64, 64, "none"),
        ("float64", 17, 5, "bool"),
    ):
        for function in functions:
            tiles = _variant(
                function.replace("products_of_rows", "forward"), dtype, head, value, mask
            )
            if tiles is not None:
                name = f"attention {function} {dtype} {head} {value} {mask}"
                yield name, _kernel(function, tiles).text, function
