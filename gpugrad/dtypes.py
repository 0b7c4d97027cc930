"""Data types: NumPy's own dtype objects under torch's names, and torch's promotion rules."""

from __future__ import annotations

import numpy as np

from .config import settings

dtype = np.dtype

bool_ = np.dtype("bool")
uint8, uint16, uint32, uint64 = (np.dtype(n) for n in ("uint8", "uint16", "uint32", "uint64"))
int8, int16, int32, int64 = (np.dtype(n) for n in ("int8", "int16", "int32", "int64"))
float16, float32, float64 = (np.dtype(n) for n in ("float16", "float32", "float64"))
complex64, complex128 = (np.dtype(n) for n in ("complex64", "complex128"))
half, double, long, short = float16, float64, int64, int16

settings.default_dtype = float32


def get_default_dtype() -> np.dtype:
    """The dtype of floating-point tensors made from Python numbers.

    >>> import gpugrad as gg
    >>> gg.get_default_dtype()
    dtype('float32')
    """
    return settings.default_dtype


def set_default_dtype(d) -> None:
    """Set the dtype of floating-point tensors made from Python numbers (float16, float32 or
    float64)."""
    d = np.dtype(d)
    if d.kind != "f":
        raise TypeError(f"the default dtype must be floating point, got {d}")
    settings.default_dtype = d


def is_floating(d: np.dtype) -> bool:
    return d.kind == "f"


def is_differentiable(d: np.dtype) -> bool:
    return d.kind in "fc"


def finfo(d=None) -> np.finfo:
    """Limits of a floating-point dtype (``eps``, ``max``, ``tiny`` ...)."""
    return np.finfo(d or settings.default_dtype)


def iinfo(d) -> np.iinfo:
    """Limits of an integer dtype."""
    return np.iinfo(d)


def of_scalar(value) -> np.dtype:
    """The dtype torch gives a tensor made from this Python number."""
    if isinstance(value, (bool, np.bool_)):
        return bool_
    if isinstance(value, (int, np.integer)):
        return int64
    if isinstance(value, (float, np.floating)):
        return settings.default_dtype
    if isinstance(value, (complex, np.complexfloating)):
        return complex128 if settings.default_dtype == float64 else complex64
    raise TypeError(f"cannot make a tensor element of {type(value).__name__}: {value!r}")


_RANK = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def category(dtype) -> int:
    """bool 0, integers 1, floats 2, complex numbers 3: torch's order of promotion."""
    return _RANK[dtype.kind]


def promote_types(a, b) -> np.dtype:
    """The dtype both operands fit in by torch's rule: the higher category wins with its own width.

    Unlike NumPy, an integer never widens a float: ``promote_types(int64, float32)`` is float32.

    >>> import gpugrad as gg
    >>> gg.promote_types(gg.int64, gg.float32)
    dtype('float32')
    """
    a, b = np.dtype(a), np.dtype(b)
    if a == b:
        return a
    rank_a, rank_b = _RANK[a.kind], _RANK[b.kind]
    if max(rank_a, rank_b) >= 2 and min(rank_a, rank_b) < 2:
        return a if rank_a > rank_b else b
    return np.promote_types(a, b)


def result_type_of(operands) -> np.dtype:
    """torch's ``result_type`` over ``(dtype, priority)`` pairs.

    Priority 2 is a tensor with dimensions, 1 a zero-dimensional tensor, 0 a Python number. An
    operand of lower priority changes the result only if its category (bool < integer < float <
    complex) is higher.
    """
    by_priority: list = [None, None, None]
    for d, priority in operands:
        seen = by_priority[priority]
        by_priority[priority] = d if seen is None else promote_types(seen, d)
    result = by_priority[2]
    for lower in (by_priority[1], by_priority[0]):
        if lower is None:
            continue
        if result is None:
            result = lower
        elif _RANK[lower.kind] > _RANK[result.kind]:
            if lower.kind == "c" and result.kind == "f":  # complex, as wide as the float
                result = complex128 if result == float64 else complex64
            else:
                result = promote_types(result, lower)
    assert result is not None
    return result
