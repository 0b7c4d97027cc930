"""``cond``, ``while_loop`` and ``scan``: values, gradients, transformations, compiled, errors."""

from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

import gpugrad as gg


def values(n, *shape):
    return np.random.default_rng(n).standard_normal(shape)


def tensors(*arrays):
    return [gg.tensor(a, requires_grad=True) for a in arrays]


def same(a, b):
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------------------------------------
# cond


@pytest.mark.parametrize("sign", [1, -1])
def test_cond_takes_one_branch_with_its_gradient(sign):
    ran = []

    def branch(name, f):
        def run(x, other):
            ran.append(name)
            return {"y": f(x), "z": [x * other["w"]]}

        return run

    x, w = tensors(sign * np.abs(values(0, 3)), values(1, 3))
    found = gg.cond(x.sum() > 0, branch("true", gg.sin), branch("false", gg.exp), (x, {"w": w}))
    (found["y"].sum() + found["z"][0].sum()).backward()
    assert ran == ["true" if sign > 0 else "false"]
    t, v = (torch.tensor(a.detach().numpy(), requires_grad=True) for a in (x, w))
    ((torch.sin(t) if sign > 0 else torch.exp(t)).sum() + (t * v).sum()).backward()
    same(x.grad, t.grad)
    same(w.grad, v.grad)


def test_cond_of_numbers_and_without_operands():
    assert gg.cond(True, lambda: 1, lambda: 2) == 1
    assert gg.cond(0, lambda: 1, lambda: 2) == 2
    assert gg.cond(gg.tensor([[0.0]]), lambda: 1, lambda: 2) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yes", abs, abs, ()), "Expected pred to be bool or tensor, but got yes"),
        ((gg.ones(2), abs, abs, ()), "Expected pred to be bool or single-element tensor"),
        ((gg.ones(1), abs, None, ()), "Expect both branches to be callable"),
        ((gg.ones(1), abs, abs, gg.ones(1)), "Expect operands to be a tuple of possibly nested"),
        ((gg.ones(1), abs, abs, (gg.ones(1), 2)), "only consists of tensor leaves"),
    ],
)
def test_cond_refuses(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        gg.cond(*arguments)


def piecewise(x):
    return gg.cond(x > 0, lambda x: x**3, lambda x: -2 * x, (x,))


def test_cond_under_transformations():
    for x in (1.5, -1.5):
        t = gg.tensor(x, dtype=gg.float64)
        slope = 3 * x * x if x > 0 else -2
        assert gg.func.grad(piecewise)(t).item() == pytest.approx(slope)
        assert gg.func.jvp(piecewise, (t,), (gg.ones_like(t),))[1].item() == pytest.approx(slope)
        second = gg.func.grad(gg.func.grad(piecewise))(t).item()
        assert second == pytest.approx(6 * x if x > 0 else 0)


def test_cond_whose_branch_differs_between_examples():
    x = gg.tensor(values(2, 5))
    each = gg.stack([piecewise(v) for v in x])
    same(gg.vmap(piecewise)(x), each)
    same(gg.vmap(gg.func.grad(piecewise))(x), gg.stack([gg.func.grad(piecewise)(v) for v in x]))
    grid = gg.tensor(values(3, 2, 5))
    same(gg.vmap(gg.vmap(piecewise))(grid), gg.stack([gg.vmap(piecewise)(row) for row in grid]))
    with pytest.raises(RuntimeError, match="both branches to return the same, but float64"):
        gg.vmap(lambda v: gg.cond(v > 0, lambda v: v, lambda v: v.reshape(1), (v,)))(x)


# ------------------------------------------------------------------------------------------------
# while_loop


def newton(x):
    """The square root by Newton's method: as many steps as it takes."""

    def far(v):
        return (v["root"] * v["root"] - x).abs() > 1e-10

    def closer(v):
        return {"root": (v["root"] + x / v["root"]) / 2, "steps": v["steps"] + 1}

    return gg.while_loop(far, closer, {"root": x, "steps": 0})


def test_while_loop_ends_when_the_condition_does():
    found = newton(gg.tensor(2.0, dtype=gg.float64))
    assert found["root"].item() == pytest.approx(2**0.5)
    assert found["steps"].dtype == gg.int64
    root, steps = 2.0, 0
    while abs(root * root - 2) > 1e-10:
        root, steps = (root + 2 / root) / 2, steps + 1
    assert found["steps"].item() == steps


def test_no_step_at_all():
    found = gg.while_loop(lambda v: False, lambda v: v, (1, None, gg.ones(2)))
    assert found[0].item() == 1
    assert found[1] is None
    assert found[2].tolist() == [1, 1]


def test_gradients_flow_through_the_steps():
    x = gg.tensor(3.0, dtype=gg.float64, requires_grad=True)
    newton(x)["root"].backward()
    assert x.grad.item() == pytest.approx(0.5 * 3**-0.5)
    t = gg.tensor(3.0, dtype=gg.float64)
    root = lambda x: newton(x)["root"]
    assert gg.func.jvp(root, (t,), (gg.ones_like(t),))[1].item() == pytest.approx(0.5 * 3**-0.5)
    assert gg.func.hessian(root)(t).item() == pytest.approx(-0.25 * 3**-1.5)


def test_examples_that_need_different_numbers_of_steps():
    x = gg.tensor([2.0, 1e4, 1.0, 1e-3], dtype=gg.float64)
    found = gg.vmap(newton)(x)
    each = [newton(v) for v in x]
    assert len({e["steps"].item() for e in each}) == 4
    assert found["steps"].tolist() == [e["steps"].item() for e in each]
    same(found["root"], gg.stack([e["root"] for e in each]))
    derivative = gg.vmap(gg.func.grad(lambda x: newton(x)["root"]))(x)
    same(derivative, gg.stack([gg.func.grad(lambda x: newton(x)["root"])(v) for v in x]))


def test_numbers_take_the_dtype_that_the_body_gives():
    one = gg.ones(3, dtype=gg.float64)
    i, total = gg.while_loop(lambda v: v[0] < 3, lambda v: (v[0] + 1, v[1] + one.sum()), (0, 0))
    assert (i.item(), total.item(), total.dtype) == (3, 9.0, gg.float64)


@pytest.mark.parametrize(
    ("condition", "body", "init", "message"),
    [
        (lambda v: True, lambda v: (v, v), gg.ones(2), "structure float32.2. became"),
        (lambda v: True, lambda v: v[:1], gg.ones(2), r"float32\[2\] became float32\[1\]"),
        (lambda v: True, lambda v: v.double(), gg.ones(2), r"float32\[2\] became float64\[2\]"),
        (lambda v: v > 0, lambda v: v, gg.ones(2), r"one element, got bool\[2\]"),
        (lambda v: "yes", lambda v: v, gg.ones(2), "one element, got str"),
        (lambda v: True, lambda v: v, "text", "a str is no tensor"),
    ],
)
def test_while_loop_refuses(condition, body, init, message):
    with pytest.raises(TypeError, match=message):
        gg.while_loop(condition, body, init)


# ------------------------------------------------------------------------------------------------
# scan


class State(NamedTuple):
    h: object
    c: object


def cell(weights, state, x):
    """An LSTM's step without biases, of gpugrad's or torch's tensors."""
    i, f, g, o = (x @ weights[0] + state.h @ weights[1]).chunk(4, -1)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return State(h, c), {"h": h, "gate": i}


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_a_recurrent_network(reverse):
    arrays = [values(k, *shape) for k, shape in enumerate([(3, 16), (4, 16), (2, 4), (6, 2, 3)])]
    ours, theirs = tensors(*arrays), [torch.tensor(a, requires_grad=True) for a in arrays]
    state, ys = gg.scan(
        lambda s, x: cell(ours[:2], s, x), State(ours[2], ours[2] * 2), ours[3], reverse=reverse
    )
    expected, steps = State(theirs[2], theirs[2] * 2), []
    for x in reversed(theirs[3]) if reverse else theirs[3]:
        expected, y = cell(theirs[:2], expected, x)
        steps.append(y)
    steps = steps[::-1] if reverse else steps
    assert isinstance(state, State)
    same(state.c, expected.c)
    for name in ys:
        same(ys[name], torch.stack([y[name] for y in steps]))
    (state.c.sum() + (ys["h"] ** 2).sum()).backward()
    (expected.c.sum() + sum((y["h"] ** 2).sum() for y in steps)).backward()
    for a, b in zip(ours, theirs, strict=True):
        same(a.grad, b.grad)


def test_scan_over_nested_sequences_and_none():
    xs = {"a": gg.arange(4), "b": (gg.ones(4, 2), None)}
    carry, ys = gg.scan(lambda c, x: (c + x["b"][0], (x["a"] * 2, None)), gg.zeros(2), xs)
    assert carry.tolist() == [4, 4]
    assert ys[0].tolist() == [0, 2, 4, 6]
    assert ys[1] is None


def test_scan_over_nothing_but_a_length():
    carry, ys = gg.scan(lambda c, x: (c * 2, c), 1, length=5)
    assert (carry.item(), ys.tolist()) == (32, [1, 2, 4, 8, 16])
    assert gg.scan(lambda c, x: (c, None), 1.0, None, 3)[1] is None


def test_scan_over_no_steps():
    def f(c, x):
        return c + x.sum(), {"y": x.double() * c, "n": None}

    carry, ys = gg.scan(f, gg.tensor(3.0, requires_grad=True), gg.ones(0, 2, 5))
    assert (carry.item(), carry.requires_grad) == (3, True)
    assert (ys["y"].shape, ys["y"].dtype, ys["n"]) == ((0, 2, 5), gg.float64, None)


def test_the_first_carry_is_a_number_of_the_right_dtype():
    x = gg.tensor(values(0, 4))
    carry, ys = gg.scan(lambda c, x: (c + x, c), 0, x)
    assert carry.dtype == ys.dtype == gg.float64
    np.testing.assert_allclose(carry.numpy(), x.numpy().sum())
    np.testing.assert_allclose(ys.numpy(), np.cumsum(x.numpy()) - x.numpy(), atol=1e-15)


def test_scan_under_transformations():
    def f(x):
        return gg.scan(lambda c, x: (c.sin() + x * c, c * x), gg.ones((), dtype=gg.float64), x)[1]

    x, v = gg.tensor(values(1, 5)), gg.tensor(values(2, 5))
    gg.testing.gradcheck(f, x.clone().requires_grad_())
    same(gg.func.jvp(f, (x,), (v,))[1], gg.func.jacrev(f)(x) @ v)
    batch = gg.tensor(values(3, 3, 5))
    same(gg.vmap(f)(batch), gg.stack([f(row) for row in batch]))
    same(gg.vmap(gg.func.jacrev(f))(batch), gg.stack([gg.func.jacrev(f)(row) for row in batch]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda c, x: (c, x), 0, (gg.ones(3), gg.ones(4))), ValueError, "sizes: 3, 4"),
        ((lambda c, x: (c, x), 0, gg.ones(3), 2), ValueError, "`length` argument of 2"),
        ((lambda c, x: (c, x), 0), ValueError, "`length` not provided"),
        ((lambda c, x: (c, x), 0, None, -1), ValueError, "negative"),
        ((lambda c, x: (c, x), 0, gg.ones(())), ValueError, "no leading axis"),
        ((lambda c, x: c, 0, gg.ones(3)), TypeError, "must return a pair .*, got Tensor"),
        ((lambda c, x: ((c, c), x), 0, gg.ones(3)), TypeError, "structure int64.. became"),
        ((lambda c, x: (c.reshape(1), x), 0.0, gg.ones(3)), TypeError, r"became float32\[1\]"),
        ((lambda c, x: (c.double(), x), gg.ones(1), gg.ones(3)), TypeError, r"float64\[1\]"),
        ((lambda c, x: (c + 1, x if c < 1 else None), 0, gg.ones(3)), TypeError, "kind of y"),
    ],
)
def test_scan_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        gg.scan(*arguments)


# ------------------------------------------------------------------------------------------------
# compiled


def compiled(function):
    runs = mock.Mock()

    @gg.compile
    def counted(*args):
        runs()
        return function(*args)

    return counted, runs


def test_compiled_branches_and_loops_are_replayed():
    branch, runs = compiled(piecewise)
    for k in range(20):
        x = gg.tensor((-1.0) ** k * (k + 1), dtype=gg.float64)
        same(branch(x), piecewise(x))
    assert runs.call_count == 4
    loop, runs = compiled(newton)
    for k in range(60):
        x = gg.tensor([2.0, 1e4, 1e-3][k % 3] + 1e-3 * k, dtype=gg.float64)
        found, expected = loop(x), newton(x)
        same(found["root"], expected["root"])
        assert found["steps"].item() == expected["steps"].item()
    ways = {newton(gg.tensor(x, dtype=gg.float64))["steps"].item() for x in (2.0, 1e4, 1e-3)}
    assert runs.call_count < 60 / 2
    assert loop.stats["programs"] >= len(ways)


def test_a_compiled_training_step_with_a_scan():
    arrays = [values(k, *shape) for k, shape in enumerate([(3, 16), (4, 16)])]

    def make():
        weights = tensors(*arrays)
        optimizer = gg.optim.SGD(weights, lr=0.1, momentum=0.9)

        def step(x, target):
            zero = gg.zeros(2, 4, dtype=gg.float64)
            state, _ = gg.scan(lambda s, x: cell(weights, s, x), State(zero, zero), x)
            loss = gg.functional.mse_loss(state.h, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    replayed, runs = compiled(make())
    eager = make()
    for k in range(8):
        x, target = gg.tensor(values(k, 5, 2, 3)), gg.tensor(values(k + 50, 2, 4))
        same(replayed(x, target), eager(x, target))
    assert runs.call_count == 3  # the optimizer makes its state in the first
