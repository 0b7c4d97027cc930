"""Passes that look at one node at a time: dead code, constants, common subexpressions, identities.

Each gives a new graph and leaves the one it was given as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ...backend.arrays import backend_of, is_array, there
from ...backend.numpy import xp as np
from ...codegen.arrays import Program
from ...codegen.expr import Expr, evaluate, exactly, topological, variable
from ..graph import Graph, Node, OpCall, ProgramCall, Value, frozen_input
from .pointwise import Expressions, as_program, branches, pointwise, read_by
from .rewriting import Replacements

# A constant may be larger than what it is computed from by this many bytes.
_GROWTH = 1 << 16


def drop_dead(graph: Graph) -> Graph:
    """Leave out what no result needs; checks and random draws stay."""
    needed = set(graph.results()) | {target for target, _ in graph.stores}
    kept = []
    for node in reversed(graph.nodes):
        if not node.call.pure or not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.values)
    new = graph.with_nodes(kept[::-1])
    new.constants = {v: a for v, a in graph.constants.items() if v in needed}
    pairs = [(v, s) for v, s in zip(graph.inputs, graph.sources, strict=True) if v in needed]
    new.inputs, new.sources = [v for v, _ in pairs], [s for _, s in pairs]
    return new


def fold_constants(graph: Graph) -> Graph:
    """Compute now what depends on constants alone.

    The node's own evaluation does it, so that the bits are those of the program. What is returned
    stays: a constant belongs to the program, not to the caller.
    """
    constants = dict(graph.constants)
    kept, returned = [], set(graph.outputs)
    for node in graph.nodes:
        constant = node.call.pure and all(v in constants for v in node.values)
        if not constant or not returned.isdisjoint(node.outputs):
            kept.append(node)
            continue
        arrays = _evaluated(node, constants)
        if arrays is None:
            kept.append(node)
        else:
            constants.update(zip(node.outputs, arrays, strict=True))
    new = graph.with_nodes(kept)
    new.constants = constants
    return new


def _evaluated(node: Node, constants: dict[Value, Any]) -> list | None:
    """The results of a node of constants, unless they are much larger than these."""
    args = [constants[i] if i.__class__ is Value else i for i in node.inputs]
    given = [a for a in args if is_array(a)]
    if not given:
        return None
    size = sum(_bytes(v) for v in node.outputs)
    if size > sum(a.nbytes for a in given) + _GROWTH:
        return None
    with there(given[0]), np.errstate(all="ignore"):  # the recorded run has warned
        found = node.call.evaluate(args)
    return [r if is_array(r) else backend_of(r).asarray(r) for r in found]


def _bytes(v: Value) -> int:
    n = v.dtype.itemsize
    for size in v.shape or ():
        n *= size
    return n


def share_common(graph: Graph) -> Graph:
    """Compute once what several nodes compute: the same call of the same values.

    Checks and random draws are kept.
    """
    replaced, kept = Replacements(graph), []
    seen: dict[tuple, Node] = {}
    for old in graph.nodes:
        node = replaced.renewed(old)
        if not node.call.pure:
            kept.append(node)
            continue
        key = (node.call.key(), tuple([_key_of(i) for i in node.inputs]))
        first = seen.setdefault(key, node)
        if first is not node and replaced.may_replace(node):
            for v, w in zip(node.outputs, first.outputs, strict=True):
                replaced.replace(v, w)
        else:
            kept.append(node)
    return replaced.finished(kept)


def _key_of(i) -> Any:
    return i if i.__class__ is Value else frozen_input(i)


# ------------------------------------------------------------------------------------------------
# identities


def simplify(graph: Graph) -> Graph:
    """Leave out steps that change nothing, and make one of two that undo each other in part.

    ``x * 1``, ``x - 0``, ``-(-x)``, casts to the same dtype or through a wider one and back,
    reshapes of reshapes, permutations of permutations, sums to the same shape. Nothing that changes
    bits, such as ``x + 0`` (of -0.0) and ``x * 0`` (of infinities): see ``identities.py``.
    """
    replaced, kept = Replacements(graph), []
    made: dict[Value, Node] = {}
    expressions = Expressions(graph)
    for old in graph.nodes:
        node = replaced.renewed(old)
        simpler = _simpler(node, made, expressions)
        if simpler.__class__ is Node:
            node = simpler
        elif simpler is not None and replaced.may_replace(node):
            replaced.replace(node.outputs[0], simpler)
            continue
        for v in node.outputs:
            made[v] = node
        kept.append(node)
    return replaced.finished(kept)


def _simpler(node: Node, made: dict[Value, Node], expressions: Expressions) -> Any:
    """A simpler node with the same result, or the value that is the result; None if there is
    neither."""
    if node.call.__class__ is OpCall and node.inputs and node.inputs[0].__class__ is Value:
        rule = _RULES.get(node.call.op.name)
        if rule is not None:
            return rule(node, made)
    found = pointwise(node)
    if found is None or len(node.outputs) > 1:
        return None
    if _stays(found.program, _given(found.program, node, expressions)):
        return None
    (e,) = expressions.of(found.program, node, {}, exactly)
    if not isinstance(e, Expr) or e.op == "const":
        return None
    if e.op == "input":
        v, out = expressions.leaves[e.args[0]], node.outputs[0]
        return v if (v.shape, v.dtype) == (out.shape, out.dtype) else None
    steps = [s for s in topological([e]) if s.op not in ("input", "const")]
    if len(steps) >= len(found.program.steps):
        return None
    program, inputs = as_program([e], expressions.leaves, found.shape)
    return Node(ProgramCall(program), inputs, node.outputs, node.line)


def _given(program: Program, node: Node, expressions: Expressions) -> tuple:
    """What an elementwise node reads, as far as its simplification depends on it: which inputs are
    the same, and which are what number."""
    spelled = expressions.spelled_out(program, node, {})
    places: dict[Any, int] = {}
    given: list = []
    for name, i in read_by(program, node):
        number = spelled.get(i) if i.__class__ is Value else i
        if number is None or (i.__class__ is not Value and name in branches(program)):
            given.append(places.setdefault(i if i.__class__ is Value else name, len(places)))
        else:
            given.append((number, repr(number)))  # which tells -0.0 from 0.0, and 1 from True
    return tuple(given)


@lru_cache(4096)
def _stays(program: Program, given: tuple) -> bool:
    """Whether expressions of such inputs have nothing to simplify: asked of each operation once,
    while a graph has hundreds of nodes."""
    names = [name for name in program.inputs if name in program.used]
    env = {
        name: g[0] if g.__class__ is tuple else variable(f"v{g}")
        for name, g in zip(names, given, strict=True)
    }
    (e,) = evaluate(program.outputs, env, exactly, program.order)
    if not isinstance(e, Expr) or e.op == "const":
        return True
    steps = [s for s in topological([e]) if s.op not in ("input", "const")]
    return e.op != "input" and len(steps) >= len(program.steps)


def _before(v: Value, made: dict[Value, Node], name: str) -> Node | None:
    """The node that made a value, if it is a certain operation of a value."""
    node = made.get(v)
    if node is None or node.call.__class__ is not OpCall or node.call.op.name != name:
        return None
    return node if node.inputs[0].__class__ is Value else None


def _with(node: Node, x: Value, params: dict) -> Node:
    return Node(OpCall(node.call.op, params), (x,), node.outputs, node.line)


def _if_same_shape(node: Node, made) -> Value | None:
    x = node.inputs[0]
    return x if x.shape == node.outputs[0].shape else None


def _reshape(node: Node, made: dict[Value, Node]) -> Node | Value | None:
    x, out = node.inputs[0], node.outputs[0]
    if x.shape == out.shape:
        return x
    inner = _before(x, made, "reshape")
    if inner is None:
        return None
    x = inner.inputs[0]
    return x if x.shape == out.shape else _with(node, x, {"shape": out.shape})


def _permute(node: Node, made: dict[Value, Node]) -> Node | Value | None:
    x = node.inputs[0]
    axes = tuple(a % len(x.shape) for a in node.call.params["axes"])
    inner = _before(x, made, "permute")
    if inner is not None:
        x = inner.inputs[0]
        axes = tuple(inner.call.params["axes"][a] for a in axes)
    if axes == tuple(range(len(axes))):
        return x
    return None if inner is None else _with(node, x, {"axes": axes})


def _cast(node: Node, made: dict[Value, Node]) -> Node | Value | None:
    x, dtype = node.inputs[0], node.outputs[0].dtype
    if x.dtype == dtype:
        return x
    inner = _before(x, made, "cast")
    if inner is not None and inner.inputs[0].dtype == dtype and _holds(x.dtype, dtype):
        return inner.inputs[0]
    return None


def _holds(wide, narrow) -> bool:
    """Whether a dtype has every value of another."""
    try:
        return np.can_cast(narrow, wide, "safe")
    except TypeError:  # a foreign dtype
        return False


_RULES: dict[str, Callable[[Node, dict[Value, Node]], Node | Value | None]] = {
    "reshape": _reshape,
    "permute": _permute,
    "cast": _cast,
    "alias": _if_same_shape,
    "broadcast_to": _if_same_shape,
    "spread": _if_same_shape,
    "sum_to": _if_same_shape,
}
