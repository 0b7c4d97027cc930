"""CuPy's functions and operators called with tensors stay on the tape."""

import numpy as np
import pytest

import gpugrad as gg

pytestmark = pytest.mark.gpu

cupy = pytest.importorskip("cupy")


OPERATORS = {
    "+": lambda a, t: a + t,
    "-": lambda a, t: a - t,
    "*": lambda a, t: a * t,
    "/": lambda a, t: a / t,
    "**": lambda a, t: a**t,
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_cupy_array_on_the_left(operator, rng):
    """CuPy would take the values and forget the tensor."""
    a, b = rng.uniform(0.5, 2, (2, 3, 4))
    t = gg.tensor(b, device="cuda", requires_grad=True)
    found = OPERATORS[operator](cupy.asarray(a), t)
    u = gg.tensor(b, requires_grad=True)
    expected = OPERATORS[operator](gg.tensor(a), u)
    assert isinstance(found, gg.Tensor) and found.requires_grad
    found.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(found.detach().cpu().array, expected.detach().array)
    np.testing.assert_allclose(t.grad.cpu().array, u.grad.array)


def test_comparisons_and_functions(rng):
    values = rng.normal(size=5)
    t = gg.tensor(values, device="cuda", requires_grad=True)
    assert ((cupy.asarray(values) + 1) > t).all()
    y = cupy.sin(t)
    assert isinstance(y, gg.Tensor)
    y.sum().backward()
    np.testing.assert_allclose(t.grad.cpu().array, np.cos(values))
    np.testing.assert_allclose(np.exp(t).detach().cpu().array, np.exp(values))


def test_an_array_cannot_remember_where_its_values_came_from():
    a = cupy.ones(3)
    a += gg.ones(3, dtype=gg.float64, device="cuda")
    assert a.tolist() == [2.0] * 3
    with pytest.raises(TypeError, match="requires"):
        a += gg.ones(3, dtype=gg.float64, device="cuda").requires_grad_()


def test_a_kernel_of_cupys_says_what_to_do():
    kernel = cupy.ElementwiseKernel("T x", "T y", "y = x * 2", "twice_of_cupy")
    with pytest.raises(TypeError, match="gpugrad.kernel"):
        kernel(gg.ones(3, device="cuda"))
