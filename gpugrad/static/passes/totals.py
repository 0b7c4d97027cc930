"""Sums of everything, computed while the summed values are: a loss and its derivative in one pass
over memory."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from ...codegen import llvm, vector_math
from ...codegen.expr import Expr, as_expr, build, topological
from ...codegen.rows import ELEMENT, NUMBER, TOTAL, RowProgram, row_sum
from ...ops.core import REGISTRY
from ..graph import Graph, Node, OpCall, RowsCall, UpdateCall, Value
from .pointwise import pointwise

# Rows are as long as a divisor of the size in this range allows; what is smaller is one row.
_SHORTEST, _LONGEST = 256, 8192
_ONE_ROW = 1 << 13


def sum_in_passing(graph: Graph) -> Graph:
    """Make an elementwise node and the sum or mean of all of one of its results a program over
    rows. The results are cut into rows of any length, as nothing depends on where a row ends.

    Only for float32 and float64 on a CPU, and for shapes that all inputs have, or none.
    """
    makers = {v: node for node in graph.nodes for v in node.outputs}
    readers: dict[Value, int] = {}
    for node in graph.nodes:
        for v in set(node.values):
            readers[v] = readers.get(v, 0) + 1
    for v in graph.results():
        readers[v] = readers.get(v, 0) + 1
    sums = {}
    for node in graph.nodes:
        maker = makers.get(node.inputs[0]) if sums_everything(node) else None
        if maker is not None and id(maker) not in sums:
            sums[id(maker)] = node
    joined: set[int] = set()
    new: dict[int, list[Node]] = {}
    for node in graph.nodes:
        total = sums.get(id(node))
        nodes = None
        if total is not None:
            nodes = _joined(graph, with_numbers(node, makers), total, readers)
        if nodes is not None:
            new[id(node)] = nodes
            joined.add(id(total))
    if not new:
        return graph
    found: list[Node] = []
    for node in graph.nodes:
        if id(node) not in joined:
            found += new.get(id(node), [node])
    return graph.with_nodes(found)


def sums_everything(node: Node) -> bool:
    """Whether it is the sum or mean of all elements of an array."""
    call = node.call
    return (
        call.__class__ is OpCall
        and call.op.name in ("sum", "mean")
        and call.params["axes"] is None
        and node.inputs[0].__class__ is Value
    )


def with_numbers(node: Node, makers: dict[Value, Node]) -> Node:
    """The node with numbers in the places of what broadcasts them."""

    def source(i):
        maker = makers.get(i) if i.__class__ is Value else None
        if maker is None or maker.call.__class__ is not OpCall:
            return i
        spread = maker.call.op.name in ("broadcast_to", "spread")
        return maker.inputs[0] if spread and prod(maker.inputs[0].shape) == 1 else i

    return Node(node.call, [source(i) for i in node.inputs], node.outputs, node.line)


def _joined(graph: Graph, node: Node, total: Node, readers: dict) -> list[Node] | None:
    """The two nodes as one over rows, with views around it; None where that cannot be."""
    call = total.call
    assert isinstance(call, OpCall)
    found = pointwise(node)
    if call.params["keepdims"] or node.call.__class__ is UpdateCall or found is None:
        return None
    summed = total.inputs[0]
    shape, dtype = summed.shape, summed.dtype
    if dtype.name not in ("float32", "float64") or summed.device is not None:
        return None
    columns = _columns(prod(shape))
    program = found.program
    if columns is None or any(v.shape != shape or v.dtype != dtype for v in node.outputs):
        return None
    kinds = _kinds(node, program, shape, dtype)
    if kinds is None or not _native(program.outputs, dtype):
        return None
    flat = (prod(shape) // columns, columns)
    before, inputs = _flattened(graph, node, program, kinds, flat)
    n = prod(shape)
    outputs: list[tuple[str, Expr]] = []
    results: list[Value] = []
    after: list[Node] = []
    for v, e in zip(node.outputs, program.outputs, strict=True):
        if v is summed:
            term = row_sum(e)
            if call.op.name == "mean":
                term = build("mul", term, as_expr(1.0 / n))
            outputs.append((TOTAL, term))
            results.append(total.outputs[0])
            if readers[v] == 1:
                continue
        rows = graph.value(flat, dtype)
        outputs.append((ELEMENT, e))
        results.append(rows)
        after.append(Node(_reshape(shape), (rows,), (v,), node.line))
    rows_call = RowsCall(_row_program(tuple(outputs), tuple(kinds.items())))
    return [*before, Node(rows_call, inputs, results, node.line), *after]


def _columns(n: int) -> int | None:
    """How long the rows are; None if the size has no divisor that is fit, or is zero."""
    if n <= _ONE_ROW:
        return n or None
    fitting = (c for c in range(_LONGEST, _SHORTEST - 1, -1) if n % c == 0)
    return next(fitting, None)


def _kinds(node: Node, program, shape, dtype) -> dict[str, str] | None:
    """What the inputs hold: elements first, as a program over rows wants it."""
    elements, numbers = {}, {}
    for name, i in zip(program.inputs, node.inputs, strict=True):
        if name not in program.used:
            continue
        if i.__class__ is Value and i.dtype is not None and i.shape == shape:
            if i.dtype != dtype:
                return None
            elements[name] = ELEMENT
        elif i.__class__ is Value and i.dtype is not None and i.dtype != dtype:
            return None
        elif i.__class__ is not Value or prod(i.shape or ()) == 1:
            numbers[name] = NUMBER
        else:
            return None
    return {**elements, **numbers} if elements else None


def _native(outputs, dtype) -> bool:
    """Whether a native loop knows all primitives."""
    known = llvm.EXACT | vector_math.for_element(llvm.ELEMENTS[dtype]).keys()
    return all(e.op in known or e.op in ("input", "const") for e in topological(outputs))


@lru_cache(4096)
def _row_program(outputs: tuple, inputs: tuple) -> RowProgram:
    """The one program of these expressions, with its kernels."""
    return RowProgram(list(outputs), dict(inputs))


def _flattened(graph: Graph, node: Node, program, kinds, flat) -> tuple[list[Node], list]:
    """Views of the elements as rows, and the inputs in the order of the kinds."""
    given = dict(zip(program.inputs, node.inputs, strict=True))
    before, inputs = [], []
    for name, kind in kinds.items():
        v = given[name]
        if kind == ELEMENT:
            rows = graph.value(flat, v.dtype)
            before.append(Node(_reshape(flat), (v,), (rows,), node.line))
            v = rows
        inputs.append(v)
    return before, inputs


def _reshape(shape: tuple[int, ...]) -> OpCall:
    return OpCall(REGISTRY["reshape"], {"shape": shape})
