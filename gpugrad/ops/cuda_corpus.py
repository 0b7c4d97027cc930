"""The sources of the CUDA kernels that are generated from rows, for checks without a GPU.

``tests/cuda`` compiles them for every architecture and runs them on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen.arrays import Program
from ..codegen.cuda import PACK, TYPES, Variant, kernel_text
from ..codegen.cuda_module import Unsupported
from .core import REGISTRY, Elementwise

_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_LAYOUTS = ("vv", "vo", "ov", "sv", "vn")


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` for every elementwise row, forward and backward, in all dtypes;
    and for one row in every layout."""
    for op in list(REGISTRY.values()):
        if isinstance(op, Elementwise):
            yield from _of_row(op)
    yield from _layouts(REGISTRY["mul"])


def _of_row(op: Elementwise) -> Iterator[tuple[str, str, str]]:
    programs = {"forward": Program([op.body], op.names, ())}
    needs = tuple(op.differentiable(i) for i in range(op.arity))
    if any(needs):
        programs["backward"] = op.rule(needs).program
    for direction, program in programs.items():
        if not program.computed:
            continue
        pattern = "".join("v" if n in program.used else "-" for n in program.inputs)
        for dtype in TYPES.keys() - {"bool"}:
            variant = Variant(dtype, pattern, 0, PACK // _ITEMSIZE[dtype], False)
            try:
                yield f"{op.name} {direction} {dtype}", kernel_text(program, variant), "elementwise"
            except Unsupported:  # among booleans, say
                continue


def _layouts(op: Elementwise) -> Iterator[tuple[str, str, str]]:
    program = Program([op.body], op.names, ())
    for rows in range(4):
        for pattern in _LAYOUTS:
            for lanes in (1, 4):
                variant = Variant("float32", pattern, rows, lanes, rows == 3)
                name = f"{op.name} {pattern} rows {rows} lanes {lanes}"
                yield name, kernel_text(program, variant), "elementwise"
