"""Smoke tests of the engine: two seconds that tell whether anything works at all."""

import numpy as np
import pytest

import gpugrad as gg


def test_gradient_of_a_product():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_arrays_are_shared_not_copied():
    a = np.zeros(3)
    assert gg.from_numpy(a).array is a


def test_a_chain_of_100_000_operations_needs_no_recursion():
    x = gg.tensor([1.0], requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.item() == 1.0


def test_backward_twice_says_what_to_do():
    x = gg.tensor([1.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


def test_backward_from_a_non_scalar_names_the_shape():
    x = gg.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"scalar outputs.*\(2, 3\)"):
        (x * 2).backward()


def test_saved_value_written_in_place_is_noticed():
    x = gg.ones(3, requires_grad=True)
    w = gg.ones(3)
    y = (x * w).sum()
    w.add_(1)
    with pytest.raises(gg.SavedTensorError, match="test_tiny.py"):
        y.backward()


def test_shapes_that_do_not_broadcast():
    with pytest.raises(RuntimeError, match=r"size of tensor a \(3\).*tensor b \(4\)"):
        gg.ones(2, 3) + gg.ones(4)


def test_perturbation_confusion():
    """d/dx [x * d/dy (x + y)] at 1 is 1; an engine that mixes its levels says 2."""

    def inner(x):
        return x * gg.func.jvp(lambda y: x + y, (gg.tensor(1.0),), (gg.tensor(1.0),))[1]

    one = gg.tensor(1.0)
    assert gg.func.jvp(inner, (one,), (one,))[1].item() == 1.0


def test_no_grad_inside_and_outside():
    x = gg.ones(2, requires_grad=True)
    with gg.no_grad():
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
