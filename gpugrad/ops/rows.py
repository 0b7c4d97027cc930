"""Formulas over rows, stated once: native or by array functions for arrays, by operations for
tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from ..codegen.expr import variable
from ..codegen.rows import COLUMN, ELEMENT, HOLE, INDEX, NUMBER, ROW, TOTAL, RowProgram
from ..codegen.rows import position as position
from ..codegen.rows import row_max as row_max
from ..codegen.rows import row_mean as row_mean
from ..codegen.rows import row_sum as row_sum
from ..config import modes
from .core import _INTERPRETERS, REGISTRY, tensor_functions
from .shape import permute, sum_to


class RowFormula:
    """A function of scalar expressions that may contain sums, means and maxima of the row (the last
    axis), for arrays and for tensors.

    ``inputs`` and ``outputs`` say what they hold: see ``codegen/rows.py``.
    """

    def __init__(self, function: Callable, outputs: Sequence[str] = (ELEMENT,), **inputs: str):
        self.function, self.outputs, self.inputs = function, outputs, inputs
        self._program: RowProgram | None = None

    @property
    def program(self) -> RowProgram:
        if self._program is None:
            found = self.function(*map(variable, self.inputs))
            found = found if isinstance(found, (list, tuple)) else [found]
            self._program = RowProgram(list(zip(self.outputs, found, strict=True)), self.inputs)
        return self._program

    def __call__(self, *args):
        """An array or tensor, or a list of several."""
        for a in args:
            if a.__class__ in _INTERPRETERS:
                return self._by_operations(args)
        if modes.special and modes.local.recording is not None:
            results = modes.local.recording.rows(self.program, args)
            return results[0] if len(results) == 1 else list(results)
        return (self._program or self.program)(*args)

    def _by_operations(self, args):
        """For double backward and other interpreters."""
        results = self.program.program.direct(_functions(), None, False)(*args, None)
        results = results if len(self.outputs) > 1 else [results]
        summed = [_over_rows(r, kind) for r, kind in zip(results, self.outputs, strict=True)]
        return summed if len(summed) > 1 else summed[0]


def _over_rows(value, kind: str):
    if kind == COLUMN:
        return sum_to(value, shape=value.shape[-1:])
    return REGISTRY["sum"](value, axes=None, keepdims=False) if kind == TOTAL else value


class _Functions:
    """What a formula over tensors calls."""

    name = "tensors and rows"

    def __init__(self):
        reductions = {"row_sum": "sum", "row_mean": "mean", "row_max": "amax"}
        self.table = {
            **tensor_functions().table,
            **{name: _along_last(REGISTRY[op]) for name, op in reductions.items()},
        }


def _along_last(op) -> Callable:
    return lambda x: op(x, axes=(len(x.shape) - 1,), keepdims=True)


@cache
def _functions() -> _Functions:
    return _Functions()


def along(formula: RowFormula, axis: int, *args):
    """A formula of arrays of one shape, with its rows along any axis."""
    last = len(args[0].shape) - 1
    if axis == last:
        return formula(*args)
    order = (*[k for k in range(last + 1) if k != axis], axis)
    back = (*range(axis), last, *range(axis, last))
    moved = [permute(a, axes=order) for a in args]
    return permute(formula(*moved), axes=back)


__all__ = [
    "COLUMN", "ELEMENT", "HOLE", "INDEX", "NUMBER", "ROW", "TOTAL", "RowFormula", "along",
    "position", "row_max", "row_mean", "row_sum",
]  # fmt: skip
