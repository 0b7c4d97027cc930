"""The identities of real numbers (``identities.py``) applied to elementwise nodes and to rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ...backend.numpy import xp as np
from ...codegen.arrays import Program
from ...codegen.expr import (
    Expr,
    as_expr,
    build,
    const,
    exactly,
    inputs_of,
    topological,
    variable,
)
from ...codegen.rows import ELEMENT, HOLE, INDEX, NUMBER, ROW
from ...ops.core import REGISTRY, Bilinear, Linear
from ..graph import Graph, Node, OpCall, ProgramCall, RowsCall, UpdateCall, Value
from .identities import computed_once, cost, folded, simplified
from .pointwise import (
    FLOATS,
    Expressions,
    Pointwise,
    as_program,
    computes_with_masks,
    interned_program,
    pointwise,
)
from .rewriting import Replacements
from .rowwise import rows_node

# Operations whose results have the number of their argument, if all of its elements are one.
_MOVES = ("alias", "broadcast_to", "permute", "reshape", "spread")
_COPY = interned_program((build("positive", variable("x")),), ("x",), frozenset("x"))


def use_identities(graph: Graph) -> Graph:
    """Make elementwise nodes and rows cheaper by identities of real numbers; what is zero because a
    factor is zero is not computed.

    Only for float32 and float64: each step of half precision is rounded.
    """
    return _Rewriting(graph).run()


class _Rewriting:
    def __init__(self, graph: Graph):
        self.graph = graph.with_nodes([])
        self.old = graph.nodes
        self.nodes: list[Node] = []
        self.rows: dict[Value, Node] = {}  # who computes values row by row
        self.read = Counter(v for node in self.old for v in node.values)
        self.results = set(graph.results())
        self.replaced = Replacements(self.graph)
        self.expressions = Expressions(graph)
        # values of which all elements are one number
        self.numbers: dict[Value, float] = {}
        for v in graph.constants:
            number = self.expressions.number(v)
            if number is not None and v.device is None:
                self.numbers[v] = number

    def run(self) -> Graph:
        """The graph with cheaper nodes."""
        for old in self.old:
            node = self.replaced.renewed(old)
            if not self._is_zero(node):
                self._add(node)
        return self.replaced.finished(self.nodes)

    def _add(self, node: Node) -> None:
        if node.call.__class__ is RowsCall:
            node = self._rows(node)
            self.nodes.append(node)
            if _kinds(node) is not None:
                self.rows.update(dict.fromkeys(node.outputs, node))
            return
        found = pointwise(node)
        if found is not None and 0 in found.shape:  # the mean of nothing is no number
            found = None
        if found is None or not (self._join_rows(node, found) or self._elements(node, found)):
            self.nodes.append(node)
            if node.call.__class__ is OpCall and node.call.op.name in _MOVES:
                number = self.numbers.get(node.inputs[0])
                if number is not None:
                    self.numbers[node.outputs[0]] = number

    # ---- zero

    def _is_zero(self, node: Node) -> bool:
        """Whether a node is linear in something that is zero; if so, its result is noted."""
        if node.call.__class__ is not OpCall or node.call.op.name in _MOVES:
            return False
        op, (out,) = node.call.op, node.outputs
        if out.dtype not in FLOATS or out.device is not None:
            return False
        zero = [i.__class__ is Value and self.numbers.get(i) == 0.0 for i in node.inputs]
        if isinstance(op, Bilinear):
            vanishes = any(zero[:2])
        else:
            vanishes = isinstance(op, Linear) and all(zero[: op.linear_args])
        if vanishes:
            self._make(out, 0.0, node.line)
            self.graph.identities.append(f"{op.name}(0) -> 0")
        return vanishes

    def _make(self, out: Value, number: float, line) -> None:
        """Compute a value as an array of one number."""
        one = self.graph.value((), out.dtype)
        self.graph.constants[one] = np.array(number, out.dtype)
        self._spread(one, out, line)
        self.numbers[out] = number

    def _spread(self, v: Value, out: Value, line) -> None:
        call = OpCall(REGISTRY["spread"], {"shape": out.shape})
        self.nodes.append(Node(call, [v], [out], line))

    # ---- elements

    def _elements(self, node: Node, found: Pointwise) -> bool:
        """Put cheaper nodes into the place of an elementwise one; False if there are none."""
        before = self._outputs(node, found.program, {}, exactly)
        known = {v: const(n) for v in node.values if (n := self.numbers.get(v)) is not None}
        made = self._outputs(node, found.program, known, folded)
        uniform = {n for n, v in self.expressions.leaves.items() if _is_one(v)}
        after, applied = simplified(made, uniform)
        if cost(after, uniform) >= cost(before, uniform):
            return False
        pairs = list(zip(node.outputs, after, strict=True))
        whole = [(v, e) for v, e in pairs if self._is_whole(v, e)]
        others = [(v, e) for v, e in pairs if not self._is_whole(v, e)]
        if others and node.call.__class__ is UpdateCall:  # what is stored is computed
            return False
        if not all(self._computable(e, found) for _, e in pairs):
            return False
        for v, e in others:
            self._put(v, e, node.line)
        if whole:
            self.nodes.append(self._program(whole, node))
        self.graph.identities += [str(identity) for identity in applied]
        return True

    def _outputs(self, node: Node, program: Program, known: dict, form: Callable) -> list[Expr]:
        return [as_expr(e) for e in self.expressions.of(program, node, known, form)]

    def _shape(self, e: Expr) -> tuple[int, ...]:
        leaves = [self.expressions.leaves[name] for name in inputs_of([e])]
        return np.broadcast_shapes(*[v.shape for v in leaves if _is_array(v)])

    def _is_whole(self, v: Value, e: Expr) -> bool:
        """Whether an expression is computed from arrays of its shape."""
        return e.op not in ("const", "input") and self._shape(e) == v.shape

    def _computable(self, e: Expr, found: Pointwise) -> bool:
        """Whether an expression has the dtype that it would have as an array: masks alone and
        numbers alone are not computed with."""
        if e.op == "const":
            return found.device is None and e.args[0].__class__ in (int, float)
        leaves = {name: self.expressions.leaves[name] for name in inputs_of([e])}
        arrays = {name: v for name, v in leaves.items() if _is_array(v)}
        if e.op == "input":
            return bool(arrays) and arrays[e.args[0]].dtype == found.dtype
        for step in topological([e]):
            if step.op not in ("const", "input") and arrays.keys().isdisjoint(inputs_of([step])):
                return False
        masks = frozenset([name for name, v in arrays.items() if v.dtype == bool])
        program = interned_program((e,), tuple(leaves), frozenset())
        return not computes_with_masks(program, masks, frozenset(leaves.keys() - arrays.keys()))

    def _put(self, v: Value, e: Expr, line) -> None:
        """Compute a value that is a number, another value, or smaller in fact."""
        if e.op == "const":
            self._make(v, float(e.args[0]), line)
            return
        if e.op == "input":
            small = self.expressions.leaves[e.args[0]]
            if small.shape == v.shape and v not in self.results:
                self.replaced.replace(v, small)
                self.read[small] += self.read[v] - 1
                return
            if small.shape == v.shape:  # an array of its own
                self.nodes.append(Node(ProgramCall(_COPY), [small], [v], line))
                return
        else:
            small = self.graph.value(self._shape(e), v.dtype, v.device)
            program, inputs = as_program([e], self.expressions.leaves, small.shape)
            self.nodes.append(Node(ProgramCall(program), inputs, [small], line))
        self._spread(small, v, line)

    def _program(self, pairs: list[tuple[Value, Expr]], node: Node) -> Node:
        outputs = [v for v, _ in pairs]
        leaves, shape = self.expressions.leaves, outputs[0].shape
        program, inputs = as_program([e for _, e in pairs], leaves, shape)
        call = UpdateCall if node.call.__class__ is UpdateCall else ProgramCall
        return Node(call(program), inputs, outputs, node.line)

    # ---- rows

    def _rows(self, node: Node) -> Node:
        """A program over rows, cheaper if it can be."""
        if _kinds(node) is None:
            return node
        made = self._outputs(node, node.call.program.program, {}, exactly)
        kinds = [kind for kind, _ in node.call.program.outputs]
        return self._cheaper_rows(node, list(zip(kinds, made, node.outputs, strict=True))) or node

    def _join_rows(self, node: Node, found: Pointwise) -> bool:
        """Let an elementwise node be a part of the rows that it reads, if an identity then makes
        them cheaper: the logarithm of a softmax."""
        maker = self.rows.get(node.values[0]) if len(node.values) == 1 else None
        if maker is None or len(node.outputs) > 1 or found.dtype != maker.outputs[0].dtype:
            return False
        made = self._outputs(maker, maker.call.program.program, {}, exactly)
        kinds = [kind for kind, _ in maker.call.program.outputs]
        known = dict(zip(maker.outputs, made, strict=True))
        (e,) = self._outputs(node, found.program, known, folded)
        (v,), (read,) = node.outputs, node.values
        outputs = list(zip(kinds, made, maker.outputs, strict=True))
        if read not in self.results and self.read[read] == 1:
            outputs = [(kind, o, w) for kind, o, w in outputs if w is not read]
        if found.shape != maker.inputs[0].shape or v.dtype != found.dtype:
            return False
        joined = self._cheaper_rows(maker, [*outputs, (ELEMENT, e, v)])
        if joined is None:
            return False
        self.nodes[self.nodes.index(maker)] = joined
        self.rows.update(dict.fromkeys(joined.outputs, joined))
        return True

    def _cheaper_rows(self, rows: Node, outputs: list[tuple[str, Expr, Value]]) -> Node | None:
        """A node for outputs, with their kinds, of what ``rows`` reads, if there is a cheaper one
        than that of these expressions."""
        given = dict(zip(rows.inputs, rows.call.program.inputs.values(), strict=True))
        leaves = self.expressions.leaves
        uniform = {n for n, v in leaves.items() if _is_array(v) and given.get(v) in (ROW, NUMBER)}
        after, applied = simplified([e for _, e, _ in outputs], uniform)
        if not applied or any(e.op in ("const", "input") for e in after):
            return None
        once = computed_once(after, uniform)
        if any(
            (kind == ROW) != (e in once) for (kind, _, _), e in zip(outputs, after, strict=True)
        ):
            return None
        pairs = [(kind, e) for (kind, _, _), e in zip(outputs, after, strict=True)]
        values = [v for _, _, v in outputs]
        new = rows_node(pairs, leaves, rows, rows.inputs[0].shape, values)
        if new is not None:
            self.graph.identities += [str(identity) for identity in applied]
        return new


def _kinds(node: Node) -> list[str] | None:
    """The kinds of what rows read; None if that cannot be written in another way."""
    program, x = node.call.program, node.inputs[0]
    kinds = list(program.inputs.values())
    plain = {kind for kind, _ in program.outputs} <= {ELEMENT, ROW}
    if HOLE in kinds or INDEX in kinds or not plain:
        return None
    return kinds if x.__class__ is Value and x.dtype in FLOATS else None


def _is_array(v) -> bool:
    return v.__class__ is Value and v.dtype is not None


def _is_one(v) -> bool:
    """Whether it is an array of one element."""
    return _is_array(v) and v.shape in ((), (1,))
