"""Identities of linear operations for ``compile(algebra="real")``: where a factor is multiplied.

| pattern | replacement | differs beside rounding |
|---|---|---|
| ``sum(x * s)``, also means, ``/``, ``-`` | ``sum(x) * s`` | what overflows in between |
| ``broadcast(x) * s`` | ``broadcast(x * s)`` | nowhere |
| ``(x @ y) * s`` | ``(x * s) @ y``, ``x @ (y * s)``, or back | what overflows in between |
| ``(x @ y) @ z`` (``product_order.py``) | ``x @ (y @ z)``, or back | what overflows in between |
| ``f(0)``, f linear (``algebra.py``) | ``0`` | infinities and NaN of other factors |
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import NamedTuple

from ...codegen.expr import Expr, exactly
from ...ops.core import REGISTRY
from ..graph import Graph, Node, OpCall, Value
from .pointwise import Expressions, pointwise

_SUMS = ("mean", "sum", "sum_to")
_COPIES = ("broadcast_to", "spread")
_PRODUCTS = ("linear", "linear_input", "linear_weight", "matmul")
# A product's result is often multiplied for nothing (an epilogue, rows), an operand in a pass of
# its own: a factor is moved to an array smaller by this.
_SMALLER = 4


class _Scale(NamedTuple):
    """A value times a number: ``op(x, *factor)``."""

    op: str  # mul, div or neg
    x: Value
    factor: tuple  # a number, or an array of one; none for neg

    def node(self, x: Value, out: Value, line) -> Node:
        """The same of another value."""
        return Node(OpCall(REGISTRY[self.op], {}), [x, *self.factor], [out], line)


def move_scales(graph: Graph) -> Graph:
    """Multiply by a number, or by an array of one number, where arrays are small: after sums,
    before broadcasts, on the smaller side of a product."""
    return _Scales(graph).run()


class _Scales:
    def __init__(self, graph: Graph):
        self.graph = graph.with_nodes([])
        self.old = graph.nodes
        self.nodes: list[Node] = []
        self.made: dict[Value, Node] = {}
        self.scales: dict[Value, _Scale] = {}
        self.read = Counter(v for node in graph.nodes for v in node.values)
        self.results = set(graph.results())
        self.expressions = Expressions(graph)

    def run(self) -> Graph:
        """The graph with factors where they are cheap; what nobody reads any more is left to
        ``drop_dead``."""
        for node in self.old:
            scale = self._scale(node)
            if scale is not None:
                self._scaled(scale, node.outputs[0], node.line)
            else:
                self._add(node)
        return self.graph.with_nodes(self.nodes)

    def _keep(self, node: Node) -> None:
        self.nodes.append(node)
        self.made.update(dict.fromkeys(node.outputs, node))

    def _alone(self, v: Value) -> bool:
        """Whether a value is read once."""
        return self.read[v] <= 1 and v not in self.results

    def _new(self, v: Value) -> Value:
        return self.graph.value(v.shape, v.dtype, v.device)

    def _scale(self, node: Node) -> _Scale | None:
        """What a node multiplies by a number, if it does that alone."""
        found = pointwise(node)
        if found is None or len(node.outputs) > 1 or found.shape == ():
            return None
        (e,) = self.expressions.of(found.program, node, {}, exactly)
        if not isinstance(e, Expr) or e.op not in ("mul", "div", "neg"):
            return None
        args = list(map(self._argument, e.args))
        if e.op == "mul" and _is_factor(args[0], found.dtype):
            args.reverse()
        x, *factor = args
        whole = x.__class__ is Value and (x.shape, x.dtype) == (found.shape, found.dtype)
        if not whole or not all(_is_factor(f, found.dtype) for f in factor):
            return None
        return _Scale(e.op, x, tuple(factor))

    def _argument(self, e: Expr):
        """A number or a value; None for an expression."""
        if e.op == "input":
            return self.expressions.leaves[e.args[0]]
        return e.args[0] if e.op == "const" else None

    def _scaled(self, scale: _Scale, out: Value, line) -> None:
        """Compute a value times a number, by a factor of what the value was made of if that is
        smaller."""
        maker = self.made.get(scale.x)
        place = self._before(maker) if maker is not None and self._alone(scale.x) else None
        if maker is None or place is None:
            self._keep(scale.node(scale.x, out, line))
            self.scales[out] = scale
            return
        operand = maker.inputs[place]
        small = self._new(operand)
        self._scaled(scale._replace(x=operand), small, line)
        inputs = [*maker.inputs[:place], small, *maker.inputs[place + 1 :]]
        self._keep(Node(maker.call, inputs, [out], maker.line))
        name = maker.call.op.name
        self.graph.identities.append(f"{name}(x) * s -> {name}(x * s)")

    def _before(self, maker: Node) -> int | None:
        """Which operand of a linear operation is so small that it should take the factor."""
        if maker.call.__class__ is not OpCall:
            return None
        size, name = prod(maker.outputs[0].shape), maker.call.op.name
        if name in _COPIES:
            return 0 if prod(maker.inputs[0].shape) < size else None
        if name not in _PRODUCTS:
            return None
        sizes = [prod(i.shape) for i in maker.inputs]
        place = sizes.index(min(sizes))
        return place if _SMALLER * sizes[place] <= size else None

    def _add(self, node: Node) -> None:
        """Add another node; a linear operation whose result is smaller than an argument that is
        multiplied by a number does without, and its result is multiplied."""
        found = self._factored(node)
        if found is None:
            self._keep(node)
            return
        place, scale = found
        (out,), name = node.outputs, node.call.op.name
        plain = self._new(out)
        inputs = [*node.inputs[:place], scale.x, *node.inputs[place + 1 :]]
        self._add(Node(node.call, inputs, [plain], node.line))
        self._keep(scale.node(plain, out, node.line))
        self.scales[out] = scale._replace(x=plain)
        self.graph.identities.append(f"{name}(x * s) -> {name}(x) * s")

    def _factored(self, node: Node) -> tuple[int, _Scale] | None:
        """The argument whose factor its result should take."""
        if node.call.__class__ is not OpCall or node.call.op.name not in (*_SUMS, *_PRODUCTS):
            return None
        (out,) = node.outputs
        least = 2 if node.call.op.name in _SUMS else _SMALLER
        for place, v in enumerate(node.inputs):
            scale = self.scales.get(v)
            if (
                scale is not None
                and self._alone(v)
                and prod(v.shape) >= least * prod(out.shape) > 0
            ):
                return place, scale
        return None


def _is_factor(f, dtype) -> bool:
    if f.__class__ is Value:
        return f.shape == () and f.dtype == dtype
    return f.__class__ in (int, float)
