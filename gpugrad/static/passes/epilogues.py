"""Products of matrices with what is done to their results: bias, activation, its derivative, an
optimizer's update; computed while a tile of the product is in registers."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from ...codegen.arrays import Program
from ...codegen.expr import build, substitute, variable
from ..graph import Graph, Node, OpCall, ProductCall, UpdateCall, Value
from .pointwise import interned_program, pointwise

PRODUCTS = ("affine", "linear", "linear_input", "linear_weight", "matmul")
# Products of more multiplications are left to BLAS, which has no epilogues.
_LARGE = 1 << 25
_MOST_INPUTS, _MOST_OUTPUTS = 12, 6
_RESULT = variable("product")


def product_epilogues(graph: Graph) -> Graph:
    """Join products with the one elementwise node that reads them first.

    Only for float32 and float64 on a CPU, where the other inputs are matrices of the product's
    shape, rows or numbers. A product that others read as well is one more output.
    """
    position = {id(node): k for k, node in enumerate(graph.nodes)}
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for v in set(node.values):
            readers.setdefault(v, []).append(node)
    results = set(graph.results())
    replaced: dict[int, Node] = {}
    gone: set[int] = set()
    for node in graph.nodes:
        if not _is_product(node):
            continue
        (v,) = node.outputs
        first = min(readers.get(v, ()), key=lambda n: position[id(n)], default=None)
        if first is None or id(first) in replaced:
            continue
        keep = v in results or len(readers[v]) > 1
        joined = _joined(node, first, v, keep)
        if joined is not None:
            replaced[id(first)] = joined
            gone.add(id(node))
    if not replaced:
        return graph
    nodes = [replaced.get(id(n), n) for n in graph.nodes if id(n) not in gone]
    return graph.with_nodes(nodes)


def _is_product(node: Node) -> bool:
    call = node.call
    if call.__class__ is not OpCall or call.op.name not in PRODUCTS:
        return False
    a, b, *_ = node.inputs
    (v,) = node.outputs
    if v.device is not None or v.dtype.name not in ("float32", "float64"):
        return False
    if len(v.shape) < 2 or len(a.shape) < 2 or len(b.shape) < 2 or 0 in (*v.shape, *a.shape):
        return False
    if call.op.name == "linear_weight":
        terms = prod(a.shape[:-1])
    else:
        terms = a.shape[-1]
    return prod(v.shape) * terms < _LARGE


def _joined(product: Node, node: Node, v: Value, keep: bool) -> Node | None:
    found = pointwise(node)
    if found is None or found.shape != v.shape or found.dtype != v.dtype:
        return None
    program = found.program
    others = [
        (name, i)
        for name, i in zip(program.inputs, node.inputs, strict=True)
        if i is not v and name in program.used
    ]
    if len(others) > _MOST_INPUTS or len(program.outputs) + keep > _MOST_OUTPUTS:
        return None
    if not all(_fits(i, v) for _, i in others):
        return None
    biased = product.call.op.name == "affine"  # type: ignore[attr-defined]
    products = [n for n, i in zip(program.inputs, node.inputs, strict=True) if i is v]
    joined = _with_product(program, tuple(products), tuple([n for n, _ in others]), biased, keep)
    if not joined.computed:
        return None
    inputs = [*product.inputs[: 3 if biased else 2], *[i for _, i in others]]
    values = [v, *node.outputs] if keep else node.outputs
    call = ProductCall(product.call, joined, node.call.__class__ is UpdateCall)
    return Node(call, inputs, values, product.line)


@lru_cache(4096)
def _with_product(
    program: Program, products: tuple[str, ...], others: tuple[str, ...], biased: bool, keep: bool
) -> Program:
    """A program of which some inputs are the result of a product; its first output is that itself
    if others read it, too."""
    result, names = _RESULT, ["product"]
    if biased:
        result = build("add", _RESULT, variable("bias"))
        names.append("bias")
    renamed = {variable(name): result for name in products}
    for k, name in enumerate(others):
        renamed[variable(name)] = variable(f"e{k}")
        names.append(f"e{k}")
    outputs = substitute(program.outputs, renamed)
    if keep:
        outputs = [build("positive", result) if result is _RESULT else result, *outputs]
    return interned_program(tuple(outputs), tuple(names), frozenset({"product"}))


def _fits(i, v: Value) -> bool:
    if i.__class__ is not Value or i.dtype is None:
        return True
    if i.shape == v.shape or prod(i.shape) == 1:
        return True
    return i.shape == v.shape[-1:]
