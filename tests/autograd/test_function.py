"""autograd.Function: operations with a derivative of the user's."""

import gc
import weakref

import numpy as np
import pytest

import gpugrad as gg


class Cube(gg.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3 * x * x


class Exp(gg.autograd.Function):
    """Saves its output."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y


class SumAndProduct(gg.autograd.Function):
    """Two outputs, a non-tensor argument, an argument without gradient."""

    @staticmethod
    def forward(ctx, a, b, factor):
        ctx.save_for_backward(a, b)
        ctx.factor = factor
        return a + b, a * b * factor

    @staticmethod
    def backward(ctx, gs, gp):
        a, b = ctx.saved_tensors
        return gs + gp * b * ctx.factor, gs + gp * a * ctx.factor, None


def x64(*values):
    return gg.tensor(values, dtype=gg.float64, requires_grad=True)


@pytest.mark.parametrize("function", [Cube, Exp])
def test_derivatives_of_both_orders(function):
    x = x64(0.5, -1.0)
    assert gg.autograd.gradcheck(function.apply, x)
    assert gg.autograd.gradgradcheck(function.apply, x)


def test_third_order_through_a_saved_output():
    x = x64(0.3)
    y = Exp.apply(x).sum()
    for _ in range(3):
        (y,) = gg.autograd.grad(y.sum(), x, create_graph=True)
    assert y.item() == pytest.approx(np.exp(0.3), rel=1e-14)


def test_two_outputs():
    a, b = x64(2.0), x64(5.0)
    s, p = SumAndProduct.apply(a, b, 10.0)
    (s * 3 + p).sum().backward()
    assert a.grad.item() == 3 + 50
    assert b.grad.item() == 3 + 20
    assert gg.autograd.gradcheck(lambda a, b: SumAndProduct.apply(a, b, 2.0), (a, b))
    assert gg.autograd.gradgradcheck(lambda a, b: SumAndProduct.apply(a, b, 2.0), (a, b))


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_two_outputs(used):
    """The other's cotangent arrives as zeros."""
    a, b = x64(2.0), x64(5.0)
    SumAndProduct.apply(a, b, 10.0)[used].sum().backward()
    assert (a.grad.item(), b.grad.item()) == [(1.0, 1.0), (50.0, 20.0)][used]


def test_missing_cotangents_as_none():
    seen = []

    class Pair(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x * 1, x * 2

        @staticmethod
        def backward(ctx, a, b):
            seen.extend([a, b])
            return b * 2

    x = x64(1.0)
    Pair.apply(x)[1].sum().backward()
    assert seen[0] is None
    assert x.grad.item() == 2.0


def test_needs_input_grad():
    seen = []

    class Product(gg.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, g):
            seen.append(ctx.needs_input_grad)
            _, b = ctx.saved_tensors
            return g * b if ctx.needs_input_grad[0] else None, None

    a = x64(2.0)
    Product.apply(a, gg.ones(1, dtype=gg.float64)).sum().backward()
    assert seen == [(True, False)]


def test_forward_records_nothing():
    class Check(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            assert not gg.is_grad_enabled()
            assert not (x * 2).requires_grad
            return x * 2

        @staticmethod
        def backward(ctx, g):
            assert not gg.is_grad_enabled()
            return g * 2

    x = x64(1.0)
    Check.apply(x).sum().backward()
    assert x.grad.item() == 2.0


def test_nothing_is_recorded_without_need():
    assert not Cube.apply(gg.ones(2)).requires_grad
    with gg.no_grad():
        assert not Cube.apply(x64(1.0)).requires_grad
    assert Cube.apply(x64(1.0)).grad_fn.name == "CubeBackward"


def test_wrong_number_of_gradients():
    class Wrong(gg.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return a * b

        @staticmethod
        def backward(ctx, g):
            return g

    with pytest.raises(RuntimeError, match=r"incorrect number of gradients \(expected 2, got 1\)"):
        Wrong.apply(x64(1.0), x64(1.0)).sum().backward()


def test_wrong_shape_of_a_gradient():
    class Wrong(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return gg.ones(2, dtype=gg.float64)

    with pytest.raises(RuntimeError, match="shape"):
        Wrong.apply(x64(1.0, 2.0, 3.0)).sum().backward()


def test_a_gradient_that_broadcasting_made_larger_is_summed():
    """As torch does for gradients of a shape that expands to."""

    class Scale(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g * w, g * x

    x, w = gg.ones(3, 2, requires_grad=True), gg.ones(2, requires_grad=True)
    Scale.apply(x, w).sum().backward()
    assert w.grad.tolist() == [3.0, 3.0]


def test_non_differentiable_outputs():
    class Sort(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            values, order = x.sort()
            rounded = values.round()
            ctx.mark_non_differentiable(rounded)
            ctx.save_for_backward(order)
            return values, order, rounded

        @staticmethod
        def backward(ctx, g, *rest):
            (order,) = ctx.saved_tensors
            return gg.zeros_like(g).scatter(0, order, g)

    x = x64(3.0, 1.0, 2.0)
    values, order, rounded = Sort.apply(x)
    assert values.requires_grad
    assert not order.requires_grad
    assert not rounded.requires_grad
    (values * gg.tensor([1.0, 10.0, 100.0], dtype=gg.float64)).sum().backward()
    assert x.grad.tolist() == [100.0, 1.0, 10.0]


def test_an_input_returned_as_it_is():
    class Identity(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return -g

    x = x64(1.0, 2.0)
    y = Identity.apply(x)
    assert y is not x
    assert x.is_leaf
    y.sum().backward()
    assert x.grad.tolist() == [-1.0, -1.0]


def test_mark_dirty():
    class AddOne(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x.add_(1)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 5

    x = x64(1.0)
    y = x * 2
    z = AddOne.apply(y)
    assert z.item() == 3.0
    z.sum().backward()
    assert x.grad.item() == 10.0


def test_a_write_to_a_saved_tensor_is_noticed():
    x = x64(1.0)
    h = x * 1
    y = Cube.apply(h)
    h.add_(1)
    with pytest.raises(gg.SavedTensorError, match="CubeBackward"):
        y.sum().backward()


def test_saved_tensors_are_gone_after_backward():
    x = x64(1.0)
    y = Cube.apply(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_a_saved_output_makes_no_cycle():
    x = x64(1.0)
    y = Exp.apply(x)
    found = weakref.ref(y)
    gc.disable()
    try:
        del y
        assert found() is None
    finally:
        gc.enable()


def test_once_differentiable():
    class Square(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @gg.autograd.once_differentiable
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 2 * x

    x = x64(3.0)
    y = Square.apply(x)
    y.sum().backward(retain_graph=True)
    assert x.grad.item() == 6.0
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (g,) = gg.autograd.grad((y * y).sum(), x, create_graph=True)
        gg.autograd.grad(g.sum(), x)


def test_gradients_take_the_dtype_of_their_argument():
    class Widens(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g.double() * 2

    x = gg.ones(2, requires_grad=True)
    h = x * 1
    (g,) = gg.autograd.grad(Widens.apply(h).sum(), h)
    assert g.dtype == gg.float32


def test_a_gradient_must_be_a_tensor():
    class Array(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return 2.0

    with pytest.raises(TypeError, match="expected a Tensor or None"):
        Array.apply(x64(1.0)).sum().backward()


def test_no_part_of_a_call_is_left_to_the_garbage_collector():
    x = x64(1.0)
    gc.disable()
    try:
        y = Cube.apply(x * 2)
        found = weakref.ref(y.grad_fn)
        del y
        assert found() is None
    finally:
        gc.enable()


def test_none_where_there_is_no_gradient():
    class First(gg.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return a * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2, None

    a, b = x64(1.0), x64(1.0)
    h = b * 3
    (First.apply(a, h) + b).sum().backward()
    assert a.grad.item() == 2.0
    assert b.grad.item() == 1.0


def test_keyword_arguments_and_missing_methods():
    class Power(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**2

    with pytest.raises(NotImplementedError, match="backward"):
        Power.apply(x64(1.0)).sum().backward()
    with pytest.raises(NotImplementedError, match="forward"):
        gg.autograd.Function.apply(x64(1.0))


def test_refused_in_forward_mode():
    with pytest.raises(RuntimeError, match="jvp"):
        gg.func.jvp(Cube.apply, (gg.ones(1),), (gg.ones(1),))


def test_inside_the_transformations_of_reverse_mode():
    hess = gg.func.jacrev(gg.func.grad(lambda x: Cube.apply(x).sum()))(gg.tensor([1.0, 2.0]))
    assert hess.tolist() == [[6.0, 0.0], [0.0, 12.0]]
