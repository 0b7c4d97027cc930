"""Writes in place on tensors and views, against torch's results by hand."""

import pytest

import gpugrad as gg


def test_assignment_to_an_index_is_differentiable_in_both():
    x = gg.ones(3, requires_grad=True)
    v = gg.tensor(5.0, requires_grad=True)
    y = x * 2
    y[1] = v
    (y * gg.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad.tolist() == [2.0, 0.0, 200.0]
    assert v.grad.item() == 10.0


def test_write_through_a_view_reaches_the_base():
    x = gg.ones(4, requires_grad=True)
    y = x * 1
    view = y[1:3]
    view.mul_(3.0)
    assert y.tolist() == [1.0, 3.0, 3.0, 1.0]
    (y * y).sum().backward()
    assert x.grad.tolist() == [2.0, 18.0, 18.0, 2.0]


def test_write_to_the_base_reaches_its_views():
    x = gg.ones(2, 2, requires_grad=True)
    y = x * 1
    view = y.view(4)
    y.mul_(2.0)
    view.sum().backward()
    assert x.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_leaf_that_requires_grad_is_refused():
    x = gg.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        x.add_(1)
    with gg.no_grad():
        x.add_(1)
    assert x.tolist() == [2.0, 2.0]


def test_in_place_cannot_enlarge():
    with pytest.raises(RuntimeError, match="broadcast shape"):
        gg.ones(3).add_(gg.ones(2, 3))


def test_integer_tensor_refuses_floats():
    with pytest.raises(RuntimeError, match="can't be cast"):
        gg.ones(2, dtype=gg.int64).mul_(1.5)


def test_an_element_is_a_view_not_a_number():
    x = gg.zeros(3)
    x[1].add_(5.0)
    assert x.tolist() == [0.0, 5.0, 0.0]
    assert repr(gg.tensor([1, 2])[1]) == "tensor(2)"
    assert x[gg.tensor(1)].item() == 5.0
