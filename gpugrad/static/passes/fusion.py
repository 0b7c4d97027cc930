"""Fusion: nodes over the same elements become one node, one loop, one pass over memory.

Elementwise nodes of one shape and dtype, of which one reads what another computes, become one
program; values that others read are further results of it. A program over rows (softmax, layer
norm) takes in what is computed before and after it for each element. Nothing but
what is cheap (``recomputing.py``) is computed twice.

Bits: a fused program performs the primitive operations of its parts in their order. Correctly
rounded ones have the same bits in any loop; functions (exp, tanh) have them where both loops are of
the same kind, so functions do not move into programs over rows.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from functools import lru_cache
from typing import Any, NamedTuple

from ...backend.numpy import xp as np
from ...codegen import cuda, llvm, vector_math
from ...codegen.expr import Expr, exactly
from ...codegen.rows import ELEMENT, HOLE, ROW
from ..graph import (
    Graph,
    Node,
    OpCall,
    ProgramCall,
    RowsCall,
    UpdateCall,
    Value,
    reads_half,
)
from .pointwise import FLOATS, Expressions, as_program, pointwise, read_by
from .recomputing import recompute
from .rewriting import Replacements
from .rowwise import kind_of, rows_node
from .simple import share_common

# Arrays that a loop reads and writes at most: beyond, pointers and values leave the registers.
INPUTS, OUTPUTS = 16, 8
# Primitive operations of a program; those that a program over rows takes in are repeated in each of
# its passes over the row.
STEPS, ROW_STEPS = 64, 12


def fuse(graph: Graph) -> Graph:
    """Make one node of elementwise nodes that read each other's results, where that is possible
    without a cycle, and of programs over rows with elementwise nodes around them.

    Results of the new nodes that are cheap are then computed by those that read them.
    """
    fused = _Fusion(graph).run()
    again = recompute(fused)
    return fused if again is fused else share_common(_Fusion(again).run())


class _Part(NamedTuple):
    """What decides whether a node, or several made one, may be joined with others."""

    shape: tuple[int, ...]
    dtype: Any  # None: masks alone
    device: str | None
    steps: int
    exact: bool  # whether it consists of primitives that have the same bits everywhere
    rows: Node | None

    def joined(self, other: _Part) -> _Part | None:
        """Both together, if they are alike."""
        if self.shape != other.shape or self.device != other.device:
            return None
        masks_alone = self.dtype is None or other.dtype is None  # NumPy's float64 equals None
        if self.dtype != other.dtype and not masks_alone:
            return None
        rows = self.rows or other.rows
        most = STEPS
        if rows is not None:
            if self.rows is not None and other.rows is not None:
                return None
            added = other if self.rows is not None else self
            if not added.exact:
                return None
            most = ROW_STEPS
        steps = self.steps + other.steps
        if steps > most:
            return None
        dtype = self.dtype if self.dtype is not None else other.dtype
        return _Part(self.shape, dtype, self.device, steps, self.exact and other.exact, rows)


class _Fusion:
    """Groups of nodes; a group is known by the number of one of its nodes.

    ``_before`` has for each group the nodes that it depends on, as the bits of an integer.
    """

    def __init__(self, graph: Graph):
        self.graph, self.nodes = graph, graph.nodes
        self._maker = {v: k for k, node in enumerate(self.nodes) for v in node.outputs}
        self._users: dict[Value, list[int]] = defaultdict(list)
        for k, node in enumerate(self.nodes):
            for v in node.values:
                self._users[v].append(k)
        self._results = set(graph.results())
        self._layouts = _layouts(graph)
        self._parts = [self._part(node) for node in self.nodes]
        self._group = list(range(len(self.nodes)))
        self._members = {k: [k] for k in range(len(self.nodes))}
        self._before: dict[int, int] = {}
        for k, node in enumerate(self.nodes):
            before = 0
            for v in node.values:
                if (maker := self._maker.get(v)) is not None:
                    before |= 1 << maker | self._before[maker]
            self._before[k] = before
        self._replaced = Replacements(graph)
        self._expressions = Expressions(graph)

    def run(self) -> Graph:
        """The graph with joined nodes."""
        self._join_all()
        return self._finished()

    # ---- which nodes

    def _part(self, node: Node) -> _Part | None:
        if node.call.__class__ is RowsCall:
            return _rows_part(node)
        found = pointwise(node)
        if found is None:
            return None
        steps = frozenset(found.program.steps)
        if not steps <= _native(found.dtype, found.device):
            return None
        count, exact = len(found.program.steps), steps <= llvm.EXACT
        part = _Part(found.shape, found.dtype, found.device, count, exact, None)
        arrays = [v for _, v in read_by(found.program, node) if _is_array(v)]
        return part if self._loops_exist(part, arrays) else None

    def _loops_exist(self, part: _Part, inputs: list[Value]) -> bool:
        """Whether a native loop can walk through arrays laid out like these."""
        if part.device is not None or not any(v in self._layouts for v in inputs):
            return True
        if part.rows is not None or 0 in part.shape:
            return False
        given = [self._layouts.get(v) for v in inputs]
        arrays = [
            np.empty(v.shape, v.dtype) if a is None else a
            for a, v in zip(given, inputs, strict=True)
        ]
        return llvm._loops(part.shape, [*arrays, np.empty(part.shape, part.dtype)]) is not None

    def _join_all(self) -> None:
        """Join every node with those that compute what it reads."""
        for k, node in enumerate(self.nodes):
            if self._parts[k] is None:
                continue
            for v in node.values:
                maker = self._maker.get(v)
                if maker is not None and self._parts[maker] is not None:
                    self._join(self._group[maker], self._group[k])

    def _join(self, a: int, b: int) -> None:
        if a == b:
            return
        one, other = self._parts[a], self._parts[b]
        part = None if one is None or other is None else one.joined(other)
        if part is None:
            return
        members = sorted(self._members[a] + self._members[b])
        inputs, outputs = self._ends(members)
        arrays = [v for v in inputs if _is_array(v)]
        if len(arrays) > INPUTS or len(outputs) > OUTPUTS or self._cyclic(a, b, members):
            return
        if part.rows is not None and not self._fits_rows(part, members, inputs, outputs):
            return
        if not self._loops_exist(part, arrays):
            return
        for k in members:
            self._group[k] = b
        self._parts[b], self._members[b] = part, members
        del self._members[a]
        mask = sum(1 << k for k in members)
        before = (self._before.pop(a) | self._before[b]) & ~mask
        self._before[b] = before
        for group, known in self._before.items():
            if known & mask:
                self._before[group] = known | mask | before

    def _ends(self, members: list[int]) -> tuple[list[Value], list[Value]]:
        """The values that members read of others, and those that others read of them."""
        made = [v for k in members for v in self.nodes[k].outputs]
        own, inside = set(made), set(members)
        read = dict.fromkeys(v for k in members for v in self.nodes[k].values if v not in own)
        outputs = [
            v for v in made if v in self._results or not inside.issuperset(self._users.get(v, ()))
        ]
        return list(read), outputs

    def _cyclic(self, a: int, b: int, members: list[int]) -> bool:
        """Whether something else that two groups read depends on one of them."""
        mask = sum(1 << k for k in members)
        for k in members:
            for v in self.nodes[k].values:
                maker = self._maker.get(v)
                if maker is not None:
                    group = self._group[maker]
                    if group not in (a, b) and self._before[group] & mask:
                        return True
        return False

    def _fits_rows(
        self, part: _Part, members: list[int], inputs: list[Value], outputs: list[Value]
    ) -> bool:
        """Whether what a program over rows would read and write is what such programs can."""
        rows = part.rows
        assert rows is not None
        program, inside = rows.call.program, set(members)
        for (kind, _), v in zip(program.outputs, rows.outputs, strict=True):
            used = not inside.isdisjoint(self._users.get(v, ()))
            if used and kind not in (ELEMENT, ROW):
                return False
        for kind, i in zip(program.inputs.values(), rows.inputs, strict=True):
            if kind != ELEMENT and i.__class__ is Value and self._maker.get(i) in inside:
                return False
        others = set(inputs).difference(rows.inputs)
        constants = self.graph.constants
        if any(
            v.dtype is not None
            and (v.dtype != part.dtype or (kind_of(v, part.shape) is None and v not in constants))
            for v in others
        ):
            return False
        if not any(v.shape == part.shape for v in inputs if _is_array(v)):
            return False
        return all(v.dtype == part.dtype for v in outputs)

    # ---- what becomes of them

    def _finished(self) -> Graph:
        """The graph with a node for each group, in an order that is possible, near the old one."""
        waiting: dict[int, set[int]] = {}
        after: dict[int, list[int]] = defaultdict(list)
        for group, members in self._members.items():
            needed = {
                self._group[self._maker[v]]
                for k in members
                for v in self.nodes[k].values
                if v in self._maker
            } - {group}
            waiting[group] = needed
            for other in needed:
                after[other].append(group)
        ready = [(self._members[g][-1], g) for g, needed in waiting.items() if not needed]
        heapq.heapify(ready)
        nodes: list[Node] = []
        while ready:
            _, group = heapq.heappop(ready)
            nodes += self._nodes_of(group)
            for other in after[group]:
                waiting[other].discard(group)
                if not waiting[other]:
                    heapq.heappush(ready, (self._members[other][-1], other))
        return self._replaced.finished(nodes)

    def _nodes_of(self, group: int) -> list[Node]:
        members = [self._replaced.renewed(self.nodes[k]) for k in self._members[group]]
        fused = self._fused(group, members) if len(members) > 1 else None
        return members if fused is None else [fused]

    def _fused(self, group: int, members: list[Node]) -> Node | None:
        """The node that does what some do; None if it cannot be expressed."""
        part = self._parts[group]
        assert part is not None
        known: dict[Value, Expr] = {}
        kinds: dict[Value, str] = {}
        for node in members:
            program = node.call.program.program if node is not None and _is_rows(node) else None
            if program is None:
                found = pointwise(node)
                if found is None:
                    return None
                program = found.program
                kinds.update(dict.fromkeys(node.outputs, ELEMENT))
            else:
                outputs = node.call.program.outputs
                kinds.update({v: kind for v, (kind, _) in zip(node.outputs, outputs, strict=True)})
            made = self._expressions.of(program, node, known, exactly)
            known.update(zip(node.outputs, made, strict=True))
        _, results = self._ends(self._members[group])
        chosen = self._distinct(results, known, kinds)
        if chosen is None:
            return None
        line = members[-1].line
        expressions = [known[v] for v in chosen]
        if part.rows is None:
            program, inputs = as_program(expressions, self._expressions.leaves, part.shape)
            fused = Node(ProgramCall(program), inputs, chosen, line)
            if any(node.call.__class__ is UpdateCall for node in members) and not reads_half(fused):
                fused.call = UpdateCall(program)
            return fused
        rows = next(node for node in members if _is_rows(node))
        pairs = [(kinds[v], known[v]) for v in chosen]
        return rows_node(pairs, self._expressions.leaves, rows, part.shape, chosen)

    def _distinct(
        self, results: list[Value], known: dict[Value, Expr], kinds: dict[Value, str]
    ) -> list[Value] | None:
        """The results without those that equal others, which stand for them from now on; None if
        two of those are returned, or if one is an argument."""
        first: dict[tuple, Value] = {}
        pairs: list[tuple[Value, Value]] = []
        for v in results:
            e = known[v]
            if not isinstance(e, Expr) or e.op == "const":
                return None
            if e.op == "input" and kinds[v] == ELEMENT:
                return None
            w = first.setdefault((kinds[v], e), v)
            if w is not v:
                pairs.append((v, w))
        if any(v in self.graph.outputs for v, _ in pairs):
            return None
        for v, w in pairs:
            self._replaced.replace(v, w)
        return list(first.values())


def _rows_part(node: Node) -> _Part | None:
    """Programs over rows of which elementwise nodes may become a part."""
    program, x = node.call.program, node.inputs[0]
    if HOLE in program.inputs.values() or x.__class__ is not Value or x.dtype not in FLOATS:
        return None
    if len(x.shape) < 2 or x.shape[-1] < 2 or 0 in x.shape:  # what is a row must be clear
        return None
    values = [v for v in (*node.values, *node.outputs) if v.dtype is not None]
    if any(v.device != x.device for v in values):
        return None
    return _Part(x.shape, x.dtype, x.device, 0, True, node)


@lru_cache(maxsize=16)
def _native(dtype, device: str | None) -> frozenset[str]:
    """The primitives that native loops know."""
    if device is not None:
        return cuda.primitives()
    if dtype is None:
        return llvm.EXACT
    return llvm.EXACT | vector_math.for_element(llvm.ELEMENTS[dtype]).keys()


def _is_array(v) -> bool:
    return v.__class__ is Value and v.dtype is not None


def _is_rows(node: Node) -> bool:
    return node.call.__class__ is RowsCall


# ------------------------------------------------------------------------------------------------
# layouts


def _layouts(graph: Graph) -> dict[Value, Any]:
    """Arrays laid out like the values that are views with gaps or of another order."""
    found: dict[Value, Any] = {}
    for node in graph.nodes:
        if node.call.__class__ is not OpCall or not node.call.op.is_view:
            continue
        (x,), (v,) = node.inputs, node.outputs
        name = node.call.op.name
        if v.device is not None or (x not in found and name in ("reshape", "alias")):
            continue
        source = found.get(x)
        source = np.empty(x.shape, x.dtype) if source is None else source  # touches no memory
        out = _viewed(source, node.call)
        if out is not None and not out.flags.c_contiguous:
            found[v] = out
    return found


def _viewed(source, call: OpCall) -> Any:
    """A view of an array; None if it would be a copy."""
    if call.op.name == "reshape":
        try:
            return np.reshape(source, call.params["shape"], copy=False)
        except ValueError:
            return None
    return call.op.eval(source, **call.params)
