"""``gpugrad.testing`` beside ``torch.testing``: what passes, what fails, and in which words."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.testing import assert_close

NAN, INF = float("nan"), float("inf")

# (actual, expected, options): lists of numbers become tensors
CASES = [
    ([1.0, 2.0, 3.0], [1.0, 2.5, 3.0], {}),
    ([1.0, 2.0], [1.0, 2.000002], {}),
    ([1.0, 2.0], [1.0, 2.1], {"rtol": 0.1, "atol": 0.0}),
    ([1.0, 2.0], [1.0, 2.1], {"rtol": 0.0, "atol": 0.01}),
    ([1, 2, 3], [1, 2, 4], {}),
    ([[1.0], [2.0]], [1.0, 2.0], {}),
    ([NAN], [NAN], {}),
    ([NAN], [NAN], {"equal_nan": True}),
    ([INF, 1.0], [INF, 1.0], {}),
    ([INF], [-INF], {}),
    ([INF], [1.0], {}),
    ([True, False], [True, True], {}),
    ([0.0], [1e-6], {}),
    (1.0, 1.1, {}),
    (1.0, 1.0 + 1e-9, {}),
    (1, 1, {}),
    (1, 2, {}),
    (1, 1.0, {}),
    (1, 1.0, {"check_dtype": False}),
    (True, False, {}),
    ({"a": [1.0], "b": 2.0}, {"a": [1.0], "b": 3.0}, {}),
    ({"a": 1}, {"b": 1}, {}),
    (([1.0], ([2.0], 3.0)), ([1.0], ([2.0], 4.0)), {}),
    ((1, 2), (1,), {}),
    ([1.0], [2.0], {"msg": "as I said"}),
    ([1.0], [2.0], {"msg": lambda text: f"see: {text}"}),
]


def made(library, value):
    if isinstance(value, list):
        return library.tensor(value)
    if isinstance(value, dict):
        return {k: made(library, v) for k, v in value.items()}
    return tuple(made(library, v) for v in value) if isinstance(value, tuple) else value


def message(compare, *arguments, **options) -> str | None:
    try:
        compare(*arguments, **options)
    except AssertionError as error:
        # the last digits of a relative difference depend on where it is computed
        return re.sub(r"(relative difference: )\S+", r"\1x", str(error), flags=re.IGNORECASE)
    return None


@pytest.mark.parametrize("case", range(len(CASES)))
def test_verdict_and_words_are_torch_s(case: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    actual, expected, options = CASES[case]
    ours = message(assert_close, made(gg, actual), made(gg, expected), **options)
    theirs = message(
        torch.testing.assert_close, made(torch, actual), made(torch, expected), **options
    )
    assert (ours is None) == (theirs is None)
    if ours is not None and "attribute" not in ours:
        assert ours == theirs


def test_dtypes_and_shapes() -> None:
    a, b = gg.ones(2), gg.ones(2, dtype=gg.float64)
    with pytest.raises(AssertionError, match=r"'dtype' do not match: float32 != float64"):
        assert_close(a, b)
    assert_close(a, b, check_dtype=False)
    with pytest.raises(AssertionError, match=r"'shape' do not match: \(2,\) != \(3,\)"):
        assert_close(a, gg.ones(3))
    with pytest.raises(AssertionError, match="'stride' do not match"):
        assert_close(gg.ones(2, 3), gg.ones(3, 2).T, check_stride=True)


def test_arrays_and_tensors_with_gradients() -> None:
    x = gg.ones(2, requires_grad=True)
    assert_close(x * 2, np.full(2, 2.0, np.float32))
    assert_close(np.ones(2), np.ones(2) + 1e-8)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(np.ones(2), np.zeros(2))


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="got no atol"):
        assert_close(gg.ones(1), gg.ones(1), rtol=0.1)
    with pytest.raises(TypeError, match="No comparison pair"):
        assert_close(gg.ones(1), 1.0)
    with pytest.raises(TypeError, match=r"item \[1\]"):
        assert_close([1, "a"], [1, "a"])
    with pytest.raises(AssertionError, match="None"):
        assert_close(None, 1.0)


def test_gradcheck_is_here_too() -> None:
    x = gg.tensor([0.3], dtype=gg.float64, requires_grad=True)
    assert gg.testing.gradcheck(gg.sin, (x,))
    assert gg.testing.gradgradcheck(gg.sin, (x,))
