"""CUDA kernels of array programs: one launch computes every output of an expression.

Every thread takes packs of neighbouring elements (16 bytes of the widest array), loads each input
once, evaluates the whole expression in registers and stores each output once. Arguments may be
broadcast or strided: dimensions that all arrays step through alike are merged, and what is left
becomes ``rows`` of an inner dimension (kernels/elementwise.cuh). float16 and bfloat16 are computed
in float32.

What has no kernel (integers, mixed floating types) is answered with None; CuPy computes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ..backend import cupy as backend
from ..errors import KernelError
from . import cuda_module
from .arrays import BOOLEAN, Program, merge_dimensions
from .cuda_module import Unsupported
from .expr import Expr, topological

# C++ types of storage by the name of a dtype; arithmetic is in double for double, else in float.
TYPES = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
    "bool": "bool",
}
_NUMBERS = (int, float, bool)
BLOCK = 256  # threads
PACK = 16  # bytes a thread loads at once
_MOST_BLOCKS = 1 << 16  # beyond, threads loop
# Plans a program keeps: for so many combinations of shapes and strides.
_PLANS = 256


# ------------------------------------------------------------------------------------------------
# scalar expressions as CUDA C++


@cache
def primitives() -> frozenset[str]:
    """The scalar primitives there are: the functions of kernels/scalar.cuh."""
    text = cuda_module.file("scalar.cuh")
    named = re.findall(r"\bop_(\w+)\(", text)
    return frozenset([*named, *re.findall(r"^FLOATS(?:_2)?\((\w+),", text, re.MULTILINE)])


class Scalars:
    """C++ statements that compute expressions.

    ``names`` maps inputs to the C++ names of their values, ``booleans`` says which of these are
    bool; the others are of type ``C``, the type of arithmetic. ``statement(e)`` may be called for
    parts of an expression, arguments first; ``text(e)`` is the name or literal of a value.
    """

    def __init__(self, names: dict[str, str], booleans: frozenset[str] = frozenset()):
        self.names, self.booleans = names, booleans
        self._texts: dict[int, tuple[str, bool]] = {}  # text, and whether it is a bool
        self._keep: list[Expr] = []  # keeps the ids alive

    def statements(self, outputs: Sequence[Expr]) -> list[str]:
        """The statements for everything below the outputs, but for what has been computed."""
        lines = []
        for e in topological(outputs):
            if id(e) not in self._texts and e.op not in ("input", "const"):
                lines.append(self.statement(e))
        return lines

    def statement(self, e: Expr) -> str:
        """``const C t3 = op_exp(t2);`` for an expression whose arguments have been computed."""
        boolean = e.op in BOOLEAN
        call = f"op_{e.op}({', '.join(self._arguments(e))})"
        return self.define(e, call, boolean)

    def define(self, e: Expr, value: str, boolean: bool = False) -> str:
        """The statement that gives an expression a name and a value."""
        name = f"t{len(self._keep)}"
        self._keep.append(e)
        self._texts[id(e)] = (name, boolean)
        return f"const {'bool' if boolean else 'C'} {name} = {value};"

    def is_boolean(self, e: Expr) -> bool:
        if e.op == "input":
            return e.args[0] in self.booleans
        return id(e) in self._texts and self._texts[id(e)][1]

    def text(self, e: Expr) -> str:
        if e.op == "input":
            return self.names[e.args[0]]
        return _literal(e.args[0]) if e.op == "const" else self._texts[id(e)][0]

    def real(self, e: Expr) -> str:
        """The value as a ``C``."""
        return f"C({self.text(e)})" if self.is_boolean(e) else self.text(e)

    def truth(self, e: Expr) -> str:
        """The value as a bool: whether it is not zero."""
        return self.text(e) if self.is_boolean(e) else f"({self.text(e)} != C(0))"

    def _arguments(self, e: Expr) -> list[str]:
        if e.op not in primitives():
            raise Unsupported(e.op)
        if e.op.startswith("logical_"):
            return [self.truth(a) for a in e.args]
        if e.op == "where":
            condition, yes, no = e.args
            self._need_reals((yes, no))
            return [self.truth(condition), self.real(yes), self.real(no)]
        if e.op not in BOOLEAN:
            self._need_reals(e.args)
        return [self.real(a) for a in e.args]

    def _need_reals(self, args) -> None:
        """Among booleans alone NumPy's arithmetic means something else."""
        if all(self.is_boolean(a) for a in args):
            raise Unsupported("arithmetic of booleans")


def _literal(value) -> str:
    if value.__class__ not in _NUMBERS:
        raise Unsupported(f"a constant of type {type(value).__name__}")
    number = float(value)
    if math.isnan(number):
        return "C(NAN)"
    if math.isinf(number):
        return "C(INFINITY)" if number > 0 else "C(-INFINITY)"
    return f"C({number!r})"


# ------------------------------------------------------------------------------------------------
# kernels


class Number:
    """A number in the device's memory: a float64 that a captured launch reads anew at every replay.

    Programs take it like a Python number: it decides about no dtype.
    """

    __slots__ = ("array", "data")
    shape: tuple = ()
    strides: tuple = ()
    ndim, itemsize = 0, 8

    def __init__(self, array):
        self.array, self.data = array, array.data


class Variant(NamedTuple):
    """What the text of an elementwise kernel depends on, beside the program.

    ``pattern`` has one letter per input: ``-`` not read, ``n`` number, ``d`` number in the device's
    memory; arrays: ``v`` neighbours lie side by side in the inner dimension, ``o`` one element for
    a whole row, ``s`` strided; capitals for masks. ``rows`` is the number of dimensions around the
    inner one.
    """

    dtype: str
    pattern: str
    rows: int
    lanes: int
    wide: bool  # 64-bit offsets


class _Array(NamedTuple):
    """An array of a kernel: its input's name, letter of the pattern and C++ type."""

    name: str
    letter: str
    type: str

    @property
    def neighbours(self) -> bool:
        return self.letter in "vV"


def kernel_text(program: Program, variant: Variant) -> str:
    """The source of ``elementwise(arrays, numbers, outputs, sizes, steps)``.

    For ``tanh(x) * b`` of a contiguous float32 matrix and a column of it, which has steps, the loop
    reads

        const Index packs = (Index(inner) + 3) / 4, total = packs * Index(size0);
        for (Index pack = first_index<Index>(); pack < total; pack += index_step<Index>()) {
          const Index row = pack / packs, column = (pack - row * packs) * 4;
          const Index i0 = row;
          const int count = int(min(Index(4), Index(inner) - column));
          Values<4, float> p_x;
          p_x.load_pack(x_x + i0 * Index(step0_x) + column, count);
          const auto p_b = widen(x_b[i0 * Index(step0_b)]);
          Pack<float, 4> q_o0;
          for (int k = 0; k < 4; ++k) compute(p_x.at[k], p_b, q_o0.at[k]);
          store(o0 + row * Index(inner) + column, q_o0, count);
        }
    """
    storage = TYPES[variant.dtype]
    letters = list(zip(program.inputs, variant.pattern, strict=True))
    arrays = [_Array(n, p, _stored(p, storage)) for n, p in letters if p not in "-n"]
    numbers = [n for n, p in letters if p == "n"]
    outputs = [
        (f"o{k}", "bool" if e.op in BOOLEAN else storage) for k, e in enumerate(program.outputs)
    ]
    return "\n".join(
        [
            '#include "elementwise.cuh"',
            f"typedef {'double' if variant.dtype == 'float64' else 'float'} C;",
            f"typedef {'long long' if variant.wide else 'int'} Index;",
            "",
            *_compute(program, arrays, numbers, outputs),
            "",
            f'extern "C" __global__ void __launch_bounds__({BLOCK}) elementwise(',
            f"    {', '.join(_parameters(variant, arrays, numbers, outputs))}) {{",
            *[f"  {line}" for line in _loop(variant, arrays, numbers, outputs)],
            "}",
            "",
        ]
    )


def _stored(letter: str, storage: str) -> str:
    """The C++ type of an array by its letter in a pattern."""
    return "bool" if letter.isupper() else "double" if letter == "d" else storage


def _compute(program: Program, arrays, numbers, outputs) -> list[str]:
    """The function of one element."""
    prefix = "v_" if program.cuda_source is None else ""
    values = [f"const {'bool' if a.type == 'bool' else 'C'} {prefix}{a.name}" for a in arrays]
    values += [f"const C {prefix}{n}" for n in numbers]
    values += [f"{type}& {name}" for name, type in outputs]
    lines = _from_source if program.cuda_source is not None else _from_expressions
    return [
        f"__device__ __forceinline__ void compute({', '.join(values)}) {{",
        *[f"  {line}" for line in lines(program, arrays, outputs)],
        "}",
    ]


def _from_expressions(program: Program, arrays, outputs) -> list[str]:
    masks = frozenset(a.name for a in arrays if a.type == "bool")
    scalars = Scalars({n: f"v_{n}" for n in program.inputs}, masks)
    lines = scalars.statements(program.outputs)
    for (name, type), e in zip(outputs, program.outputs, strict=True):
        value = scalars.truth(e) if type == "bool" else scalars.real(e)
        lines.append(f"{name} = narrow<{type}>({value});")
    return lines


def _from_source(program: Program, arrays, outputs) -> list[str]:
    """A user's statements; lines are counted from their first, for the compiler's messages."""
    code, results = program.cuda_source
    kept = zip(outputs, results, strict=False)
    return [
        f"C {', '.join(results)};",
        *['#line 1 "kernel"', *code.strip().splitlines()],
        *[f"{name} = narrow<{type}>({result});" for (name, type), result in kept],
    ]


def _parameters(variant: Variant, arrays, numbers, outputs) -> list[str]:
    rows = range(variant.rows)
    return [
        *[f"const {a.type}* __restrict__ x_{a.name}" for a in arrays],
        *[f"double n_{n}" for n in numbers],
        *[f"{type}* __restrict__ {name}" for name, type in outputs],
        "long long inner",
        *[f"long long size{d}" for d in rows],
        *[f"long long step_{a.name}" for a in arrays if a.letter in "sS"],
        *[f"long long step{d}_{a.name}" for d in rows for a in arrays],
    ]


def _loop(variant: Variant, arrays, numbers, outputs) -> list[str]:
    """The loop over packs of ``lanes`` elements; the last pack of a row may be shorter."""
    lanes, rows = variant.lanes, range(variant.rows)
    sizes = "".join(f" * Index(size{d})" for d in rows)
    inside = [f"const Index row = {'pack / packs' if rows else '0'};"]
    inside.append(f"const Index column = (pack - row * packs) * {lanes};")
    rest = "row"
    for d in reversed(rows):
        last = d == 0
        inside.append(f"const Index i{d} = {rest if last else f'{rest} % Index(size{d})'};")
        if not last:
            inside.append(f"const Index rest{d} = {rest} / Index(size{d});")
            rest = f"rest{d}"
    inside.append(f"const int count = int(min(Index({lanes}), Index(inner) - column));")
    for a in arrays:
        inside += _load(a, variant)
    inside += [f"Pack<{type}, {lanes}> q_{name};" for name, type in outputs]
    given = [f"p_{a.name}" if a.letter in "oOd" else f"p_{a.name}.at[k]" for a in arrays]
    given += [f"C(n_{n})" for n in numbers] + [f"q_{name}.at[k]" for name, _ in outputs]
    inside += [
        "#pragma unroll",
        f"for (int k = 0; k < {lanes}; ++k) compute({', '.join(given)});",
        *[f"store({name} + row * Index(inner) + column, q_{name}, count);" for name, _ in outputs],
    ]
    return [
        f"const Index packs = (Index(inner) + {lanes - 1}) / {lanes}, total = packs{sizes};",
        "for (Index pack = first_index<Index>(); pack < total; pack += index_step<Index>()) {",
        *[f"  {line}" for line in inside],
        "}",
    ]


def _load(a: _Array, variant: Variant) -> list[str]:
    """The values of one array for a pack."""
    where = [f"i{d} * Index(step{d}_{a.name})" for d in range(variant.rows)]
    if a.letter == "d":
        return [f"const C p_{a.name} = C(*x_{a.name});"]
    if a.letter in "oO":
        return [f"const auto p_{a.name} = widen(x_{a.name}[{' + '.join(where) or '0'}]);"]
    step = "" if a.neighbours else f" * Index(step_{a.name})"
    place = f"x_{a.name} + " + " + ".join([*where, f"column{step}"])
    value = "bool" if a.type == "bool" else "C"
    call = (
        f"load_pack({place}, count)"
        if a.neighbours
        else f"load({place}, Index(step_{a.name}), count)"
    )
    return [f"Values<{variant.lanes}, {value}> p_{a.name};", f"p_{a.name}.{call};"]


# ------------------------------------------------------------------------------------------------
# launching


def run(program: Program, args: Sequence) -> list | None:
    """Results of a program over CUDA arrays and numbers, or None where CuPy must compute them.

    Floating-point arrays have one dtype, beside masks; numbers are weakly typed. The results lie on
    the device of the arrays.
    """
    ndarray = backend.cupy().ndarray
    signature = tuple(
        [(a.shape, a.strides, a.dtype) if a.__class__ is ndarray else a.__class__ for a in args]
    )
    found = program.cuda_plans.get(signature, program)
    if found is program:
        if len(program.cuda_plans) >= _PLANS:
            program.cuda_plans.clear()
        found = program.cuda_plans[signature] = plan(program, args)
    return None if found is None else found(args)


class _Plan:
    """How to launch a program for arguments of certain shapes, strides and dtypes."""

    __slots__ = (
        "dtypes",
        "launches",
        "ndarray",
        "numbers",
        "positions",
        "program",
        "shape",
        "sizes",
        "unaligned",
        "variant",
    )

    def __init__(self, program, variant, operands: _Operands, layout: _Layout):
        self.program, self.variant, self.shape = program, variant, operands.shape
        self.positions, self.numbers = operands.positions, operands.numbers
        boolean = np.dtype(bool)
        self.dtypes = [boolean if e.op in BOOLEAN else operands.dtype for e in program.outputs]
        self.sizes = layout.parameters(variant.pattern)
        self.ndarray = backend.cupy().ndarray
        self.launches: dict[int, cuda_module.Prepared] = {}  # by device
        # for arrays that do not begin at a multiple of 16 bytes
        self.unaligned: _Plan | None = None
        if variant.lanes > 1:
            self.unaligned = _Plan(program, variant._replace(lanes=1), operands, layout)
        kernel_for(program, variant)  # Unsupported, if it is

    @property
    def blocks(self) -> int:
        inner, *rows = self.sizes[: 1 + self.variant.rows]
        packs = -(-inner // self.variant.lanes) * math.prod(rows)
        return max(1, min(-(-packs // BLOCK), _MOST_BLOCKS))

    def __call__(self, args: Sequence) -> list | None:
        arrays = [args[k] for k in self.positions]
        if backend.several():
            with backend.on_device_of(arrays[0]):
                return self._run(arrays, args)
        return self._run(arrays, args)

    def _run(self, arrays: list, args: Sequence) -> list | None:
        outputs = [self.ndarray(self.shape, dtype) for dtype in self.dtypes]
        if not outputs[0].size:
            return outputs
        plan = self
        if self.unaligned is not None:
            for a in arrays:
                if a.data.ptr % PACK and a.__class__ is self.ndarray:
                    plan = self.unaligned
        launch = plan.launches.get(outputs[0].data.device_id) or plan._prepare()
        if launch is None:
            return None
        launch(arrays, [args[k] for k in self.numbers], outputs)
        return outputs

    def _prepare(self) -> cuda_module.Prepared | None:
        """Compile for the current device; None, and a report the first time, if that fails."""
        if self.program.cuda_plans.__class__ is _NoPlans:
            return None
        try:
            launch = cuda_module.prepare(
                kernel_for(self.program, self.variant), self.blocks, BLOCK, len(self.numbers),
                self.sizes,
            )  # fmt: skip
        except KernelError as error:
            cuda_module.report(error, " ".join(self.program.steps))
            self.program.cuda_plans = _NoPlans()
            return None
        self.launches[launch.device] = launch
        return launch


class _NoPlans(dict):
    """The plans of a program whose kernel cannot be built."""

    def get(self, key, default=None):
        return None


class _Operands(NamedTuple):
    """What a program reads of its arguments; positions are those of arrays and of numbers."""

    dtype: np.dtype
    shape: tuple[int, ...]
    arrays: list
    positions: list[int]
    numbers: list[int]
    kinds: str  # per argument: - not read, n number, d one on the device, v real array, b mask


class _Layout(NamedTuple):
    """The result's dimensions, merged where every array allows it, and the steps of the arrays
    through them in elements, innermost last."""

    rows: list[int]
    inner: int
    steps: list[list[int]]

    def parameters(self, pattern: str) -> tuple[int, ...]:
        """The sizes and steps a kernel takes."""
        letters = [p for p in pattern if p not in "-n"]
        strided = [s[-1] for s, p in zip(self.steps, letters, strict=True) if p in "sS"]
        rows = [s[d] for d in range(len(self.rows)) for s in self.steps]
        return (self.inner, *self.rows, *strided, *rows)


def plan(program: Program, args: Sequence) -> _Plan | None:
    """How to run a program on arguments like these; None if CuPy must."""
    if not cuda_module.enabled() or not program.computed:
        return None
    operands = _operands(program, args)
    if operands is None:
        return None
    layout = _layout(operands.shape, operands.arrays)
    variant = _variant(operands, layout)
    try:
        return _Plan(program, variant, operands, layout)
    except Unsupported:
        return None


def _operands(program: Program, args: Sequence) -> _Operands | None:
    """The arguments that are read; None if something among them does not fit."""
    ndarray = backend.cupy().ndarray
    kinds, positions, numbers, dtypes = [], [], [], set()
    for k, (a, name) in enumerate(zip(args, program.inputs, strict=True)):
        if name not in program.used:
            kinds.append("-")
        elif a.__class__ in _NUMBERS:
            kinds.append("n")
            numbers.append(k)
        elif a.__class__ is ndarray and a.dtype.name in TYPES:
            kinds.append("b" if a.dtype == bool else "v")
            positions.append(k)
            dtypes.add(a.dtype)
        elif a.__class__ is Number:
            kinds.append("d")
            positions.append(k)
        else:
            return None
    dtypes.discard(np.dtype(bool))
    if len(dtypes) != 1:
        return None
    arrays = [args[k] for k in positions]
    shape = program.result_shape(arrays, positions)
    if shape is None:
        return None
    return _Operands(dtypes.pop(), shape, arrays, positions, numbers, "".join(kinds))


def _layout(shape: tuple[int, ...], arrays: list) -> _Layout:
    sizes, steps = merge_dimensions(shape, [_steps(a, len(shape)) for a in arrays])
    if not sizes:
        return _Layout([], 1, [[1] for _ in arrays])
    return _Layout(sizes[:-1], sizes[-1], steps)


def _steps(a, ndim: int) -> list[int]:
    """Steps in elements of an array broadcast to ``ndim`` dimensions."""
    own = [0 if n == 1 else s // a.itemsize for n, s in zip(a.shape, a.strides, strict=True)]
    return [0] * (ndim - a.ndim) + own


def _variant(operands: _Operands, layout: _Layout) -> Variant:
    pattern, steps = [], iter(layout.steps)
    for kind in operands.kinds:
        letter = kind
        if kind == "d":
            next(steps)
        elif kind in "vb":
            step = next(steps)[-1]
            letter = "v" if step == 1 else "o" if step == 0 else "s"
            letter = letter.upper() if kind == "b" else letter
        pattern.append(letter)
    lanes = PACK // operands.dtype.itemsize
    if layout.rows:  # packs must not begin at odd places
        places = [layout.inner]
        places += [n for s in layout.steps if s[-1] == 1 for n in s[:-1]]
        lanes = math.gcd(lanes, *places)
    reach = [sum(n * s for n, s in zip((*layout.rows, layout.inner), map(abs, step), strict=True))
             for step in layout.steps]  # fmt: skip
    size = layout.inner * math.prod(layout.rows)
    # the loop's counter goes beyond the end by one step of the grid
    wide = max(*reach, size) + _MOST_BLOCKS * BLOCK * lanes >= 1 << 31
    return Variant(operands.dtype.name, "".join(pattern), len(layout.rows), lanes, wide)


def kernel_for(program: Program, variant: Variant) -> cuda_module.Launcher:
    """The kernel of a program for a variant, made on first use."""
    found = program.cuda_kernels.get(variant)
    if found is None:
        text = kernel_text(program, variant)
        found = program.cuda_kernels[variant] = cuda_module.load(text, "elementwise")
    return found
