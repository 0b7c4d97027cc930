"""Indexing over shapes and indices drawn by hypothesis: results are NumPy's, gradients are
``np.add.at``, views share memory, and writes are recorded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpugrad as gg

DTYPES = st.sampled_from(("float64", "float32", "int64", "bool"))
SEEDS = st.integers(0, 2**16)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def slices(draw, n: int):
    """A slice whose bounds may lie outside, with positive and negative steps."""
    bound = st.none() | st.integers(-n - 2, n + 2)
    step = st.sampled_from((None, 1, 2, 3, -1, -2))
    return slice(draw(bound), draw(bound), draw(step))


@st.composite
def indices(draw, advanced: bool):
    """(shape, index): integers, slices, None, Ellipsis, and if ``advanced`` masks and arrays."""
    shape = draw(SHAPES)
    common = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    parts: list = []
    axis = 0
    # a mask counts like an array of as many positions as it has True: alone among arrays it fits
    masked = advanced and draw(st.booleans())
    while axis < len(shape) and draw(st.integers(0, 9)):
        n = shape[axis]
        kinds = ["slice", "slice", "none"] + ["int"] * (n > 0)
        if advanced:
            kinds += ["mask"] * 2 if masked else ["array"] * 3 * (n > 0)
        kind = draw(st.sampled_from(kinds))
        if kind == "none":
            if sum(part is None for part in parts) < 2:
                parts.append(None)
            continue
        if kind == "mask":
            dims = draw(st.integers(1, len(shape) - axis))
            seed = draw(SEEDS)
            parts.append(np.random.default_rng(seed).random(shape[axis : axis + dims]) < 0.5)
            axis += dims
            masked, advanced = False, False  # one mask
            continue
        if kind == "int":
            parts.append(draw(st.integers(-n, n - 1)))
        elif kind == "slice":
            parts.append(draw(slices(n)))
        else:
            own = tuple(1 if size and draw(st.booleans()) else size for size in common)
            own = own[draw(st.integers(0, len(own))) :]
            seed = draw(SEEDS)
            parts.append(np.random.default_rng(seed).integers(-n, n, own))
        axis += 1
    if draw(st.booleans()):  # anywhere, if the parts name all axes: it stands for none
        position = draw(st.integers(0, len(parts))) if axis == len(shape) else len(parts)
        parts.insert(position, Ellipsis)
    index = tuple(parts)
    return shape, index[0] if len(index) == 1 and draw(st.booleans()) else index


def as_tensors(index):
    """The same index with tensors in the place of arrays."""
    if isinstance(index, tuple):
        return tuple(as_tensors(part) for part in index)
    return gg.tensor(index) if isinstance(index, np.ndarray) else index


def draw_array(seed, shape, dtype="float64"):
    values = np.random.default_rng(seed).uniform(-2.0, 2.0, shape)
    return np.asarray(values > 0 if dtype == "bool" else values * 10).astype(dtype)


def scattered(shape, index, g):
    """The gradient of ``x[index]`` by the definition."""
    total = np.zeros(shape)
    np.add.at(total, index, g)
    return total


def check_reading(shape, index, dtype, seed) -> None:
    a = draw_array(seed, shape, dtype)
    expected = np.asarray(a[index])
    for own in (index, as_tensors(index)):
        x = gg.tensor(a)
        y = x[own]
        assert y.dtype == expected.dtype
        assert y.shape == expected.shape
        np.testing.assert_array_equal(y.numpy(), expected)
        if dtype.startswith("float"):
            x.requires_grad_()
            g = draw_array(seed + 1, expected.shape, dtype)
            x[own].backward(gg.tensor(g))
            np.testing.assert_allclose(
                x.grad.numpy(), scattered(shape, index, g), rtol=1e-5, atol=1e-5
            )


@settings(max_examples=250)
@given(indices(advanced=False), DTYPES, SEEDS)
def test_basic_indices_read(drawn, dtype, seed) -> None:
    check_reading(*drawn, dtype, seed)


@settings(max_examples=250)
@given(indices(advanced=True), DTYPES, SEEDS)
def test_all_indices_read(drawn, dtype, seed) -> None:
    check_reading(*drawn, dtype, seed)


@settings(max_examples=150)
@given(indices(advanced=False), SEEDS)
def test_basic_indices_are_views(drawn, seed) -> None:
    shape, index = drawn
    a = draw_array(seed, shape)
    x = gg.tensor(a)
    view = x[index]
    assert not view.numel() or np.shares_memory(view.array, x.array)
    a[index] = 7.0
    view.fill_(7.0)  # a write through the view shows up in the base
    np.testing.assert_array_equal(x.numpy(), a)
    a[...] = a * 2 + 1
    x.mul_(2.0).add_(1.0)  # and one to the base in the view
    np.testing.assert_array_equal(view.numpy(), a[index])


@settings(max_examples=150)
@given(indices(advanced=True), SEEDS)
def test_arrays_and_masks_copy(drawn, seed) -> None:
    shape, index = drawn
    parts = index if isinstance(index, tuple) else (index,)
    a = draw_array(seed, shape)
    x = gg.tensor(a)
    if any(isinstance(part, np.ndarray) for part in parts):
        x[index].fill_(7.0)
        np.testing.assert_array_equal(x.numpy(), a)


@settings(max_examples=150)
@given(indices(advanced=False), SEEDS)
def test_writes_through_views_are_recorded(drawn, seed) -> None:
    shape, index = drawn
    a, weights = draw_array(seed, shape), draw_array(seed + 1, shape)
    x = gg.tensor(a, requires_grad=True)
    y = x * 1.0
    view = y[index]
    view.mul_(view.detach().clone())  # times numbers that differ
    a_new = a.copy()
    a_new[index] *= a[index]
    np.testing.assert_allclose(y.detach().numpy(), a_new)
    np.testing.assert_allclose(view.detach().numpy(), a_new[index])
    (y * gg.tensor(weights)).sum().backward()
    slope = np.ones(shape)
    slope[index] = a[index]
    np.testing.assert_allclose(x.grad.numpy(), weights * slope)


def check_assignment(shape, index, seed, data) -> None:
    a, weights = draw_array(seed, shape), draw_array(seed + 1, shape)
    target = np.asarray(a[index]).shape
    own = data.draw(st.sampled_from([target, target[1:], (), tuple(1 for _ in target)]))
    b = draw_array(seed + 2, own)
    x, v = gg.tensor(a, requires_grad=True), gg.tensor(b, requires_grad=True)
    y = x * 1.0
    y[data.draw(st.sampled_from([index, as_tensors(index)]))] = v
    expected = a.copy()
    expected[index] = b
    np.testing.assert_array_equal(y.detach().numpy(), expected)
    (y * gg.tensor(weights)).sum().backward()
    kept = np.ones(shape)
    kept[index] = 0.0
    np.testing.assert_allclose(x.grad.numpy(), weights * kept)
    # y = kept * x + P v, so that the gradient of v is P' weights; P column by column
    flat = np.zeros(b.size)
    for k in range(b.size):
        unit = np.zeros(b.size)
        unit[k] = 1.0
        column = np.zeros(shape)
        column[index] = unit.reshape(b.shape)
        flat[k] = (column * weights).sum()
    np.testing.assert_allclose(v.grad.numpy(), flat.reshape(b.shape), rtol=1e-9, atol=1e-9)


@settings(max_examples=120)
@given(indices(advanced=False), SEEDS, st.data())
def test_assignment_to_basic_indices(drawn, seed, data) -> None:
    check_assignment(*drawn, seed, data)


@settings(max_examples=250)
@given(indices(advanced=True), SEEDS, st.data())
def test_assignment_to_all_indices(drawn, seed, data) -> None:
    """At different positions: which of two values for one position stays is undefined in torch."""
    shape, index = drawn
    times = np.zeros(shape)
    np.add.at(times, index, 1)
    assume((times <= 1).all())
    check_assignment(shape, index, seed, data)


@settings(max_examples=100)
@given(indices(advanced=True), SEEDS)
def test_second_order(drawn, seed) -> None:
    """d/dx of sum(w * x[index]^3): the gradient is itself recorded."""
    shape, index = drawn
    a = draw_array(seed, shape)
    x = gg.tensor(a, requires_grad=True)
    y = x[index]
    (first,) = gg.autograd.grad((y * y * y).sum(), x, create_graph=True)
    np.testing.assert_allclose(
        first.detach().numpy(), scattered(shape, index, 3 * a[index] ** 2), rtol=1e-9
    )
    (second,) = gg.autograd.grad(first.sum(), x)
    np.testing.assert_allclose(
        second.numpy(), scattered(shape, index, 6 * a[index]), rtol=1e-9, atol=1e-9
    )


@settings(max_examples=100)
@given(SHAPES, st.data())
def test_an_index_outside_is_an_index_error(shape, data) -> None:
    x = gg.ones(shape)
    if not shape:
        with pytest.raises(IndexError):
            x[0]
        return
    axis = data.draw(st.integers(0, len(shape) - 1))
    n = shape[axis]
    outside = data.draw(st.sampled_from([n, n + 3, -n - 1]))
    for part in (outside, [outside], gg.tensor([outside])):
        index = (slice(None),) * axis + (part,)
        if isinstance(part, int) or x.numel():
            with pytest.raises(IndexError, match=r"out of bounds.*\(tensor of shape"):
                x[index]
    with pytest.raises(IndexError, match="too many indices"):
        x[(0,) * (len(shape) + 1) if all(shape) else (slice(None),) * (len(shape) + 1)]
