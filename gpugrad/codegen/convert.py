"""Conversions between dtypes as native tasks, for contiguous arrays."""

from __future__ import annotations

from array import array
from functools import lru_cache

import numpy as np

from .ir import Code, Value, alignment, is_real
from .machine import ELEMENTS, INTEGERS, Machine, machine
from .shares import parameters, share
from .tasks import Task

_TYPES = ELEMENTS | INTEGERS
_LANES = 8
# Elements from which threads share a conversion.
_PARALLEL = 1 << 16


def task(source: np.ndarray, target: np.ndarray) -> Task | None:
    """The task that converts one array into another, as ``astype`` does; None where there is no
    kernel: other dtypes, strided arrays, real numbers to integers (which NumPy warns about)."""
    compiler = machine()
    kinds = _TYPES.get(source.dtype), _TYPES.get(target.dtype)
    if compiler is None or None in kinds or target.dtype.kind == "b":
        return None
    if is_real(kinds[0]) and not is_real(kinds[1]):
        return None
    if not (source.flags.c_contiguous and target.flags.c_contiguous):
        return None
    table = array("q", [id(source), id(target), source.size])
    parts = 1 if source.size < _PARALLEL else min(64, source.size >> 13)
    function = _kernel(compiler, *kinds, source.dtype.kind == "i")
    return Task(function, table, array("d", [0.0]), parts, (source, target))


@lru_cache(64)
def _kernel(compiler: Machine, source: str, target: str, signed: bool) -> int:
    return compiler.kernel(_text, source, target, signed)


def _text(compiler: Machine, source: str, target: str, signed: bool) -> str:
    code = Code("double", _LANES)
    given = parameters(code)
    table, _, first, last = given
    offset = compiler.offsets["data"]
    x, y = (
        code.load(code.at(code.load(code.at(table, k), "ptr"), offset, "i8"), "ptr")
        for k in range(2)
    )
    n = code.load(code.at(table, 2), "i64")
    start, stop = (share(code, n, bound) for bound in (first, last))

    def move(i: Value, lanes: int) -> None:
        wide = "" if lanes == 1 else f"<{lanes} x "
        end = "" if lanes == 1 else ">"
        value = code.load(code.at(x, i, source), f"{wide}{source}{end}")
        code.store(
            _converted(value, source, target, signed, f"{wide}{target}{end}"), code.at(y, i, target)
        )

    with code.loop(start, stop, _LANES) as i:
        move(i, _LANES)
    with code.loop(i, stop) as k:
        move(k, 1)
    return code.function("kernel", given)


def _converted(value: Value, source: str, target: str, signed: bool, type: str) -> Value:
    """``signed`` says whether integers of the source have a sign; masks are 0 or 1."""
    if source == target:
        return value
    wider = alignment(target) > alignment(source)
    if is_real(source):
        return value.convert("fpext" if wider else "fptrunc", type)
    if is_real(target):
        return value.convert("sitofp" if signed else "uitofp", type)
    extend = "sext" if signed else "zext"
    return value.convert(extend if wider else "trunc", type)
