"""Scaled dot-product attention as one operation, for devices with a kernel for it; the rules are
the formula, written in operations."""

from __future__ import annotations

import math

from ..backend.arrays import array_module, is_cuda
from ..codegen import cuda_attention
from .core import joint
from .elementwise import where
from .linalg import _swap, matmul
from .nn import softmax
from .reduce import sum


def _weights(q, k, *mask, scale, causal):
    """``softmax(q @ k.T * scale + mask)``; a boolean mask says which keys are visible, with
    ``causal`` a query sees the keys up to its own position."""
    scores = matmul(q * scale, _swap(k))
    last = len(scores.shape) - 1
    if causal:
        xp = array_module(getattr(q, "array", q))
        rows, columns = (xp.arange(n) for n in scores.shape[-2:])
        scores = where(columns <= rows[:, None], scores, -math.inf)
    if mask:
        (given,) = mask
        boolean = given.dtype.kind == "b"
        scores = where(given, scores, -math.inf) if boolean else scores + given
    return softmax(scores, axis=last)


def _attention(q, k, v, *mask, scale, causal):
    return matmul(_weights(q, k, *mask, scale=scale, causal=causal), v)


def _attention_vjp(needs, g, out, q, k, v, *mask, scale, causal):
    nothing = [None] * len(mask)
    if is_cuda(g):  # an array, not a tensor
        found = cuda_attention.attention_vjp(
            needs[:3], g, out, q, k, v, *mask, scale=scale, causal=causal
        )
        if found is not None:
            return [*found, *nothing]
    weights = _weights(q, k, *mask, scale=scale, causal=causal)
    towards = matmul(g, _swap(v))
    last = (len(towards.shape) - 1,)
    d = weights * (towards - sum(towards * weights, axes=last, keepdims=True)) * scale
    return [
        matmul(d, k) if needs[0] else None,
        matmul(_swap(d), q) if needs[1] else None,
        matmul(_swap(weights), g) if needs[2] else None,
        *nothing,
    ]


def _samples(r):
    q, k, v = r(2, 3, 4), r(2, 5, 4), r(2, 5, 2)
    plain = {"scale": 0.5, "causal": False}
    return [
        ((q, k, v), plain),
        ((r(3, 4), r(3, 4), r(3, 2)), {"scale": 0.7, "causal": True}),
        ((q, k, v, (r(3, 5) > -1) | (r.integers(2, 1, 5) > 2)), plain),
        ((q, k, v, r(2, 1, 5)), plain),
    ]


attention = joint(
    "attention",
    _attention,
    _attention_vjp,
    arguments=3,
    reads=(0, 1, 2, "out"),
    samples=_samples,
    cuda=cuda_attention.attention,
)
