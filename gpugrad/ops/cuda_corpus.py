"""The sources of the CUDA kernels that are generated from rows, for checks without a GPU.

``tests/cuda`` compiles them for every architecture and runs them on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen import cuda_rows
from ..codegen.arrays import Program
from ..codegen.cuda import PACK, TYPES, Variant, kernel_text
from ..codegen.cuda_module import Unsupported
from . import nn, reduce
from .core import REGISTRY, Elementwise
from .rows import RowFormula

_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_LAYOUTS = ("vv", "vo", "ov", "sv", "vn", "vd")


def corpus() -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` for every elementwise row, forward and backward, in all dtypes;
    for one row in every layout; for every formula of rows, in short and long ones."""
    for op in list(REGISTRY.values()):
        if isinstance(op, Elementwise):
            yield from _of_row(op)
    yield from _layouts(REGISTRY["mul"])
    for name, formula in row_formulas().items():
        for kind, text, function in cuda_rows.texts(formula.program):
            yield f"{name}, {kind}", text, function


def row_formulas() -> dict[str, RowFormula]:
    """Every formula of rows, by name."""
    found = {}
    for module in (nn, reduce):
        found |= {n: v for n, v in vars(module).items() if isinstance(v, RowFormula)}
    for name, rule, needs in (
        ("layer_norm", nn._layer_norm_vjp, (True, True, True)),
        ("layer_norm", nn._layer_norm_vjp, (True, False, False)),
        ("rms_norm", nn._rms_norm_vjp, (True, True)),
    ):
        found[f"{name}_vjp {needs}"] = nn._norm_rule(rule, needs)
    for total in (False, True):
        kind = "total" if total else "each"
        found[f"cross_entropy {kind}"] = nn.cross_entropy_rows(total, False)
        found[f"cross_entropy {kind}, smoothed"] = nn.cross_entropy_rows(total, True)
        found[f"cross_entropy_vjp {kind}"] = nn.cross_entropy_rows_vjp(total)
    return found


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
