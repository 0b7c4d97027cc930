"""One product in the place of many with one weight: fewer nodes, the same results up to rounding,
and no copies of what is computed in its place."""

from itertools import pairwise

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad.codegen.machine import machine
from gpugrad.static import passes, run_cpu
from gpugrad.static.graph import OpCall
from gpugrad.static.passes import merging
from gpugrad.static.recording import record

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")

BEFORE = passes.NATIVE[: passes.NATIVE.index(passes.merge_products)]
AFTER = passes.NATIVE[len(BEFORE) :]


def names(graph) -> list[str]:
    return [n.call.op.name for n in graph.nodes if n.call.__class__ is OpCall]


def merged(function, *args):
    """The graph of a function after the pass. The program over poisoned memory gives what the
    function gives."""

    def detached(*args):
        return [r.detach() for r in function(*args)]

    _, recording = record(detached, args, {}, args, None)
    assert recording.failure is None
    graph = passes.optimize(recording.graph, BEFORE)
    expected = [r.detach().numpy() for r in function(*args)]
    given = [
        s.read() if hasattr(s, "read") else args[s.place].detach().numpy() for s in graph.sources
    ]
    for chosen in (AFTER[:1], AFTER):  # not fused, fused
        program = run_cpu.compile_graph(passes.optimize(graph, chosen))
        program.graph.check()
        arrays = dict(zip(graph.inputs, given, strict=True))
        program(*[arrays[v] for v in program.graph.inputs])
        for v, a in program._arrays.items():
            if v not in program.graph.inputs and v not in program.graph.constants:
                a.fill(np.nan if a.dtype.kind == "f" else 1)
        found = program(*[arrays[v] for v in program.graph.inputs])
        for a, b in zip(found, expected, strict=True):
            close(a, b)
    after = passes.merge_products(graph)
    after.check(evaluate=True)
    return after


def close(a, b) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    tolerance = 1e-12 if b.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(a, b, tolerance * 10, tolerance * np.abs(b).max(initial=1.0))


def leaf(*shape, dtype=gg.float32):
    return (gg.randn(*shape, dtype=dtype) * 0.3).requires_grad_()


def rnn(multiply):
    def loss(x, h, U, W, b):
        states = []
        for t in range(x.shape[0]):
            h = (multiply(x[t], U) + b + multiply(h, W)).tanh()
            states.append(h)
        loss = (states[-1] ** 2).sum() + gg.stack(states).sum() * 0.1
        return loss, *gg.autograd.grad(loss, (U, W, b, x))

    return loss


def rnn_arguments(steps, batch, features, hidden, dtype=gg.float32) -> list:
    x, state = leaf(steps, batch, features, dtype=dtype), gg.zeros(batch, hidden, dtype=dtype)
    weights = [leaf(hidden, n, dtype=dtype) for n in (features, hidden)]
    return [x, state, *weights, leaf(hidden, dtype=dtype)]


MULTIPLY = {"linear": F.linear, "matmul": lambda x, w: x @ w.T}


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("sizes", [(6, 4, 8, 8), (5, 1, 3, 7), (9, 33, 17, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("multiply", MULTIPLY)
def test_an_unrolled_network(sizes, dtype, multiply):
    graph = merged(rnn(MULTIPLY[multiply]), *rnn_arguments(*sizes, dtype=dtype))
    found, steps = names(graph), sizes[0]
    assert "putslice" not in found  # the gradient of x is put together
    assert "sum_to" not in found or found.count("sum_to") == 1
    if multiply == "linear" and steps > 4:
        assert found.count("linear_weight") == 2
        assert found.count("linear_input") == 1 + (steps - 1)  # those to x, and those to states
        assert found.count("linear") == 1 + steps


def test_hardly_anything_is_copied():
    x, state, *weights = rnn_arguments(6, 4, 8, 8)

    def loss(x, h, U, W, b):
        for t in range(x.shape[0]):
            h = F.linear(x[t], U, b).add(F.linear(h, W)).tanh()
        loss = h.square().sum()
        return loss, *gg.autograd.grad(loss, (U, W, b, x))

    graph = merged(loss, x, state, *weights)
    program = run_cpu.compile_graph(passes.optimize(graph, AFTER[1:]))
    program(*[t.detach().numpy() for t in (x, state, *weights)])
    joins = [
        n for n in program.graph.nodes if n.call.__class__ is OpCall and n.call.op.name == "cat"
    ]
    assert len(joins) == 2  # gradients, of which the first is a view, and states after the first
    for node in joins:
        whole, rows, copied = program._arrays[node.outputs[0]], 0, 0
        for v in node.inputs:
            part = program._arrays[v]
            copied += part.ctypes.data != whole[rows:].ctypes.data
            rows += part.shape[0]
        assert copied == 1


def test_a_weight_of_several_branches():
    def f(w, b, *inputs):
        y = [F.linear(x * 2, w, b).relu() for x in inputs]
        loss = sum((a * z).sum() for a, z in pairwise(y))
        return loss, *gg.autograd.grad(loss, (w, b))

    inputs = [leaf(rows, 6) for rows in (3, 1, 5, 5, 3)]
    graph = merged(lambda *a: f(*a), leaf(6, 6), leaf(6), *[x[:1] for x in inputs])
    assert names(graph).count("affine") == 1
    assert names(graph).count("linear_weight") == 1
    few = merged(f, leaf(6, 6), leaf(6), *[x[:1] for x in inputs[:3]])
    assert names(few).count("affine") == 3
    assert names(few).count("linear_weight") == 1


def test_rows_of_different_numbers():
    def f(w, *inputs):
        loss = sum((F.linear(x.exp(), w) ** 2).sum() for x in inputs)
        return loss, *gg.autograd.grad(loss, w)

    graph = merged(f, leaf(5, 6), *[leaf(rows, 6) for rows in (3, 1, 5, 2, 7)])
    assert names(graph).count("linear") == 1
    assert names(graph).count("linear_weight") == 1


def test_products_that_wait_for_each_other_stay():
    def f(x, w):
        for _ in range(6):
            x = F.linear(x, w).tanh()
        return x, F.linear(x, w)

    graph = merged(f, leaf(4, 5), leaf(5, 5))
    assert names(graph).count("linear") == 7


def test_what_is_returned_or_read_elsewhere_stays():
    def f(x, w):
        y = F.linear(x, w)
        g, h = F.linear(y, w), y * 2
        total = (g * h).sum()
        one, two = gg.autograd.grad(total, (w, y))
        return total, one, two, y

    merged(f, leaf(4, 5), leaf(5, 5))


def test_large_stacks_are_cut(monkeypatch):
    args = rnn_arguments(12, 4, 8, 8)
    monkeypatch.setattr(merging, "_BYTES", 5 * 4 * 8 * 4)  # five gradients
    found = names(merged(rnn(F.linear), *args))
    assert found.count("linear_weight") > 2
    monkeypatch.setattr(merging, "_LARGE", 4 * 8 * 8)
    found = names(merged(rnn(F.linear), *args))
    assert found.count("linear_weight") == 24


def test_slices_that_leave_gaps_stay():
    def f(x):
        loss = sum(x[t].exp().sum() for t in (0, 1, 3))
        whole = sum((x[t] * x[t + 2]).sum() for t in range(2))
        return gg.autograd.grad(loss, x)[0], gg.autograd.grad(whole, x)[0]

    found = names(merged(f, leaf(4, 3, 2)))
    assert found.count("putslice") == 3


@pytest.mark.parametrize("seed", range(60))
def test_random_networks(seed):
    """Layers that share weights, in any order, on slices and on each other."""
    rng = np.random.default_rng(seed)
    size, count = int(rng.integers(1, 6)), int(rng.integers(4, 24))
    dtype = [gg.float32, gg.float64][seed % 2]
    plan = [(rng.integers(5), *rng.integers(0, 1 << 16, 3)) for _ in range(count)]
    ends = rng.integers(0, 1 << 16, 4)

    def f(x, *weights):
        pool = [x[t] for t in range(x.shape[0])]
        for kind, i, j, k in plan:
            a, b, w = pool[i % len(pool)], pool[j % len(pool)], weights[k % 3]
            if kind == 0:
                pool.append(F.linear(a, w, weights[3]))
            elif kind == 1:
                pool.append(F.linear(a, w).tanh())
            elif kind == 2:
                pool.append((a @ w * 0.5 + b).tanh())
            elif kind == 3:
                pool.append(gg.cat([a, b])[1 : 1 + a.shape[0]])
            else:
                pool.append(a * b + F.linear(b, w))
        chosen = [pool[-1 - e % count] for e in ends]
        loss = sum((c * c).mean() for c in chosen)
        grads = gg.autograd.grad(loss, (x, *weights), allow_unused=True)
        return loss, chosen[0] + 1, chosen[1], *[g for g in grads if g is not None]

    x = leaf(int(rng.integers(2, 8)), int(rng.integers(1, 5)), size, dtype=dtype)
    merged(f, x, *[leaf(size, size, dtype=dtype) for _ in range(3)], leaf(size, dtype=dtype))
