"""Random numbers as nodes of a graph: drawn where the program runs, not by the host before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .graph import Call, Graph, Node, Value
from .sources import Host, HostResult


class DrawCall(Call):
    """Random numbers, others at every call."""

    __slots__ = ("host",)
    kind = "draw"
    pure = False

    def __init__(self, host: Host):
        self.host = host

    def evaluate(self, args):
        return self.host.call()

    def key(self):
        return ("draw", self.host.key)

    @property
    def text(self) -> str:
        return f"draw {' '.join(map(str, self.host.key[1]))}"


def with_draws(graph: Graph, hosts: Sequence[Host]) -> tuple[Graph, list[Host]]:
    """The graph with what generators draw as its first nodes, in the order of the recording, and
    the hosts that are left. Such a graph draws anew whenever its nodes run."""
    drawn = [h for h in hosts if h.generator is not None]
    if not drawn:
        return graph, list(hosts)
    values: dict[int, Value] = {}
    kept = []
    for v, source in zip(graph.inputs, graph.sources, strict=True):
        if source.__class__ is HostResult and source.host.generator is not None:
            values[id(source.host)] = v
        else:
            kept.append((v, source))
    # numbers that nobody reads are drawn, too: the generator goes on by as many
    draws = [Node(DrawCall(h), (), [values[id(h)]] if id(h) in values else ()) for h in drawn]
    new = graph.with_nodes([*draws, *graph.nodes])
    new.inputs, new.sources = [v for v, _ in kept], [s for _, s in kept]
    return new, [h for h in hosts if h.generator is None]


def generators(graph: Graph) -> list[Any]:
    """The generators that a graph draws from, each once."""
    found = [node.call.host.generator for node in graph.nodes if node.call.__class__ is DrawCall]
    return list(dict.fromkeys(found))
