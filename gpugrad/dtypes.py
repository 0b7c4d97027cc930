"""Data types: NumPy's own dtype objects under torch's names, and torch's promotion rules.

``bfloat16`` is not NumPy's but ml_dtypes'. It is imported when it is first asked for, by name or
by an array that has it; to NumPy its kind is "V" (void), so that questions about the kind of a
dtype are asked here and not of ``dtype.kind``.
"""

from __future__ import annotations

from collections.abc import Callable

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

_MISSING = (
    "bfloat16 needs the package ml_dtypes, which is not installed: "
    'pip install "gpugrad[bfloat16]" (the extras cuda12 and cuda13 bring it, too)'
)
_waiting: list[Callable] = []  # to be called when bfloat16 is first used
_bfloat16: np.dtype | None = None


def __getattr__(name: str):
    if name == "bfloat16":
        return _load_bfloat16()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _load_bfloat16() -> np.dtype:
    global _bfloat16
    if _bfloat16 is None:
        try:
            from ml_dtypes import bfloat16
        except ImportError as error:
            raise ImportError(_MISSING) from error
        _bfloat16 = np.dtype(bfloat16)
        for prepare in _waiting:
            prepare(_bfloat16)
    return _bfloat16


def when_bfloat16(prepare: Callable) -> None:
    """Call ``prepare(bfloat16)`` when bfloat16 is first used: nothing before needs to know it."""
    _waiting.append(prepare)


def is_bfloat16(d: np.dtype) -> bool:
    """Whether this is bfloat16; never imports it for other dtypes.

    >>> from gpugrad import dtypes
    >>> dtypes.is_bfloat16(dtypes.float16)
    False
    """
    return d is _bfloat16 or (d.kind == "V" and d.name == "bfloat16" and d == _load_bfloat16())


def as_dtype(d) -> np.dtype:
    """The dtype meant by a dtype, a type or a name, ``"bfloat16"`` among them."""
    if d.__class__ is str and d == "bfloat16":
        return _load_bfloat16()
    return np.dtype(d)


def get_default_dtype() -> np.dtype:
    """The dtype of floating-point tensors made from Python numbers.

    >>> import gpugrad as gg
    >>> gg.get_default_dtype()
    dtype('float32')
    """
    return settings.default_dtype


def set_default_dtype(d) -> None:
    """Set the dtype of floating-point tensors made from Python numbers (float16, bfloat16, float32
    or float64)."""
    d = as_dtype(d)
    if not is_floating(d):
        raise TypeError(f"the default dtype must be floating point, got {d}")
    settings.default_dtype = d


def is_floating(d: np.dtype) -> bool:
    """float16, bfloat16, float32 or float64."""
    return d.kind == "f" or (d.kind == "V" and is_bfloat16(d))


def is_differentiable(d: np.dtype) -> bool:
    """A floating-point or complex dtype: tensors of others have no gradient."""
    return d.kind in "fc" or (d.kind == "V" and is_bfloat16(d))


def is_number(d: np.dtype) -> bool:
    """A dtype tensors may have."""
    return d.kind in "biufc" or (d.kind == "V" and is_bfloat16(d))


def is_half(d: np.dtype) -> bool:
    """float16 or bfloat16: 16 bits, arithmetic in float32."""
    return d == float16 or is_bfloat16(d)


def finfo(d=None):
    """Limits of a floating-point dtype (``eps``, ``max``, ``tiny`` ...).

    >>> import gpugrad as gg
    >>> float(gg.finfo(gg.float16).max)
    65504.0
    """
    d = settings.default_dtype if d is None else as_dtype(d)
    if is_bfloat16(d):
        import ml_dtypes

        return ml_dtypes.finfo(d)
    return np.finfo(d)


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
    rank = _RANK.get(dtype.kind)
    if rank is None:
        if not is_bfloat16(dtype):
            raise TypeError(f"tensors of dtype {dtype} are not supported")
        return 2
    return rank


def promote_types(a, b) -> np.dtype:
    """The dtype both operands fit in by torch's rule: the higher category wins with its own width.

    Unlike NumPy, an integer never widens a float: ``promote_types(int64, float32)`` is float32.

    >>> import gpugrad as gg
    >>> gg.promote_types(gg.int64, gg.float32)
    dtype('float32')
    """
    a, b = as_dtype(a), as_dtype(b)
    if a == b:
        return a
    rank_a, rank_b = category(a), category(b)
    if max(rank_a, rank_b) >= 2 and min(rank_a, rank_b) < 2:
        return a if rank_a > rank_b else b
    if is_half(a) and is_half(b):  # neither holds all numbers of the other
        return float32
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
        elif category(lower) > category(result):
            if lower.kind == "c" and is_floating(result):  # complex, as wide as the float
                result = complex128 if result == float64 else complex64
            else:
                result = promote_types(result, lower)
    assert result is not None
    return result
