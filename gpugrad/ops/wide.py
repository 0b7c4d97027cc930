"""bfloat16 by way of float32.

NumPy and CuPy know bfloat16 as a foreign type: some of their functions lack it, a Python number
beside it makes float32, and every intermediate value would be rounded to its 8 bits. So arguments
are widened to float32, whatever the row says is computed there, and the results are rounded once.
Rows that only move values keep their dtype (``Op.moves``), and CUDA kernels do all of this by
themselves.

Nothing here costs anything before bfloat16 is first used: rows are wrapped then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..backend.numpy import xp as np
from ..dtypes import when_bfloat16

_float32 = np.dtype("float32")


class _Known:
    """bfloat16, once somebody has used it."""

    dtype = None


known = _Known()


@when_bfloat16
def _note(dtype) -> None:
    known.dtype = dtype


def has_bfloat16(values: Sequence) -> bool:
    """Whether an array among the values is of bfloat16."""
    bfloat16 = known.dtype
    return bfloat16 is not None and any(getattr(v, "dtype", None) is bfloat16 for v in values)


def widen(values: Sequence) -> list:
    """The values with float32 arrays for those of bfloat16."""
    bfloat16 = known.dtype
    return [
        v.astype(_float32)
        if getattr(v, "dtype", None) is bfloat16 and hasattr(v, "astype")  # Meta has no values
        else v
        for v in values
    ]


def rounded(value, values: Sequence):
    """A result computed from widened ``values`` in bfloat16, if it is a floating-point array and no
    array among the values asks for another dtype."""
    given = getattr(value, "dtype", None)
    if given is None or given.kind != "f":
        return value
    if any(v.dtype.kind in "fc" for v in values if hasattr(v, "dtype")):
        return value
    return value.astype(known.dtype)


def widened(evaluate: Callable) -> Callable:
    """An evaluation of arrays that takes bfloat16, too."""

    def compute(*args, **params):
        if not has_bfloat16(args):
            return evaluate(*args, **params)
        return rounded(evaluate(*widen(args), **params), args)

    return compute
