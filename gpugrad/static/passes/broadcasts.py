"""Broadcast values that are read element by element need no memory of their own."""

from __future__ import annotations

from ...ops.core import REGISTRY
from ..graph import Graph, Node, OpCall, Value
from .pointwise import pointwise


def broadcast_lazily(graph: Graph) -> Graph:
    """Let elementwise nodes read broadcast views instead of copies (``spread``, what the gradient
    of a sum is made of): the copy of a number for each of 4 M elements takes 0.6 ms to write."""
    results = set(graph.results())
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for v in node.values:
            readers.setdefault(v, []).append(node)
    nodes = []
    for node in graph.nodes:
        call = node.call
        if call.__class__ is OpCall and call.op.name == "spread":
            (out,) = node.outputs
            read = readers.get(out, [])
            if out not in results and read and all(pointwise(n) is not None for n in read):
                view = OpCall(REGISTRY["broadcast_to"], call.params)
                node = Node(view, node.inputs, node.outputs, node.line)
        nodes.append(node)
    return graph.with_nodes(nodes)
