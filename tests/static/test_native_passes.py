"""Passes that the native runner adds: sums made in passing, epilogues of products. They may round
otherwise; results stay within rounding of the recorded graph, and nodes become fewer."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.codegen.machine import machine
from gpugrad.static import passes, run_cpu, run_python
from gpugrad.static.graph import ProductCall, RowsCall
from gpugrad.static.passes.epilogues import product_epilogues
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
