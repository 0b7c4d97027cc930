"""Recompute instead of save: cheap values are computed where they are read.

A dropout mask is a comparison and a product away from random numbers that lie in memory anyway.
Computed once for forward and backward, it is written and read as an array of its own; computed in
the loops that use it, it stays in registers.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ...codegen import llvm
from ...codegen.expr import Expr, exactly, topological
from ...codegen.rows import ELEMENT
from ..graph import Graph, Node, ProgramCall, RowsCall, Value, expression_of
from .pointwise import Expressions, as_program, names_in, pointwise
from .rowwise import rows_node

# Primitive operations and readers of a value that is computed for each reader.
_STEPS, _READERS = 4, 4


def recompute(graph: Graph) -> Graph:
    """Give every reader of a cheap value a node of its own that computes it, which ``fuse`` makes a
    part of the reader; the graph itself, if there is no such value.

    Cheap are a few exact operations on one array that is there from beginning to end, in a node
    that computes other values besides.
    """
    cheap = _Cheap(graph)
    if not cheap.recipes:
        return graph
    new = graph.with_nodes([])
    for node in graph.nodes:
        inputs = list(node.inputs)
        for v in dict.fromkeys(node.values):
            if v in cheap.recipes:
                own = new.value(v.shape, v.dtype, v.device)
                program, given = cheap.recipes[v]
                new.nodes.append(Node(ProgramCall(program), given, [own], node.line))
                inputs = [own if i is v else i for i in inputs]
        without = cheap.without.get(node, node)
        if without is node:
            new.nodes.append(Node(node.call, inputs, node.outputs, node.line))
        else:
            new.nodes.append(without)
    return new


class _Cheap:
    """The cheap values of a graph: ``recipes`` are programs and inputs that compute them,
    ``without`` the nodes that computed them, now without them."""

    def __init__(self, graph: Graph):
        self.recipes: dict[Value, tuple[Any, list]] = {}
        self.without: dict[Node, Node] = {}
        self._there = {*graph.inputs, *graph.constants} - {t for t, _ in graph.stores}
        self._results = set(graph.results())
        self._readers: dict[Value, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for v in dict.fromkeys(node.values):
                self._readers[v].append(node)
        for node in graph.nodes:
            if len(node.outputs) > 1:
                self._find(graph, node)

    def _find(self, graph: Graph, node: Node) -> None:
        rows = node.call.__class__ is RowsCall
        program = node.call.program.program if rows else expression_of(node)
        if program is None or (not rows and pointwise(node) is None):
            return
        kinds = [kind for kind, _ in node.call.program.outputs] if rows else []
        given = dict(zip(program.inputs, node.inputs, strict=False))
        outputs = zip(node.outputs, program.outputs, strict=True)
        if not any(self._is_taken_in(v) and self._is_of_lasting(e, given) for v, e in outputs):
            return
        expressions = Expressions(graph)
        made = expressions.of(program, node, {}, exactly)
        found = {}
        for k, (v, e) in enumerate(zip(node.outputs, made, strict=True)):
            kind = kinds[k] if rows else ELEMENT
            cheap = kind == ELEMENT and self._is_taken_in(v)
            if cheap and self._is_cheap(v, e, expressions.leaves):
                found[v] = as_program([e], expressions.leaves, v.shape)
        left = [k for k, v in enumerate(node.outputs) if v not in found]
        if not found or not left or any(v in self.recipes for v in node.values):
            return
        chosen = [node.outputs[k] for k in left]
        if rows:
            pairs = [(kinds[k], made[k]) for k in left]
            shape = node.inputs[0].shape
            rest = rows_node(pairs, expressions.leaves, node, shape, chosen)
            if rest is None:
                return
        else:
            exprs = [made[k] for k in left]
            program, inputs = as_program(exprs, expressions.leaves, chosen[0].shape)
            rest = Node(node.call.__class__(program), inputs, chosen, node.line)
        self.without[node] = rest
        self.recipes |= found

    def _is_taken_in(self, v: Value) -> bool:
        """Whether all that read a value, a few nodes, may become one with what computes it."""
        readers = self._readers[v]
        few = v not in self._results and 0 < len(readers) <= _READERS
        return few and all(_takes_in(r, v) for r in readers)

    def _is_of_lasting(self, e: Expr, given: dict[str, Any]) -> bool:
        """Whether an expression reads arrays alone that are there from beginning to end."""
        read = [given.get(name) for name in names_in(e)]
        arrays = [i for i in read if i.__class__ is Value and i.dtype is not None]
        return self._there.issuperset(arrays)

    def _is_cheap(self, v: Value, e, leaves: dict[str, Any]) -> bool:
        if not isinstance(e, Expr) or e.op in ("input", "const"):
            return False
        order = topological([e])
        steps = [s.op for s in order if s.op not in ("input", "const")]
        if len(steps) > _STEPS or not llvm.EXACT.issuperset(steps):
            return False
        read = [leaves[s.args[0]] for s in order if s.op == "input"]
        arrays = [i for i in read if i.__class__ is Value and i.dtype is not None]
        return self._there.issuperset(arrays) and sum(a.shape == v.shape for a in arrays) == 1


def _takes_in(node: Node, v: Value) -> bool:
    """Whether a node may become one with what computes a value that it reads."""
    if node.call.__class__ is RowsCall:
        kinds = zip(node.inputs, node.call.program.inputs.values(), strict=True)
        return all(kind == ELEMENT for i, kind in kinds if i is v)
    found = pointwise(node)
    if found is None or found.shape != v.shape:
        return False
    return found.dtype is None or found.dtype == v.dtype
