"""Products of matrices and convolutions with what is done to their results: bias, activation, its
derivative, an optimizer's update; computed while the results are in registers or in the cache."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from ...codegen import convolution
from ...codegen.arrays import Program
from ...codegen.expr import build, substitute, variable
from ..graph import EpilogueCall, Graph, Node, OpCall, UpdateCall, Value
from .pointwise import interned_program, pointwise

PRODUCTS = ("affine", "linear", "linear_input", "linear_weight", "matmul")
CONVOLUTIONS = ("conv", "conv_input", "conv_weight")
# Products of more multiplications are left to BLAS, which has no epilogues.
_LARGE = 1 << 25
_MOST_INPUTS, _MOST_OUTPUTS = 12, 6
# Bytes that an epilogue reads and writes for one image. Beyond, the kernel goes through several
# arrays in short runs, each in another page: 3x3 on (16, 64, 32, 32) and relu's mask take 14.4 ms,
# as two tasks 13.7; on (64, 6, 24, 24) 141 us, as two tasks 166. Bias and relu, which read no more
# images, always gain: 12.9 and 13.3 ms, 139 and 161 us.
_NEAR = 1 << 17
_RESULT = variable("result")


def join_epilogues(graph: Graph) -> Graph:
    """Join producers (products, convolutions) with the one elementwise node that reads them first.

    Only for float32 and float64 on a CPU. Beside a product the other inputs are matrices of its
    shape, rows or numbers. A result that others read as well is one more output.
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
        if not (_is_product(node) or _is_convolution(node)):
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


def _is_convolution(node: Node) -> bool:
    """Whether it is a convolution that has a kernel, which depends on shapes and dtypes alone."""
    call = node.call
    if call.__class__ is not OpCall or call.op.name not in CONVOLUTIONS:
        return False
    a, b = node.inputs
    (v,) = node.outputs
    if v.device is not None or 0 in (*v.shape, *a.shape, *b.shape):
        return False
    shapes = {"conv": (a, b), "conv_input": (v, b), "conv_weight": (b, v)}[call.op.name]
    options = [value for name, value in call.params.items() if name != "shape"]
    return convolution.native_layer(v.dtype, *[x.shape for x in shapes], *options) is not None


def _joined(producer: Node, node: Node, v: Value, keep: bool) -> Node | None:
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
    read = [i for _, i in others]
    if not _fit(producer.call.op.name, v, read, [*[v] * keep, *node.outputs]):
        return None
    biased = producer.call.op.name == "affine"
    results = [n for n, i in zip(program.inputs, node.inputs, strict=True) if i is v]
    joined = _with_result(program, tuple(results), tuple([n for n, _ in others]), biased, keep)
    if not joined.computed:
        return None
    inputs = [*producer.inputs[: 3 if biased else 2], *read]
    values = [v, *node.outputs] if keep else node.outputs
    call = EpilogueCall(producer.call, joined, node.call.__class__ is UpdateCall)
    return Node(call, inputs, values, producer.line)


@lru_cache(4096)
def _with_result(
    program: Program, results: tuple[str, ...], others: tuple[str, ...], biased: bool, keep: bool
) -> Program:
    """A program of which some inputs are the result of a producer; its first output is that itself
    if others read it, too."""
    result, names = _RESULT, ["result"]
    if biased:
        result = build("add", _RESULT, variable("bias"))
        names.append("bias")
    renamed = {variable(name): result for name in results}
    for k, name in enumerate(others):
        renamed[variable(name)] = variable(f"e{k}")
        names.append(f"e{k}")
    outputs = substitute(program.outputs, renamed)
    if keep:
        outputs = [build("positive", result) if result is _RESULT else result, *outputs]
    return interned_program(tuple(outputs), tuple(names), frozenset({"result"}))


def _fit(name: str, v: Value, read: list, written: list[Value]) -> bool:
    """Whether an epilogue may read and write these beside the result ``v`` of a producer."""
    arrays = [i for i in read if i.__class__ is Value and i.dtype is not None]
    if name in PRODUCTS:
        return all(i.shape in (v.shape, v.shape[-1:]) or prod(i.shape) == 1 for i in arrays)
    if name == "conv_weight":
        return True
    images = [i for i in arrays if prod(i.shape[-2:]) > 1] + written
    size = sum(prod(i.shape[-3:]) * i.dtype.itemsize for i in images)
    return len(images) == 1 or size <= _NEAR
