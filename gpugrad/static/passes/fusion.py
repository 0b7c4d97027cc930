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
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from ...backend.numpy import xp as np
from ...codegen import cuda, llvm, vector_math
from ...codegen.arrays import Program
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


class _Group:
    """Nodes that become one: what they read of others, and what others read of them.

    ``mask`` has a bit for each member, ``before`` one for each node that the group waits for.
    """

    __slots__ = ("before", "mask", "members", "outs", "part", "reads")

    def __init__(self, k: int, part: _Part | None, reads: set[Value], outs: set[Value], before):
        self.members, self.part, self.mask = [k], part, 1 << k
        self.reads, self.outs, self.before = reads, outs, before


class _Fusion:
    """Groups of nodes; a group is known by the number of one of its nodes."""

    def __init__(self, graph: Graph):
        self.graph, self.nodes = graph, graph.nodes
        self._maker = {v: k for k, node in enumerate(self.nodes) for v in node.outputs}
        self._users: dict[Value, list[int]] = defaultdict(list)
        for k, node in enumerate(self.nodes):
            for v in node.values:
                self._users[v].append(k)
        self._results = set(graph.results())
        self._layouts = _layouts(graph)
        self._group = list(range(len(self.nodes)))
        self._groups: dict[int, _Group] = {}
        # how often a value is read outside of the group that makes it
        self._left = {v: len(users) for v, users in self._users.items()}
        for k, node in enumerate(self.nodes):
            before, reads = 0, set(node.values)
            for v in reads:
                if (maker := self._maker.get(v)) is not None:
                    before |= 1 << maker | self._groups[maker].before
            outs = {v for v in node.outputs if v in self._results or v in self._users}
            self._groups[k] = _Group(k, self._part(node), reads, outs, before)
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
        program, shape, dtype, device = found
        if not _is_native(program, dtype, device):
            return None
        part = _Part(shape, dtype, device, len(program.steps), _is_exact(program), None)
        if self._layouts.keys().isdisjoint(node.values):
            return part
        arrays = [v for _, v in read_by(program, node) if _is_array(v)]
        return part if self._loops_exist(part, arrays) else None

    def _loops_exist(self, part: _Part, inputs: Iterable[Value]) -> bool:
        """Whether a native loop can walk through arrays laid out like these."""
        if part.device is not None or self._layouts.keys().isdisjoint(inputs):
            return True
        if part.rows is not None or 0 in part.shape:
            return False
        given = [(self._layouts.get(v), v) for v in inputs]
        arrays = [np.empty(v.shape, v.dtype) if a is None else a for a, v in given]
        return llvm._loops(part.shape, [*arrays, np.empty(part.shape, part.dtype)]) is not None

    def _join_all(self) -> None:
        """Join every node with those that compute what it reads."""
        for k, node in enumerate(self.nodes):
            if self._groups[k].part is None:
                continue
            for v in node.values:
                maker = self._maker.get(v)
                if maker is not None:
                    self._join(self._group[maker], self._group[k])

    def _join(self, a: int, b: int) -> None:
        """Make one of two groups, of which ``b`` reads what ``a`` computes, if that can be."""
        if a == b:
            return
        one, other = self._groups[a], self._groups[b]
        if one.part is None or other.part is None:
            return
        part = one.part.joined(other.part)
        if part is None:
            return
        passed = one.outs & other.reads
        reads = (one.reads | other.reads) - passed
        left = {v: self._left[v] - self._read_in(v, b) for v in passed}
        gone = {v for v in passed if not left[v] and v not in self._results}
        outs = (one.outs | other.outs) - gone
        arrays = [v for v in reads if v.dtype is not None]
        if len(arrays) > INPUTS or len(outs) > OUTPUTS or self._cyclic(a, b, reads):
            return
        inside = (*one.members, *other.members)
        if part.rows is not None and not self._fits_rows(part, inside, reads, outs):
            return
        if not self._loops_exist(part, arrays):
            return
        self._left.update(left)
        self._wait(one, other)
        for k in one.members:
            self._group[k] = b
        other.part, other.reads, other.outs = part, reads, outs
        other.mask |= one.mask
        other.before &= ~other.mask
        other.members = sorted(inside)
        del self._groups[a]

    def _read_in(self, v: Value, group: int) -> int:
        """How often a group reads a value."""
        return sum([self._group[k] == group for k in self._users[v]])

    def _wait(self, one: _Group, other: _Group) -> None:
        """Two groups become one: what reads the first waits for all that the second, which reads
        it as well, waits for. What waits for the second does so already."""
        waited = one.mask | other.mask | other.before
        stack = [one]
        while stack:
            for v in stack.pop().outs:
                for k in self._users[v]:
                    group = self._groups[self._group[k]]
                    if group is not other and waited & ~group.before:
                        group.before |= waited
                        stack.append(group)

    def _cyclic(self, a: int, b: int, reads: Iterable[Value]) -> bool:
        """Whether something else that two groups read depends on one of them."""
        mask = self._groups[a].mask | self._groups[b].mask
        makers = (self._maker.get(v) for v in reads)
        groups = {self._group[maker] for maker in makers if maker is not None}
        return any(self._groups[group].before & mask for group in groups)

    def _fits_rows(
        self, part: _Part, members: Iterable[int], inputs: set[Value], outputs: set[Value]
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
        others = inputs.difference(rows.inputs)
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
        for number, group in self._groups.items():
            makers = (self._maker.get(v) for v in group.reads)
            needed = {self._group[maker] for maker in makers if maker is not None}
            waiting[number] = needed
            for other in needed:
                after[other].append(number)
        ready = [(self._groups[g].members[-1], g) for g, needed in waiting.items() if not needed]
        heapq.heapify(ready)
        nodes: list[Node] = []
        while ready:
            _, number = heapq.heappop(ready)
            nodes += self._nodes_of(self._groups[number])
            for other in after[number]:
                waiting[other].discard(number)
                if not waiting[other]:
                    heapq.heappush(ready, (self._groups[other].members[-1], other))
        return self._replaced.finished(nodes)

    def _nodes_of(self, group: _Group) -> list[Node]:
        members = [self._replaced.renewed(self.nodes[k]) for k in group.members]
        fused = self._fused(group, members) if len(members) > 1 else None
        return members if fused is None else [fused]

    def _fused(self, group: _Group, members: list[Node]) -> Node | None:
        """The node that does what some do; None if it cannot be expressed."""
        part = group.part
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
        results = [v for node in members for v in node.outputs if v in group.outs]
        chosen = self._distinct(results, known, kinds)
        if chosen is None:
            return None
        line = members[-1].line
        expressions = [known[v] for v in chosen]
        if part.rows is None:
            program, inputs = as_program(expressions, self._expressions.leaves, part.shape)
            fused = Node(ProgramCall(program), inputs, chosen, line)
            if any(node.call.__class__ is UpdateCall for node in members) and not reads_half(fused):
                return Node(UpdateCall(program), inputs, chosen, line)
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


@lru_cache(maxsize=4096)
def _is_native(program: Program, dtype, device: str | None) -> bool:
    """Whether native loops know all primitives of a program."""
    return _native(dtype, device).issuperset(program.steps)


@lru_cache(maxsize=4096)
def _is_exact(program: Program) -> bool:
    """Whether all primitives of a program have the same bits everywhere."""
    return llvm.EXACT.issuperset(program.steps)


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
        out = viewed(source, node.call)
        if out is not None and not out.flags.c_contiguous:
            found[v] = out
    return found


def viewed(source, call: OpCall) -> Any:
    """A view of an array; None if it would be a copy."""
    if call.op.name == "reshape":
        try:
            return np.reshape(source, call.params["shape"], copy=False)
        except ValueError:
            return None
    return call.op.eval(source, **call.params)
