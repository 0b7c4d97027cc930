"""Elementwise kernels of the user's own: from an expression, and from CUDA source."""

import numpy as np
import pytest

import gpugrad as gg

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@gg.kernel
def swish(x, beta):
    """x * sigmoid(beta * x)"""
    return x * gg.sigmoid(beta * x)


@gg.kernel(
    cuda="y = x / (1 + fabs(x) * b);",
    backward="C d = 1 + fabs(x) * b; gx = g / (d * d); gb = -g * x * fabs(x) / (d * d);",
)
def softsign(x, b):
    return x / (1 + abs(x) * b)


@gg.kernel(cuda="y = x * x * x;", backward="gx = 3 * g * x * x;")
def cube_on_cuda_only(x): ...


@gg.kernel
def inside(x, radius):
    return abs(x) < radius


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [swish, softsign])
def test_value_gradient_and_second_derivative(kernel, device):
    x = gg.randn(3, 4, dtype=gg.float64).to(device).requires_grad_()
    b = gg.rand(4, dtype=gg.float64).to(device).requires_grad_()
    expected = kernel.__wrapped__(x, b)  # as operations of tensors
    found = kernel(x, b)
    assert gg.allclose(found, expected, 1e-12)
    assert kernel.gradcheck(x, b)
    g = gg.randn(3, 4, dtype=gg.float64).to(device)
    first = gg.autograd.grad(found, (x, b), g, create_graph=True)
    wanted = gg.autograd.grad(expected, (x, b), g, create_graph=True)
    second = gg.autograd.grad(sum((f * f).sum() for f in first), (x, b))
    wanted_second = gg.autograd.grad(sum((w * w).sum() for w in wanted), (x, b))
    for f, w in zip((*first, *second), (*wanted, *wanted_second), strict=True):
        assert gg.allclose(f, w, 1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_numbers_and_promotion(dtype, device):
    x = gg.randn(1000).to(dtype).to(device)
    y = swish(x, 2.0)
    assert y.dtype == x.dtype and y.device == x.device
    wide = x.double().cpu()
    expected = wide * gg.sigmoid(2.0 * wide)
    rtol = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(y.double().cpu().array, expected.array, rtol, rtol)
    assert swish(gg.arange(3, device=device), 1).dtype == gg.float32


@pytest.mark.parametrize("device", DEVICES)
def test_comparisons_make_booleans_without_gradient(device):
    x = gg.tensor([-2.0, 0.5], device=device, requires_grad=True)
    y = inside(x, 1.0)
    assert y.dtype == gg.bool_ and y.tolist() == [False, True] and not y.requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_jvp_and_use_in_other_functions(device):
    x = gg.randn(5, dtype=gg.float64).to(device)
    _, tangent = gg.func.jvp(lambda v: softsign(v, 0.5), (x,), (gg.ones_like(x),))
    _, wanted = gg.func.jvp(lambda v: v / (1 + abs(v) * 0.5), (x,), (gg.ones_like(x),))
    assert gg.allclose(tangent, wanted)


@pytest.mark.gpu
def test_source_without_an_expression():
    x = gg.randn(7, dtype=gg.float64).cuda().requires_grad_()
    assert gg.allclose(cube_on_cuda_only(x), x**3)
    assert cube_on_cuda_only.gradcheck(x)
    (g,) = gg.autograd.grad(cube_on_cuda_only(x).sum(), x)
    assert gg.allclose(g, 3 * x * x)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        gg.autograd.grad(cube_on_cuda_only(x).sum(), x, create_graph=True)


@pytest.mark.gpu
def test_gradcheck_finds_source_that_differs_from_the_expression():
    @gg.kernel(cuda="y = x * 2;")
    def wrong(x):
        return x * 3

    x = gg.randn(3, dtype=gg.float64).cuda().requires_grad_()
    with pytest.raises((AssertionError, RuntimeError)):
        wrong.gradcheck(x)


@pytest.mark.gpu
def test_source_that_does_not_compile_shows_the_line_and_the_expression_computes():
    @gg.kernel(cuda="C z = x;\ny = undefined_function(z);")
    def broken(x):
        return x + 1

    with pytest.warns(UserWarning, match=r"undefined_function"):
        y = broken(gg.ones(2).cuda())
    assert y.tolist() == [2.0, 2.0]


def test_what_a_kernel_cannot_be():
    with pytest.raises(RuntimeError, match="CUDA source only"):
        cube_on_cuda_only(gg.ones(2))
    with pytest.raises(TypeError, match="returns no expression"):
        gg.kernel(lambda x: None)
    with pytest.raises(TypeError, match="positional"):
        gg.kernel(lambda x, *, p: x)
    with pytest.raises(TypeError, match="needs cuda="):
        gg.kernel(lambda x: x, backward="gx = g;")
    with pytest.raises(TypeError, match=r"takes 2 arguments \(x, beta\), got 1"):
        swish(gg.ones(2))
    assert "swish(x, beta)" in repr(swish) and swish.__doc__.startswith("x * sigmoid")


def test_a_kernel_may_be_made_again_under_its_name():
    for factor in (2.0, 3.0):

        @gg.kernel
        def scaled(x, factor=factor):
            return x * 2

        assert scaled(gg.ones(1), 0.0).tolist() == [2.0]
