"""What passes know of elementwise nodes: the expression, shape and dtype of each.

A node is *pointwise* if it computes float32 or float64 numbers (and masks) of one shape from arrays
of that dtype (and masks), numbers and broadcast arrays, so that its expression may be part of a
larger one without a bit of difference. Nodes that mix dtypes, and half precision, whose every
intermediate result is rounded, are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ...backend.arrays import to_numpy
from ...backend.numpy import xp as np
from ...codegen.arrays import BOOLEAN, Program
from ...codegen.expr import Expr, evaluate, exactly, topological, variable
from ..graph import UNKNOWN, Graph, Node, RowsCall, Value, expression_of

_BOOL = np.dtype("bool")
FLOATS = (np.dtype("float32"), np.dtype("float64"))
_NUMBERS = (int, float, bool)


class Pointwise(NamedTuple):
    """An elementwise node. ``dtype`` is that of its numbers, None if it computes with masks
    alone."""

    program: Program
    shape: tuple[int, ...]
    dtype: Any
    device: str | None


def pointwise(node: Node) -> Pointwise | None:
    """What an elementwise node computes; None for others. A node is looked at once."""
    if node.pointwise is UNKNOWN:
        program = expression_of(node)
        known = program is not None and program.computed
        node.pointwise = _pointwise(node, program) if program is not None and known else None
    return node.pointwise


def _pointwise(node: Node, program: Program) -> Pointwise | None:
    first = node.outputs[0]
    arrays, masks, numbers = [], [], []
    for name, i in zip(program.inputs, node.inputs, strict=True):
        if i.__class__ is not Value or i.dtype is None:
            if i.__class__ is not Value and i.__class__ not in _NUMBERS and name in program.used:
                return None
            numbers.append(name)
            continue
        if i.dtype == _BOOL:
            masks.append(name)
        if name in program.used:
            arrays.append(i)
    if not arrays or any(v.shape != first.shape for v in node.outputs):
        return None
    dtypes = set()
    for v in (*arrays, *node.outputs):
        if v.device != first.device:
            return None
        if v.dtype != _BOOL:
            dtypes.add(v.dtype)
    if len(dtypes) > 1 or not dtypes.issubset(FLOATS):
        return None
    for e, v in zip(program.outputs, node.outputs, strict=True):
        if (e.op in BOOLEAN) != (v.dtype == _BOOL):
            return None
    if computes_with_masks(program, frozenset(masks), frozenset(numbers)):
        return None
    return Pointwise(program, first.shape, next(iter(dtypes), None), first.device)


@lru_cache(maxsize=4096)
def computes_with_masks(program: Program, masks: frozenset, numbers: frozenset) -> bool:
    """Whether there is arithmetic of masks alone, or of masks and numbers: the dtype of its result
    is none of ours."""
    kinds: dict[Expr, bool | None] = {}  # whether a mask; None for a number
    for e in program.order:
        if e.op == "const":
            kinds[e] = None
        elif e.op == "input":
            kinds[e] = None if e.args[0] in numbers else e.args[0] in masks
        else:
            kinds[e] = e.op in BOOLEAN
            args = e.args[1:] if e.op == "where" else e.args
            among = {kinds[a] for a in args} - {None}
            if e.op not in BOOLEAN and among == {True}:
                return True
    return False


def read_by(program: Program, node: Node) -> Iterator[tuple[str, Any]]:
    """The inputs that a program reads, by name; those of rows may read their position, too."""
    for name, i in zip(program.inputs, node.inputs, strict=False):
        if name in program.used:
            yield name, i


def uniform(constant) -> float | None:
    """The number that all elements of a small constant are, if it is finite."""
    if constant.dtype not in FLOATS or not constant.size or constant.size > 1 << 20:
        return None
    a = to_numpy(constant).reshape(-1)
    bits = a.view(f"u{a.dtype.itemsize}")
    return float(a[0]) if (bits == bits[0]).all() and np.isfinite(a[0]) else None


class Expressions:
    """Expressions of values: how a node's outputs are written in those of its inputs.

    Leaves are values and numbers; constants of one number are written out where another argument
    keeps the shape.
    """

    def __init__(self, graph: Graph):
        self._uniform: dict[Value, float | None] = {}
        self._constants = graph.constants
        self.leaves: dict[str, Any] = {}  # values, by the names of their variables

    def leaf(self, v: Value) -> Expr:
        name = f"v{v.number}"
        self.leaves[name] = v
        return variable(name)

    def of(self, program: Program, node: Node, known: dict, build: Callable) -> list[Expr]:
        """The outputs of a node; ``known`` are the expressions of values that need no leaf."""
        env: dict[str, Any] = {"position": variable("position")}
        spelled = self.spelled_out(program, node, known)
        chosen = branches(program)
        for name, i in read_by(program, node):
            if i.__class__ is Value:
                found = known.get(i, spelled.get(i))
                env[name] = self.leaf(i) if found is None else found
            elif name in chosen:  # with a constant in its place NumPy would choose its dtype
                key = f"n{len(self.leaves)}"
                self.leaves[key] = i
                env[name] = variable(key)
            else:
                env[name] = i
        return evaluate(program.outputs, env, build, program.order)

    def spelled_out(self, program: Program, node: Node, known: dict) -> dict[Value, Any]:
        """Constants of one number among the inputs of an elementwise node, as long as every output
        reads an array of the full shape besides."""
        if node.call.__class__ is RowsCall:
            return {}
        constants = [
            v
            for _, v in read_by(program, node)
            if v.__class__ is Value and v in self._constants and v not in known
        ]
        found = {v: self.number(v) for v in constants}
        found = {v: number for v, number in found.items() if number is not None}
        if not found:
            return found
        shape = node.outputs[0].shape
        full = {
            name
            for name, v in read_by(program, node)
            if v.__class__ is Value and v.shape == shape and v not in found
        }
        keeps = all(full & names_in(e) for e in program.outputs)
        return found if keeps else {}

    def number(self, v: Value) -> float | None:
        """The number that all elements of a constant are."""
        if v not in self._uniform:
            self._uniform[v] = uniform(self._constants[v])
        return self._uniform[v]


@lru_cache(maxsize=4096)
def names_in(e: Expr) -> frozenset[str]:
    """The inputs that an expression reads."""
    return frozenset(i.args[0] for i in topological([e]) if i.op == "input")


@lru_cache(maxsize=4096)
def branches(program: Program) -> frozenset[str]:
    """The inputs that are branches of a choice as they are."""
    return frozenset(
        a.args[0] for e in program.order if e.op == "where" for a in e.args[1:] if a.op == "input"
    )


def as_program(
    outputs: Sequence[Expr], leaves: dict[str, Any], shape: tuple[int, ...]
) -> tuple[Program, list]:
    """Expressions over leaves as a program, and its inputs: arrays first, then numbers.

    Inputs are named in the order in which they are read, so that equal formulas anywhere in a graph
    are one program with one kernel.
    """
    order = topological(outputs)
    names = [e.args[0] for e in order if e.op == "input"]
    arrays = [n for n in names if _is_array(leaves[n])]
    numbers = [n for n in names if not _is_array(leaves[n])]
    renamed = {n: f"x{k}" for k, n in enumerate(arrays)}
    renamed |= {n: f"n{k}" for k, n in enumerate(numbers)}
    env = {n: variable(new) for n, new in renamed.items()}
    full = frozenset(renamed[n] for n in arrays if leaves[n].shape == shape)
    program = interned_program(
        tuple(evaluate(outputs, env, exactly, order)),
        tuple(renamed[n] for n in (*arrays, *numbers)),
        full,
    )
    return program, [leaves[n] for n in (*arrays, *numbers)]


def _is_array(leaf) -> bool:
    return leaf.__class__ is Value and leaf.dtype is not None


@lru_cache(maxsize=4096)
def interned_program(
    outputs: tuple[Expr, ...], inputs: tuple[str, ...], full: frozenset
) -> Program:
    """The one program of these expressions, with its kernels."""
    return Program(outputs, inputs, full)  # type: ignore[arg-type]
