"""Explicit graphs: built once, run by sessions."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.static import passes
from gpugrad.static.session import Graph, Session, assign, gradients, placeholder, variable

F32 = np.float32


def test_values_are_those_of_eager_mode(rng):
    with Graph() as graph:
        x = placeholder(gg.float32, (4, 3), "x")
        y = placeholder(gg.float32, (3,))
        hidden = (x * 2 + y).tanh()
        total = hidden.sum()
    session = Session(graph)
    for _ in range(3):
        a, b = rng.standard_normal((4, 3)).astype(F32), rng.standard_normal(3).astype(F32)
        expected = (gg.tensor(a) * 2 + gg.tensor(b)).tanh()
        both = session.run([hidden, total], {x: a, "placeholder_1": b})
        np.testing.assert_allclose(both[0], expected.numpy(), 1e-6)
        np.testing.assert_allclose(both[1], expected.numpy().sum(), 1e-6)
        np.testing.assert_array_equal(session.run(hidden, {x: gg.tensor(a), y: b}), both[0])


def test_results_belong_to_the_caller():
    with Graph() as graph:
        x = placeholder(gg.float32, (3,))
        w = variable([1.0, 2.0, 3.0])
        twice = x * 2
    session = Session(graph)
    first = session.run(twice, {x: [1, 2, 3]})
    session.run(twice, {x: [4, 5, 6]})
    np.testing.assert_array_equal(first, [2, 4, 6])
    session.run(w)[:] = 0
    np.testing.assert_array_equal(session.run(w), [1, 2, 3])


def test_training_matches_eager_mode(rng):
    start = rng.standard_normal((3, 1))
    with Graph() as graph:
        x = placeholder(gg.float64, (8, 3), "x")
        t = placeholder(gg.float64, (8, 1), "t")
        w = variable(start, "w", dtype=gg.float64)
        loss = ((x @ w - t) ** 2).mean()
        (dw,) = gradients(loss, [w])
        train = assign(w, w - 0.1 * dw)
    session = Session(graph)
    eager = gg.tensor(start, requires_grad=True)
    for _ in range(5):
        a, b = rng.standard_normal((8, 3)), rng.standard_normal((8, 1))
        expected = ((gg.tensor(a) @ eager - gg.tensor(b)) ** 2).mean()
        (g,) = gg.autograd.grad(expected, [eager])
        eager = (eager - 0.1 * g).detach().requires_grad_()
        value, new = session.run([loss, train], {x: a, t: b})
        np.testing.assert_allclose(value, expected.item(), 1e-12)
        np.testing.assert_allclose(new, eager.detach().numpy(), 1e-12)
        np.testing.assert_array_equal(graph.variables["w"].detach().numpy(), new)
    before = session.run(w)
    session.run(loss, {x: a, t: b})  # nothing is assigned unless asked for
    np.testing.assert_array_equal(session.run(w), before)


def test_assignments_see_old_values():
    with Graph() as graph:
        a, b = variable([1.0]), variable([2.0])
        swap = [assign(a, b * 1), assign(b, a * 1)]
    session = Session(graph)
    assert [v.item() for v in session.run(swap)] == [2.0, 1.0]
    assert [v.item() for v in session.run([a, b])] == [2.0, 1.0]


def test_any_size_by_recording_again(rng):
    records = []

    def build():
        x = placeholder(gg.float32, (None, 3), "x")
        w = variable(np.eye(3), "w", dtype=gg.float32)
        records.append(x.shape)
        y = x @ w
        return {"y": y, "mean": y.mean(0), "grow": assign(w, w * 2)}

    graph = Graph(build)
    session = Session(graph)
    for n in (5, 2, 5, 0):
        a = rng.standard_normal((n, 3)).astype(F32)
        np.testing.assert_array_equal(session.run("y", {"x": a}), a)
    session.run("grow")
    a = rng.standard_normal((2, 3)).astype(F32)
    np.testing.assert_array_equal(session.run("y", {"x": a}), 2 * a)
    assert [tuple(s) for s in records] == [(1, 3), (5, 3), (2, 3), (0, 3)]
    with pytest.raises(ValueError, match=r"shape \(None, 3\), got \(2, 4\)"):
        session.run("y", {"x": np.ones((2, 4))})
    with pytest.raises(ValueError, match="'nothing' cannot be fetched"):
        session.run("nothing", {"x": a})


def test_only_what_is_fetched_must_be_fed():
    with Graph() as graph:
        x, y = placeholder(gg.float32, (2,), "x"), placeholder(gg.int64, (2,), "y")
        a = x + 1
        loss = nn.functional.cross_entropy(gg.stack([x, x]), y)
    session = Session(graph)
    np.testing.assert_array_equal(session.run(a, {x: [1, 2]}), [2, 3])
    with pytest.raises(ValueError, match="placeholder 'y' is needed"):
        session.run(loss, {x: [1, 2]})
    assert session.run(loss, {x: [1, 1], y: [1, 0]}) == pytest.approx(np.log(2))
    with pytest.raises((RuntimeError, IndexError)):
        session.run(loss, {x: [1, 1], y: [1, 7]})


def test_dropout_draws_at_every_run():
    drop = nn.Dropout(0.5)
    with Graph() as graph:
        x = placeholder(gg.float32, (200,), "x")
        y = drop(x)
    session = Session(graph)
    a, b = (session.run(y, {x: np.ones(200)}) for _ in range(2))
    assert set(np.unique(a)) == {0.0, 2.0}
    assert (a != b).any()


def test_modules_are_variables_too(rng):
    layer = nn.Linear(3, 2)
    with Graph() as graph:
        x = placeholder(gg.float32, (4, 3))
        y = layer(x)
    a = rng.standard_normal((4, 3)).astype(F32)
    np.testing.assert_allclose(
        Session(graph).run(y, {x: a}), layer(gg.tensor(a)).detach().numpy(), 1e-6
    )
    with gg.no_grad():
        layer.weight.mul_(0)
    found = Session(graph).run(y, {x: a})
    np.testing.assert_array_equal(found, np.broadcast_to(layer.bias.detach().numpy(), (4, 2)))


def test_programs_before_and_after_passes():
    with Graph() as graph:
        x = placeholder(gg.float32, (4,))
        y = x * (gg.linspace(0, 1, 4) * 2) + 1
    program = graph.program(y)
    assert program.num_ops == 3
    assert passes.fold_constants(program).num_ops == 2
    assert Session(graph).optimized(y).num_ops == 1


def test_what_a_graph_cannot_do():
    with pytest.raises(RuntimeError, match="no graph is being built"):
        placeholder(gg.float32, (2,))
    with pytest.raises(RuntimeError, match="the graph is empty"):
        Session(Graph()).run([])
    with Graph() as graph, pytest.raises(ValueError, match="has None in its shape"):
        placeholder(gg.float32, (None,))
    with pytest.raises(RuntimeError, match="built already"), graph:
        pass
    with pytest.raises(RuntimeError, match="no values before it is run"), Graph():
        float(placeholder(gg.float32, (2,))[0])
    with pytest.raises(RuntimeError, match="use assign"), Graph():
        variable([1.0], trainable=False).add_(1)
    with Graph() as graph:
        x = placeholder(gg.float32, (2,), "x")
        w = variable([1.0, 2.0])
        with pytest.raises(ValueError, match="a placeholder 'x' already"):
            placeholder(gg.float32, (2,), "x")
        with pytest.raises(ValueError, match=r"float32\[2\] cannot take a value of float32\[\]"):
            assign(w, w.sum())
        y = x + w
    session = Session(graph)
    with pytest.raises(ValueError, match="was not computed while"):
        session.run(y * 2, {x: [1, 2]})
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        session.run(y, {x: [1, 2, 3]})
    with pytest.raises(ValueError, match="no placeholder"):
        session.run(y, {"z": [1, 2]})
