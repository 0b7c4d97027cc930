"""Programs over the same rows as one: a layer norm, an activation, a softmax, a loss and all their
derivatives in one loop, in which a row is read once and stays in the L1 cache.

``fuse`` joins what has the same bits in any loop. Here functions move into programs over rows, and
these become one: what forward and backward have in common (statistics, tanh, exp) is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from ...codegen import llvm, vector_math
from ...codegen.expr import Expr, as_expr, build, exactly
from ...codegen.rows import (
    ELEMENT,
    HOLE,
    NUMBER,
    ROW,
    SCRATCH,
    SCRATCH_ROWS,
    TOTAL,
    Schedule,
    row_sum,
)
from ..graph import Graph, Node, OpCall, RowsCall, UpdateCall, Value, expression_of
from .epilogues import PRODUCTS
from .pointwise import FLOATS, Expressions, pointwise, read_by
from .rewriting import ordered
from .rowwise import kind_of, node_over_rows
from .totals import sums_everything, with_numbers

# Arrays, passes over a row and primitive operations of a program, at most.
_ARRAYS, _PASSES, _STEPS = 16, 10, 128


def join_rows(graph: Graph) -> Graph:
    """Make one program over rows of those that read each other's results or the same array, of
    elementwise nodes before, between and after them, and of sums of everything.

    Only for float32 and float64 on a CPU, and for rows that fit into scratch memory.
    """
    uses, gone = _Uses(graph), set[int]()
    for start in graph.nodes:
        if _is_rows(start) and id(start) not in gone and _is_fit(start):
            joining = _Joining(uses, start)
            joined = joining.run()
            if joined is not None:
                uses, gone = _Uses(joined), gone | joining.gone
    return uses.graph


class _Uses:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: Graph):
        self.graph, self.results = graph, set(graph.results())
        self.maker = {v: k for k, node in enumerate(graph.nodes) for v in node.outputs}
        self.made_by = {v: node for node in graph.nodes for v in node.outputs}
        self.readers: dict[Value, list[int]] = {}
        self.before: list[int] = []  # the nodes that one depends on, as bits
        for k, node in enumerate(graph.nodes):
            before = 0
            for v in node.values:
                self.readers.setdefault(v, []).append(k)
                if (maker := self.maker.get(v)) is not None:
                    before |= 1 << maker | self.before[maker]
            self.before.append(before)


def _is_rows(node: Node) -> bool:
    return node.call.__class__ is RowsCall


def _is_fit(node: Node) -> bool:
    x = node.inputs[0]
    if x.__class__ is not Value or x.dtype not in FLOATS or x.device is not None:
        return False
    if len(x.shape) < 2 or x.shape[-1] < 2 or 0 in x.shape:  # what is a row must be clear
        return False
    return x.shape[-1] * x.dtype.itemsize <= SCRATCH


class _Member(NamedTuple):
    """A node as a part of a program over rows: the values that it reads and makes, with their
    kinds."""

    place: int
    node: Node  # with numbers in the places of what broadcasts them
    inputs: dict[Value, str]
    outputs: dict[Value, str]


class _Joining:
    """One program, and all that becomes a part of it."""

    def __init__(self, uses: _Uses, start: Node):
        self.uses, self.graph, self.gone = uses, uses.graph, set[int]()
        x = start.inputs[0]
        self.shape, self.dtype = x.shape, x.dtype
        first = self._member(uses.maker[start.outputs[0]])
        self._members = [] if first is None else [first]

    def run(self) -> Graph | None:
        """The graph with the program, if it has grown."""
        joined = None
        while (found := self._larger()) is not None:
            self._members, joined = found
        if joined is None:
            return None
        places = {m.place for m in self._members}
        kept = [(k, n) for k, n in enumerate(self.graph.nodes) if k not in places]
        nodes = ordered([*[n for _, n in kept], joined], [*[k for k, _ in kept], max(places)])
        if nodes is None:
            return None
        self.gone = {id(self.graph.nodes[k]) for k in places}
        return self.graph.with_nodes(nodes)

    def _larger(self) -> tuple[list[_Member], Node] | None:
        """The program with one of its neighbours."""
        inside = {m.place for m in self._members}
        near = set()
        for m in self._members:
            near |= {self.uses.maker[v] for v in m.inputs if v in self.uses.maker}
            near |= {k for v in m.outputs for k in self.uses.readers.get(v, ())}
            shared = [v for v, kind in m.inputs.items() if kind == ELEMENT]
            near |= {
                k for v in shared for k in self.uses.readers[v] if _is_rows(self.graph.nodes[k])
            }
        for k in sorted(near - inside):
            member = self._member(k)
            if member is not None:
                members = sorted([*self._members, member])
                joined = self._joined(members)
                if joined is not None:
                    return members, joined
        return None

    # ---- what may be a member

    def _member(self, place: int) -> _Member | None:
        node = self.graph.nodes[place]
        if _is_rows(node):
            return self._rows(place, node)
        if sums_everything(node) and node.inputs[0].shape == self.shape:
            if node.call.params["keepdims"] or node.outputs[0].dtype != self.dtype:
                return None
            return _Member(place, node, {node.inputs[0]: ELEMENT}, {node.outputs[0]: TOTAL})
        return self._elementwise(place, node)

    def _rows(self, place: int, node: Node) -> _Member | None:
        x, kinds = node.inputs[0], list(node.call.program.inputs.values())
        if x.__class__ is not Value or (x.shape, x.dtype) != (self.shape, self.dtype):
            return None
        inputs: dict[Value, str] = {}
        for i, kind in zip(node.inputs, kinds, strict=True):
            if i.__class__ is Value and inputs.setdefault(i, kind) != kind:
                return None
        made = [kind for kind, _ in node.call.program.outputs]
        outputs = dict(zip(node.outputs, made, strict=True))
        return None if HOLE in kinds else _Member(place, node, inputs, outputs)

    def _elementwise(self, place: int, node: Node) -> _Member | None:
        found = pointwise(node)
        if found is None or (found.shape, found.dtype) != (self.shape, self.dtype):
            return None
        known = llvm.EXACT | vector_math.for_element(llvm.ELEMENTS[self.dtype]).keys()
        if node.call.__class__ is UpdateCall or not known.issuperset(found.program.steps):
            return None
        if any(self._is_product(v) for v in node.values):  # whose epilogue it is
            return None
        node = with_numbers(node, self.uses.made_by)
        inputs: dict[Value, str] = {}
        for _, i in read_by(found.program, node):
            if i.__class__ is not Value:
                continue
            kind = NUMBER if prod(i.shape or ()) == 1 else kind_of(i, self.shape)
            if kind is None or i.dtype not in (None, self.dtype):
                return None
            inputs[i] = kind
        if any(v.dtype != self.dtype for v in node.outputs):
            return None
        return _Member(place, node, inputs, dict.fromkeys(node.outputs, ELEMENT))

    def _is_product(self, v: Value) -> bool:
        node = self.uses.made_by.get(v)
        if node is None or node.call.__class__ is not OpCall:
            return False
        return node.call.op.name in PRODUCTS

    # ---- the program

    def _joined(self, members: list[_Member]) -> Node | None:
        """Nodes as one; None if that is no program over rows, or too large."""
        kinds: dict[Value, str] = {}
        made: set[Value] = set()
        for m in members:
            for v, kind in m.inputs.items():
                if kinds.setdefault(v, kind) != kind or (v in made and kind not in (ELEMENT, ROW)):
                    return None
            kinds |= m.outputs
            made |= m.outputs.keys()
        if self._waits_for_itself(members) or len(kinds.keys() - made) > _ARRAYS:
            return None
        known, leaves = self._expressions(members)
        places = {m.place for m in members}
        outputs = [
            v
            for m in members
            for v in m.outputs
            if v in self.uses.results or not places.issuperset(self.uses.readers.get(v, ()))
        ]
        pairs = [(kinds[v], known[v]) for v in outputs]
        if len(set(pairs)) < len(pairs) or any(
            not isinstance(e, Expr) or e.op in ("input", "const") for _, e in pairs
        ):
            return None
        node = node_over_rows(pairs, leaves, kinds, self.shape, outputs, members[-1].node.line)
        return node if node is not None and self._is_worth_it(node) else None

    def _waits_for_itself(self, members: Sequence[_Member]) -> bool:
        """Whether a node outside depends on one member, and another on it."""
        inside = {m.place for m in members}
        mask = sum([1 << place for place in inside])
        makers = {
            self.uses.maker[v]
            for place in inside
            for v in self.graph.nodes[place].values
            if v in self.uses.maker
        }
        return any(self.uses.before[k] & mask for k in makers - inside)

    def _expressions(self, members: Sequence[_Member]) -> tuple[dict[Value, Any], dict[str, Any]]:
        """The results of all members, and what their variables stand for."""
        expressions = Expressions(self.graph)
        known: dict[Value, Any] = {}
        for m in members:
            call = m.node.call
            if TOTAL in m.outputs.values() and call.__class__ is OpCall:
                (x,), (out,) = m.node.inputs, m.node.outputs
                term = row_sum(known[x] if x in known else expressions.leaf(x))
                if call.op.name == "mean":
                    term = build("mul", term, as_expr(1.0 / prod(self.shape)))
                known[out] = term
                continue
            program = call.program.program if call.__class__ is RowsCall else expression_of(m.node)
            assert program is not None
            made = expressions.of(program, m.node, known, exactly)
            known.update(zip(m.node.outputs, made, strict=True))
        return known, expressions.leaves

    def _is_worth_it(self, node: Node) -> bool:
        """Whether a loop can do it with every function computed once."""
        program = node.call.program
        schedule = Schedule(program)
        functions = vector_math.for_element(llvm.ELEMENTS[self.dtype])
        count = sum(e.op in functions and schedule.varies[e] for e in schedule.order)
        room = SCRATCH_ROWS + any(kind == ELEMENT for kind, _ in program.outputs)
        return (
            count <= room
            and schedule.passes <= _PASSES
            and len(schedule.order) <= _STEPS
            and len(program.inputs) + len(program.outputs) <= _ARRAYS
        )
