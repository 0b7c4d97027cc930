"""Rows of several values, one above the other.

Neighbouring slices of one array lie so already; what nodes of the graph compute is computed in its
place of a ``cat`` (``run_cpu.py``), unless another has it. Everything else is copied.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import NamedTuple

from ...ops.core import REGISTRY
from ..graph import Graph, Node, OpCall, Value

# One part of so many may have to be copied: the first state of a recurrent network.
_COPIED = 4


class Rows(NamedTuple):
    """What a value is, seen as rows: its first dimension is their number."""

    number: int
    row: tuple[int, ...]
    bytes: int

    def bounds(self, index: tuple, part: tuple[int, ...]) -> tuple[int, int] | None:
        """The rows that an index selects, the first and the end; None if a part of this shape is no
        run of rows."""
        if len(index) != 1:
            return None
        if index[0].__class__ is int and part == self.row:
            row = index[0] % self.number
            return row, row + 1
        if index[0].__class__ is slice and part[1:] == self.row:
            start, stop, step = index[0].indices(self.number)
            return (start, stop) if step == 1 and start < stop else None
        return None


def as_rows(v: Value) -> Rows:
    return Rows(v.shape[0] if v.shape else 1, v.shape[1:], prod(v.shape) * v.dtype.itemsize)


def rows_of(x: Value, start: int, stop: int, into: Value) -> Node:
    """The node that gives some rows."""
    return Node(OpCall(REGISTRY["getslice"], {"index": (slice(start, stop),)}), [x], [into])


class _Slice(NamedTuple):
    source: Value
    start: int
    stop: int


class _Stack(NamedTuple):
    members: list[Value]
    places: dict[Value, int]
    value: Value


class Stacks:
    """The stacks of a graph's values; ``maker`` and ``position`` follow its nodes."""

    def __init__(
        self, graph: Graph, results: set[Value], maker: dict[Value, Node], position: dict[int, int]
    ):
        self._graph, self._results = graph, results
        self._maker, self._position = maker, position
        self._made: list[_Stack] = []
        self._placed: set[Value] = set()  # in a ``cat``

    def forget(self) -> None:
        """Forget what no node of the graph makes."""
        self._made = [stack for stack in self._made if stack.value in self._maker]

    def order(self, lists: list[list[Value]]) -> list[int] | None:
        """The order in which the values of every list are to be stacked; None if too many would
        have to be copied."""
        orders = [order for values in lists if (order := self._given(values)) is not None]
        made_at = [self._made_at(v) for v in lists[0]]
        # gradients are computed in the reverse order of what they belong to
        orders.append(sorted(range(len(made_at)), key=made_at.__getitem__, reverse=True))
        for order in orders:
            if all(self._is_free([values[k] for k in order]) for values in lists):
                return order
        return None

    def of(self, values: list[Value], nodes: list[Node]) -> Value:
        """The values stacked, by nodes that are appended."""
        count, first = sum(v.shape[0] for v in values), values[0]
        stack = self._graph.value((count, *first.shape[1:]), first.dtype)
        known, found = self._known(values), self._source(values)
        if known is not None:
            start = known.places[first]
            if len(known.members) == len(values):
                return known.value
            before = sum(v.shape[0] for v in known.members[:start])
            nodes.append(rows_of(known.value, before, before + count, stack))
            return stack
        if found is not None:
            source, start, stop = found
            if stop - start < source.shape[0]:
                part = self._graph.value((stop - start, *source.shape[1:]), source.dtype)
                nodes.append(rows_of(source, start, stop, part))
                source = part
            call = OpCall(REGISTRY["reshape"], {"shape": stack.shape})
            nodes.append(Node(call, [source], [stack]))
        else:
            nodes.append(Node(OpCall(REGISTRY["cat"], {"axis": 0}), values, [stack]))
            self._placed.update(values)
        self._made.append(_Stack(values, {v: k for k, v in enumerate(values)}, stack))
        return stack

    def _made_at(self, v: Value) -> int:
        node = self._maker.get(v)
        return -1 if node is None else self._position[id(node)]

    def _given(self, values: list[Value]) -> list[int] | None:
        """The order that values have already: in a stack, or as slices of one array."""
        for stack in self._made:
            if all(v in stack.places for v in values):
                return sorted(range(len(values)), key=lambda k: stack.places[values[k]])
        starts = [s.start for v in values if (s := self._slice(v)) is not None]
        if len(starts) < len(values):
            return None
        return sorted(range(len(values)), key=starts.__getitem__)

    def _is_free(self, values: list[Value]) -> bool:
        """Whether hardly anything must be copied to stack values in this order."""
        if len(set(values)) < len(values):
            return False
        if self._known(values) is not None or self._source(values) is not None:
            return True
        copied = sum(not self._may_be_placed(v) for v in values)
        return copied * _COPIED <= len(values)

    def _may_be_placed(self, v: Value) -> bool:
        node = self._maker.get(v)
        if node is None or v in self._results or v in self._placed:
            return False
        return not (node.call.__class__ is OpCall and node.call.op.is_view)

    def _known(self, values: list[Value]) -> _Stack | None:
        """The stack of which values are neighbours in this order."""
        for stack in self._made:
            start = stack.places.get(values[0])
            if start is not None and stack.members[start : start + len(values)] == values:
                return stack
        return None

    def _source(self, values: list[Value]) -> _Slice | None:
        """The slice of one array that values together are."""
        slices = [s for v in values if (s := self._slice(v)) is not None]
        if len(slices) < len(values) or len({s.source for s in slices}) > 1:
            return None
        if any(a.stop != b.start for a, b in pairwise(slices)):
            return None
        return _Slice(slices[0].source, slices[0].start, slices[-1].stop)

    def _slice(self, v: Value) -> _Slice | None:
        """What a value is as some rows of an array."""
        node = self._maker.get(v)
        if node is None or node.call.__class__ is not OpCall or node.call.op.name != "getslice":
            return None
        (x,) = node.inputs
        bounds = as_rows(x).bounds(node.call.params["index"], v.shape) if x.shape else None
        return None if bounds is None else _Slice(x, *bounds)
