"""Elementwise work on the second operand of a product that the product does itself: the bits of the
program without the pass."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad.codegen.machine import machine
from gpugrad.config import settings
from gpugrad.static import passes, run_cpu, run_python
from gpugrad.static.graph import Graph, PrologueCall
from gpugrad.static.recording import record
from gpugrad.static.sources import Argument

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")

PROGRAMS = {
    "scaled weights": lambda x, w, s, b: F.linear(x, w * s),
    "with a bias and relu": lambda x, w, s, b: F.linear(x, w * s, b).relu(),
    "weight norm": lambda x, w, s, b: F.linear(
        x, s * w / w.square().sum(1, keepdim=True).sqrt(), b
    ),
    "transposed by a view": lambda x, w, s, b: x @ (w * 2 - s).T,
    "as it is": lambda x, w, s, b: x[:, :1] @ (w * 2 - b.reshape(-1, 1))[:1],
    "of a mask": lambda x, w, s, b: (x @ gg.where(w > 0, w, 0.0).T + b).tanh(),
    "read by an epilogue": lambda x, w, s, b: F.linear(x, w * s) * (b + x.sum()),
}


def graph_of(function, *args) -> Graph:
    _, recording = record(function, args, {}, args, None)
    assert recording.failure is None
    return passes.optimize(recording.graph)


def inputs_of(graph: Graph, args) -> list:
    return [args[s.place].array if s.__class__ is Argument else s.read() for s in graph.sources]


def results(
    graph: Graph, args, monkeypatch, joins: bool = True
) -> tuple[list, run_cpu.NativeProgram]:
    """Results of two calls, in memory that held NaN before the second."""
    with monkeypatch.context() as patch:
        if not joins:
            patch.setattr(run_cpu, "join_prologues", lambda graph: graph)
        run = run_cpu.compile_graph(graph)
        run(*inputs_of(graph, args))
        for v, a in run._arrays.items():
            given = v in graph.inputs or v in graph.constants
            if not given and a.dtype.kind == "f" and a.flags.writeable:
                a[...] = np.nan
        return run(*inputs_of(graph, args)), run


def prologues(run) -> list[PrologueCall]:
    return [n.call for n in run.graph.nodes if n.call.__class__ is PrologueCall]


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request, monkeypatch):
    monkeypatch.setattr(settings, "num_threads", request.param)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 33, 17), (64, 70, 23), (8, 400, 300)])
@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("name", PROGRAMS)
def test_bits_of_programs(name, dtype, sizes, threads, monkeypatch):
    m, k, n = sizes
    args = [gg.randn(*s, dtype=dtype) for s in ((m, k), (n, k), (n, 1), (n,))]
    if name == "transposed by a view":
        args[2] = gg.randn(n, k, dtype=dtype)
    graph = graph_of(PROGRAMS[name], *args)
    found, run = results(graph, args, monkeypatch)
    wanted, _ = results(graph, args, monkeypatch, joins=False)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in wanted]
    reference = run_python.compile_graph(graph)(*inputs_of(graph, args))
    for a, b in zip(found, reference, strict=True):
        tolerance = 1e-10 if dtype == gg.float64 else 1e-3
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())
    if name != "as it is" and sizes != (1, 1, 1):
        assert len(prologues(run)) == 1
        assert not run.fallbacks
    run.graph.check(evaluate=True)
    text = str(run.graph)
    again = Graph.parse(text)
    assert str(again).split("<-")[-1] == text.split("<-")[-1]
    for a, b in zip(run_python.compile_graph(again)(*inputs_of(graph, args)), found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 20, 9), (2, 64, 30, 31)])
def test_batches(shape, turned, threads, monkeypatch):
    batch, m, k, n = shape

    def f(x, y, s):
        y = y * s - 1
        return (x @ (y.transpose(-1, -2) if turned else y)).relu()

    args = [gg.randn(*s) for s in ((batch, m, k), (batch, n, k) if turned else (batch, k, n), (1,))]
    graph = graph_of(f, *args)
    found, run = results(graph, args, monkeypatch)
    wanted, _ = results(graph, args, monkeypatch, joins=False)
    assert len(prologues(run)) == 1
    assert found[0].tobytes() == wanted[0].tobytes()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, -0.0, 1e-42])
def test_special_values(special, monkeypatch):
    args = [gg.randn(4, 30), gg.randn(21, 30), gg.randn(21, 1)]
    for a in args:
        a.array.flat[::7] = special
    with np.errstate(all="ignore"):
        graph = graph_of(lambda x, w, s: F.linear(x, w * s).relu(), *args)
        found, run = results(graph, args, monkeypatch)
        wanted, _ = results(graph, args, monkeypatch, joins=False)
    assert len(prologues(run)) == 1
    assert found[0].tobytes() == wanted[0].tobytes()


NOT_JOINED = {
    "read twice": (4, lambda x, w, s: F.linear(x, w * s) + F.linear(x * 2, w * s)),
    "read by something else": (4, lambda x, w, s: (F.linear(x, w * s), (w * s).sum())),
    "both operands": (9, lambda x, w, s: (w * s) @ (w * s).T),
    "an output": (4, lambda x, w, s: _with_itself(x, w * s)),
    "a view of it is an output": (4, lambda x, w, s: _with_view(x, w * s)),
    "many rows": (65, lambda x, w, s: F.linear(x, w * s)),
    "a function that takes long": (4, lambda x, w, s: F.linear(x, (w * s).exp())),
    "the first operand": (4, lambda x, w, s: (x * 2) @ w.T),
}  # fmt: skip


def _with_itself(x, y):
    return F.linear(x, y), y


def _with_view(x, y):
    return x @ y.T, y.T


@pytest.mark.parametrize("name", NOT_JOINED)
def test_what_is_not_joined(name):
    m, function = NOT_JOINED[name]
    args = [gg.randn(m, 30), gg.randn(9, 30), gg.randn(9, 1)]
    run = run_cpu.compile_graph(graph_of(function, *args))
    assert not prologues(run)


def test_a_stored_value_is_not_joined():
    w = gg.randn(9, 30)

    def f(x):
        w.mul_(0.5)
        return F.linear(x, w)

    x = gg.randn(4, 30)
    assert not prologues(run_cpu.compile_graph(graph_of(f, x)))


def test_memory_that_is_stored_to_before_the_product(monkeypatch):
    """What a prologue reads is what it was where the program computed it."""
    state, scale = gg.randn(9, 30), gg.rand(9, 1)

    def f(x):
        weights = state * scale
        state.add_(1.0)
        return F.linear(x, weights).relu()

    compiled, x = gg.compile(f), gg.randn(4, 30)
    for _ in range(6):
        before = state.array.copy()
        y = compiled(x)
        np.testing.assert_allclose(
            y.array, np.maximum(x.array @ (before * scale.array).T, 0), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(state.array, before + np.float32(1))


def test_arguments_and_numbers_that_change():
    compiled = gg.compile(lambda x, w, c: x @ (w * c + 1), dynamic=False)
    rng = np.random.default_rng(3)
    for k in range(8):
        x, w = (rng.normal(size=s).astype(np.float32) for s in ((5, 20), (20, 30)))
        c = 0.5 + k
        y = compiled(gg.tensor(x), gg.tensor(w), c)
        np.testing.assert_allclose(y.array, x @ (w * c + 1), rtol=1e-4, atol=1e-4)
    assert any(prologues(p.run) for p in compiled.programs)
    assert "1 products compute an operand while they read it" in compiled.explain()
    strided = gg.randn(20, 60)[:, ::2]
    found = compiled(gg.tensor(x), strided, c)
    np.testing.assert_allclose(found.array, x @ (strided.array * c + 1), rtol=1e-4, atol=1e-4)


def test_gradients_through_a_scaled_weight():
    def loss(x, w, s):
        return F.linear(x, w * s).square().mean()

    x, w, s = gg.randn(6, 20), gg.randn(9, 20), gg.rand(9, 1)
    step = gg.compile(lambda x, w, s: gg.autograd.grad(loss(x, w, s), (w, s)))
    w, s = w.requires_grad_(), s.requires_grad_()
    for _ in range(5):
        found, wanted = step(x, w, s), gg.autograd.grad(loss(x, w, s), (w, s))
        for a, b in zip(found, wanted, strict=True):
            gg.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_where_the_kernel_declines(monkeypatch):
    """Then the operand is computed by a task of its own."""
    args = [gg.randn(2, 3, 20)[:, ::2], gg.randn(9, 20), gg.rand(9, 1)]
    graph = graph_of(lambda x, w, s: F.linear(x, w * s).relu(), *args)
    wanted, _ = results(graph, args, monkeypatch, joins=False)
    monkeypatch.setattr(run_cpu.lower.gemm, "_computed", lambda b, dtype: None)
    found, run = results(graph, args, monkeypatch)
    assert len(prologues(run)) == 1
    assert not run.fallbacks
    assert found[0].tobytes() == wanted[0].tobytes()
