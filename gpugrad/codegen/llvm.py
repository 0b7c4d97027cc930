"""Native kernels: array programs as one loop each, compiled by LLVM.

NumPy runs a program as a chain of calls, each of which reads and writes a temporary. Here every
element is loaded once, goes through the whole expression in registers, and is stored. Two kernels
are made from one program:

``run``     results of elementwise operations, with broadcasting: up to three nested loops.
``update``  in-place updates of lists of arrays: one call for all of them.

What a kernel cannot do (a primitive without a rule here, another dtype, odd strides) is answered
with None or False before anything is written, and NumPy does it. Results equal NumPy's to rounding:
``+ - * / sqrt``, comparisons and selections exactly, functions within 2 ulp.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import numpy as backend
from . import vector_math
from .arrays import BOOLEAN, Cut, Program, cut_dimensions, merge_dimensions
from .expr import Expr, topological
from .ir import Code, Value, is_real, with_element
from .machine import ELEMENTS, INTEGERS, Machine, machine
from .shares import WHOLE, parameters, share

# Elements from which threads are worth their dispatch, on two cores: tanh of 2**19 takes 640 us on
# one thread and 500 on two, but most functions take a quarter of that, and a training step with
# an Adam update of 640,000 parameters took 7 % longer with threads.
PARALLEL = 1 << 20

_BOOL = np.dtype("bool")
_NUMBERS = (int, float, bool)


class Unsupported(Exception):
    """A program that has no native kernel."""


# ------------------------------------------------------------------------------------------------
# scalar primitives


def _is_bool(v: Value) -> bool:
    return v.type.endswith("i1>")


def _real(v: Value) -> Value:
    """In the element type: 0 or 1 of booleans."""
    if not _is_bool(v):
        return v
    return v.convert("uitofp" if is_real(v.code.element) else "zext", v.code.vector)


def _truth(v: Value) -> Value:
    """Whether it is not zero; NaN is not."""
    return v if _is_bool(v) else v.compare("une" if is_real(v.type) else "ne", 0)


def _arithmetic(function: Callable) -> Callable:
    """A rule over numbers. Among booleans alone NumPy's arithmetic means something else; beside
    a Python integer they become int64, whatever the dtype of the arrays around them."""

    def rule(*args: Value) -> Value:
        bools, element = [_is_bool(a) for a in args], args[0].code.element
        if all(bools) or (any(bools) and element not in ("float", "double", "i64")):
            raise Unsupported
        return function(*[_real(a) for a in args])

    return rule


def _comparison(predicate: str) -> Callable:
    return lambda a, b: _real(a).compare(predicate, _real(b))


def _logical(function: Callable) -> Callable:
    return lambda *args: function(*[_truth(a) for a in args])


def _where(condition: Value, a: Value, b: Value) -> Value:
    select = condition.code.select
    if _is_bool(a) and _is_bool(b):
        return select(_truth(condition), a, b)
    return _arithmetic(lambda a, b: select(_truth(condition), a, b))(a, b)


def _maximum(a: Value, b: Value) -> Value:
    return a.code.select((a >= b) | a.is_nan(), a, b)


def _minimum(a: Value, b: Value) -> Value:
    return a.code.select((a <= b) | a.is_nan(), a, b)


def _sign(x: Value) -> Value:
    select = x.code.select
    return select(x > 0.0, 1.0, select(x < 0.0, -1.0, select(x.equals(0.0), 0.0, x)))


def _intrinsic(name: str) -> Callable:
    return _arithmetic(lambda x: x.code.call(name, x))


_LOGIC: dict[str, Callable] = {
    "where": _where,
    "logical_and": _logical(lambda a, b: a & b),
    "logical_or": _logical(lambda a, b: a | b),
    "logical_xor": _logical(lambda a, b: a ^ b),
    "logical_not": _logical(lambda a: a ^ 1),
}
_RULES: dict[str, Callable] = {
    **_LOGIC,
    "add": _arithmetic(lambda a, b: a + b),
    "sub": _arithmetic(lambda a, b: a - b),
    "mul": _arithmetic(lambda a, b: a * b),
    "div": _arithmetic(lambda a, b: a / b),
    "neg": _arithmetic(lambda x: -x),
    "positive": _arithmetic(lambda x: x),
    "square": _arithmetic(lambda x: x * x),
    "reciprocal": _arithmetic(lambda x: 1.0 / x),
    "sqrt": _intrinsic("sqrt"),
    "abs": _intrinsic("fabs"),
    "sign": _arithmetic(_sign),
    "maximum": _arithmetic(_maximum),
    "minimum": _arithmetic(_minimum),
    "lt": _comparison("olt"),
    "le": _comparison("ole"),
    "gt": _comparison("ogt"),
    "ge": _comparison("oge"),
    "eq": _comparison("oeq"),
    "ne": _comparison("une"),
    "isnan": lambda x: _real(x).is_nan(),
    "isinf": lambda x: vector_math.absolute(_real(x)).equals(float("inf")),
    "isfinite": lambda x: vector_math.absolute(_real(x)) < float("inf"),
}
_ROUNDING = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven"}
# The primitives whose results are rounded correctly or chosen: the same bits wherever computed.
EXACT = frozenset(_RULES) | frozenset(_ROUNDING)


def _among_booleans(function: Callable) -> Callable:
    def rule(*args: Value) -> Value:
        if not all(_is_bool(a) for a in args):
            raise Unsupported
        return function(*args)

    return rule


# NumPy's arithmetic among booleans.
_OF_BOOLEANS: dict[str, Callable] = {
    "add": _among_booleans(lambda a, b: a | b),
    "mul": _among_booleans(lambda a, b: a & b),
    "maximum": _among_booleans(lambda a, b: a | b),
    "minimum": _among_booleans(lambda a, b: a & b),
}


def _integer_rules(dtype: np.dtype) -> dict[str, Callable]:
    """The primitives there are for integers, which wrap around, or for booleans."""
    select, s = Code.select, "u" if dtype.kind in "ub" else "s"
    orders = {name: _comparison(s + name) for name in ("lt", "le", "gt", "ge")}
    rules = {**_LOGIC, **orders, "eq": _comparison("eq"), "ne": _comparison("ne")}
    if dtype == _BOOL:
        return {**rules, **_OF_BOOLEANS}

    def larger(a: Value, b: Value) -> Value:
        return select(a.code, a.compare(s + "gt", b), a, b)

    def smaller(a: Value, b: Value) -> Value:
        return select(a.code, a.compare(s + "lt", b), a, b)

    def sign(x: Value) -> Value:
        below = select(x.code, x.compare(s + "lt", 0), x.code.constant(-1), 0)
        return select(x.code, x.compare(s + "gt", 0), 1, below)

    numbers: dict[str, Callable] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "neg": lambda x: 0 - x,
        "positive": lambda x: x,
        "square": lambda x: x * x,
        "abs": lambda x: select(x.code, x.compare(s + "lt", 0), 0 - x, x),
        "sign": sign,
        "maximum": larger,
        "minimum": smaller,
    }
    return {**rules, **{name: _arithmetic(function) for name, function in numbers.items()}}


def _checked_rules(program: Program, dtype: np.dtype) -> dict[str, Callable]:
    """The same, where the constants of a program are numbers of the dtype in NumPy, too."""
    constants = [e.args[0] for e in topological(program.outputs) if e.op == "const"]
    if not all(_fits(c, dtype) for c in constants):
        raise Unsupported
    if program.chooses_constants and dtype != np.dtype("int64"):  # that is int64
        raise Unsupported
    return _integer_rules(dtype)


def rules_for(compiler: Machine, element: str) -> dict[str, Callable]:
    """The primitives there are for an element type on a CPU."""
    functions = vector_math.for_element(element)
    rules = {**_RULES, **{name: _arithmetic(f) for name, f in functions.items()}}
    if compiler.rounds:
        rules.update({name: _intrinsic(llvm) for name, llvm in _ROUNDING.items()})
    return rules


def _fits(number, dtype: np.dtype) -> bool:
    """Whether a Python number is one of a dtype in NumPy's arithmetic, and passes through
    float64."""
    if dtype in ELEMENTS:
        return number.__class__ in _NUMBERS
    if number.__class__ not in (int, bool):
        return False
    limits = np.iinfo(np.uint8 if dtype == _BOOL else dtype)
    return max(limits.min, -(1 << 53)) <= number <= min(limits.max, 1 << 53)


def _evaluate(code: Code, outputs: Sequence[Expr], inputs: dict, rules: dict) -> list[Value]:
    """The outputs as vectors; ``inputs`` are vectors by name."""
    values: dict[int, Value] = {}
    for e in topological(outputs):
        if e.op == "input":
            values[id(e)] = inputs[e.args[0]]
        elif e.op == "const":
            if e.args[0].__class__ not in _NUMBERS:
                raise Unsupported
            values[id(e)] = code.constant(e.args[0])
        elif e.op in rules:
            values[id(e)] = rules[e.op](*[values[id(a)] for a in e.args])
        else:
            raise Unsupported
    return [values[id(e)] for e in outputs]


# ------------------------------------------------------------------------------------------------
# what the two kernels share


def _data(code: Code, compiler: Machine, obj: Value) -> Value:
    """The address of the first element of a NumPy array, from the array object."""
    return code.load(code.at(obj, compiler.offsets["data"], "i8"), "ptr")


def _number(code: Code, numbers: Value, index: int) -> Value:
    """A Python number, rounded once to the element type."""
    value = code.load(code.at(numbers, index), "double")
    if code.element != "double":
        value = value.convert("fptrunc" if is_real(code.element) else "fptosi", code.element)
    return code.splat(value)


def _load(code: Code, pointer: Value, index: Value, mask: Value | None, boolean: bool) -> Value:
    element = "i8" if boolean else code.element
    type = with_element(code.vector, element)
    value = code.load(code.at(pointer, index, element), type, mask)
    return value.compare("ne", 0) if boolean else value


def _load_one(code: Code, pointer: Value, boolean: bool) -> Value:
    """A vector of the one element at a pointer."""
    value = code.load(pointer, "i8" if boolean else code.element)
    return code.splat(value.compare("ne", 0) if boolean else value)


def _store(code: Code, value: Value, pointer: Value, index: Value, mask: Value | None) -> None:
    if _is_bool(value):
        value = value.convert("zext", with_element(code.vector, "i8"))
    element = "i8" if value.type.endswith("i8>") else code.element
    code.store(value, code.at(pointer, index, element), mask)


def _sweep(
    code: Code, start: Value, stop: Value, read: Callable, compute: Callable, write: Callable
) -> None:
    """``write(i, mask, compute(read(i, mask)))`` for vectors from ``start`` to ``stop``.

    The mask is None for whole vectors. The last vector shares the computation in the middle: a
    second copy of it would double the compile time.
    """
    with code.loop(start, stop + (code.lanes - 1), code.lanes) as i:
        rest = stop - i
        whole = rest.compare("sge", code.lanes)
        values = code.choose(whole, lambda: read(i, None), lambda: read(i, code.first_lanes(rest)))
        results = compute(values)
        code.choose(
            whole,
            lambda: write(i, None, results),
            lambda: write(i, code.first_lanes(rest), results),
        )


def _share(code: Code, n: Value, first: Value, last: Value, multiple: int) -> tuple[Value, Value]:
    """Start and stop of one thread's part of ``range(n)``, at multiples but for the end."""

    def bound(k: Value) -> Value:
        return share(code, n, k) & -multiple

    return bound(first), code.select(last.compare("eq", WHOLE), n, bound(last))


def _spread(call: Callable, size: int) -> None:
    """``call(first, last)`` once, or for large sizes once per thread."""
    backend.run_parts(lambda k, n: call(k * WHOLE // n, (k + 1) * WHOLE // n), size, PARALLEL)


_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def _compiled(program: Program, key, kind, write: Callable[..., str], *arguments):
    """The function of a program for a key, written of these arguments and made on first use; None
    where there is none."""
    if key in program.native:
        return program.native[key]
    compiler = machine()
    try:
        function = kind(compiler.kernel(write, program, *arguments))
    except Unsupported:
        function = None
    except RuntimeError as error:  # slower, not wrong
        warnings.warn(f"no native kernel, LLVM refuses it: {error}", stacklevel=2)
        function = None
    program.native[key] = function
    return function


# Holds nothing while NumPy's settings of floating-point errors are its defaults: asking it costs
# 0.05 us, np.geterr 0.8.
_error_settings = getattr(np._core.umath, "_extobj_contextvar", None)


def raises() -> bool:
    """Whether NumPy is to stop at floating-point errors, which a native loop does not notice."""
    if _error_settings is not None and _error_settings.get(None) is None:
        return False
    modes = np.geterr().values()
    return "raise" in modes or "call" in modes


# ------------------------------------------------------------------------------------------------
# elementwise operations


# What NumPy computes at the speed of memory, if it is all there is to do.
_AS_FAST_IN_NUMPY = frozenset(_RULES) - {"where", "sign"} | frozenset(_ROUNDING)
# Plans a program keeps: for so many combinations of shapes and strides.
_PLANS = 256


def run(program: Program, args: Sequence) -> list[np.ndarray] | None:
    """Results of a program over arrays and numbers, or None where NumPy must compute them.

    Arrays are float32 or float64, all the same, beside masks; numbers are weakly typed.
    """
    signature = tuple(
        [(a.shape, a.strides, a.dtype) if a.__class__ is np.ndarray else a.__class__ for a in args]
    )
    plan = program.plans.get(signature, _plan)
    if plan is _plan:
        gains = _gains(program, args)
        if gains and machine() is None:  # asked for last: the first time, it takes 50 ms
            return None
        if len(program.plans) >= _PLANS:
            program.plans.clear()
        plan = program.plans[signature] = _plan(program, args) if gains else None
    return None if plan is None or machine() is None or raises() else plan(args)


class _Plan:
    """A kernel for arguments of certain shapes, strides and dtypes, and the table it reads."""

    __slots__ = ("arrays", "dtypes", "kernel", "numbers", "results", "shape", "size", "table")

    def __init__(self, kernel, operands: _Operands, table: array, dtypes: list, stride: int):
        self.kernel, self.table, self.dtypes = kernel, table, dtypes
        self.shape, self.numbers = operands.shape, operands.numbers
        self.size = math.prod(operands.shape)
        places = range(stride, len(table), stride)  # of the array objects in the table
        self.arrays = list(zip(places, operands.positions, strict=False))
        self.results = places[len(self.arrays) :]

    def __call__(self, args: Sequence) -> list[np.ndarray] | None:
        table = self.table[:]
        for place, k in self.arrays:
            table[place] = id(args[k])
        try:
            numbers = array("d", [args[k] for k in self.numbers])
        except OverflowError:  # an integer beyond float64
            return None
        outputs = [backend.empty(self.shape, dtype) for dtype in self.dtypes]
        for place, output in zip(self.results, outputs, strict=True):
            table[place] = id(output)
        address, values = table.buffer_info()[0], numbers.buffer_info()[0]
        if self.size < PARALLEL:
            self.kernel(address, values, 0, WHOLE)
        else:
            kernel = self.kernel
            _spread(lambda first, last: kernel(address, values, first, last), self.size)
        return outputs


class _Operands(NamedTuple):
    """What a program reads of its arguments.

    The pattern has one letter per argument: ``-`` not read, ``n`` number, ``v`` real array, ``b``
    mask; positions are those of arrays and of numbers among the arguments.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    arrays: list[np.ndarray]
    positions: list[int]
    numbers: list[int]
    pattern: str


def _plan(program: Program, args: Sequence) -> _Plan | None:
    """How to run a program on arguments like these; None if NumPy must."""
    operands = _operands(program, args)
    if operands is None:
        return None
    loops = _loops(operands.shape, operands.arrays)
    if loops is None:
        return None
    sizes, strides = loops
    kernel = _kernel_for(program, operands, sizes, strides)
    if kernel is None:
        return None
    dtypes = [_BOOL if e.op in BOOLEAN else operands.dtype for e in program.outputs]
    strides += [_steps(sizes, dtype.itemsize) for dtype in dtypes]
    return _Plan(kernel, operands, _table(sizes, strides), dtypes, _depth(sizes))


class Into(NamedTuple):
    """How to compute a program into given arrays: ``places`` are those of the array objects in the
    table that the kernel reads, of the arguments at ``positions`` and of the outputs; ``numbers``
    are the positions of the numbers it takes."""

    kernel: Any
    table: array
    places: range
    positions: list[int]
    numbers: list[int]
    size: int


def plan_into(program: Program, args: Sequence, outputs: list, rows: int = 0) -> Into | None:
    """How to compute a program of arrays, integers or masks among them, and numbers into arrays of
    any strides; None where there is no kernel. With ``rows`` threads share so many blocks of rows.
    Looked for once for arrays that are laid out alike: the layers of a network are."""
    key = ("into", rows, *map(_layout, args), *map(_layout, outputs))
    plan = program.plans.get(key, Into)
    if plan is Into:
        if len(program.plans) >= _PLANS:
            program.plans.clear()
        plan = program.plans[key] = _plan_into(program, args, outputs, rows)
    return plan


def _layout(a):
    """What a plan depends on of an argument or an output."""
    if a.__class__ is np.ndarray:
        return a.shape, a.strides, a.dtype
    return (a.__class__, a) if a.__class__ in (int, bool) else a.__class__


def _plan_into(program: Program, args: Sequence, outputs: list, rows: int) -> Into | None:
    if not program.outputs or any(e.op == "const" for e in program.outputs):
        return None
    operands = _operands(program, args, integers=True)
    if operands is None or any(o.shape != operands.shape for o in outputs):
        return None
    dtypes = [_BOOL if e.op in BOOLEAN else operands.dtype for e in program.outputs]
    if any(o.dtype != d for o, d in zip(outputs, dtypes, strict=True)):
        return None
    loops = _loops(operands.shape, [*operands.arrays, *outputs], rows)
    if loops is None:
        return None
    sizes, strides = loops
    if any(s[-1] == 0 for s in strides[len(operands.arrays) :]):
        return None
    kernel = _kernel_for(program, operands, sizes, strides)
    if kernel is None:
        return None
    table, depth = _table(sizes, strides), _depth(sizes)
    places, size = range(depth, len(table), depth), math.prod(operands.shape)
    return Into(kernel, table, places, operands.positions, operands.numbers, size)


def _depth(sizes: list[int]) -> int:
    """Loops of the kernel for these sizes."""
    return 1 if len(sizes) == 1 else 3


def _kernel_for(program: Program, operands: _Operands, sizes: list[int], strides: list):
    """The kernel of a program for loops of these sizes over arrays, inputs first, of these strides;
    None where there is none."""
    pattern, dtype, depth = _inner_strides(operands.pattern, strides), operands.dtype, _depth(sizes)
    key = (dtype, pattern, depth)
    return _compiled(program, key, _Kernel, _rows_kernel, *key)


def _gains(program: Program, args: Sequence) -> bool:
    """Whether a kernel can be made and be faster: not for copies, constants, and one simple
    function of arrays of one shape that one thread computes."""
    if not program.computed:
        return False
    if len(program.steps) > 1 or program.steps[0] not in _AS_FAST_IN_NUMPY:
        return True
    shapes = [a.shape for a in args if a.__class__ is np.ndarray]
    if any(math.prod(shape) >= PARALLEL for shape in shapes):
        return True  # threads that run NumPy's blocks wait for each other's GIL
    if program.steps[0] in ("maximum", "minimum") and len(shapes) == 1:
        return True  # NumPy compares with a number one element at a time: 28 us for 32 k, not 8
    return len(set(shapes)) > 1


def _table(sizes: list[int], strides: list[list[int]]) -> array:
    """What ``_rows_kernel`` reads: sizes of the loops, then every array's object and strides."""
    if len(sizes) == 1:
        return array("q", [sizes[0], *[0] * len(strides)])
    missing = [1] * (3 - len(sizes))  # the middle loop, if there are two
    table = [sizes[0], *missing, *sizes[1:]]
    for steps in strides:
        table += (0, steps[0], steps[1] if len(steps) == 3 else 0)
    return array("q", table)


def _operands(program: Program, args: Sequence, integers: bool = False) -> _Operands | None:
    """The arguments that are read; None if something among them does not fit.

    ``integers``: arrays may be integers or all be masks.
    """
    pattern, positions, numbers, dtypes = [], [], [], set()
    for k, (a, name) in enumerate(zip(args, program.inputs, strict=True)):
        if name not in program.used:
            pattern.append("-")
        elif a.__class__ in _NUMBERS:
            pattern.append("n")
            numbers.append(k)
        elif a.__class__ is np.ndarray:
            pattern.append("b" if a.dtype == _BOOL else "v")
            positions.append(k)
            dtypes.add(a.dtype)
        else:
            return None
    if dtypes != {_BOOL}:
        dtypes.discard(_BOOL)
    if len(dtypes) != 1:
        return None
    (dtype,) = dtypes
    if dtype not in ELEMENTS and not (integers and dtype in INTEGERS):
        return None
    if not all(_fits(args[k], dtype) for k in numbers):
        return None
    arrays = [args[k] for k in positions]
    shape = program.result_shape(arrays, positions)
    if shape is None or 0 in shape:
        return None
    return _Operands(dtype, shape, arrays, positions, numbers, "".join(pattern))


def _steps(sizes: Sequence[int], itemsize: int) -> list[int]:
    """Strides in bytes of a C-contiguous array."""
    steps = []
    for n in reversed(sizes):
        steps.append(itemsize)
        itemsize *= n
    return steps[::-1]


def _loops(shape, arrays, rows: int = 0) -> tuple[list[int], list[list[int]]] | None:
    """Sizes of at most three nested loops and the strides of every array in them, in bytes; with
    ``rows`` the outermost one has this size.

    None if three loops do not do, or if an array's elements lie apart in the innermost.
    """
    steps = [strides_in(a.shape, a.strides, len(shape)) for a in arrays]
    cut = cut_dimensions(shape, steps, rows) if rows else Cut([], shape, steps)
    if cut is None or None in cut.steps:
        return None
    sizes, kept = merge_dimensions(cut.sizes, cut.strides)
    if not sizes:  # one element
        sizes, kept = [1], [[a.itemsize] for a in arrays]
    fits = all(k[-1] in (0, a.itemsize) for k, a in zip(kept, arrays, strict=True))
    if rows:
        sizes, kept = [rows, *sizes], [[s, *k] for s, k in zip(cut.steps, kept, strict=True)]
    return (sizes, kept) if fits and len(sizes) <= 3 else None


def strides_in(shape: Sequence[int], strides: Sequence[int], ndim: int) -> list[int]:
    """Strides of an array broadcast to ``ndim`` dimensions."""
    own = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
    return [0] * (ndim - len(shape)) + own


def _inner_strides(pattern: str, strides: list) -> str:
    """The pattern with capitals for arrays of which the innermost loop reads one element only."""
    each = iter(strides)
    return "".join(p.upper() if p in "vb" and next(each)[-1] == 0 else p for p in pattern)


def _rows_kernel(
    compiler: Machine, program: Program, dtype: np.dtype, pattern: str, loops: int
) -> str:
    """The text of ``kernel(table, numbers, first, last)`` for arrays in one loop or three nested
    ones.

    The table holds the sizes (outer, middle, inner) and per array, outputs last: the array object,
    outer and middle stride in bytes; for one loop: the size and the array objects. Threads share
    the outermost loop.
    """
    element = ELEMENTS.get(dtype) or INTEGERS[dtype]
    code = Code(element, compiler.lanes(element))
    given = parameters(code)
    table, numbers, first, last = given
    kinds = [(n, p) for n, p in zip(program.inputs, pattern, strict=True) if p in "vbVB"]
    numbered = [n for n, p in zip(program.inputs, pattern, strict=True) if p == "n"]
    inputs = {n: _number(code, numbers, k) for k, n in enumerate(numbered)}
    rules = rules_for(compiler, element) if is_real(element) else _checked_rules(program, dtype)
    sizes = [code.load(code.at(table, k), "i64") for k in range(loops)]
    bases, strides = [], []
    for k in range(len(kinds) + len(program.outputs)):
        entry = [code.at(table, loops + loops * k + d) for d in range(loops)]
        bases.append(_data(code, compiler, code.load(entry[0], "ptr")))
        strides.append([code.load(step, "i64") for step in entry[1:]])

    def rows(pointers: list[Value], start: Value, stop: Value) -> None:
        for (name, kind), pointer in zip(kinds, pointers, strict=False):
            if kind in "VB":
                inputs[name] = _load_one(code, pointer, kind == "B")

        vectors = [
            (name, pointer, kind == "b")
            for (name, kind), pointer in zip(kinds, pointers, strict=False)
            if kind in "vb"
        ]
        targets = list(zip(program.outputs, pointers[len(kinds) :], strict=True))

        def read(i: Value, mask: Value | None) -> list[Value]:
            return [_load(code, pointer, i, mask, boolean) for _, pointer, boolean in vectors]

        def compute(values: list[Value]) -> list[Value]:
            env = inputs | {name: v for (name, _, _), v in zip(vectors, values, strict=True)}
            results = _evaluate(code, program.outputs, env, rules)
            for e, value in zip(program.outputs, results, strict=True):
                if _is_bool(value) != (dtype == _BOOL or e.op in BOOLEAN):
                    raise Unsupported
            return results

        def write(i: Value, mask: Value | None, results: list[Value]) -> list[Value]:
            for (_, pointer), value in zip(targets, results, strict=True):
                _store(code, value, pointer, i, mask)
            return []

        _sweep(code, start, stop, read, compute, write)

    if loops == 1:
        rows(bases, *_share(code, sizes[0], first, last, 64))
        return code.function("kernel", given)
    zero = code.integer(0)
    with (
        code.loop(*_share(code, sizes[0], first, last, 1)) as o,
        code.loop(zero, sizes[1]) as m,
    ):
        steps = [o * outer + m * middle for outer, middle in strides]
        rows([code.at(b, s, "i8") for b, s in zip(bases, steps, strict=True)], zero, sizes[2])
    return code.function("kernel", given)


# ------------------------------------------------------------------------------------------------
# updates in place


_Update = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
)
_Check = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
    ctypes.c_void_p, ctypes.c_void_p,
)  # fmt: skip


def update(program: Program, arrays: list, count: int, numbers: list[float]) -> bool:
    """Overwrite arrays with the outputs of a program, for many groups of arrays in one call.

    ``arrays`` are lists of ``count`` arrays, one after the other: one list per tensor input of the
    program, of which the first take the outputs. The numbers are its last inputs. False, and
    nothing written, where NumPy must do it: arrays that are not float32 or float64, C-contiguous
    and of one shape where they belong together.
    """
    compiler = machine()
    if compiler is None or not count or arrays[0].__class__ is not np.ndarray or raises():
        return False
    dtype = arrays[0].dtype
    kernel = program.native.get(dtype) or _compiled_update(program, dtype, len(arrays) // count)
    if kernel is None:
        return False
    table = array("q", list(map(id, arrays)))
    table.extend([0] * count)
    address = table.buffer_info()[0]
    written = len(program.outputs)
    check = compiler.checker or _checker(compiler)
    size = check(address, len(arrays) // count, count, written, id(np.ndarray), id(dtype))
    if size < 0:
        return False
    values = array("d", numbers)
    where = values.buffer_info()[0]
    if size < PARALLEL:
        kernel(address, count, where, 0, WHOLE)
    else:
        _spread(lambda first, last: kernel(address, count, where, first, last), size)
    return True


def _compiled_update(program: Program, dtype, lists: int):
    element = ELEMENTS.get(dtype)
    if element is None:
        return None
    return _compiled(program, dtype, _Update, _update_kernel, element, lists)


def _update_kernel(compiler: Machine, program: Program, element: str, lists: int) -> str:
    """The text of ``kernel(table, count, numbers, first, last)``.

    The table holds ``count`` array objects per list and then their sizes. Every thread does its
    part of every array.
    """
    code = Code(element, compiler.lanes(element))
    names = [("table", "ptr"), ("count", "i64"), ("numbers", "ptr"), ("first", "i64")]
    parameters = [code.parameter(*p) for p in (*names, ("last", "i64"))]
    table, count, numbers, first, last = parameters
    scalars = program.inputs[lists:]
    constants = {name: _number(code, numbers, k) for k, name in enumerate(scalars)}
    rules = rules_for(compiler, element)
    with code.loop(code.integer(0), count) as j:
        entries = [code.at(table, count * k + j) for k in range(lists + 1)]
        pointers = [_data(code, compiler, code.load(entry, "ptr")) for entry in entries[:-1]]
        size = code.load(entries[-1], "i64")

        used = [k for k in range(lists) if program.inputs[k] in program.used]

        def read(i: Value, mask: Value | None) -> list[Value]:
            return [_load(code, pointers[k], i, mask, False) for k in used]

        def compute(values: list[Value]) -> list[Value]:
            env = {program.inputs[k]: v for k, v in zip(used, values, strict=True)}
            return _evaluate(code, program.outputs, constants | env, rules)

        def write(i: Value, mask: Value | None, results: list[Value]) -> list[Value]:
            for value, pointer in zip(results, pointers, strict=False):
                _store(code, _real(value), pointer, i, mask)
            return []

        _sweep(code, *_share(code, size, first, last, 64), read, compute, write)
    return code.function("kernel", parameters)


_CHECK_FLAGS = {"read": 0x101, "written": 0x501}  # C-contiguous, aligned; and writeable


def _checker(compiler: Machine) -> Callable:
    """``check(table, lists, count, written, type, dtype)``: the sizes go to the end of the table.

    Its result is their sum, or -1 unless all are ndarrays of this dtype, contiguous, with one shape
    per place in the lists, and the first ``written`` lists writeable.
    """
    if compiler.checker is None:
        compiler.checker = _Check(compiler.kernel(_check_text))
    return compiler.checker


def _check_text(compiler: Machine) -> str:
    code = Code()
    names = [("table", "ptr"), ("lists", "i64"), ("count", "i64"), ("written", "i64")]
    parameters = [code.parameter(*p) for p in (*names, ("type", "ptr"), ("dtype", "ptr"))]
    table, lists, count, written, type, dtype = parameters
    total = code.emit("alloca i64", "ptr")
    size = code.emit("alloca i64", "ptr")
    zero, one = code.integer(0), code.integer(1)
    code.store(zero, total)

    def field(obj: Value, name: str, type: str) -> Value:
        return code.load(code.at(obj, compiler.offsets[name], "i8"), type)

    def demand(a: Value, b) -> None:
        code.leave_unless(a.compare("eq", b), "i64 -1")

    with code.loop(zero, count) as j:
        first = code.load(code.at(table, j), "ptr")
        demand(field(first, "type", "ptr"), type)
        ndim, shape = field(first, "ndim", "i32"), field(first, "shape", "ptr")
        dims = ndim.convert("sext", "i64")
        code.store(one, size)
        with code.loop(zero, dims) as d:
            code.store(code.load(size, "i64") * code.load(code.at(shape, d), "i64"), size)
        with code.loop(zero, lists) as k:
            obj = code.load(code.at(table, k * count + j), "ptr")
            demand(field(obj, "type", "ptr"), type)
            demand(field(obj, "dtype", "ptr"), dtype)
            demand(field(obj, "ndim", "i32"), ndim)
            own = field(obj, "shape", "ptr")
            with code.loop(zero, dims) as d:
                n = code.load(code.at(own, d), "i64")
                demand(n, code.load(code.at(shape, d), "i64"))
            flags = field(obj, "flags", "i32")
            needed = [Value(code, str(_CHECK_FLAGS[f]), "i32") for f in ("written", "read")]
            needed = code.select(k.compare("slt", written), *needed)
            demand(flags & needed, needed)
        elements = code.load(size, "i64")
        code.store(elements, code.at(table, lists * count + j))
        code.store(code.load(total, "i64") + elements, total)
    return code.function("kernel", parameters, str(code.load(total, "i64")))
