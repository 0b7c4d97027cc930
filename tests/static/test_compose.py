"""Compiled functions on the tape of their caller: records, what they save, and derivatives."""

import gc
import weakref

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.codegen.machine import machine
from gpugrad.static import compose

ROWS, IN, OUT = 5, 6, 3


def perceptron(seed: int = 0) -> nn.Sequential:
    gg.manual_seed(seed)
    return nn.Sequential(nn.Linear(IN, 8), nn.Tanh(), nn.Linear(8, OUT)).double()


def inputs(**kwargs) -> gg.Tensor:
    return gg.randn(ROWS, IN, dtype=gg.float64, **kwargs)


def warm(compiled, *args, calls: int = 5):
    """The function after so many calls: it replays, by the short way if there is one."""
    for _ in range(calls):
        # others each time: what stays the same tensor may be reached otherwise, too
        compiled(*[a.detach().clone().requires_grad_(a.requires_grad) for a in args])
    replays = compiled.stats["replays"]
    compiled(*[a.detach().clone().requires_grad_(a.requires_grad) for a in args])
    assert compiled.stats["replays"] == replays + 1
    return compiled


def gradients(model, y, cotangent=None) -> list[gg.Tensor]:
    """The gradients of a model's parameters, left in ``.grad`` by a backward pass."""
    model.zero_grad()
    y.backward(gg.ones_like(y) if cotangent is None else cotangent)
    return [p.grad.clone() for p in model.parameters()]


def assert_close(found, expected) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        gg.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.fixture
def model(tolerance):
    return perceptron()


@pytest.fixture
def compiled(model):
    return warm(gg.compile(model), inputs())


def test_the_record_is_one_node_over_those_of_arguments_and_parameters(model, compiled):
    for _ in range(4):
        compiled(x := inputs(requires_grad=True))
    node = compiled(x).grad_fn
    assert node.name == "CompiledFunctionBackward"
    leaves = {x._node, *[p._node for p in model.parameters()]}
    assert {edge for edge, _ in node.next_functions} == leaves


@pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")
def test_calls_go_the_short_way():
    model = perceptron()
    compiled = warm(gg.compile(model), inputs())
    short = compiled._fast
    assert short is not None
    for _ in range(3):
        x, g = inputs(), gg.randn(ROWS, OUT, dtype=gg.float64)
        assert_close(gradients(model, compiled(x), g), gradients(model, model(x), g))
        assert compiled._fast is short
    model[0].weight.requires_grad_(False)
    x = inputs()
    warm(compiled, x)
    y = compiled(x)
    y.sum().backward()
    assert model[0].weight.requires_grad is False
    assert len(y.grad_fn.next_functions) == 3


@pytest.mark.parametrize("order", ["first", "last"])
def test_calls_keep_their_own_values_until_their_backward(model, compiled, order):
    batches = [inputs() for _ in range(4)]
    results = [compiled(x) for x in batches]
    pairs = list(zip(batches, results, strict=True))
    for x, y in pairs if order == "first" else pairs[::-1]:
        assert_close(gradients(model, y), gradients(model, model(x)))
        compiled(inputs())  # another one in between, whose record dies


def test_other_shapes_and_eager_calls_in_between(model, compiled):
    x, other = inputs(), gg.randn(2, IN, dtype=gg.float64)
    warm(compiled, other)
    y = compiled(x)
    z = compiled(other)
    with gg.no_grad():
        compiled(x)
    assert_close(gradients(model, z), gradients(model, model(other)))
    assert_close(gradients(model, y), gradients(model, model(x)))


def test_a_second_backward(model, compiled):
    x = inputs()
    y, g = compiled(x), gg.randn(ROWS, OUT, dtype=gg.float64)
    y.backward(g, retain_graph=True)
    compiled(inputs())
    first = gradients(model, y, g)
    assert_close(first, gradients(model, model(x), g))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward(g)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gg.autograd.grad(y.sum(), list(model.parameters()), create_graph=True)
    assert_close([p.grad for p in model.parameters()], first)


def test_gradients_add_up(model, compiled):
    x = inputs()
    once = gradients(model, compiled(x))
    compiled(x).sum().backward()
    assert_close([p.grad for p in model.parameters()], [2 * g for g in once])
    assert all(not np.shares_memory(p.grad.array, p.array) for p in model.parameters())
    (p, *_), y = model.parameters(), compiled(x)
    (alone,) = gg.autograd.grad(y.sum(), p)
    assert_close([alone, p.grad], [once[0], 2 * once[0]])


def test_gradients_are_the_callers_own(model, compiled):
    y = compiled(inputs())
    y.backward(gg.ones_like(y), retain_graph=True)
    left = [p.grad for p in model.parameters()]
    before = [g.clone() for g in left]
    model.zero_grad()
    compiled(inputs()).sum().backward()
    for p in model.parameters():
        p.grad.mul_(0)
    assert_close(left, before)


@pytest.mark.parametrize("what", ["a parameter", "an argument"])
def test_writes_to_what_is_read_are_noticed(model, compiled, what):
    x = inputs()
    y, z = compiled(x), compiled(x)
    y.sum().backward()
    with gg.no_grad():
        (model[2].weight if what == "a parameter" else x).mul_(2)
    with pytest.raises(gg.SavedTensorError, match="modified by an inplace operation"):
        z.sum().backward()


def test_writes_to_outputs_do_not_matter(model, compiled):
    x = inputs()
    y = compiled(x)
    y.detach().zero_()
    assert_close(gradients(model, y), gradients(model, model(x)))


VIEWS = {
    "transposed": lambda x, w: x @ w.T,
    "part": lambda x, w: x * w[1],
    "broadcast": lambda x, w: x.sin() * w[:1].expand(ROWS, IN),
    "reshaped": lambda x, w: (x @ w.reshape(IN, OUT)).tanh(),
    "and a function": lambda x, w: x * w[0] * w.T.exp().sum(),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_views_of_tensors_that_are_written(tolerance, kind):
    """A saved value may lie in memory outside: its write is noticed, or was in time for a copy."""
    weight = gg.randn(OUT, IN, dtype=gg.float64)
    function = lambda x: VIEWS[kind](x, weight)
    compiled = warm(gg.compile(function), inputs(requires_grad=True))
    x = inputs(requires_grad=True)
    (expected,) = gg.autograd.grad(function(x).sum(), x)
    y = compiled(x)
    weight.mul_(2)
    try:
        (found,) = gg.autograd.grad(y.sum(), x)
    except gg.SavedTensorError:
        return
    assert_close([found], [expected])


def test_derivatives_of_derivatives(model, compiled):
    x = inputs(requires_grad=True)
    warm(compiled, x)
    found = []
    for f in (compiled, model):
        x = x.detach().requires_grad_()
        y = f(x)
        assert isinstance(y.grad_fn, compose.Replay) is (f is compiled)
        compiled(inputs(requires_grad=True))
        (g,) = gg.autograd.grad((y * y).sum(), x, create_graph=True)
        model.zero_grad()
        g.square().sum().backward()
        found.append([g.detach(), x.grad, *[p.grad for p in model.parameters()]])
    assert_close(*found)


def test_tangents_of_cotangents(model, compiled):
    x = inputs(requires_grad=True)
    warm(compiled, x)
    v, t = (gg.randn(ROWS, OUT, dtype=gg.float64) for _ in range(2))
    outputs = {f: f(x) for f in (compiled, model)}
    assert isinstance(outputs[compiled].grad_fn, compose.Replay)
    found = []
    for y in outputs.values():
        pull = lambda v, y=y: gg.autograd.grad(y, x, v, retain_graph=True)[0]
        found.append([a.detach() for a in gg.func.jvp(pull, (v,), (t,))])
    assert_close(*found)
    assert_close([found[0][1]], [gg.autograd.grad(outputs[model], x, t)[0]])


def test_hooks(model, compiled):
    x, seen = inputs(), []
    for f in (compiled, model):
        y = f(x)
        y.register_hook(lambda g: 3 * g)
        handles = [p.register_hook(lambda g: seen.append(g.clone())) for p in model.parameters()]
        handles += [
            p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
            for p in model.parameters()
        ]
        gradients(model, y)
        for handle in handles:
            handle.remove()
    half = len(seen) // 2
    assert half == 8
    assert sorted(float(g.sum()) for g in seen[:half]) == pytest.approx(
        sorted(float(g.sum()) for g in seen[half:])
    )


def test_a_cotangent_of_another_dtype_is_cast(model, compiled):
    """A hook may give one."""
    x = inputs()
    y = compiled(x)
    y.register_hook(lambda g: g.float())
    assert_close(gradients(model, y), gradients(model, model(x)))


@pytest.mark.parametrize("kind", ["strided", "broadcast", "reversed", "of another shape"])
def test_cotangents_in_any_memory(model, compiled, kind):
    x = inputs()
    y = compiled(x)
    if kind == "of another shape":
        with pytest.raises(RuntimeError, match="shape"):
            y.grad_fn.run(y.grad_fn, np.ones((ROWS, 1)), True)
        return
    g = gg.randn(OUT, ROWS, dtype=gg.float64)
    g = {"strided": g.T, "broadcast": g[:, :1].T.expand(ROWS, OUT), "reversed": g.T.flip(0)}[kind]
    assert_close(gradients(model, y, g), gradients(model, model(x), g))


def test_several_outputs_some_without_a_gradient(tolerance):
    weight = gg.randn(IN, dtype=gg.float64, requires_grad=True)

    def function(x):
        h = x * weight
        return {"sum": h.sum(), "best": h.argmax(1), "parts": (h.exp(), x + 1, h.sum().item())}

    compiled = warm(gg.compile(function), inputs())
    for use in ("sum", "exp", "both"):
        x, found = inputs(), []
        for f in (compiled, function):
            r = f(x)
            assert list(r) == ["sum", "best", "parts"] and isinstance(r["parts"], tuple)
            assert not (r["best"].requires_grad or r["parts"][1].requires_grad)
            e = r["parts"][0]
            y = {"sum": r["sum"], "exp": e.sum(), "both": (e * e).sum() + 2 * r["sum"]}[use]
            found.append([r["sum"].detach(), e.detach(), *gg.autograd.grad(y, weight)])
            assert r["parts"][2] == pytest.approx(r["sum"].item())
        assert_close(*found)


def test_a_loss_that_is_returned(tolerance):
    model = perceptron()
    function = lambda x, y: nn.functional.mse_loss(model(x), y)
    y = gg.randn(ROWS, OUT, dtype=gg.float64)
    compiled = warm(gg.compile(function), inputs(), y)
    for _ in range(3):
        x = inputs()
        assert_close(gradients(model, compiled(x, y)), gradients(model, function(x, y)))


def test_no_gradients_are_made_of_what_needs_none(model, compiled):
    with gg.no_grad():
        warm(compiled, inputs())
        assert compiled(inputs()).grad_fn is None
    for p in model.parameters():
        p.requires_grad_(False)
    warm(compiled, inputs())
    assert compiled(inputs()).grad_fn is None
    x = inputs(requires_grad=True)
    warm(compiled, x)
    compiled(x).sum().backward()
    assert_close([x.grad], gg.autograd.grad(model(x).sum(), x))
    assert all(p.grad is None for p in model.parameters())


class Scaled(gg.autograd.Function):
    """Reads a tensor in its backward pass that its forward pass does not read."""

    @staticmethod
    def forward(ctx, x, by):
        ctx.by = by
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.by.detach(), None


def test_what_only_the_second_half_reads(tolerance):
    by, weight = gg.tensor([3.0, 5.0]), gg.tensor([7.0, 11.0])
    compiled = gg.compile(lambda x: Scaled.apply(x, by) * weight)
    for factor in (1.0, 1.0, 1.0, 1.0, 2.0, 3.0):
        with gg.no_grad():
            by.copy_(gg.tensor([3.0, 5.0]) * factor)
        x = gg.randn(2, requires_grad=True)
        y = compiled(x)
        y.sum().backward()
        assert_close([x.grad], [by * weight])
    assert compiled.stats["replays"] > 2


def test_random_numbers_that_the_second_half_reads(tolerance):
    compiled = gg.compile(lambda x: x * gg.rand(3, dtype=gg.float64))
    for _ in range(8):
        x = gg.randn(3, dtype=gg.float64, requires_grad=True)
        y = compiled(x)
        z = compiled(x)
        y.sum().backward()
        assert_close([x.grad], [(y / x).detach()])
        x.grad = None
        z.sum().backward()
        assert_close([x.grad], [(z / x).detach()])


def test_another_array_in_a_parameter(model, compiled):
    x = inputs()
    y = compiled(x)
    model[2].weight.data = gg.randn(OUT, 8, dtype=gg.float64)
    for _ in range(3):
        assert_close(gradients(model, compiled(x)), gradients(model, model(x)))
    y.sum().backward()


@pytest.mark.parametrize("rows", [0, 1, 37])
def test_odd_sizes(tolerance, rows):
    model = perceptron()
    x = gg.randn(IN, rows, dtype=gg.float64).T
    compiled = warm(gg.compile(model), x)
    assert_close(gradients(model, compiled(x)), gradients(model, model(x)))


def test_memory_is_let_go(tolerance):
    model = perceptron()
    compiled = gg.compile(model)
    warm(compiled, inputs(), calls=8)
    gc.collect()
    gc.disable()
    try:
        x = inputs()
        argument, y = weakref.ref(x), compiled(x)
        del x
        y.sum().backward()
        assert argument() is None  # freed by the backward pass
        x = inputs()
        argument, y = weakref.ref(x), compiled(x)
        node = weakref.ref(y.grad_fn)
        del x, y
        assert argument() is None and node() is None  # without one, by the record's death
    finally:
        gc.enable()


def test_threads_go_forward_and_backward_at_once(tolerance, in_threads):
    model = perceptron()
    compiled = warm(gg.compile(model), inputs(requires_grad=True))

    def work(seed):
        generator = gg.Generator().manual_seed(seed)
        for _ in range(60):
            found = []
            x = gg.randn(ROWS, IN, dtype=gg.float64, generator=generator).requires_grad_()
            for f in (compiled, model):
                y, z = f(x), f(x * 2)
                found.append(gg.autograd.grad((y * z).sum(), [x, *model.parameters()]))
            assert_close(*found)

    in_threads(work)


@pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")
def test_values_are_copied_only_if_a_backward_may_still_come():
    model = perceptron()
    compiled = warm(gg.compile(model), inputs())
    y = compiled(inputs())
    node = y.grad_fn
    assert isinstance(node, compose.Replay)
    lent = node.values
    z = compiled(inputs())
    saved = [own for own, _ in node.half.reads]
    assert any(saved)
    assert [a is not b for a, b in zip(lent, node.values, strict=True)] == saved
    z.sum().backward()
    node = z.grad_fn
    compiled(inputs())
    assert node.values == ()
