"""Every benchmark row and every example gives the same results eager and compiled."""

from __future__ import annotations

import ast
import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from benchmarks.workloads import ROWS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 6
# The wide MLP has 21 M parameters: seconds a step. It is one of `make bench`'s rows.
SLOW = {"w3"}


def values(result) -> list[np.ndarray]:
    results = result if isinstance(result, tuple) else (result,)
    return [np.array(t.detach().array) for t in results]


@pytest.mark.parametrize("name", [n for n in ROWS if n not in SLOW])
def test_rows(name):
    row = ROWS[name]
    sizes = row.near[0] if row.near else row.shape
    eager, eager_state = row.program(gg, row.data(1, **{**row.shape, **sizes}), lambda f: f)
    step, state = row.program(gg, row.data(1, **{**row.shape, **sizes}), lambda f: f)
    compiled = gg.compile(step, fullgraph=True)
    for _ in range(STEPS):
        for a, b in zip(values(compiled()), values(eager()), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(initial=1e-3))
    for a, b in zip(state(), eager_state(), strict=True):
        a, b = a.detach().array, b.detach().array
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max(initial=1e-3))
    assert compiled.stats["replays"] >= STEPS - 3


class _CompileLoops(ast.NodeTransformer):
    """The body of every training loop of a script as a compiled function, up to its printing."""

    def __init__(self):
        self.found = 0

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        target = getattr(node.target, "id", "")
        if target != "step":
            return node
        body = [n for n in node.body if "step" not in _names(n)]
        rest = [n for n in node.body if "step" in _names(n)]
        made = sorted(_assigned(body))
        self.found += 1
        function = ast.parse("@gg.compile\ndef _body(): pass").body[0]
        assert isinstance(function, ast.FunctionDef)
        returned = sorted(set(made) & {n for r in rest for n in _names(r)}) or made[:1]
        updated = _updated(body)
        if updated:
            body.insert(0, ast.Global(names=sorted(updated)))
        function.body = [*body, ast.parse(f"return ({', '.join(returned)},)").body[0]]  # type: ignore
        call = ast.parse(f"({', '.join(returned)},) = _body()").body[0]
        node.body = [call, *rest]
        return [function, node]  # type: ignore[return-value]


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _updated(body: list[ast.stmt]) -> set[str]:
    """Names that exist before and are updated in place: ``weights -= ...``."""
    nodes = [n for statement in body for n in ast.walk(statement)]
    updated = {
        n.target.id for n in nodes if isinstance(n, ast.AugAssign) and hasattr(n.target, "id")
    }
    loops = [_names(n.target) for n in nodes if isinstance(n, ast.For)]
    return updated.difference(*loops)


def _assigned(body: list[ast.stmt]) -> set[str]:
    return {
        n.id
        for statement in body
        for n in ast.walk(statement)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def output_of(code: ast.AST | str, name: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    return text.getvalue()


@pytest.mark.parametrize("name", ["linear_regression", "custom_function", "mlp_numpy_arrays"])
def test_examples_with_loops(name):
    """The same lines, with the loop's body compiled. The last one updates by NumPy, which no graph
    sees: it must be noticed."""
    source = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(source)
    transform = _CompileLoops()
    changed = ast.fix_missing_locations(transform.visit(tree))
    assert transform.found == 1
    expected = output_of(source, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = output_of(changed, name)
    assert found == expected
    messages = [str(w.message) for w in caught]
    if name == "mlp_numpy_arrays":
        assert any("runs eagerly" in m for m in messages)
    else:
        assert not messages


def test_the_lenet_example_trains_alike(monkeypatch):
    """Its steps, compiled: four batches of real digits and a smaller last one."""
    import examples.lenet_torch_tutorial as tutorial

    digits = tutorial.datasets.MNIST(None, train=True, transform=None)
    images = gg.tensor(np.stack([np.asarray(digits[k][0]) for k in range(150)]) / 255.0)
    images = images.float().unsqueeze(1)
    labels = gg.tensor([int(digits[k][1]) for k in range(150)])
    losses = []
    for compiled in (False, True):
        gg.manual_seed(3)
        model = tutorial.LeNet()
        optimizer = tutorial.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

        def step(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = tutorial.F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        run = gg.compile(step, fullgraph=True) if compiled else step
        losses.append([])
        for _ in range(4):
            for start in range(0, 150, 64):
                batch = slice(start, start + 64)
                losses[-1].append(run(images[batch], labels[batch]).item())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert run.stats["variants"] == 2
    assert run.stats["replays"] >= 6


def test_the_hessian_example_with_a_compiled_function():
    import examples.hessian_vector_product as example

    x = gg.full((10,), -0.5, dtype=gg.float64, requires_grad=True)
    y = gg.full((10,), -0.5, dtype=gg.float64, requires_grad=True)
    expected = example.minimise(x)
    plain, example.rosenbrock = example.rosenbrock, gg.compile(example.rosenbrock)
    try:
        assert example.minimise(y) == expected
    finally:
        example.rosenbrock = plain
    gg.testing.assert_close(y, x, rtol=1e-9, atol=1e-11)
