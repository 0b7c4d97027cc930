"""Graphs with some values replaced by equal ones, and nodes put in order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from ..graph import Graph, Node, Value


class Replacements:
    """Values that stand for others.

    A value that the program returns is never replaced: the caller gets an array of its own, which
    neither an argument nor another result may share.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self._kept = set(graph.outputs)
        self._of: dict[Value, Value] = {}

    def may_replace(self, node: Node) -> bool:
        """Whether all results of a node may be replaced."""
        return bool(node.outputs) and self._kept.isdisjoint(node.outputs)

    def replace(self, v: Value, by: Value) -> None:
        self._of[v] = self.now(by)

    def now(self, v: Value) -> Value:
        """The value that stands for another, or itself."""
        return self._of.get(v, v)

    def renewed(self, node: Node) -> Node:
        """A node that reads the values that stand for its inputs."""
        if self._of.keys().isdisjoint(node.values):
            return node
        inputs = [self.now(i) if i.__class__ is Value else i for i in node.inputs]
        return Node(node.call, inputs, node.outputs, node.line)

    def finished(self, nodes: Iterable[Node]) -> Graph:
        """The graph of these nodes."""
        new = self.graph.with_nodes(list(nodes))
        new.stores = [(target, self.now(v)) for target, v in new.stores]
        new.guards = [(self.now(v), outcome) for v, outcome in new.guards]
        return new


def ordered(nodes: Sequence[Node], keys: Sequence[float]) -> list[Node] | None:
    """Nodes in an order in which each comes after those that it reads, that of their keys as far as
    possible; None if there is none."""
    by_key = sorted(range(len(nodes)), key=keys.__getitem__)
    missing = {v for node in nodes for v in node.outputs}
    for k in by_key:
        if not missing.isdisjoint(nodes[k].values):
            return _in_some_order(nodes, keys)
        missing.difference_update(nodes[k].outputs)
    return [nodes[k] for k in by_key]


def _in_some_order(nodes: Sequence[Node], keys: Sequence[float]) -> list[Node] | None:
    """The same, where the order of the keys is none."""
    maker = {v: k for k, node in enumerate(nodes) for v in node.outputs}
    needed = [{maker[v] for v in node.values if v in maker} for node in nodes]
    after: list[list[int]] = [[] for _ in nodes]
    for k, others in enumerate(needed):
        for other in others:
            after[other].append(k)
    ready = [(keys[k], k) for k, others in enumerate(needed) if not others]
    heapq.heapify(ready)
    found = []
    while ready:
        _, k = heapq.heappop(ready)
        found.append(nodes[k])
        for other in after[k]:
            needed[other].discard(k)
            if not needed[other]:
                heapq.heappush(ready, (keys[other], other))
    return found if len(found) == len(nodes) else None
