"""``compile(check=N)``: replays compared with eager mode.

The replay runs first. What it wrote is put aside, everything is as before, the function runs
eagerly, and the two are compared. What eager mode did is what stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend.arrays import array_module, to_numpy
from ..errors import at
from ..tensor import Tensor
from ..tree import flatten
from .graph import Graph, Node, Value
from .output import Output
from .replay import MISS, ReplayedProgram

# Relative and absolute differences that rounding may make, by dtype; others must be equal.
TOLERANCES = {
    "float16": (2e-2, 2e-3),
    "bfloat16": (1e-1, 1e-2),
    "float32": (1e-4, 1e-5),
    "float64": (1e-9, 1e-11),
}


def call(compiled, program: ReplayedProgram, leaves: Sequence):
    """A checked call: the result of eager mode. Raises RuntimeError if the replay differs."""
    graph = program.graph
    inputs = program.peek(leaves)
    if inputs is None:
        return MISS
    before = [a.copy() if hasattr(a, "copy") else a for a in inputs]
    grads = [(t, t.grad) for t, _ in program.recording.grads if isinstance(t, Tensor)]
    with Output(shows=False):  # eager mode writes it to the terminal
        replayed = program(leaves)
    if replayed is MISS:
        return MISS
    stores = [graph.inputs.index(target) for target, _ in graph.stores]
    written = [inputs[k].copy() for k in stores]
    gradients = [t.grad for t, _ in grads]
    program.undo()
    for k in stores:
        inputs[k][...] = before[k]
    for t, grad in grads:
        t.grad = grad
    result = program.function(leaves)
    pairs = list(zip(_tensors(replayed), _tensors(result), strict=True))
    pairs += [(a, inputs[k]) for a, k in zip(written, stores, strict=True)]
    pairs += [
        (a.array, t.grad.array)
        for a, (t, _) in zip(gradients, grads, strict=True)
        if a is not None and t.grad is not None
    ]
    wrong = [k for k, (a, b) in enumerate(pairs) if not close(a, b)]
    if wrong:
        a, b = pairs[wrong[0]]
        raise RuntimeError(
            f"{compiled.__name__}: a replay differs from eager mode, by up to "
            f"{_distance(a, b):.3g} in an array of shape {tuple(b.shape)} and dtype {b.dtype}."
            f"{_first_difference(program, graph, before)}"
        )
    return result


def _tensors(result) -> list:
    leaves, _ = flatten(result)
    return [leaf.array for leaf in leaves if isinstance(leaf, Tensor)]


def close(a, b) -> bool:
    """Whether two arrays are equal up to rounding."""
    a, b = to_numpy(a), to_numpy(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    found = TOLERANCES.get(a.dtype.name)
    xp = array_module(a)
    if found is None:
        return bool((a == b).all())
    relative, absolute = found
    size = float(xp.max(xp.abs(b), initial=0.0, where=xp.isfinite(b)))
    return bool(xp.allclose(a, b, relative, absolute * max(size, 1.0), equal_nan=True))


def _distance(a, b) -> float:
    a, b = to_numpy(a).astype("float64"), to_numpy(b).astype("float64")
    return float(abs(a - b).max()) if a.size and a.shape == b.shape else float("nan")


def _first_difference(program: ReplayedProgram, graph: Graph, inputs: Sequence) -> str:
    """The first node that computes something else alone than its reference does."""
    from .runners import runner_for

    values: dict[Any, Any] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    for node in graph.nodes:
        args = [values.get(i, i) if i.__class__ is Value else i for i in node.inputs]
        expected = list(node.call.evaluate(args))
        found = runner_for(_alone(graph, node))(*[values[v] for v in _inputs(node)])
        for v, a, b in zip(node.outputs, found or expected, expected, strict=True):
            b = array_module(inputs[0]).asarray(b) if not hasattr(b, "shape") else b
            if not close(a, b):
                return f" The first operation that differs is{at(node.line)}:\n  {node!r}"
            values[v] = b
    return " Every operation alone is right: memory or order is at fault."


def _inputs(node: Node) -> list:
    return list(dict.fromkeys(node.values))


def _alone(graph: Graph, node: Node) -> Graph:
    from .compose import Saved

    one = graph.with_nodes([node])
    one.inputs = _inputs(node)
    one.sources = [Saved(k) for k, _ in enumerate(one.inputs)]
    one.constants, one.outputs, one.stores, one.guards = {}, list(node.outputs), [], []
    return one
