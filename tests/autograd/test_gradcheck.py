"""gradcheck: it must pass what is right and catch what is wrong, however little."""

import pytest

import gpugrad as gg
from gpugrad.autograd import gradcheck, gradgradcheck


def x64(*shape):
    generator = gg.Generator().manual_seed(0)
    return gg.randn(*shape, generator=generator, dtype=gg.float64, requires_grad=True)


class ScaledTanh(gg.autograd.Function):
    """tanh with a first and a second derivative that may be wrong by a factor."""

    first, second = 1.0, 1.0

    @classmethod
    def apply_with(cls, first, second):
        cls.first, cls.second = first, second
        return cls.apply

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = 1 - x.tanh().square()
        constant = slope.detach()
        slope = constant + (slope - constant) * ScaledTanh.second
        return g * slope * ScaledTanh.first


def test_right_derivatives_pass():
    x = x64(2, 3)
    assert gradcheck(ScaledTanh.apply_with(1.0, 1.0), x)
    assert gradgradcheck(ScaledTanh.apply_with(1.0, 1.0), x)
    assert gradcheck(lambda a, b: (a @ b, a.sum()), (x64(2, 3), x64(3, 2)))


def test_a_derivative_wrong_by_one_percent_is_caught():
    function = ScaledTanh.apply_with(1.01, 1.0)
    with pytest.raises(RuntimeError, match=r"input 0 of shape \(2, 3\)"):
        gradcheck(function, x64(2, 3))
    assert gradcheck(function, x64(2, 3), raise_exception=False) is False


def test_a_wrong_second_derivative_is_caught():
    function = ScaledTanh.apply_with(1.0, 1.01)
    assert gradcheck(function, x64(2, 3))
    assert gradgradcheck(function, x64(2, 3), raise_exception=False) is False


def test_one_wrong_element_is_caught():
    class OneWrong(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            result = g * 2
            result[-1] = 0.0
            return result

    assert gradcheck(OneWrong.apply, x64(7), raise_exception=False) is False


def test_a_missing_gradient_is_caught():
    x = x64(3)
    assert gradcheck(lambda x: x.detach() * 2, x, raise_exception=False) is False
    assert gradcheck(lambda x, y: x * y.detach(), (x, x64(3)), raise_exception=False) is False


def test_the_second_input_is_checked_too():
    class FirstOnly(gg.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, g):
            return g, None

    with pytest.raises(RuntimeError, match="input 1"):
        gradcheck(FirstOnly.apply, (x64(3), x64(3)))


def test_inputs_are_left_as_they_were():
    x = x64(4)
    before = x.tolist()
    gradcheck(gg.tanh, x)
    gradgradcheck(gg.tanh, x)
    assert x.tolist() == before
    assert x.grad is None


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match="float64"):
        gradcheck(gg.tanh, gg.ones(2, requires_grad=True))
    with pytest.raises(ValueError, match="contiguous"):
        gradcheck(gg.tanh, x64(2, 3).detach().T.requires_grad_())
    with pytest.raises(ValueError, match="require gradient"):
        gradcheck(gg.tanh, gg.ones(2, dtype=gg.float64))


def test_constants_and_integers_among_the_inputs():
    index = gg.tensor([0, 2])
    assert gradcheck(lambda x, i, k: x[i] * k, (x64(3), index, 2.0))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 1, 3)])
def test_any_shape(shape):
    assert gradcheck(lambda x: x * x, x64(*shape))
