"""Passes: each takes a graph and gives a graph that computes the same with less."""

from __future__ import annotations

from .graph import CheckCall, Graph


def drop_dead(graph: Graph) -> Graph:
    """Leave out, in place, what no result needs; checks stay."""
    needed = set(graph.results()) | {t for t, _ in graph.stores}
    kept = []
    for node in reversed(graph.nodes):
        if node.call.__class__ is CheckCall or any(v in needed for v in node.outputs):
            kept.append(node)
            needed.update(node.values)
    graph.nodes = kept[::-1]
    graph.constants = {v: a for v, a in graph.constants.items() if v in needed}
    pairs = [(v, s) for v, s in zip(graph.inputs, graph.sources, strict=True) if v in needed]
    graph.inputs, graph.sources = [v for v, _ in pairs], [s for _, s in pairs]
    return graph
