"""What ``compile`` promises of functions: tapes, branches, numbers, surroundings, errors."""

import math
import warnings
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.codegen.machine import machine


def counted(function):
    """The function, and what counts the runs of its Python: a list would be noticed as changed."""
    runs = mock.Mock()

    def wrapped(*args, **kwargs):
        runs()
        return function(*args, **kwargs)

    return wrapped, runs


def test_a_module_on_the_tape_of_its_caller():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    compiled = gg.compile(model)
    for _ in range(5):
        x = gg.randn(4, 6, dtype=gg.float64, requires_grad=True)
        g = gg.randn(4, 3, dtype=gg.float64)
        found = []
        for f in (compiled, model):
            model.zero_grad()
            x.grad = None
            y = f(x)
            y.backward(g)
            found.append([y.detach(), x.grad, *[p.grad for p in model.parameters()]])
        for a, b in zip(*found, strict=True):
            gg.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert compiled.stats["replays"] == 3


def test_stats_tell_recording_and_compiling_apart():
    @gg.compile
    def double(x):
        return x * 2.0

    for _ in range(2):
        double(gg.ones(3))
    recorded = double.stats
    assert recorded["recorded"] == 2
    assert recorded["record_seconds"] > 0
    planned = recorded["compile_seconds"]
    assert planned > 0
    for _ in range(2):
        double(gg.ones(3))
    replayed = double.stats
    assert {k: replayed[k] for k in ("recorded", "record_seconds")} == {
        k: recorded[k] for k in ("recorded", "record_seconds")
    }
    if machine() is not None:  # planned at the first replay
        assert replayed["compile_seconds"] > planned


def test_derivatives_of_every_kind_of_compiled_functions():
    @gg.compile
    def f(x):
        return (x.sin() * x).sum()

    x = gg.randn(5, dtype=gg.float64)
    plain = f.__wrapped__
    for _ in range(4):
        f(x)
        f(x.clone().requires_grad_()).backward()
    for transform in (gg.func.grad, gg.func.hessian, lambda h: gg.func.grad(gg.compile(h))):
        gg.testing.assert_close(transform(f)(x), transform(plain)(x))
    t = gg.ones(5, dtype=gg.float64)
    gg.testing.assert_close(gg.func.jvp(f, (x,), (t,)), gg.func.jvp(plain, (x,), (t,)))
    batch = gg.randn(3, 5, dtype=gg.float64)
    gg.testing.assert_close(gg.func.vmap(f)(batch), gg.func.vmap(plain)(batch))
    leaf = x.clone().requires_grad_()
    (first,) = gg.autograd.grad(f(leaf), leaf, create_graph=True)
    (second,) = gg.autograd.grad(first.sum(), leaf)
    (expected,) = gg.autograd.grad(
        gg.autograd.grad(plain(leaf), leaf, create_graph=True)[0].sum(), leaf
    )
    gg.testing.assert_close(second, expected)


def test_transformations_inside():
    def f(x):
        return gg.func.hessian(lambda v: (v**3).sum())(x) @ x

    compiled = gg.compile(f)
    for _ in range(5):
        x = gg.randn(4, dtype=gg.float64)
        gg.testing.assert_close(compiled(x), f(x))
    assert compiled.stats["replays"] == 3


def test_compiled_functions_call_each_other():
    inner = gg.compile(lambda x: x * 2 + 1)
    outer = gg.compile(lambda x: inner(inner(x)).sum())
    for _ in range(5):
        x = gg.randn(3)
        gg.testing.assert_close(outer(x), ((x * 2 + 1) * 2 + 1).sum())
    assert outer.stats["replays"] == 3
    assert inner.stats["replays"] == 0  # a part of the outer program


def test_branches_on_values():
    def f(x):
        if x.sum() > 0:
            return x * 2
        return -x if x[0] > 0 else x

    body, runs = counted(f)
    compiled = gg.compile(body)
    inputs = [gg.tensor(v) for v in ([1.0, 1.0], [1.0, -2.0], [-1.0, -1.0])]
    for _ in range(3):
        for x in inputs:
            gg.testing.assert_close(compiled(x), f(x))
    assert runs.call_count == 6  # two recordings of each of three ways
    assert compiled.stats["programs"] == 3


def test_a_loop_until_convergence_with_its_gradient():
    def root(a):
        x, n = gg.ones_like(a), 0
        while (x * x - a).abs().max().item() > 1e-10:
            x = 0.5 * (x + a / x)
            n += 1
        (x.sum() * 1).backward()
        return x.detach(), n

    compiled = gg.compile(root)
    for scale in (2.0, 2.0, 2.0, 900.0, 900.0, 2.0, 900.0):
        a = gg.full((4,), scale, dtype=gg.float64, requires_grad=True)
        b = gg.full((4,), scale, dtype=gg.float64, requires_grad=True)
        found, expected = compiled(a), root(b)
        gg.testing.assert_close(found[0], expected[0])
        assert found[1] == expected[1]
        gg.testing.assert_close(a.grad, b.grad)
    assert compiled.stats["programs"] == 2


def test_numbers_out_of_tensors():
    def f(x):
        total = x.sum().item()
        if total > 3:
            return total * 2, x * total
        return abs(total - 1), x

    compiled = gg.compile(f)
    for k in range(12):
        x = gg.full((3,), 0.5 + 0.4 * (k % 3), dtype=gg.float64)
        (number, tensor), (expected, other) = compiled(x), f(x)
        assert type(number) is float
        assert number == pytest.approx(expected, rel=1e-12)
        gg.testing.assert_close(tensor, other)
    assert compiled.stats["replays"] >= 6


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda t: len(f"{t.item():.2f}"), "is not written to the terminal"),
        (lambda t: str(t).upper(), "is not written to the terminal"),
        (lambda t: t.numpy(), r"numpy()"),
        (lambda t: float(t.item()), "float() of item()"),
        (lambda t: t.tolist(), "tolist()"),
    ],
)
def test_what_cannot_be_replayed_runs_eagerly_and_says_so(use, words, capsys):
    @gg.compile
    def f(x):
        use(x.sum())
        return x + 1

    with pytest.warns(UserWarning, match="runs eagerly") as caught:
        f(gg.ones(2))
    assert words in str(caught[0].message)
    assert __file__ in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        for _ in range(3):
            gg.testing.assert_close(f(gg.ones(2)), gg.full((2,), 2.0))
    strict = gg.compile(f.__wrapped__, fullgraph=True)
    with pytest.raises(RuntimeError, match="one graph"):
        strict(gg.ones(2))


def test_whole_numbers_are_ways_through_the_program():
    table = ["zero", "one", "two", "three", "four"]

    def f(x):
        n = int((x > 0).sum())
        return x[:n].sum() + x[-int(x.abs().sum().item() / 2) :].sum(), table[(x > 1).sum()]

    compiled = gg.compile(f)
    for k in range(60):
        x = gg.tensor([-2.0, 1.5, 0.5, 2.0]) * (-1) ** k - k % 3 / 4
        (found, name), (expected, word) = compiled(x), f(x)
        gg.testing.assert_close(found, expected)
        assert name == word
    assert compiled.stats["replays"] > 40
    assert compiled.stats["variants"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda k: (gg.ones(2), k), "64 values of one argument of type int: pass a number"),
        (lambda k: (gg.ones(k + 1), 2), "kinds of one array argument; dynamic=True"),
    ],
)
def test_too_many_variants_are_explained_once(arguments, words):
    compiled = gg.compile(lambda x, k: x * k)
    with pytest.warns(UserWarning, match=words) as caught:
        for k in range(70):
            x, factor = arguments(k)
            gg.testing.assert_close(compiled(x, factor), x * factor)
    assert [w.filename for w in caught] == [__file__]
    x, factor = arguments(3)
    for _ in range(3):
        gg.testing.assert_close(compiled(x, factor), x * factor)
    assert compiled.stats["replays"] == 2  # variants that exist stay


def test_whole_numbers_that_never_come_again_end_in_eager_mode():
    @gg.compile
    def f(x):
        return gg.ones(3) * int(x.sum())

    with pytest.warns(UserWarning, match="ways through its branches that no other"):
        for k in range(80):
            gg.testing.assert_close(f(gg.full((2,), k)), gg.full((3,), 2.0 * k))


def test_a_tensor_that_is_put_somewhere_is_noticed():
    kept = []

    @gg.compile
    def f(x):
        y = x * 2
        kept.append(y)
        return y + 1

    with pytest.warns(UserWarning, match="outlives the call"):
        for k in range(8):
            f(gg.full((2,), float(k)))
    assert [t[0].item() for t in kept] == [2.0 * k for k in range(8)]


def test_numpy_beside_the_engine_is_noticed():
    @gg.compile
    def f(x):
        return gg.as_tensor(np.sin(x.detach().array)) + x

    with pytest.warns(UserWarning, match="runs eagerly"):
        for k in range(8):
            x = gg.full((2,), float(k))
            gg.testing.assert_close(f(x), gg.tensor(np.sin([k, k], dtype="float32")) + x)


def test_numbers_of_the_closure_and_of_modules_are_looked_at():
    factor = 2.0
    dropout = nn.Dropout(0.5)

    @gg.compile
    def f(x):
        return dropout(x) * factor

    x = gg.ones(1000)
    for _ in range(4):
        assert set(f(x).tolist()) == {0.0, 4.0}
    factor = 3.0
    assert set(f(x).tolist()) == {0.0, 6.0}
    dropout.eval()
    for _ in range(4):
        assert set(f(x).tolist()) == {3.0}
    dropout.train()
    dropout.p = 0.0
    assert set(f(x).tolist()) == {3.0}


def test_another_tensor_in_the_closure_is_noticed():
    weight = gg.ones(2)

    @gg.compile
    def f(x):
        return x * weight

    for _ in range(4):
        f(gg.ones(2))
    weight = gg.full((2,), 5.0)
    assert f(gg.ones(2)).tolist() == [5.0, 5.0]


def test_a_live_tensor_is_read_and_written_where_it_is():
    total = gg.zeros(3)
    model = nn.Linear(3, 3)

    @gg.compile
    def f(x):
        total.add_(x)
        return model(total)

    for k in range(6):
        if k == 4:
            model.weight.data = gg.eye(3)  # another array under the same parameter
        f(gg.ones(3))
    assert total.tolist() == [6.0] * 3
    gg.testing.assert_close(f(gg.ones(3)), total + model.bias)
    model.weight.requires_grad_(False)
    assert f(gg.ones(3)).requires_grad  # the bias
    model.bias.requires_grad_(False)
    assert not f(gg.ones(3)).requires_grad


def test_results_are_the_callers_own():
    compiled = gg.compile(lambda x: (x + 1, x + 1))
    results = [compiled(gg.full((2,), float(k))) for k in range(6)]
    assert [a.tolist()[0] for a, _ in results] == [k + 1.0 for k in range(6)]
    results[-1][0].zero_()
    assert results[-1][1].tolist() == [6.0, 6.0]


def test_arguments_and_views_come_back_as_themselves():
    def f(x, y):
        x.mul_(2)
        return x, y, y[0]

    compiled = gg.compile(f)
    for _ in range(5):
        x, y = gg.ones(2), gg.randn(2, 3)
        a, b, c = compiled(x, y)
        assert a is x
        assert b is y
        assert x.tolist() == [2.0, 2.0]
        gg.testing.assert_close(c, y[0])
        c.zero_()  # a view
        assert y[0].tolist() == [0.0, 0.0, 0.0]


def test_views_of_tensors_outside_are_views():
    w = gg.zeros(2, 3)
    p = gg.ones(2, requires_grad=True)

    @gg.compile
    def f():
        w.add_(1)
        return w[0], w.T, p.detach(), w.T + 0

    for k in range(6):
        row, turned, plain, copy = f()
        assert row.tolist() == [k + 1.0] * 3
        row[0] = 50.0
        assert w[0, 0].item() == turned[0, 0].item() == 50.0
        assert copy[0, 0].item() == k + 1.0
        w[0, 0] = k + 1.0
        assert plain.array is p.array
        assert not plain.requires_grad


def test_stale_values_are_noticed_after_a_replay():
    total = gg.ones(2)
    bump = gg.compile(lambda: total.add_(1))
    for _ in range(4):
        bump()
    x = gg.ones(2, requires_grad=True)
    y = (x * total).sum()
    bump()
    with pytest.raises(gg.SavedTensorError, match="modified by an inplace"):
        y.backward()


def test_errors_leave_everything_as_it_was():
    model = nn.Linear(3, 4)
    optimizer = gg.optim.Adam(model.parameters())

    @gg.compile
    def step(x, target):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    good, bad = gg.tensor([0, 3]), gg.tensor([0, 4])
    for _ in range(5):
        step(gg.ones(2, 3), good)
    before = [p.detach().clone() for p in model.parameters()]
    steps = [s["step"].item() for s in optimizer.state.values()]
    with pytest.raises(IndexError):
        step(gg.ones(2, 3), bad)
    for p, old in zip(model.parameters(), before, strict=True):
        gg.testing.assert_close(p.detach(), old, rtol=0, atol=0)
    assert [s["step"].item() for s in optimizer.state.values()] == steps
    replays = step.stats["replays"]
    step(gg.ones(2, 3), good)
    step(gg.ones(2, 3), good)
    assert step.stats["replays"] > replays


def test_the_last_smaller_batch_is_a_variant():
    compiled = gg.compile(lambda x: x.mean(0))
    for _ in range(4):
        for n in (8, 8, 3):
            x = gg.randn(n, 2)
            gg.testing.assert_close(compiled(x), x.mean(0))
    assert compiled.stats["variants"] == 2


def test_threads_may_call_at_once(in_threads):
    weight = gg.randn(16, 16)
    compiled = gg.compile(lambda x: (x @ weight).tanh().sum(1))

    def work(seed):
        generator = gg.Generator().manual_seed(seed)
        for _ in range(200):
            x = gg.randn(4, 16, generator=generator)
            gg.testing.assert_close(compiled(x), (x @ weight).tanh().sum(1), rtol=1e-4, atol=1e-5)

    in_threads(work)


def test_checked_calls():
    model = nn.Linear(4, 2)
    optimizer = gg.optim.SGD(model.parameters(), lr=0.01)

    def step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    compiled = gg.compile(step, check=3)
    losses = [compiled(gg.ones(8, 4)).item() for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    assert compiled.stats["replays"] == 8


def test_a_wrong_replay_is_found_and_named(monkeypatch):
    compiled = gg.compile(lambda x: (x.exp() * x.sin()).sum() / x.cos().sum(), check=1)
    x = gg.randn(100)
    for _ in range(2):
        compiled(x)
    (program,) = compiled.programs
    correct = program.run
    program.run = lambda *inputs: [np.asarray(a * 1.01) for a in correct(*inputs)]
    with pytest.raises(RuntimeError, match="differs from eager mode"):
        compiled(x)


def test_methods_and_decorators_with_options():
    class Model:
        def __init__(self):
            self.weight = gg.randn(3)

        @gg.compile(check=1)
        def double(self, x, *, scale=2.0):
            """Scaled."""
            return x * self.weight * scale

    m = Model()
    for _ in range(4):
        gg.testing.assert_close(m.double(gg.ones(3), scale=3.0), m.weight * 3)
    assert Model.double.__doc__ == "Scaled."
    with pytest.raises(ValueError, match="outputs must be"):
        gg.compile(lambda: None, outputs="lend")


def test_explain_tells_what_was_made():
    compiled = gg.compile(lambda x: (x * 2 + 1).relu().sum())
    assert "0 calls" in compiled.explain()
    for _ in range(3):
        compiled(gg.randn(5))
    text = compiled.explain()
    assert "3 calls, 1 replayed, 1 variants, 1 programs" in text
    assert "4 operations recorded" in text
    assert compiled.num_ops == 4
    assert compiled.num_kernels <= 4
    assert "compiled <lambda>" in repr(compiled)


@pytest.mark.skipif(machine() is None, reason="without llvmlite results are always copies")
def test_borrowed_results_are_memory_of_the_program():
    compiled = gg.compile(lambda x: (x * 2, (x + 1).sum()), outputs="borrow")
    last = None
    for k in range(8):
        x = gg.full((1000,), float(k))
        a, b = compiled(x)
        assert a[0].item() == 2.0 * k
        assert b.item() == 1000.0 * (k + 1)
        if last is not None and k > 3:
            assert last[1] is a.array or np.shares_memory(last[1], a.array)
            for use in (lambda t: t + 1, lambda t: t.shape, repr, lambda t: t.sum()):
                with pytest.raises(RuntimeError, match="borrowed"):
                    use(last[0])
        last = a, a.array
    kept = a.clone()
    compiled(gg.zeros(1000))
    assert kept[0].item() == 14.0


def test_memory_written_by_numpy_is_noticed():
    array = np.ones(3, "float32")
    weight = gg.from_numpy(array)

    @gg.compile
    def step(x):
        loss = (weight * x).sum()
        array[...] -= 0.25
        return loss

    with pytest.warns(UserWarning, match="written by something else"):
        found = [step(gg.ones(3)).item() for _ in range(5)]
    assert found == [3.0, 2.25, 1.5, 0.75, 0.0]


def test_the_tape_follows_no_grad():
    model = nn.Linear(3, 2)
    compiled = gg.compile(model)
    x = gg.ones(4, 3)
    for _ in range(2):
        for _ in range(4):
            assert compiled(x).requires_grad
        with gg.no_grad():
            for _ in range(4):
                assert not compiled(x).requires_grad
    assert compiled.stats["replays"] == 12
    assert compiled.stats["variants"] == 2


def test_a_variable_of_the_closure_without_a_value():
    @gg.compile
    def f(x, use):
        return x + later if use else x * 2

    for _ in range(5):
        assert f(gg.ones(2), False).tolist() == [2.0, 2.0]
    later = gg.ones(2)
    assert f(gg.ones(2), True).tolist() == [2.0, 2.0]
    assert f(gg.ones(2), False).tolist() == [2.0, 2.0]


def test_own_kernels():
    @gg.kernel
    def swish(x, beta):
        return x * gg.sigmoid(beta * x)

    def f(x, beta):
        y = swish(x, beta)
        return y.detach(), *gg.autograd.grad(y.sum(), (x, beta))

    compiled = gg.compile(f, fullgraph=True)
    for _ in range(5):
        x = gg.randn(3, 7, dtype=gg.float64, requires_grad=True)
        beta = gg.rand(7, dtype=gg.float64).requires_grad_()
        for a, b in zip(compiled(x, beta), f(x, beta), strict=True):
            gg.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert compiled.stats["replays"] == 3
    assert not getattr(compiled.programs[-1].run, "fallbacks", ())


def test_tensors_outside_that_swap():
    a, b = gg.zeros(2), gg.ones(2)

    @gg.compile
    def swap():
        old = a.clone()
        a.copy_(b)
        b.copy_(old)
        return old

    for k in range(7):
        assert swap().tolist() == [float(k % 2)] * 2
        assert a.tolist() == [float((k + 1) % 2)] * 2
        assert b.tolist() == [float(k % 2)] * 2
    assert swap.stats["replays"] == 5


def test_a_value_from_before_a_write():
    w = gg.zeros(3)

    @gg.compile
    def f():
        before = w * 1
        also = w.reshape(3, 1).reshape(3) + 0.0
        w.add_(1)
        return before, also, w

    for k in range(6):
        before, also, after = f()
        assert before.tolist() == also.tolist() == [float(k)] * 3
        assert after is w
        assert w.tolist() == [k + 1.0] * 3


def test_numbers_written_to_an_array_outside():
    """A tensor that is made anew in every call over the same array."""
    array = np.zeros(3, "float32")

    @gg.compile
    def f(x):
        total = gg.from_numpy(array)
        total.add_(x)
        return total * 2

    for k in range(6):
        assert f(gg.ones(3)).tolist() == [2.0 * (k + 1)] * 3
    assert array.tolist() == [6.0] * 3


def test_a_float_that_changes_becomes_an_input():
    w, u = gg.ones(4, requires_grad=True), gg.ones(4, requires_grad=True)

    def step(w, x, lr):
        loss = ((w * x).sum() - 1) ** 2
        w.grad = None
        loss.backward()
        with gg.no_grad():
            w.sub_(lr * w.grad * (1 - lr * 0.5))
        return loss * lr, lr, lr * 2

    body, runs = counted(lambda x, lr: step(w, x, lr))
    compiled = gg.compile(body)
    for k in range(14):
        x, lr = gg.randn(4), 0.1 / (k + 1)
        found, expected = compiled(x, lr), step(u, x, lr)
        assert found[1:] == expected[1:]
        assert [type(n) for n in found[1:]] == [float, float]
        assert found[0].dtype == expected[0].dtype
        gg.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)
        gg.testing.assert_close(w, u, rtol=1e-4, atol=1e-6)
    assert runs.call_count == 4  # two constants, then two recordings with different numbers


def test_branches_on_a_float_that_changes():
    compiled = gg.compile(lambda x, a: x * a if a > 5 else x - a)
    for k in range(20):
        expected = k if k > 5 else 1.0 - k
        assert compiled(gg.ones(2), float(k)).tolist() == [float(expected)] * 2
    assert compiled.stats["replays"] == 14
    assert compiled.stats["programs"] == 2


@pytest.mark.parametrize(
    "use",
    [
        lambda x, a: x * math.sqrt(a),
        lambda x, a: x * float(f"{a:.3f}"),
        lambda x, a: x * np.square(a).item(),
        lambda x, a: x * {0.0: 5.0}.get(a, 2.0),
        lambda x, a: x + gg.full((2,), a),
        lambda x, a: x.clamp(max=min(a, 3.0)),
        lambda x, a: x * math.floor(a),
    ],
)
def test_floats_whose_use_is_not_seen_stay_constants(use):
    compiled = gg.compile(use)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in [*range(8), *range(8)]:
            x = gg.full((2,), 9.0)
            gg.testing.assert_close(compiled(x, k / 2), use(x, k / 2))
