"""Random bits from a counter, and the operations that depend on them.

Number ``i`` of the stream of a seed depends on these two alone, so an operation names its place in
the stream as metadata (``Draw``) and its gradient draws the same numbers again instead of saving
them.
"""

from __future__ import annotations

from math import prod

from ..backend.numpy import xp as np
from ..codegen import cuda_random
from ..codegen.cuda_random import Draw
from .core import linear

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox(seed: int, first_block: int, blocks: int):
    """``blocks`` times four 32-bit numbers of the stream of a seed, as a flat uint32 array.

    Philox4x32-10. Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011;
    constants of Random123's philox4x32.
    """
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


def words(draw: Draw, n: int):
    """The next ``n`` 32-bit numbers of a stream."""
    block = draw.position // 4
    skipped = draw.position - 4 * block
    return philox(draw.seed, block, -(-(skipped + n) // 4))[skipped : skipped + n]


def unit(words):
    """float32 numbers in [0, 1), of the upper 24 bits of words of the stream."""
    return (words >> np.uint32(8)) * np.float32(2.0**-24)


def _dropout(x, *, p: float, draw: Draw):
    """``x / (1 - p)`` where a number of the stream is at least ``p``, else 0."""
    kept = (unit(words(draw, prod(x.shape))) >= np.float32(p)).reshape(x.shape)
    if x.__class__ is not np.ndarray:  # CUDA arrays without kernels
        from ..backend.arrays import backend_of

        kept = backend_of(x).asarray(kept)
    return x * (kept.astype(x.dtype) * (1.0 / (1.0 - p)))


dropout = linear(
    "dropout",
    _dropout,
    lambda g, x, *, p, draw: dropout(g, p=p, draw=draw),
    samples=lambda r: [
        ((r(3, 5),), {"p": 0.3, "draw": Draw(1, 0)}),
        ((r(7),), {"p": 0.5, "draw": Draw(2**40, 5)}),
    ],
    cuda=cuda_random.dropout,
)
