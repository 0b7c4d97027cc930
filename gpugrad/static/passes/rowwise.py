"""Programs over rows as nodes of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ...codegen.expr import Expr, evaluate, exactly, topological, variable
from ...codegen.rows import COLUMN, ELEMENT, NUMBER, ROW, RowProgram
from ..graph import Node, RowsCall, Value


def kind_of(v: Value, shape: tuple[int, ...]) -> str | None:
    """What a value is beside elements of a shape; None if it is nothing that programs over rows
    know."""
    if v.dtype is None:
        return NUMBER
    kinds = {shape[-1:]: COLUMN, (*shape[:-1], 1): ROW, shape: ELEMENT}
    return kinds.get(v.shape)


def rows_node(
    outputs: Sequence[tuple[str, Expr]],
    leaves: dict[str, Any],
    rows: Node,
    shape: tuple[int, ...],
    values: Sequence[Value],
) -> Node | None:
    """A node with a program over rows for expressions over leaves, and their kinds; None if a leaf
    is nothing that such programs know.

    What ``rows``, the program it is made of, reads is of the kind that it has there.
    """
    given = dict(zip(rows.inputs, rows.call.program.inputs.values(), strict=True))
    return node_over_rows(outputs, leaves, given, shape, values, rows.line)


def node_over_rows(
    outputs: Sequence[tuple[str, Expr]],
    leaves: dict[str, Any],
    given: dict[Any, str],
    shape: tuple[int, ...],
    values: Sequence[Value],
    line,
) -> Node | None:
    """The same, where the kinds of some leaves are given."""
    order = topological([e for _, e in outputs])
    names = [e.args[0] for e in order if e.op == "input" and e.args[0] != "position"]
    kinds: dict[str, str] = {}
    for name in names:
        leaf = leaves[name]
        kind: str | None = NUMBER
        if leaf.__class__ is Value:
            kind = given.get(leaf) or kind_of(leaf, shape)
        if kind is None:
            return None
        kinds[name] = kind
    names.sort(key=lambda name: kinds[name] != ELEMENT)  # the first is of elements
    if not names or kinds[names[0]] != ELEMENT:
        return None
    env = {name: variable(f"x{k}") for k, name in enumerate(names)}
    env["position"] = variable("position")
    made = evaluate([e for _, e in outputs], env, exactly, order)
    program = _row_program(
        tuple(zip([kind for kind, _ in outputs], made, strict=True)),
        tuple((env[name].args[0], kinds[name]) for name in names),
    )
    return Node(RowsCall(program), [leaves[name] for name in names], values, line)


@lru_cache(maxsize=1024)
def _row_program(outputs: tuple, inputs: tuple) -> RowProgram:
    return RowProgram(outputs, dict(inputs))
