"""Products with one weight, at every time step or in every branch, as one product of more rows.

The gradient of a weight that is used at T steps is a sum of T products ``g_t.T @ x_t``: the product
of all g and all x, one above the other. Products ``x_t @ W`` that do not wait for each other are
one product of all x. T small products keep one thread busy, write T results and add them up; a
large one is shared by threads, and its sum stays in registers. Where rows come one above the other
without copies, see ``stacking.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

from ...ops.core import REGISTRY
from ..graph import Graph, Node, OpCall, Value
from .pointwise import FLOATS
from .rewriting import ordered
from .stacking import Stacks, as_rows, rows_of

# Products of more multiplications reach their speed by themselves: BLAS takes some from here on.
_LARGE = 1 << 22
# Products whose results are read one by one lose their epilogues: so many must be worth it.
_FEWEST = 4
# Rows stay in memory until the last are there: no more bytes together than a core has cache.
_BYTES = 1 << 22


def merge_products(graph: Graph) -> Graph:
    """Compute sums of products by one product, products with one weight together, and an array of
    which all slices are given from these, not as a sum of arrays with zeros.

    Only for float32 and float64 on a CPU: sums are made in another order.
    """
    merging = _Merging(graph)
    merging.sums(_product_term, merging.product)
    merging.products()
    merging.sums(_slice_term, merging.whole)
    return merging.graph


class _Term(NamedTuple):
    """A node whose result is added to others."""

    node: Node
    kind: tuple  # equal for terms that may be added up: name and shape of the result, and more
    operands: tuple[Value, ...]
    start: int = 0  # the first row of what it makes that is not zero
    stop: int = 0


class _Merging:
    def __init__(self, graph: Graph):
        self.graph = graph.with_nodes(list(graph.nodes))
        self._results = set(graph.results())
        self._maker: dict[Value, Node] = {}
        self._readers: dict[Value, list[Node]] = defaultdict(list)
        self._position = {id(node): k for k, node in enumerate(graph.nodes)}
        self._note(graph.nodes)
        self._stacks = Stacks(self.graph, self._results, self._maker, self._position)

    def _note(self, nodes: Iterable[Node]) -> None:
        """Note who makes and who reads each value."""
        for node in nodes:
            for v in node.outputs:
                self._maker[v] = node
            for v in node.values:
                self._readers[v].append(node)

    def _forget(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            for v in node.outputs:
                del self._maker[v]
            for v in node.values:
                self._readers[v].remove(node)

    def _rewrite(self, gone: Sequence[Node], new: Sequence[Node]) -> None:
        """Put new nodes, in order, in the places of some; each as early as it can be computed.
        Where that would be a cycle, nothing changes."""
        left = {id(node) for node in gone}
        kept = [n for n in self.graph.nodes if id(n) not in left]
        keys = [float(self._position[id(n)]) for n in kept]
        made: dict[Value, float] = {}
        for node in new:
            reads = [made[v] if v in made else self._made_at(v) for v in node.values]
            keys.append(max(reads) + 1 / 16)
            made.update(dict.fromkeys(node.outputs, keys[-1]))
        nodes = ordered([*kept, *new], keys)
        if nodes is not None:
            self.graph.nodes = nodes
            self._forget(gone)
            self._note(new)
            self._position.clear()
            self._position.update({id(node): k for k, node in enumerate(nodes)})
        self._stacks.forget()

    def _made_at(self, v: Value) -> int:
        node = self._maker.get(v)
        return -1 if node is None else self._position[id(node)]

    # ---- sums

    def sums(
        self,
        term_of: Callable[[Node, dict[Value, Node]], _Term | None],
        merged: Callable[[list[_Term]], list[Node] | None],
    ) -> None:
        """Merge the terms of every sum that may be merged."""
        for node in list(self.graph.nodes):
            if not _is_sum(node) or self._is_within_a_sum(node.outputs[0]):
                continue
            added, gone = self._added_up(node)
            terms: dict[tuple, list[_Term]] = {}
            for v in added:
                maker = self._maker.get(v)
                if maker is None or v in self._results or len(self._readers[v]) > 1:
                    continue
                if _is_plain(maker) and (term := term_of(maker, self._maker)) is not None:
                    terms.setdefault(term.kind, []).append(term)
            self._merge_terms(node, added, gone, list(terms.values()), merged)

    def _is_within_a_sum(self, v: Value) -> bool:
        readers = self._readers[v]
        return v not in self._results and len(readers) == 1 and _is_sum(readers[0])

    def _added_up(self, root: Node) -> tuple[list[Value], list[Node]]:
        """The values that a sum adds up, the last first, and the nodes that do it."""
        added, nodes = [], [root]
        stack = list(root.inputs)
        while stack:
            v = stack.pop()
            maker = self._maker.get(v)
            if maker is not None and _is_sum(maker) and self._is_within_a_sum(v):
                nodes.append(maker)
                stack += maker.inputs
            else:
                added.append(v)
        return added, nodes

    def _merge_terms(self, root: Node, added: list[Value], gone: list[Node], groups, merged):
        """Rewrite a sum with one value for every group of terms for which there is one."""
        new: list[Node] = []
        for group in groups:
            for terms in _chunks(group, lambda term: as_rows(term.operands[0]).bytes):
                found = merged(terms) if len(terms) > 1 else None
                if found is not None:
                    new += found
                    gone += [term.node for term in terms]
                    left = {term.node.outputs[0] for term in terms}
                    added = [*[v for v in added if v not in left], new[-1].outputs[0]]
        if new:
            self._rewrite(gone, [*new[:-1], *self._sum(root, added, new[-1])])

    def _sum(self, root: Node, added: list[Value], last: Node) -> list[Node]:
        """The nodes that add values up, of which the last is computed by the last of the nodes
        before."""
        (out,) = root.outputs
        if len(added) == 1:
            return [Node(last.call, last.inputs, [out], root.line)]
        nodes, total = [last], added[0]
        for k, v in enumerate(added[1:], 2):
            into = out if k == len(added) else self.graph.value(out.shape, out.dtype)
            nodes.append(Node(root.call, [total, v], [into], root.line))
            total = into
        return nodes

    def product(self, terms: list[_Term]) -> list[Node] | None:
        """The nodes that compute a sum of products, the last of them the sum; None where rows would
        have to be copied."""
        count = len(terms[0].operands)
        order = self._stacks.order([[t.operands[k] for t in terms] for k in range(count)])
        if order is None:
            return None
        columns = [[terms[k].operands[n] for k in order] for n in range(count)]
        nodes: list[Node] = []
        stacked = [self._stacks.of(values, nodes) for values in columns]
        (name, shape, *_), node = terms[0].kind, terms[0].node
        out = self.graph.value(shape, node.outputs[0].dtype)
        call = OpCall(REGISTRY[name], {"shape": shape} if name == "sum_to" else {})
        return [*nodes, Node(call, stacked, [out], node.line)]

    def whole(self, terms: list[_Term]) -> list[Node] | None:
        """The nodes that put slices together; None unless together they are the whole array."""
        terms = sorted(terms, key=lambda term: term.start)
        shape, line = terms[0].node.outputs[0].shape, terms[0].node.line
        if [0, *[t.stop for t in terms]] != [*[t.start for t in terms], shape[0]]:
            return None
        nodes: list[Node] = []
        stacked = self._stacks.of([term.operands[0] for term in terms], nodes)
        out = self.graph.value(shape, stacked.dtype)
        call = OpCall(REGISTRY["reshape"], {"shape": shape})
        return [*nodes, Node(call, [stacked], [out], line)]

    # ---- products with one weight

    def products(self) -> None:
        """Compute products with one weight together, if none of them waits for another."""
        groups: dict[tuple, list[Node]] = {}
        for node in self.graph.nodes:
            if _shares_weight(node) and _is_plain(node):
                x, *others = node.inputs
                work = prod(node.outputs[0].shape) * x.shape[-1]
                if (
                    len(x.shape) > 1
                    and 0 < work < _LARGE
                    and self._results.isdisjoint(node.outputs)
                ):
                    key = (node.call.key(), as_rows(x).row, x.dtype, *others)
                    groups.setdefault(key, []).append(node)
        for nodes in groups.values():
            batch = self._independent(nodes) if len(nodes) >= _FEWEST else []
            for chunk in _chunks(batch, lambda node: as_rows(node.outputs[0]).bytes):
                if len(chunk) >= _FEWEST:
                    self._together(chunk)

    def _independent(self, nodes: list[Node]) -> list[Node]:
        """Nodes that do not wait for each other, the first among them."""
        bit = {id(node): 1 << k for k, node in enumerate(nodes)}
        before: dict[Value, int] = {}
        batch, taken = [], 0
        for node in self.graph.nodes:
            mask = 0
            for v in node.values:
                mask |= before.get(v, 0)
            if id(node) in bit and not mask & taken:
                batch.append(node)
                taken |= bit[id(node)]
            mask |= bit.get(id(node), 0)
            for v in node.outputs:
                before[v] = mask
        return batch

    def _together(self, nodes: list[Node]) -> None:
        order = self._stacks.order([[node.inputs[0] for node in nodes]])
        if order is None:
            return
        nodes = [nodes[k] for k in order]
        new: list[Node] = []
        first, values = nodes[0], [node.inputs[0] for node in nodes]
        stacked = self._stacks.of(values, new)
        ends = list(accumulate(v.shape[0] for v in values))
        (v,) = first.outputs
        out = self.graph.value((ends[-1], *v.shape[1:]), v.dtype)
        new.append(Node(first.call, [stacked, *first.inputs[1:]], [out], first.line))
        for node, end in zip(nodes, ends, strict=True):
            new.append(rows_of(out, end - node.inputs[0].shape[0], end, node.outputs[0]))
        self._rewrite(nodes, new)


# ------------------------------------------------------------------------------------------------
# what nodes are


def _is_plain(node: Node) -> bool:
    """Whether it is an operation on arrays of a CPU, all of one dtype, float32 or float64."""
    if node.call.__class__ is not OpCall or len(node.values) < len(node.inputs):
        return False
    values = [*node.inputs, *node.outputs]
    dtype = values[0].dtype
    return dtype in FLOATS and all(v.dtype == dtype and v.device is None for v in values)


def _shares_weight(node: Node) -> bool:
    """Whether it is a product that others with the same weight may be computed together with."""
    names = ("affine", "linear", "linear_input")
    return node.call.__class__ is OpCall and node.call.op.name in names


def _is_sum(node: Node) -> bool:
    """Whether it adds two arrays, neither of which is broadcast."""
    if node.call.__class__ is not OpCall or node.call.op.name != "add":
        return False
    return _is_plain(node) and all(i.shape == node.outputs[0].shape for i in node.inputs)


def _product_term(node: Node, maker: dict[Value, Node]) -> _Term | None:
    """What sums over the rows of all that it reads."""
    name, operands, shape = node.call.op.name, node.inputs, node.outputs[0].shape
    if name == "matmul" and len(shape) == 2:
        left = maker.get(operands[0])
        if left is None or not _transposes(left) or len(operands[1].shape) != 2:
            return None
        name, operands = "linear_weight", (left.inputs[0], operands[1])
    if name == "linear_weight":
        small = prod(operands[0].shape) * operands[1].shape[-1] < _LARGE
    else:
        small = name == "sum_to" and (len(operands[0].shape) > len(shape) or shape[0] == 1)
    if not small or any(len(i.shape) < 2 or 0 in i.shape for i in operands):
        return None
    return _Term(node, (name, shape, *[as_rows(i).row for i in operands]), operands)


def _transposes(node: Node) -> bool:
    """Whether it transposes a matrix."""
    if node.call.__class__ is not OpCall or node.call.op.name != "permute":
        return False
    axes = node.call.params["axes"]
    return len(axes) == 2 and (axes[0] % 2, axes[1] % 2) == (1, 0)


def _slice_term(node: Node, maker: dict[Value, Node]) -> _Term | None:
    """What puts rows into an array of zeros."""
    if node.call.op.name != "putslice" or 0 in node.outputs[0].shape:
        return None
    (g,), (v,) = node.inputs, node.outputs
    bounds = as_rows(v).bounds(node.call.params["index"], g.shape)
    return None if bounds is None else _Term(node, ("putslice", v.shape), (g,), *bounds)


def _chunks(items: list, bytes_of: Callable) -> list[list]:
    """Runs of items of so many bytes together, at most."""
    chunks: list[list] = []
    room = 0
    for item in items:
        size = bytes_of(item)
        if size > room or not chunks:
            chunks.append([])
            room = _BYTES
        chunks[-1].append(item)
        room -= size
    return chunks
