"""The way back through max pooling and what comes before it, computed on the pooled values."""

from __future__ import annotations

from ...backend.numpy import xp as np
from ...codegen.expr import build, variable
from ..graph import Graph, Node, OpCall, ProgramCall, Value
from .pointwise import interned_program, pointwise

_G, _Y = variable("g"), variable("y")
_COMPARISONS = ("gt", "ge", "lt", "le")


def mask_before_pools(graph: Graph) -> Graph:
    """``where(x > 0, scatter(g, x, y), 0)`` as ``scatter(where(y > 0, g, 0), x, y)``, if y is the
    largest of each window of x: relu's derivative on a quarter of the elements, for windows of
    2 x 2. The sum of its result over images is the sum of the masked g, then.

    Exact: a cotangent goes to a place that equals its y, and to none if y is NaN.
    """
    readers: dict[Value, int] = {}
    for v in [w for node in graph.nodes for w in set(node.values)] + list(graph.results()):
        readers[v] = readers.get(v, 0) + 1
    scatters = {node.outputs[0]: node for node in graph.nodes if _is_scatter(node)}
    masked: dict[Value, Value] = {}  # masked cotangents, by what becomes of them in the images
    replaced: dict[int, list[Node]] = {}
    for node in graph.nodes:
        choice = _mask_of(node, scatters, readers)
        if choice is not None:
            scatter = scatters[next(v for v in node.values if v in scatters)]
            g, x, y = scatter.inputs
            mask = graph.value(g.shape, g.dtype)
            program = ProgramCall(interned_program((choice,), ("g", "y"), frozenset("gy")))
            first = Node(program, (g, y), (mask,), node.line)
            last = Node(scatter.call, (mask, x, y), node.outputs, scatter.line)
            replaced[id(node)] = [first, last]
            replaced[id(scatter)] = []
            masked[node.outputs[0]] = mask
        elif any(v in masked for v in node.values) and _sums_images(node):
            summed = Node(node.call, (masked[node.inputs[0]],), node.outputs, node.line)
            replaced[id(node)] = [summed]
    if not replaced:
        return graph
    nodes = [new for node in graph.nodes for new in replaced.get(id(node), [node])]
    return graph.with_nodes(nodes)


def _is_scatter(node: Node) -> bool:
    call = node.call
    return call.__class__ is OpCall and call.op.name == "max_pool_scatter"


def _mask_of(node: Node, scatters: dict[Value, Node], readers: dict[Value, int]):
    """The choice from g and y, if a node is such a choice from the scattered g and x."""
    found = pointwise(node) if any(v in scatters for v in node.values) else None
    if found is None or len(found.program.outputs) != 1:
        return None
    (e,) = found.program.outputs
    given = dict(zip(found.program.inputs, node.inputs, strict=True))
    if e.op != "where" or e.args[0].op not in _COMPARISONS:
        return None
    condition, chosen, other = e.args
    x, bound = condition.args
    if not chosen.op == x.op == "input":
        return None
    scattered = given[chosen.args[0]]
    scatter = scatters.get(scattered)
    if scatter is None or scatter.inputs[1] is not given[x.args[0]] or readers[scattered] > 1:
        return None
    numbers = [given[i.args[0]] if i.op == "input" else i.args[0] for i in (bound, other)]
    if any(n.__class__ not in (int, float) for n in numbers):
        return None
    limit, zero = numbers
    if zero != 0 or np.signbit(zero):
        return None
    return build("where", build(condition.op, _Y, limit), _G, 0)


def _sums_images(node: Node) -> bool:
    """Whether it is a sum over rows and columns, and maybe more, of images."""
    if node.call.__class__ is not OpCall:
        return False
    name, params, ndim = node.call.op.name, node.call.params, len(node.inputs[0].shape)
    if name == "sum_to":
        kept = (1,) * ndim + tuple(params["shape"])
        return kept[-1] == kept[-2] == 1
    if name == "sum":
        axes = range(ndim) if params["axes"] is None else params["axes"]
        return {ndim - 1, ndim - 2} <= {a % ndim for a in axes}
    return False
