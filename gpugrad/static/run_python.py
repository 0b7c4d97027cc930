"""Runs a graph as a straight line of Python calls: what every machine can do.

For two layers and a loss the text reads

    def program(v0, v1, v2, v3):
        v4, = c0((v0, v1, v2))
        v5, = c1((v4,))
        del v4
        ...
        v7, = c6((v6,))
        if bool(v7.item()) is not True: return None
        ...
        v1[...] = v8
        return v9,

Memory outside is written at the end, when nothing can go wrong any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from ..backend.arrays import backend_of, is_array
from .graph import Graph, Value


def compile_graph(graph: Graph) -> Callable[..., Sequence | None]:
    """A function of the inputs' arrays and numbers that stores what is to be stored and gives the
    outputs; None, and nothing stored, if a guard's outcome is another one."""
    namespace: dict = {"array": _array}
    for v, array in graph.constants.items():
        namespace[f"v{v.number}"] = array
    parameters = ", ".join(f"v{v.number}" for v in graph.inputs)
    lines = [f"def program({parameters}):"]
    last, outcomes = _last_uses(graph), defaultdict(list)
    for v, outcome in graph.guards:
        outcomes[v].append(outcome)
    lines += [_guard(v, outcome) for v, outcome in graph.guards if v in graph.inputs]
    for k, node in enumerate(graph.nodes):
        arguments = [_argument(i, namespace) for i in node.inputs]
        namespace[f"c{k}"] = node.call.evaluate
        outputs = "".join(f"v{v.number}, " for v in node.outputs)
        given = "".join(f"{a}, " for a in arguments)
        lines.append(f"    {outputs}{'= ' if outputs else ''}c{k}(({given}))")
        for v in node.outputs:
            if not v.shape:
                lines.append(f"    v{v.number} = array(v{v.number})")
        for v in node.outputs:  # what follows may be an error the other way
            lines += [_guard(v, outcome) for outcome in outcomes[v]]
        dead = [v for v in last.get(k, ()) if v not in graph.constants]
        if dead:
            lines.append(f"    del {', '.join(f'v{v.number}' for v in dead)}")
    # a stored value may be an input that another store overwrites
    inputs = set(graph.inputs)
    for _, v in graph.stores:
        if v in inputs:
            lines.append(f"    v{v.number} = v{v.number}.copy()")
    lines += [f"    v{target.number}[...] = v{v.number}" for target, v in graph.stores]
    results = "".join(f"v{v.number}, " for v in graph.outputs)
    lines.append(f"    return ({results})")
    exec(compile("\n".join(lines), "<gpugrad graph>", "exec"), namespace)
    return namespace["program"]


def _guard(v: Value, outcome: bool) -> str:
    return f"    if bool(v{v.number}.item()) is not {outcome}: return None"


def _argument(i, namespace: dict) -> str:
    if i.__class__ is Value:
        return f"v{i.number}"
    if i is None:
        return "None"
    name = f"k{len(namespace)}"
    namespace[name] = i
    return name


def _array(value):
    """NumPy's functions return scalars for zero-dimensional arrays."""
    return value if is_array(value) else backend_of(value).asarray(value)


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    """The values that are read for the last time, by the number of the node."""
    kept = {*graph.results(), *[target for target, _ in graph.stores]}
    where: dict[Value, int] = {}
    for k, node in enumerate(graph.nodes):
        for v in (*node.outputs, *node.values):
            where[v] = k
    found: dict[int, list[Value]] = {}
    for v, k in where.items():
        if v not in kept:
            found.setdefault(k, []).append(v)
    return found
