"""Chains: consecutive tasks that one thread runs for some rows while others run other rows.

The steps of a recurrent network are products so small that a barrier after each costs what a second
thread gains. But its tasks work row by row: a row of the next step needs the same row of this one,
and weights. So they need no barrier in between. A chain is a task whose parts are blocks of rows; a
part runs all members, one after the other, for its rows.

Which tasks may follow one another in a chain is asked of their memory, not of the graph
(``_Memory``): every byte that one writes and another reads or writes has to belong to the same row
of both. So a value may also take the memory of another one, as the plan of a program has it; where
that memory is cut into rows otherwise, the chain ends.

A share of a member computes the bits that the same rows have without a chain: sums over rows, whose
order would change, are in none.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from . import workers
from .arrays import cut_dimensions
from .ir import Code
from .machine import Machine, machine
from .shares import WHOLE, parameters
from .tasks import Operand, Rows, Task

# Nanoseconds of the start of a job and of the barrier at its end.
BARRIER = 300.0
# A chain pays if its tasks take so many nanoseconds without it, and with it this part of them, by
# the estimate.
LEAST, GAIN = 5000.0, 0.9
# Tasks that are asked into how many blocks of rows a chain may be cut.
ASKED = 8


def joined(tasks: Sequence[Task]) -> list[Task]:
    """The tasks, with chains in place of those that gain from it."""
    compiler, cores = machine(), os.cpu_count() or 1
    if compiler is None or cores == 1:
        return list(tasks)
    found: list[Task] = []
    start = 0
    while start < len(tasks):
        runs = [_run(tasks, start, n, cores) for n in _counts(tasks, start)]
        best = max(runs, default=_Run(0.0, 1, 0, 0))
        members = _cut(tasks[start : start + best.length], best.count) if best.saved > 0 else []
        if len(members) > 1:
            found.append(_chain(compiler, members, best.parts))
            start += len(members)
        else:
            found += tasks[start : start + best.length]
            start += best.length
    return found


class _Run(NamedTuple):
    """Consecutive tasks that work row by row: the time saved by a chain of them, how many they are,
    into how many blocks their rows are cut, and into how many parts the chain."""

    saved: float
    length: int
    count: int
    parts: int


def _counts(tasks: Sequence[Task], start: int) -> set[int]:
    """Into how many blocks the rows of a chain might be cut: as the leading dimensions of its first
    tasks are."""
    found = set()
    for task in tasks[start : start + ASKED]:
        if task.rows is None:
            break
        count = 1
        for n in task.rows.sizes:
            count *= n
            if 1 < count < WHOLE:
                found.add(count)
    return found


def _run(tasks: Sequence[Task], start: int, count: int, cores: int) -> _Run:
    """The longest run of tasks that a chain of so many blocks of rows can have."""
    memory, rows, alone = _Memory(count), [], 0.0
    for task in tasks[start:]:
        if task.rows is None or not memory.takes(task.rows):
            break
        rows.append(task.rows)
        taken = task.rows.nanoseconds
        alone += taken if task.parts == 1 else BARRIER + taken / min(cores, task.parts)
    if not rows or alone < LEAST:
        return _Run(0.0, max(1, len(rows)), count, 0)
    times = {n: _time(rows, count, n, cores) for n in range(2, min(count, workers.PARTS) + 1)}
    parts = min(times, key=lambda n: round(times[n]))  # the fewest of equals
    return _Run(GAIN * alone - times[parts], len(rows), count, parts)


def _cut(tasks: Sequence[Task], count: int) -> list[Task]:
    """The tasks with shares of so many blocks of rows, up to the first that cannot be cut so."""
    found: list[Task] = []
    for task in tasks:
        cut = task.rows.cut(count) if task.rows is not None else None
        if cut is None:
            break
        found.append(cut)
    return found


def _chain(compiler: Machine, members: list[Task], parts: int) -> Task:
    table = array("q", [parts, len(members)])
    for task in members:
        table.extend((task.function, *(a.buffer_info()[0] for a in (task.table, task.numbers))))
    keep = [memoryview(a) for task in members for a in (task.table, task.numbers)]
    return Task(_kernel(compiler), table, array("d", [0.0]), parts, keep, members=members)


def _time(rows: Sequence[Rows], count: int, parts: int, cores: int) -> float:
    """Of a chain in so many parts on these cores, the largest part taken for all."""
    total = 0.0
    for r in rows:
        lines = 1
        for n in r.sizes:
            lines *= n
        most = -(-count // parts) * max(1, lines // count)
        most = -(-most // r.tile) * r.tile + r.fixed
        total += r.nanoseconds * most / lines
    return BARRIER + total * -(-parts // cores)


# ------------------------------------------------------------------------------------------------
# which tasks may follow


class _Piece(NamedTuple):
    """Memory from ``low`` to ``high`` that tasks of a chain use: row k ``width`` bytes from
    ``low + k * step`` on, or, if step is 0, all of it by all rows."""

    low: int
    high: int
    step: int
    width: int
    written: bool


@lru_cache(4096)
def _shape_of_piece(
    sizes: tuple[int, ...], strides: tuple[int, ...], width: int, count: int
) -> _Piece | None:
    """The piece of an operand at address 0; None where rows of these sizes are not ``count``
    blocks."""
    cut = cut_dimensions(sizes, [strides], count)
    if cut is None:
        return None
    (step,), (within,) = cut.steps, cut.strides
    whole = width + sum((n - 1) * s for n, s in zip(cut.sizes, within, strict=True))
    if step and min(strides) >= 0 and 0 < whole <= step:
        return _Piece(0, (count - 1) * step + whole, step, whole, False)
    ends = [(n - 1) * s for n, s in zip(sizes, strides, strict=True)]
    low, high = sum(min(0, e) for e in ends), sum(max(0, e) for e in ends)
    return _Piece(low, high + width, 0, 0, False)


class _Memory:
    """The memory that the tasks of a chain use, as pieces that do not overlap, in order."""

    def __init__(self, count: int):
        self.count = count
        self._pieces: list[_Piece] = []

    def takes(self, rows: Rows) -> bool:
        """Whether a task may be the next of the chain; if so, it is."""
        before = list(self._pieces)
        for operand in rows.operands:
            if not self._add(self._piece(rows, operand)):
                self._pieces = before
                return False
        return True

    def _piece(self, rows: Rows, operand: Operand) -> _Piece | None:
        shape = _shape_of_piece(rows.sizes, operand.strides, operand.width, self.count)
        if shape is None:
            return None
        start = operand.array.ctypes.data
        return shape._replace(
            low=start + shape.low, high=start + shape.high, written=operand.written
        )

    def _add(self, piece: _Piece | None) -> bool:
        """Put a piece beside the others, in one with those it overlaps."""
        if piece is None or (piece.written and not piece.step):
            return False
        pieces = self._pieces
        first = bisect_left(pieces, piece.low, key=lambda p: p.high)
        if first < len(pieces) and pieces[first].high == piece.low:
            first += 1
        last = first
        while last < len(pieces) and pieces[last].low < piece.high:
            both = self._both(pieces[last], piece)
            if both is None:
                return False
            piece = both
            last += 1
        pieces[first:last] = [piece]
        return True

    def _both(self, a: _Piece, b: _Piece) -> _Piece | None:
        """One piece for two that overlap; None where one writes what another row may use."""
        low, written = min(a.low, b.low), a.written or b.written
        if a.step == b.step != 0:
            width = max(a.low + a.width, b.low + b.width) - low
            if width <= a.step:
                return _Piece(low, low + (self.count - 1) * a.step + width, a.step, width, written)
        return None if written else _Piece(low, max(a.high, b.high), 0, 0, False)


# ------------------------------------------------------------------------------------------------
# the kernel


@lru_cache(4)
def _kernel(compiler: Machine) -> int:
    return compiler.kernel(_text)


def _text(_compiler: Machine) -> str:
    """``kernel(table, numbers, first, last)``; the table: parts, members, and of every member its
    function, table and numbers."""
    code = Code()
    given = parameters(code)
    table, _, first, last = given
    parts, count = (code.load(code.at(table, k), "i64") for k in range(2))
    shift = WHOLE.bit_length() - 1
    # a call is for some of the parts; its bounds are rounded up, so that a number of blocks that is
    # a multiple of the parts is cut into equal ones
    inside = [(parts * k + (WHOLE - 1)).bitwise("lshr", shift) for k in (first, last)]
    bounds = [
        code.emit(f"udiv {part.bitwise('shl', shift) + parts - 1}, {parts.name}", "i64")
        for part in inside
    ]
    with code.loop(code.integer(0), count) as k:
        place = code.at(table, k * 3 + 2)
        function, *words = (code.load(code.at(place, j), "ptr") for j in range(3))
        arguments = ", ".join(map(str, (*words, *bounds)))
        code.do(f"call void {function.name}({arguments})")
    return code.function("kernel", given)
