"""Products of matrices that compute their second operand, weights that are scaled or dequantised
in every call, while they pack it."""

from __future__ import annotations

from math import prod

from ...codegen import gemm
from ...codegen.arrays import Program
from ..graph import EpilogueCall, Graph, Node, OpCall, PrologueCall, Value
from .epilogues import PRODUCTS
from .pointwise import pointwise


def join_prologues(graph: Graph) -> Graph:
    """Join elementwise nodes with the product that alone reads their one result, as its second
    operand, as it is or transposed by a view: where that gains (``gemm.takes_prologue``)."""
    maker = {v: node for node in graph.nodes for v in node.outputs}
    reads: dict[Value, int] = dict.fromkeys(graph.results(), 2)
    for node in graph.nodes:
        for v in node.values:
            reads[v] = reads.get(v, 0) + 1
    replaced: dict[int, Node] = {}
    gone: set[int] = set()
    for node in graph.nodes:
        if not _is_product(node):
            continue
        b = node.inputs[1]
        made = maker.get(b)
        turns = made is not None and reads[b] == 1 and _transposes(made)
        source = made.inputs[0] if made is not None and turns else b
        before = maker.get(source)
        if before is None or reads[b] != 1 or reads[source] != 1:
            continue
        program = _prologue(before, node)
        if program is None:
            continue
        a, _, *others = node.inputs
        inputs = [a, *others, *before.inputs]
        call = PrologueCall(program, turns, node.call)
        replaced[id(node)] = Node(call, inputs, node.outputs, node.line)
        gone |= {id(before), id(made)}
    if not replaced:
        return graph
    nodes = [replaced.get(id(n), n) for n in graph.nodes if id(n) not in gone]
    return graph.with_nodes(nodes)


def _is_product(node: Node) -> bool:
    """Whether it is a product, maybe with an epilogue; not with an update, which writes to memory
    that it reads."""
    call = node.call
    if call.__class__ is EpilogueCall:
        return not call.updates and call.producer.op.name in PRODUCTS
    return call.__class__ is OpCall and call.op.name in PRODUCTS


def _transposes(node: Node) -> bool:
    """Whether it is a view with the last two dimensions swapped."""
    if node.call.__class__ is not OpCall or node.call.op.name != "permute":
        return False
    count = len(node.outputs[0].shape)
    return tuple(node.call.params["axes"]) == (*range(count - 2), count - 1, count - 2)


def _prologue(node: Node, product: Node) -> Program | None:
    """What a node computes, if it gains to compute it as the second operand of a product."""
    found, (a, b) = pointwise(node), product.inputs[:2]
    if found is None or found.device is not None or found.dtype != b.dtype:
        return None
    if len(node.outputs) > 1 or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    out, call = product.outputs[0], product.call
    name = (call.producer if call.__class__ is EpilogueCall else call).op.name
    if name != "matmul" and len(b.shape) > 2:
        return None
    if len(b.shape) > 2 and b.shape[:-2] != out.shape[:-2]:
        return None  # a matrix that several products read
    k, n = b.shape[::-1] if name in ("affine", "linear") else b.shape[-2:]
    matrices = prod(b.shape[:-2])
    m = prod(out.shape) // max(1, matrices * n)
    gains = gemm.takes_prologue(found.program, found.dtype, matrices, m, n, k)
    return found.program if gains else None
