"""Drawings of graphs: the language of Graphviz (https://graphviz.org/doc/info/lang.html)."""

from __future__ import annotations

from .graph import Graph, Node, Value

# Characters of a node's text that are drawn.
_WIDTH = 60


def to_dot(graph: Graph) -> str:
    """The graph in the language of Graphviz: boxes compute, ellipses are inputs and constants."""
    lines = ["digraph {", "  node [fontname=monospace fontsize=10]"]
    makers: dict[Value, str] = {}
    for v, source in zip(graph.inputs, graph.sources, strict=True):
        makers[v] = f"v{v.number}"
        lines.append(f"  v{v.number} [shape=ellipse label={_quoted(f'{source}', v.type)}]")
    for v in graph.constants:
        makers[v] = f"v{v.number}"
        lines.append(f"  v{v.number} [shape=ellipse style=dashed label={_quoted('', v.type)}]")
    for k, node in enumerate(graph.nodes):
        makers.update(dict.fromkeys(node.outputs, f"n{k}"))
        types = [v.type for v in node.outputs]
        lines.append(f"  n{k} [shape=box label={_quoted(_name(node), *types)}]")
        for v in dict.fromkeys(node.values):
            lines.append(f"  {makers[v]} -> n{k} [label={_quoted(repr(v))}]")
    for k, v in enumerate(graph.outputs):
        lines.append(f"  r{k} [shape=plaintext label={_quoted(f'result {k}')}]")
        lines.append(f"  {makers[v]} -> r{k} [label={_quoted(repr(v))}]")
    for target, v in graph.stores:
        edge = f"{makers[v]} -> {makers[target]}"
        lines.append(f"  {edge} [style=dashed constraint=false label={_quoted('store')}]")
    return "\n".join([*lines, "}"])


def to_svg(graph: Graph) -> str:
    """The drawing, made by the programs of Graphviz through the package graphviz."""
    try:
        import graphviz
    except ImportError:
        raise ImportError(
            "drawings need the package graphviz (pip install graphviz) and the programs of "
            "Graphviz; graph.to_dot() gives the text they draw"
        ) from None
    return graphviz.Source(to_dot(graph)).pipe(format="svg", encoding="utf-8")


def _name(node: Node) -> str:
    name = node.call.text
    return name if len(name) <= _WIDTH else f"{name[: _WIDTH - 3]}..."


def _quoted(*lines: str) -> str:
    escaped = [line.replace("\\", "\\\\").replace('"', '\\"') for line in lines if line]
    return '"' + "\\n".join(escaped) + '"'
