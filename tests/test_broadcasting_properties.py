"""Broadcasting over shapes and dtypes drawn by hypothesis: results are NumPy's, cotangents are
summed back to the shape of each argument."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpugrad as gg

FLOATS = ("float32", "float64")
SEEDS = st.integers(0, 2**16)

# name: (NumPy's function, its partial derivatives)
BINARY = {
    "add": (np.add, lambda a, b: (np.ones_like(a), np.ones_like(b))),
    "sub": (np.subtract, lambda a, b: (np.ones_like(a), -np.ones_like(b))),
    "mul": (np.multiply, lambda a, b: (b, a)),
    "div": (np.true_divide, lambda a, b: (1 / b, -a / (b * b))),
    "maximum": (np.maximum, lambda a, b: (a > b, b > a)),
    "minimum": (np.minimum, lambda a, b: (a < b, b < a)),
    "hypot": (np.hypot, lambda a, b: (a / np.hypot(a, b), b / np.hypot(a, b))),
    "atan2": (np.arctan2, lambda a, b: (b / (a * a + b * b), -a / (a * a + b * b))),
}


def shapes(count: int):
    """So many shapes that broadcast together, of up to four dimensions, some of them empty."""
    return hnp.mutually_broadcastable_shapes(
        num_shapes=count, max_dims=4, min_side=0, max_side=4
    ).map(lambda found: found.input_shapes)


def draw(rng, shape, dtype):
    """Numbers away from zero, so that quotients and ties do no harm."""
    return np.asarray(rng.uniform(0.5, 2.0, shape) * rng.choice([-1, 1], shape)).astype(dtype)


def sum_back(g, shape):
    """The sum of a cotangent over what broadcasting stretched, by the definition."""
    total = np.zeros(shape)
    for position in np.ndindex(*g.shape):
        own = position[len(position) - len(shape) :]
        total[tuple(0 if n == 1 else i for i, n in zip(own, shape, strict=True))] += g[position]
    return total


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=80)
@given(shapes(2), st.sampled_from(FLOATS), SEEDS)
def test_values_and_gradients(name, pair, dtype, seed) -> None:
    reference, partials = BINARY[name]
    rng = np.random.default_rng(seed)
    a, b = (draw(rng, shape, dtype) for shape in pair)
    x, y = gg.tensor(a, requires_grad=True), gg.tensor(b, requires_grad=True)
    z = getattr(gg, name)(x, y)
    expected = reference(a, b)
    assert z.dtype == expected.dtype
    assert z.shape == expected.shape
    np.testing.assert_allclose(z.detach().numpy(), expected, rtol=1e-6)
    g = draw(rng, expected.shape, dtype)
    z.backward(gg.tensor(g))
    wide = np.broadcast_arrays(a, b)
    for leaf, partial in zip((x, y), partials(*wide), strict=True):
        assert leaf.grad.dtype == leaf.dtype
        np.testing.assert_allclose(
            leaf.grad.numpy(), sum_back(g * partial, leaf.shape), **tolerance(dtype)
        )


@settings(max_examples=60)
@given(shapes(3), SEEDS)
def test_where_and_lerp_of_three(triple, seed) -> None:
    rng = np.random.default_rng(seed)
    c, a, b = (draw(rng, shape, "float64") for shape in triple)
    x, y = gg.tensor(a, requires_grad=True), gg.tensor(b, requires_grad=True)
    w = gg.tensor(c, requires_grad=True)
    chosen, mixed = gg.where(w > 0, x, y), gg.lerp(x, y, w)
    np.testing.assert_array_equal(chosen.detach().numpy(), np.where(c > 0, a, b))
    np.testing.assert_allclose(mixed.detach().numpy(), a + c * (b - a), rtol=1e-12)
    g = draw(rng, chosen.shape, "float64")
    (chosen * gg.tensor(g)).sum().backward()
    take = np.broadcast_to(c > 0, g.shape)
    np.testing.assert_allclose(x.grad.numpy(), sum_back(g * take, a.shape), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(y.grad.numpy(), sum_back(g * ~take, b.shape), rtol=1e-10, atol=1e-12)
    assert w.grad is None
    (mixed * gg.tensor(g)).sum().backward()
    np.testing.assert_allclose(
        w.grad.numpy(), sum_back(g * (b - a), c.shape), rtol=1e-10, atol=1e-12
    )


DTYPES = ("bool", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "complex64")


@settings(max_examples=150)
@given(
    st.sampled_from(("add", "mul")),
    st.tuples(st.sampled_from(DTYPES), st.integers(0, 2)),
    st.one_of(
        st.tuples(st.sampled_from(DTYPES), st.integers(0, 2)),
        st.sampled_from((True, 3, 1.5, 2j)),
    ),
)
def test_dtypes_are_those_of_torch(name, left, right) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")

    def make(library, what):
        if not isinstance(what, tuple):
            return what
        dtype, ndim = what
        return library.ones((2,) * ndim, dtype=getattr(library, dtype))

    a, b = make(torch, left), make(torch, right)
    assume(torch.result_type(a, b) != torch.complex32)  # experimental, and unknown to NumPy
    ours = getattr(gg, name)(make(gg, left), make(gg, right))
    theirs = getattr(torch, name)(a, b)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    assert tuple(ours.shape) == tuple(theirs.shape)


@settings(max_examples=60)
@given(hnp.array_shapes(min_dims=0, max_dims=3), hnp.array_shapes(min_dims=0, max_dims=3))
def test_shapes_that_do_not_fit_are_named(a, b) -> None:
    x, y = gg.ones(a), gg.ones(b)
    try:
        expected = np.broadcast_shapes(a, b)
    except ValueError:
        with pytest.raises(RuntimeError, match="must match the size of tensor b"):
            x * y
        with pytest.raises(RuntimeError):
            x.mul_(y)
        assert x.sum().item() == x.numel()
        return
    assert (x * y).shape == expected
    if expected == a:
        assert x.mul_(y) is x
    else:  # an in-place operation cannot enlarge its tensor
        with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            x.mul_(y)


@settings(max_examples=60)
@given(shapes(2), SEEDS)
def test_in_place_is_the_operation(pair, seed) -> None:
    rng = np.random.default_rng(seed)
    a, b = (draw(rng, shape, "float64") for shape in pair)
    assume(np.broadcast_shapes(a.shape, b.shape) == a.shape)
    x, y = gg.tensor(a, requires_grad=True), gg.tensor(b, requires_grad=True)
    z = x * 1.0
    z *= y
    z += y
    np.testing.assert_allclose(z.detach().numpy(), a * b + b, rtol=1e-12)
    g = draw(rng, a.shape, "float64")
    z.backward(gg.tensor(g))
    np.testing.assert_allclose(x.grad.numpy(), g * b, rtol=1e-12)
    np.testing.assert_allclose(
        y.grad.numpy(), sum_back(g * (a + 1), b.shape), rtol=1e-10, atol=1e-12
    )


@settings(max_examples=60)
@given(shapes(1), st.lists(st.integers(0, 3), max_size=2), SEEDS)
def test_expand_and_its_gradient(shape, lead, seed) -> None:
    (shape,) = shape
    rng = np.random.default_rng(seed)
    target = (*lead, *(int(rng.integers(0, 4)) if n == 1 else n for n in shape))
    a = draw(rng, shape, "float64")
    x = gg.tensor(a, requires_grad=True)
    wide = x.expand(*target)
    np.testing.assert_array_equal(wide.detach().numpy(), np.broadcast_to(a, target))
    assert not wide.numel() or np.shares_memory(wide.array, x.array)
    g = draw(rng, target, "float64")
    wide.backward(gg.tensor(g))
    np.testing.assert_allclose(x.grad.numpy(), sum_back(g, shape), rtol=1e-10, atol=1e-12)


@settings(max_examples=60)
@given(shapes(2), st.tuples(*[st.integers(0, 3)] * 3), SEEDS)
def test_batches_of_matrices(pair, sizes, seed) -> None:
    m, k, n = sizes
    rng = np.random.default_rng(seed)
    a, b = draw(rng, (*pair[0], m, k), "float64"), draw(rng, (*pair[1], k, n), "float64")
    x, y = gg.tensor(a, requires_grad=True), gg.tensor(b, requires_grad=True)
    z = x @ y
    np.testing.assert_allclose(z.detach().numpy(), a @ b, rtol=1e-10, atol=1e-12)
    g = draw(rng, z.shape, "float64")
    z.backward(gg.tensor(g))
    np.testing.assert_allclose(
        x.grad.numpy(), sum_back(g @ np.swapaxes(b, -1, -2), a.shape), rtol=1e-9, atol=1e-11
    )
    np.testing.assert_allclose(
        y.grad.numpy(), sum_back(np.swapaxes(a, -1, -2) @ g, b.shape), rtol=1e-9, atol=1e-11
    )
