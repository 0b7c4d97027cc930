"""What tests of programs with gradients need: comparisons, and gradients against differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .autograd import gradcheck, gradgradcheck
from .autograd.gradcheck import GradcheckError
from .backend import arrays as backend_arrays
from .backend.numpy import xp as np
from .dtypes import is_differentiable
from .tensor import Tensor

__all__ = ["GradcheckError", "assert_close", "gradcheck", "gradgradcheck"]

# torch's (rtol, atol) by dtype; others compare exactly
_TOLERANCES = {
    "float16": (1e-3, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
    "complex64": (1.3e-6, 1e-5),
    "complex128": (1e-7, 1e-7),
}
_EXACT = (0.0, 0.0)


def assert_close(
    actual,
    expected,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_device: bool = True,
    check_dtype: bool = True,
    check_stride: bool = False,
    msg: str | Callable[[str], str] | None = None,
) -> None:
    """Raise AssertionError unless ``|actual - expected| <= atol + rtol * |expected|`` everywhere.

    Takes tensors, arrays and numbers, and sequences and mappings of them. Shapes must agree, and
    devices and dtypes unless told otherwise. Tolerances left out follow the dtype: 1.3e-6 and 1e-5
    for float32, 1e-7 for float64, 1e-3 and 1e-5 for float16, 0 for integers and booleans; those of
    the wider ones if dtypes differ. ``msg`` replaces the message, or makes it from the usual one.

    Raises ValueError if only one of ``rtol`` and ``atol`` is given, TypeError for what cannot be
    compared. Names and tolerances are those of ``torch.testing.assert_close``.

    >>> import gpugrad as gg
    >>> gg.testing.assert_close(gg.tensor([1.0, 2.0]), gg.tensor([1.0, 2.000001]))
    >>> gg.testing.assert_close([1, gg.ones(2)], [1, gg.zeros(2)])
    Traceback (most recent call last):
        ...
    AssertionError: Tensor-likes are not close!
    <BLANKLINE>
    Mismatched elements: 2 / 2 (100.0%)
    Greatest absolute difference: 1.0 at index (0,) (up to 1e-05 allowed)
    Greatest relative difference: inf at index (0,) (up to 1.3e-06 allowed)
    <BLANKLINE>
    The failure occurred for item [1]
    """
    if (rtol is None) != (atol is None):
        raise ValueError(
            f"Both 'rtol' and 'atol' must be either specified or omitted, but got no "
            f"{'rtol' if rtol is None else 'atol'}."
        )
    given = None if rtol is None or atol is None else (float(rtol), float(atol))
    checks = [
        name
        for name, wanted in (
            ("device", check_device),
            ("dtype", check_dtype),
            ("stride", check_stride),
        )
        if wanted
    ]
    found = _difference(actual, expected, given, equal_nan, checks, "")
    if found is not None:
        raise AssertionError(found if msg is None else msg(found) if callable(msg) else msg)


def _difference(actual, expected, given, equal_nan, checks, place: str) -> str | None:
    """What is wrong, in words; None if nothing is."""
    failure = None
    if _is_array(actual) and _is_array(expected):
        failure = _compare(actual, expected, given, equal_nan, checks)
    elif isinstance(actual, Mapping) and isinstance(expected, Mapping):
        if set(actual) == set(expected):
            pairs: Any = [(f"{place}[{k!r}]", actual[k], expected[k]) for k in expected]
            return _first(pairs, given, equal_nan, checks)
        failure = (
            "The keys of the mappings do not match:\n"
            f"Missing keys in the actual mapping: {sorted(set(expected) - set(actual), key=str)}\n"
            f"Additional keys in the actual mapping: {sorted(set(actual) - set(expected), key=str)}"
        )
    elif _is_sequence(actual) and _is_sequence(expected):
        if len(actual) == len(expected):
            pairs = [
                (f"{place}[{i}]", a, e) for i, (a, e) in enumerate(zip(actual, expected))
            ]  # fmt: skip
            return _first(pairs, given, equal_nan, checks)
        failure = f"The length of the sequences mismatch: {len(actual)} != {len(expected)}"
    elif _is_number(actual) and _is_number(expected):
        failure = _compare_numbers(actual, expected, given, equal_nan, "dtype" in checks)
    elif actual is None or expected is None:
        failure = None if actual is expected else f"None mismatch: {actual} is not {expected}"
    else:
        raise TypeError(
            f"No comparison pair was able to handle inputs of type {type(actual)} and "
            f"{type(expected)}" + (f" (item {place})" if place else "") + "."
        )
    if failure is None or not place:
        return failure
    return f"{failure}\n\nThe failure occurred for item {place}"


def _first(pairs, given, equal_nan, checks) -> str | None:
    for place, a, e in pairs:
        found = _difference(a, e, given, equal_nan, checks, place)
        if found is not None:
            return found
    return None


def _is_array(x) -> bool:
    return isinstance(x, Tensor) or backend_arrays.is_array(x)


def _is_number(x) -> bool:
    return isinstance(x, (bool, int, float, complex, np.generic))


def _is_sequence(x) -> bool:
    return isinstance(x, Sequence) and not isinstance(x, (str, bytes))


def _compare(actual, expected, given, equal_nan, checks) -> str | None:
    a, e = (x if isinstance(x, Tensor) else Tensor(x) for x in (actual, expected))
    differing = [name for name in ("shape", *checks) if _attribute(a, name) != _attribute(e, name)]
    if differing:
        name = differing[0]
        return (
            f"The values for attribute {name!r} do not match: {_attribute(a, name)} != "
            f"{_attribute(e, name)}."
        )
    tolerances = given or _tolerances(a.dtype, e.dtype)
    return _report(
        backend_arrays.to_numpy(a.array), backend_arrays.to_numpy(e.array), tolerances, equal_nan
    )


def _attribute(x: Tensor, name: str):
    return x.stride() if name == "stride" else getattr(x, name)


def _tolerances(*kinds) -> tuple[float, float]:
    found = [_TOLERANCES.get(str(d), _EXACT) for d in kinds]
    return max(r for r, _ in found), max(a for _, a in found)


def _compare_numbers(actual, expected, given, equal_nan, check_type) -> str | None:
    if isinstance(actual, (bool, np.bool_)) and isinstance(expected, (bool, np.bool_)):
        return None if actual == expected else f"Booleans mismatch: {actual} is not {expected}"
    a, e = (x.item() if isinstance(x, np.generic) else x for x in (actual, expected))
    if check_type and type(a) is not type(e):
        return f"The (d)types do not match: {type(a)} != {type(e)}."
    kinds = [{int: "int64", float: "float64", complex: "complex128"}.get(type(x)) for x in (a, e)]
    return _report(np.asarray(a), np.asarray(e), given or _tolerances(*kinds), equal_nan)


def _report(actual, expected, tolerances, equal_nan) -> str | None:
    rtol, atol = tolerances
    exact = np.asarray(actual == expected)
    if equal_nan and is_differentiable(actual.dtype) and is_differentiable(expected.dtype):
        exact |= np.isnan(actual) & np.isnan(expected)
    if exact.all():
        return None
    wide = np.result_type(actual, expected, np.float64 if rtol or atol else np.int64)
    a, e = actual.astype(wide), expected.astype(wide)
    with np.errstate(all="ignore"):
        difference = np.asarray(np.abs(a - e))
        relative = np.where(difference == 0, 0.0, difference / np.abs(e))
        finite = np.isfinite(difference)  # not both infinite, which would be close to anything
        close = exact | (finite & (difference <= atol + rtol * np.abs(e)))
    if close.all():
        return None
    difference, relative = np.where(exact, 0, difference), np.where(exact, 0, relative)
    what = "close" if rtol or atol else "equal"
    allowed = [f" (up to {t} allowed)" if rtol or atol else "" for t in (atol, rtol)]
    if not a.ndim:
        return (
            f"Scalars are not {what}!\n\nExpected {expected.item()} but got {actual.item()}.\n"
            f"Absolute difference: {difference.item()}{allowed[0]}\n"
            f"Relative difference: {relative.item()}{allowed[1]}"
        )
    wrong = int((~close).sum())
    worst = [_worst(x) for x in (difference, relative)]
    return (
        f"Tensor-likes are not {what}!\n\n"
        f"Mismatched elements: {wrong} / {a.size} ({wrong / a.size:.1%})\n"
        f"Greatest absolute difference: {worst[0]}{allowed[0]}\n"
        f"Greatest relative difference: {worst[1]}{allowed[1]}"
    )


def _worst(values) -> str:
    """The largest value and where; NaN counts as larger than anything."""
    position = np.unravel_index(int(np.argmax(values)), values.shape)
    return f"{values[position].item()} at index {tuple(int(i) for i in position)}"
