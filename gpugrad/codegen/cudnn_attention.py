"""Attention as graphs of cuDNN: float16 and bfloat16 on CUDA arrays, without a mask.

Keys and values of 8, 16, ... numbers, as many as ``cuda_attention`` lets pass. The logarithmic sums
that ``forward`` writes are those that ``kernels/attention.cuh`` writes and reads, the natural
logarithm of the sum of exponentials of a query's scaled scores (cuDNN's graph of the gradient
computes ``exp(scale * q @ k.T - stats)``), in float32 and C order: either direction may be computed
by the library and the other by the kernels. Masks are left to the kernels: where no key is visible
cuDNN answers 0, the formula NaN. Both functions answer None where cuDNN is missing, switched off or
has no engine.

What has been tested, as no GPU was at hand: that cuDNN 9.28 builds plans of these graphs for an
H100 described to it, with deterministic gradients; shapes, strides, addresses and results with a
stand-in that computes with NumPy. That libcudnn executes them is yet to be seen on a GPU.
"""

from __future__ import annotations

from ..backend import cudnn
from ..backend import cupy as backend

# Before 9.16 gradients of lengths that are no multiple of 128 go through a mask that the library
# writes from the host.
_LEAST_VERSION = 91600
_DTYPES = ("float16", "bfloat16")
_MULTIPLE = 8  # of numbers in a row
_Q, _K, _V, _OUT, _SUMS, _G, _DQ, _DK, _DV = range(1, 10)  # uids


def forward(q, k, v, sums, *, scale: float, causal: bool):
    """``softmax(q @ k.T * scale) @ v`` of arrays (batch, heads, length, size), or None; writes the
    logarithmic sums of the queries."""
    if not _serves(q, v):
        return None
    q, k, v = _readable(q), _readable(k), _readable(v)
    out = backend.empty_laid_out_as((*q.shape[:-1], v.shape[-1]), q)
    arrays = {_Q: q, _K: k, _V: v, _OUT: out, _SUMS: _column(sums, q)}

    def make(graph) -> None:
        inputs = _tensors(graph, {"q": _Q, "k": _K, "v": _V}, arrays)
        results = graph.sdpa(
            **inputs, attn_scale=scale, use_causal_mask=causal, generate_stats=True
        )
        _results(results, (_OUT, _SUMS), arrays)

    return out if _run("sdpa", make, arrays, scale, causal) else None


def backward(g, out, sums, q, k, v, *, scale: float, causal: bool):
    """Cotangents of q, k and v, or None, from that of the result ``out`` and the logarithmic sums
    of the queries; in an order fixed by shapes if ``backends.cudnn.deterministic``."""
    if not _serves(q, v):
        return None
    g, out, q, k, v = (_readable(a) for a in (g, out, q, k, v))
    found = [backend.empty_laid_out_as(a.shape, a) for a in (q, k, v)]
    arrays = {_Q: q, _K: k, _V: v, _OUT: out, _SUMS: _column(sums, q), _G: g}
    arrays |= zip((_DQ, _DK, _DV), found, strict=True)

    def make(graph) -> None:
        names = {"q": _Q, "k": _K, "v": _V, "o": _OUT, "dO": _G, "stats": _SUMS}
        results = graph.sdpa_backward(
            **_tensors(graph, names, arrays),
            attn_scale=scale,
            use_causal_mask=causal,
            use_deterministic_algorithm=cudnn.switches.deterministic,
        )
        _results(results, (_DQ, _DK, _DV), arrays)

    return found if _run("sdpa_backward", make, arrays, scale, causal) else None


def _serves(q, v) -> bool:
    return (
        cudnn.usable()
        and q.dtype.name in _DTYPES
        and q.shape[-1] % _MULTIPLE == v.shape[-1] % _MULTIPLE == 0
        and cudnn.version() >= _LEAST_VERSION
    )


def _readable(array):
    """The array, or a copy in C order of one whose rows have gaps or begin at odd places, or are
    one row shown many times."""
    *steps, last = array.strides
    places = (array.data.ptr, *steps)
    if last == array.itemsize and min(steps) > 0 and not any(p % cudnn.ALIGNMENT for p in places):
        return array
    return array.copy(order="C")


def _column(sums, q):
    """A number per query, as cuDNN has them: (batch, heads, length, 1)."""
    return sums.reshape(*q.shape[:-1], 1)


def _tensors(graph, uids: dict[str, int], arrays) -> dict:
    return {name: cudnn.tensor(graph, uid, arrays[uid]) for name, uid in uids.items()}


def _results(tensors, uids, arrays) -> None:
    for tensor, uid in zip(tensors, uids, strict=True):
        cudnn.result(tensor, uid, arrays[uid])


def _run(operation: str, make, arrays, scale: float, causal: bool) -> bool:
    layouts = tuple((uid, array.shape, array.strides) for uid, array in arrays.items())
    key = (operation, arrays[_Q].dtype.name, layouts, scale, causal)
    return cudnn.run(key, make, arrays)
