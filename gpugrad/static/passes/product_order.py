"""The order in which matrices are multiplied, for ``compile(algebra="real")``.

``(x @ y) @ v`` takes n^3 multiplications where ``x @ (y @ v)`` takes n^2. Attention without a
softmax, ``(q @ k.mT) @ v``, is the product of two small matrices for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ...ops.core import REGISTRY
from ..graph import Graph, Node, OpCall, Value
from .pointwise import FLOATS
from .simple import drop_dead

# Matrices are multiplied in another order for so many of the multiplications.
_FEWER = 0.9
_NOTE = "(x @ y) @ z <-> x @ (y @ z)"

Shape = tuple[int, ...]


def order_products(graph: Graph) -> Graph:
    """Multiply chains of matrices in the order that takes the fewest multiplications. A product
    that several others read, or their transposes, is left out if all of them together are cheaper
    without it: a chain and its gradients."""
    graph = drop_dead(_in_best_order(graph))
    while (better := _without_shared(graph)) is not None:
        graph = drop_dead(_in_best_order(drop_dead(better)))
    return graph


# ------------------------------------------------------------------------------------------------
# one chain


class _Order(NamedTuple):
    """The best order of a part of a chain: where it is split, and the multiplications."""

    split: int
    work: int


def _in_best_order(graph: Graph) -> Graph:
    """The graph with every chain of products that are read once in its best order."""
    readers = _readers(graph)
    results = set(graph.results())
    inner = {
        node.outputs[0]: node
        for node in graph.nodes
        if _is_product(node) and len(readers.get(node.outputs[0], ())) == 1
        and node.outputs[0] not in results
    }  # fmt: skip
    new = graph.with_nodes([])
    for node in graph.nodes:
        nodes = _reordered(new, node, inner) if _is_product(node) else None
        new.nodes += [node] if nodes is None else nodes
    return new


def _reordered(graph: Graph, node: Node, inner: dict[Value, Node]) -> list[Node] | None:
    """The nodes of a chain in its best order; None for what is no chain, or in that order."""
    factors, work = _factors(node, inner)
    if len(factors) < 3 or len({v.shape[:-2] for v in factors}) > 1:
        return None
    rows = factors[0].shape[-2] if len(factors[0].shape) > 1 else 1
    sizes = [rows, *[v.shape[0] if len(v.shape) == 1 else v.shape[-2] for v in factors[1:]]]
    sizes.append(factors[-1].shape[-1] if len(factors[-1].shape) > 1 else 1)
    orders = _best_orders(sizes)
    best = orders[0, len(factors)].work * prod(factors[0].shape[:-2])
    if best > _FEWER * work:
        return None
    nodes: list[Node] = []

    def product(start: int, stop: int) -> Value:
        if stop - start == 1:
            return factors[start]
        split = orders[start, stop].split
        a, b = product(start, split), product(split, stop)
        if stop - start == len(factors):
            out = node.outputs[0]
        else:
            out = graph.value(_shape(a.shape, b.shape), a.dtype, a.device)
        nodes.append(Node(node.call, [a, b], [out], node.line))
        return out

    product(0, len(factors))
    graph.identities.append(_NOTE)
    return nodes


def _factors(node: Node, inner: dict[Value, Node]) -> tuple[list[Value], int]:
    """The matrices of a chain of products, and the multiplications that it takes. Vectors are at
    its ends: ``(a @ v) @ b`` is no ``a @ (v @ b)``."""
    a, b = node.inputs
    left, right, work = [a], [b], _work_of(node)
    if (first := inner.get(a)) is not None and len(first.inputs[1].shape) > 1:
        left, more = _factors(first, inner)
        work += more
    if (second := inner.get(b)) is not None and len(second.inputs[0].shape) > 1:
        right, more = _factors(second, inner)
        work += more
    return [*left, *right], work


def _best_orders(sizes: list[int]) -> dict[tuple[int, int], _Order]:
    """The best orders of all parts of a chain, by their ends: matrix k is (sizes[k], sizes[k +
    1])."""
    count = len(sizes) - 1
    best = {(k, k + 1): _Order(k, 0) for k in range(count)}
    for length in range(2, count + 1):
        for start in range(count - length + 1):
            stop = start + length
            ends = sizes[start] * sizes[stop]
            best[start, stop] = min(
                (
                    _Order(k, best[start, k].work + best[k, stop].work + ends * sizes[k])
                    for k in range(start + 1, stop)
                ),
                key=lambda order: order.work,
            )
    return best


# ------------------------------------------------------------------------------------------------
# products that several others read


class _Use(NamedTuple):
    """A product that reads another one."""

    node: Node
    place: int  # as which operand
    transposed: bool


class _Plan(NamedTuple):
    """A product of three matrices, of which two neighbours are multiplied first."""

    use: _Use
    factors: list[tuple[Value, bool]]  # and whether they are transposed
    first: int  # the left one of the two
    work: int


def _without_shared(graph: Graph) -> Graph | None:
    """The graph without a product that others multiply further; None if there is none that is
    better left out."""
    readers = _readers(graph)
    results = set(graph.results())
    for inner in graph.nodes:
        uses = _uses(inner, readers, results) if _is_product(inner) else None
        plans = [_plan(inner, use) for use in uses or ()]
        found = [plan for plan in plans if plan is not None]
        if len(found) < 2 or len(found) < len(plans):
            continue
        before = _work_of(inner) + sum(_work_of(plan.use.node) for plan in found)
        if sum(plan.work for plan in found) <= _FEWER * before:
            return _rewritten(graph, found)
    return None


def _readers(graph: Graph) -> dict[Value, list[Node]]:
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for v in node.values:
            readers.setdefault(v, []).append(node)
    return readers


def _is_product(node: Node) -> bool:
    if node.call.__class__ is not OpCall or node.call.op.name != "matmul":
        return False
    return node.outputs[0].dtype in FLOATS and 0 not in node.outputs[0].shape


def _uses(inner: Node, readers: dict, results: set[Value]) -> list[_Use] | None:
    """The products that read another one, or its transpose; None if something else does."""
    found: list[_Use] = []
    waiting = [(inner.outputs[0], False)]
    while waiting:
        v, transposed = waiting.pop()
        if v in results:
            return None
        for node in readers.get(v, ()):
            if _is_product(node) and node.inputs[0] is not node.inputs[1]:
                found.append(_Use(node, node.inputs.index(v), transposed))
            elif _transposes(node):
                waiting.append((node.outputs[0], not transposed))
            else:
                return None
    return found


def _transposes(node: Node) -> bool:
    """Whether a node swaps the last two axes."""
    if node.call.__class__ is not OpCall or node.call.op.name != "permute":
        return False
    count = len(node.call.params["axes"])
    axes = [a % count for a in node.call.params["axes"]]
    return count > 1 and axes == _swapped(range(count))


def _swapped(items: Sequence) -> list:
    return [*items[:-2], items[-1], items[-2]]


def _plan(inner: Node, use: _Use) -> _Plan | None:
    """How to compute a product of a product without that; None for vectors whose axes do not
    allow it, and where leading axes are broadcast."""
    a, b = inner.inputs
    pair = [(b, True), (a, True)] if use.transposed else [(a, False), (b, False)]
    other = (use.node.inputs[1 - use.place], False)
    factors = [*pair, other] if use.place == 0 else [other, *pair]
    first = 1 - use.place
    shapes = [tuple(_swapped(v.shape)) if swapped else v.shape for v, swapped in factors]
    if len(shapes[1]) < 2:
        return None
    together = _shape(shapes[first], shapes[first + 1])
    if together is None:
        return None
    work = prod(together) * shapes[first][-1]
    left, right = (shapes[0], together) if first else (together, shapes[2])
    whole = _shape(left, right)
    if whole is None or whole != use.node.outputs[0].shape:
        return None
    return _Plan(use, factors, first, work + prod(whole) * left[-1])


def _shape(p: Shape, q: Shape) -> Shape | None:
    """The shape of a product, without broadcasting."""
    if len(p) > 1 and len(q) > 1:
        return (*p[:-1], q[-1]) if p[:-2] == q[:-2] and p[-1] == q[-2] else None
    if len(p) + len(q) != 3 or p[-1] != q[0]:
        return None
    return p[:-1] or q[1:]


def _work_of(node: Node) -> int:
    return prod(node.outputs[0].shape) * node.inputs[0].shape[-1]


def _rewritten(graph: Graph, plans: list[_Plan]) -> Graph:
    """The graph with products in another order."""
    new = graph.with_nodes([])
    of = {id(plan.use.node): plan for plan in plans}
    for node in graph.nodes:
        plan = of.get(id(node))
        new.nodes += [node] if plan is None else _products(new, plan)
    new.identities.append(_NOTE)
    return new


def _products(graph: Graph, plan: _Plan) -> list[Node]:
    node, k = plan.use.node, plan.first
    nodes: list[Node] = []
    values = [_transposed(graph, v, nodes) if swapped else v for v, swapped in plan.factors]
    shape = _shape(values[k].shape, values[k + 1].shape)
    assert shape is not None  # or there were no plan
    inner = graph.value(shape, node.outputs[0].dtype, node.outputs[0].device)
    nodes.append(Node(node.call, values[k : k + 2], [inner], node.line))
    operands = [values[0], inner] if k else [inner, values[2]]
    return [*nodes, Node(node.call, operands, node.outputs, node.line)]


def _transposed(graph: Graph, v: Value, nodes: list[Node]) -> Value:
    out = graph.value(tuple(_swapped(v.shape)), v.dtype, v.device)
    call = OpCall(REGISTRY["permute"], {"axes": tuple(_swapped(range(len(v.shape))))})
    nodes.append(Node(call, [v], [out], None))
    return out
