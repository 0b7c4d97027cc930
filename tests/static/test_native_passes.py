"""Passes that the native runner adds: sums made in passing, epilogues of products. They may round
otherwise; results stay within rounding of the recorded graph, and nodes become fewer."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad import nn
from gpugrad.codegen.machine import machine
from gpugrad.static import passes, run_cpu, run_python
from gpugrad.static.graph import ProductCall, RowsCall
from gpugrad.static.passes.epilogues import product_epilogues
from gpugrad.static.passes.joining import join_rows
from gpugrad.static.passes.totals import sum_in_passing
from gpugrad.static.recording import record
from gpugrad.static.sources import Argument

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")


def graph_of(function, *args):
    _, recording = record(function, args, {}, args, None)
    assert recording.failure is None
    return passes.optimize(recording.graph)


def compare(graph, args, *changed):
    """All runners and graphs give the same results up to rounding."""

    def inputs() -> list:
        return [
            np.array(args[s.place] if s.__class__ is Argument else s.read()) for s in graph.sources
        ]

    expected = run_python.compile_graph(graph)(*inputs())
    for other in (*changed, graph):
        other.check()
        for runner in (run_python, run_cpu):
            found = runner.compile_graph(other)(*inputs())
            for a, b in zip(found, expected, strict=True):
                assert a.shape == b.shape
                assert a.dtype == b.dtype
                scale = np.abs(b).max(initial=1.0)
                tolerance = 1e-12 if b.dtype == np.float64 else 2e-6
                np.testing.assert_allclose(a, b, rtol=tolerance * 10, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("shape", [(7,), (64, 33), (3, 5, 8), (100, 1000), (16384,), (8209,)])
def test_sums_in_passing(shape, dtype):
    def loss(x, y):
        z = (x * 2 - y).tanh()
        total = (z * z).mean() + (x * y).sum() * 1e-3
        return total.detach(), *gg.autograd.grad(total, (x, y))

    x = gg.randn(*shape, dtype=dtype, requires_grad=True)
    y = gg.randn(*shape, dtype=dtype, requires_grad=True)
    graph = graph_of(loss, x, y)
    changed = sum_in_passing(graph)
    rows = [n for n in changed.nodes if n.call.__class__ is RowsCall]
    assert bool(rows) == (shape != (8209,))  # a prime beyond one row stays as it is
    compare(graph, [x.detach().array, y.detach().array], changed)


def test_sums_that_stay_as_they_are():
    def f(x):
        y = x * 2
        return y.sum(0), y.sum((0, 1), keepdim=True), (x > 0).sum()

    x = gg.randn(4, 5)
    graph = graph_of(f, x)
    assert sum_in_passing(graph) is graph


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (64, 100, 33)])
@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
def test_epilogues(sizes, dtype):
    m, k, n = sizes

    def f(x, w, b, mask):
        y = nn.functional.linear(x, w, b).relu()
        z = nn.functional.linear(x, w).exp() * y
        loss = (z + y @ w).sum() if n == k else z.sum()
        gx, gw = gg.autograd.grad(loss, (x, w))
        with gg.no_grad():
            return loss.detach(), y.detach(), gx * mask, w - 0.1 * gw, gw

    x = gg.randn(m, k, dtype=dtype, requires_grad=True) * 0.1
    x = x.detach().requires_grad_()
    w = (gg.randn(n, k, dtype=dtype) * 0.1).requires_grad_()
    b, mask = gg.randn(n, dtype=dtype), gg.randn(k, dtype=dtype)
    graph = graph_of(f, x, w, b, mask)
    changed = product_epilogues(graph)
    assert any(n.call.__class__ is ProductCall for n in changed.nodes)
    assert len(changed.nodes) < len(graph.nodes)
    compare(graph, [t.detach().array for t in (x, w, b, mask)], changed)


def test_an_update_in_the_epilogue_of_a_gradient_is_in_place():
    layer = nn.Linear(20, 30)
    optimizer = gg.optim.Adam(layer.parameters(), lr=0.01)
    other = nn.Linear(20, 30)
    other.load_state_dict(layer.state_dict())
    reference = gg.optim.Adam(other.parameters(), lr=0.01)

    def step(layer, optimizer, x):
        optimizer.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    compiled = gg.compile(lambda x: step(layer, optimizer, x))
    for _ in range(8):
        x = gg.randn(16, 20)
        gg.testing.assert_close(compiled(x), step(other, reference, x), rtol=1e-5, atol=1e-6)
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        gg.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        gg.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    (program,) = compiled.programs
    kinds = [n.call.kind for n in program.run.graph.nodes]
    assert "product" in kinds
    assert not program.run.fallbacks


# ------------------------------------------------------------------------------------------------
# programs over rows as one

LOSSES = {
    "row operations": lambda x, w, b: F.softmax(
        F.gelu(F.layer_norm(x, x.shape[-1:], w, b, 1e-3), approximate="tanh"), -1
    ).square().sum(),
    "norms": lambda x, w, b: (
        F.layer_norm(F.layer_norm(x, x.shape[-1:], w, b).tanh() + x, x.shape[-1:], w).exp().mean()
    ),
    "entropy": lambda x, w, b: -(F.softmax(x * w, -1) * F.log_softmax(x + b, -1)).sum(-1).mean(),
    "classes": lambda x, w, b: F.cross_entropy(
        (F.layer_norm(x, x.shape[-1:], w, b)).reshape(-1, x.shape[-1]).sigmoid(),
        gg.arange(x.numel() // x.shape[-1]) % x.shape[-1],
    ),
    "a number": lambda x, w, b: (F.softmax(x * w.mean(), -1) * (x.mean() + b) + 0.1).square().sum(),
}  # fmt: skip


def with_gradients(loss):
    def f(x, w, b):
        value = loss(x, w, b)
        return value.detach(), *gg.autograd.grad(value, (x, w, b))

    return f


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("shape", [(3, 2), (5, 7), (1, 33), (2, 3, 64), (300, 1000), (40, 3000)])
@pytest.mark.parametrize("name", LOSSES)
def test_programs_over_rows_become_one(name, shape, dtype):
    columns = shape[-1]
    args = [gg.randn(*shape, dtype=dtype), *[gg.rand(columns, dtype=dtype) + 0.5 for _ in "wb"]]
    args = [a.requires_grad_() for a in args]
    graph = graph_of(with_gradients(LOSSES[name]), *args)
    changed = join_rows(graph)
    assert len(changed.nodes) < len(graph.nodes) or columns == 3000
    if name == "row operations" and (columns < 3000 or dtype == gg.float32):
        rows = [n for n in changed.nodes if n.call.__class__ is RowsCall]
        assert len(rows) == 1
    compare(graph, [a.detach().array for a in args], changed)


def test_rows_that_do_not_fit_and_products_stay():
    def long(x, w, b):
        return F.layer_norm(x, x.shape[-1:], w, b).tanh()

    args = [gg.randn(4, 9000), gg.rand(9000), gg.rand(9000)]
    graph = graph_of(long, *args)
    assert join_rows(graph) is graph

    def product(x, w):  # the activation is the product's epilogue
        return F.softmax(F.linear(x, w).tanh(), -1)

    graph = graph_of(product, gg.randn(4, 9), gg.randn(9, 9))
    assert join_rows(graph) is graph


def test_what_lies_between_rows_and_depends_on_all_of_them():
    def f(x):
        y = F.softmax(x, -1)
        return F.softmax(y * y.sum(), -1), F.softmax(y + y.sum(0), -1), y

    x = gg.randn(6, 10)
    graph = graph_of(f, x)
    compare(graph, [x.array], join_rows(graph))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 1e-42, -0.0, 3e38])
def test_special_values_in_rows(special):
    x = gg.randn(20, 24)
    x[3, 5] = x[7, 0] = x[7, 23] = special
    args = [x.requires_grad_(), gg.rand(24).requires_grad_(), gg.rand(24).requires_grad_()]
    graph = graph_of(with_gradients(LOSSES["row operations"]), *args)
    inputs = [a.detach().array for a in args]
    with np.errstate(all="ignore"):
        expected = run_cpu.compile_graph(graph)(*inputs)
        found = run_python.compile_graph(graph)(*inputs)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)


@pytest.mark.parametrize("seed", range(80))
def test_random_programs_over_rows(seed):
    rng = np.random.default_rng(seed)
    dtype = [gg.float32, gg.float64][seed % 2]
    shape = (int(rng.integers(1, 30)), int(rng.integers(2, 70)))
    plan = [tuple(rng.integers(0, 1 << 16, 3)) for _ in range(int(rng.integers(3, 12)))]
    steps = [
        lambda a, b, c: F.softmax(a, -1),
        lambda a, b, c: F.layer_norm(a, a.shape[-1:], c + 1, c, 0.1),
        lambda a, b, c: a - a.mean(-1, keepdim=True) + b,
        lambda a, b, c: (a * 0.5 + c).tanh(),
        lambda a, b, c: a * b + 0.1,
        lambda a, b, c: gg.exp(-a.square()) - b,
        lambda a, b, c: F.gelu(a) * c,
        lambda a, b, c: a * b.mean(),
        lambda a, b, c: a + b.sum(0) * 0.1,
        lambda a, b, c: gg.sigmoid(F.log_softmax(a + b, -1)),
    ]

    def f(x, c):
        pool = [x, x * 0.7]
        for kind, i, j in plan:
            pool.append(steps[kind % len(steps)](pool[i % len(pool)], pool[j % len(pool)], c))
        loss = pool[-1].square().mean() + (pool[-2] * pool[2]).sum() * 0.01
        return (
            loss.detach(),
            pool[-2].detach() * 1,
            *gg.autograd.grad(loss, (x, c), allow_unused=True)[:1],
        )

    x, c = gg.randn(*shape, dtype=dtype).requires_grad_(), gg.rand(shape[1], dtype=dtype)
    graph = graph_of(f, x, c.requires_grad_())
    compare(graph, [x.detach().array, c.detach().array], join_rows(graph))
