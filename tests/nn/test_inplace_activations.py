"""``inplace=True`` of activations beside torch: the memory, the gradient and the refusals."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn

FUNCTIONS = {
    "relu": (),
    "relu6": (),
    "leaky_relu": (0.2,),
    "elu": (0.7,),
    "selu": (),
    "silu": (),
    "mish": (),
    "hardtanh": (-0.5, 0.8),
}
MODULES = {"ReLU": (), "LeakyReLU": (0.2,), "ELU": (0.7,), "SiLU": ()}
VALUES = np.array([-3.0, -0.4, 0.3, 0.9, 7.0])


def gradient(library, values, call):
    """The result of ``call`` on a computed tensor, and the gradient that reaches the leaf."""
    leaf = library.tensor(values, requires_grad=True)
    x = leaf * 1.5
    y = call(x)
    assert y is x
    (y * library.tensor([1.0, 10.0, 2.0, 3.0, 5.0], dtype=library.float64)).sum().backward()
    return np.asarray(y.detach()), np.asarray(leaf.grad)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_overwrite_and_differentiate_as_torch(torch, name: str) -> None:
    options = FUNCTIONS[name]
    judge = getattr(torch.nn.functional, name)
    if name == "leaky_relu":  # torch has no such gradient for negative slopes; this one is positive
        assert options[0] > 0
    expected = gradient(torch, VALUES, lambda x: judge(x, *options, inplace=True))
    found = gradient(gg, VALUES, lambda x: getattr(F, name)(x, *options, inplace=True))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", MODULES)
def test_modules_overwrite_and_differentiate_as_torch(torch, name: str) -> None:
    ours = getattr(nn, name)(*MODULES[name], inplace=True)
    judge = getattr(torch.nn, name)(*MODULES[name], inplace=True)
    assert repr(ours) == repr(judge)
    for a, b in zip(gradient(gg, VALUES, ours), gradient(torch, VALUES, judge), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_leaf_that_requires_grad_is_refused(torch, name: str) -> None:
    for library, functional in ((torch, torch.nn.functional), (gg, F)):
        leaf = library.ones(3, requires_grad=True)
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            getattr(functional, name)(leaf, *FUNCTIONS[name], inplace=True)
        assert leaf.tolist() == [1.0, 1.0, 1.0]
        with library.no_grad():
            assert getattr(functional, name)(leaf, *FUNCTIONS[name], inplace=True) is leaf


def test_a_saved_value_that_is_overwritten_is_noticed(torch) -> None:
    for library, functional in ((torch, torch.nn.functional), (gg, F)):
        y = library.ones(3, requires_grad=True).exp()
        functional.relu(y, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_through_a_view_the_base_changes() -> None:
    x = gg.tensor([-1.0, 2.0, -3.0], requires_grad=True)
    y = x * 1.0
    F.silu(y[:2], inplace=True)
    np.testing.assert_allclose(y.detach()[0].item(), -1 / (1 + np.e), rtol=1e-6)
    y.sum().backward()
    z = gg.tensor([-1.0, 2.0], requires_grad=True)
    F.silu(z).sum().backward()
    assert x.grad.tolist() == [*z.grad.tolist(), 1.0]


@pytest.mark.parametrize("name", ["abs", "sin", "square", "log", "reciprocal", "exp", "cos"])
def test_methods_in_place_keep_what_their_derivative_reads(torch, name: str) -> None:
    def write(x):
        return getattr(x, f"{name}_")()

    values = np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    for a, b in zip(gradient(gg, values, write), gradient(torch, values, write), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", ["mul_", "div_", "add_", "sub_"])
def test_a_factor_in_place_gets_its_gradient(torch, name: str) -> None:
    grads = []
    for library in (gg, torch):
        w = library.tensor([2.0, 3.0], requires_grad=True)
        x = library.tensor([5.0, 7.0], requires_grad=True)
        y = x * 1.0
        getattr(y, name)(w)
        y.sum().backward()
        constant = library.tensor([5.0, 7.0])
        getattr(constant, name)(w)
        (constant * constant).sum().backward()
        grads.append([x.grad.tolist(), w.grad.tolist()])
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-6)
