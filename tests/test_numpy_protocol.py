"""NumPy's functions called on tensors: values are NumPy's, gradients are central differences, and
nothing leaves the tape unseen."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg

A = np.array([[0.3, 1.7, 0.9], [1.2, 0.4, 0.8]])
B = np.array([[0.5, 0.25, 2.0], [1.5, 0.7, 1.1]])
SQUARE = np.array([[0.3, 1.7, 0.9], [1.2, 0.4, 0.8], [0.6, 1.1, 2.2]])

DIFFERENTIABLE = {
    "sin": np.sin,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "arctan": np.arctan,
    "log1p": np.log1p,
    "abs": lambda x: np.abs(x - 0.85),
    "square": np.square,
    "reciprocal": np.reciprocal,
    "negative": np.negative,
    "array + x": lambda x: B + x,
    "array * x": lambda x: B * x,
    "array - x": lambda x: B - x,
    "array / x": lambda x: B / x,
    "array ** x": lambda x: B**x,
    "array @ x": lambda x: B.T @ x,
    "x @ array": lambda x: x @ B.T,
    "NumPy number * x": lambda x: np.float64(1.5) * x + np.int64(2),
    "add": lambda x: np.add(B, x),
    "multiply": lambda x: np.multiply(x, B[0]),
    "multiply by a list": lambda x: np.multiply(x, [1, 2, 3]),
    "divide": lambda x: np.divide(x, B),
    "power": lambda x: np.power(x, 3),
    "maximum": lambda x: np.maximum(x, B),
    "minimum": lambda x: np.minimum(B, x),
    "hypot": lambda x: np.hypot(x, B),
    "arctan2": lambda x: np.arctan2(x, B),
    "logaddexp": lambda x: np.logaddexp(x, B),
    "matmul": lambda x: np.matmul(x, B.T),
    "sum": np.sum,
    "sum of an axis": lambda x: np.sum(x, axis=1),
    "sum, kept": lambda x: np.sum(x, axis=(0, 1), keepdims=True),
    "mean": lambda x: np.mean(x, axis=0),
    "var": lambda x: np.var(x, axis=1),
    "std": lambda x: np.std(x, ddof=1),
    "prod": lambda x: np.prod(x, axis=1),
    "prod of two axes": lambda x: np.prod(x, axis=(0, 1)),
    "max": lambda x: np.max(x, axis=1),
    "amin": np.amin,
    "cumsum": lambda x: np.cumsum(x, axis=1),
    "cumsum, flat": np.cumsum,
    "sort": lambda x: np.sort(x, axis=0),
    "where": lambda x: np.where(x > 0.85, x * x, B),
    "clip": lambda x: np.clip(x, 0.5, 1.3),
    "reshape": lambda x: np.reshape(x, (3, -1)),
    "reshape to a number": lambda x: np.reshape(x, 6),
    "ravel": np.ravel,
    "transpose": np.transpose,
    "transpose, axes": lambda x: np.transpose(x, (1, 0)),
    "swapaxes": lambda x: np.swapaxes(x, 0, 1),
    "moveaxis": lambda x: np.moveaxis(x, 0, -1),
    "expand_dims": lambda x: np.expand_dims(x, (0, -1)),
    "squeeze": lambda x: np.squeeze(np.expand_dims(x, 0), axis=0),
    "broadcast_to": lambda x: np.broadcast_to(x, (4, 2, 3)),
    "concatenate": lambda x: np.concatenate([x, B, x], axis=1),
    "concatenate, flat": lambda x: np.concatenate([x, B[0]], axis=None),
    "stack": lambda x: np.stack([B, x], axis=-1),
    "vstack": lambda x: np.vstack([x, B[0]]),
    "hstack": lambda x: np.hstack([B, x]),
    "split": lambda x: np.split(x, 3, axis=1)[1],
    "split at": lambda x: np.split(x, [1, 2], axis=1)[2],
    "tile": lambda x: np.tile(x, (2, 1)),
    "repeat": lambda x: np.repeat(x, 2, axis=1),
    "roll": lambda x: np.roll(x, 1, axis=1),
    "flip": np.flip,
    "take": lambda x: np.take(x, [2, 0, 2], axis=1),
    "take_along_axis": lambda x: np.take_along_axis(x, np.array([[1], [0]]), axis=1),
    "tril": np.tril,
    "triu": lambda x: np.triu(x, 1),
    "diagonal": lambda x: np.diagonal(x, 1),
    "trace": np.trace,
    "diag": lambda x: np.diag(x[0]),
    "dot": lambda x: np.dot(x, B.T),
    "dot of vectors": lambda x: np.dot(x[0], x[1]),
    "dot with a number": lambda x: np.dot(x, 3.0),
    "dot of three axes": lambda x: np.dot(np.ones((2, 1, 2)), x),
    "inner": lambda x: np.inner(x, B),
    "outer": lambda x: np.outer(x, B[0]),
    "tensordot": lambda x: np.tensordot(x, B, axes=([0], [0])),
    "einsum": lambda x: np.einsum("ij,kj->ik", x, B),
    "norm": np.linalg.norm,
    "norm of rows": lambda x: np.linalg.norm(x, axis=1),
    "1-norm of rows": lambda x: np.linalg.norm(x, ord=1, axis=1, keepdims=True),
    "copy": np.copy,
}


def differences(function, a, weights, step=1e-6):
    """The gradient of ``sum(weights * function(a))``, entry by entry."""
    found = np.zeros_like(a)
    for i in np.ndindex(*a.shape):
        moved = a.copy(), a.copy()
        moved[0][i] += step
        moved[1][i] -= step
        plus, minus = (np.sum(weights * function(m)) for m in moved)
        found[i] = (plus - minus) / (2 * step)
    return found


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_value_and_gradient(name: str) -> None:
    function = DIFFERENTIABLE[name]
    x = gg.tensor(A, requires_grad=True)
    expected, y = np.asarray(function(A)), function(x)
    assert isinstance(y, gg.Tensor)
    assert y.requires_grad
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12)
    weights = np.random.default_rng(0).normal(size=expected.shape)
    y.backward(gg.tensor(weights))
    np.testing.assert_allclose(
        x.grad.numpy(), differences(function, A, weights), rtol=1e-6, atol=1e-8
    )


PLAIN = {
    "greater": lambda x: x < B,
    "array > x": lambda x: B > x,  # noqa: SIM300
    "array == x": lambda x: A == x,  # noqa: SIM300
    "isnan": np.isnan,
    "sign": np.sign,
    "floor": np.floor,
    "rint": np.rint,
    "round": lambda x: np.round(x, 1),
    "floor_divide": lambda x: np.floor_divide(B, x),
    "remainder": lambda x: np.remainder(B, x),
    "bitwise_and": lambda x: (A > 0.5) & (x > 0.8),
    "invert": lambda x: np.invert(x > 0.8),
    "logical_or": lambda x: np.logical_or(x > 1, B > 1),
    "any": lambda x: np.any(x > 1, axis=0),
    "all": lambda x: np.all(x > 0),
    "argmax": lambda x: np.argmax(x, axis=1),
    "argmin": np.argmin,
    "argsort": lambda x: np.argsort(x, axis=1),
    "count_nonzero": lambda x: np.count_nonzero(x > 1),
    "nonzero": lambda x: np.nonzero(x > 1)[1],
    "where of one": lambda x: np.where(x > 1)[0],
    "isclose": lambda x: np.isclose(x, A),
    "zeros_like": np.zeros_like,
    "full_like": lambda x: np.full_like(x, 3.0),
    "mean of integers": lambda x: np.mean(x > 1),
    "matrix of cov": lambda x: np.outer(x > 1, x > 1),
}


@pytest.mark.parametrize("name", PLAIN)
def test_values_without_gradient(name: str) -> None:
    function = PLAIN[name]
    expected, y = np.asarray(function(A)), function(gg.tensor(A))
    assert isinstance(y, gg.Tensor)
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y.numpy(), expected)


def test_answers_that_are_no_tensors() -> None:
    x = gg.tensor(A)
    assert np.shape(x) == (2, 3)
    assert (np.ndim(x), np.size(x), np.size(x, 1)) == (2, 6, 3)
    assert np.allclose(x, A) is True
    assert np.array_equal(x, A) is True
    assert np.asarray(x) is x.array
    np.testing.assert_allclose(x, A)
    assert np.array(x).tolist() == A.tolist()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: np.multiply.reduce(x), "numpy.multiply.reduce"),
        (lambda x: np.add.outer(x, x), "numpy.add.outer"),
        (lambda x: np.cbrt(x), "numpy.cbrt"),
        (lambda x: np.median(x), "numpy.median"),
        (lambda x: np.linalg.svd(x), "numpy.linalg.svd"),
        (lambda x: np.add(x, x, where=A > 1), "'where'"),
        (lambda x: np.sum(x, where=A > 1), "'where'"),
        (lambda x: np.linalg.norm(x, 2), "takes ord=None or 'fro'"),
        (lambda x: np.reshape(x, (3, 2), order="F"), "order"),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_what_is_unknown_is_refused_by_name(call, name: str, requires_grad: bool) -> None:
    with pytest.raises(TypeError, match=name.replace(".", r"\.")) as caught:
        call(gg.tensor(A, requires_grad=requires_grad))
    if name.startswith("numpy."):
        assert "detach().numpy()" in str(caught.value)


def test_an_array_takes_values_but_no_history() -> None:
    total = A.copy()
    total += gg.tensor(B)
    np.testing.assert_allclose(total, A + B)
    assert type(total) is np.ndarray
    with pytest.raises(TypeError, match=r"array = array \+ tensor"):
        total += gg.tensor(B, requires_grad=True)
    np.testing.assert_allclose(total, A + B)
    with gg.no_grad():
        total += gg.tensor(B, requires_grad=True)
    np.testing.assert_allclose(total, A + 2 * B)
    sums = np.empty(3)
    assert np.sum(gg.tensor(A), axis=0, out=sums) is sums
    np.testing.assert_allclose(sums, A.sum(0))


def test_a_tensor_as_output_is_written_in_place() -> None:
    x = gg.tensor(A, requires_grad=True)
    out = gg.zeros(2, 3, dtype=gg.float64)
    assert np.multiply(x, B, out=out) is out
    out.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), B)
    t = gg.tensor(A)
    t += B
    np.testing.assert_allclose(t.numpy(), A + B)


def test_second_order_and_forward_mode() -> None:
    def f(x):
        return np.sum(np.sin(x) * x)

    x = gg.tensor(A[0], requires_grad=True)
    (first,) = gg.autograd.grad(f(x), x, create_graph=True)
    (second,) = gg.autograd.grad(first.sum(), x)
    np.testing.assert_allclose(second.numpy(), 2 * np.cos(A[0]) - np.sin(A[0]) * A[0])
    _, tangent = gg.func.jvp(f, (gg.tensor(A[0]),), (gg.ones(3, dtype=gg.float64),))
    np.testing.assert_allclose(tangent.item(), (np.cos(A[0]) * A[0] + np.sin(A[0])).sum())


def test_another_array_type_may_answer() -> None:
    class Other:
        __array_ufunc__ = None

        def __array_function__(self, func, types, args, kwargs):
            return "mine"

    assert np.concatenate([gg.ones(2), Other()]) == "mine"
