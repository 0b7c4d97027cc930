"""Array programs: expressions rendered to straight-line NumPy code with planned temporaries.

The same expressions render to CUDA and LLVM elsewhere; this is the form every machine with NumPy
can run. Two shapes of code are made from one expression:

``direct``  ``f(inputs...) -> outputs``: fresh results, dead temporaries reused through ``out=``.
            For small arrays.
``block``   ``f(inputs..., outputs..., scratch...)``: everything is given, nothing is allocated. For
            large arrays, where the backend calls it on pieces that fit in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .expr import Expr, described, inputs_of, topological


class Program:
    """Expressions over named inputs, compiled for an array module on first use."""

    __slots__ = (
        "_compiled",
        "_description",
        "chooses_constants",
        "computed",
        "cuda_kernels",
        "cuda_plans",
        "cuda_source",
        "full",
        "inputs",
        "native",
        "order",
        "outputs",
        "plans",
        "small",
        "steps",
        "used",
    )

    def __init__(self, outputs: Sequence[Expr], inputs: Sequence[str], full: Sequence[str]):
        """``full`` names the inputs known to have the shape of the result (others may be
        broadcast)."""
        self.outputs, self.inputs = list(outputs), list(inputs)
        self.full = frozenset(full)
        # no output is an input or a constant as it is
        kinds = {e.op for e in self.outputs}
        self.computed = bool(kinds) and kinds.isdisjoint(("input", "const"))
        self.order = order = topological(self.outputs)
        self.used = {e.args[0] for e in order if e.op == "input"}
        self.steps = [e.op for e in order if e.op not in ("input", "const")]
        self.chooses_constants = any(_chooses_constants(e) for e in order)
        self._description = ""
        self._compiled: dict = {}
        self.small: Callable | None = None  # ``for_small``, once it was asked for
        self.native: dict = {}  # kernels made by llvm.py, and how it calls them
        self.plans: dict = {}
        self.cuda_kernels: dict = {}  # the same of cuda.py
        self.cuda_plans: dict = {}
        # C++ statements that take the place of the expressions on CUDA, and their results' names
        self.cuda_source: tuple[str, Sequence[str]] | None = None

    @property
    def description(self) -> str:
        """A text that differs for programs of which different native kernels are written."""
        if not self._description:
            of_outputs = described(self.outputs, self.order, self.inputs)
            self._description = f"of {len(self.inputs)}: {of_outputs}"
        return self._description

    def direct(self, functions, dtype=None, reuse: bool = True):
        """``f(*inputs)`` returning one array per output, in a list if there are several.

        ``reuse`` lets dead temporaries be overwritten; NumPy's zero-dimensional results are scalars
        and cannot be. With a ``dtype`` constants become arrays of it, which NumPy takes faster than
        Python numbers (0.45 against 0.76 us for a small product).
        """
        key = ("direct", functions.name, dtype, reuse)
        compiled = self._compiled.get(key)
        if compiled is None:
            source, constants = _direct_source(
                self.outputs, self.inputs, self.full if reuse else ()
            )
            compiled = self._compiled[key] = compile_program(source, functions, constants, dtype)
        return compiled

    def for_small(self, functions) -> Callable:
        """``direct`` for arrays of which some have dimensions, as ``small`` from now on."""
        self.small = self.direct(functions)
        return self.small

    def block(self, functions, in_place: Sequence[str | None], dtype=None):
        """``(f, float scratch arrays, bool scratch arrays)``; output k overwrites
        ``in_place[k]``."""
        key = ("block", functions.name, dtype, tuple(in_place))
        compiled = self._compiled.get(key)
        if compiled is None:
            source, constants, floats, bools = _block_source(self.outputs, self.inputs, in_place)
            function = compile_program(source, functions, constants, dtype)
            compiled = self._compiled[key] = (function, floats, bools)
        return compiled

    def result_shape(self, arrays: Sequence, positions: Sequence[int]) -> tuple[int, ...] | None:
        """The shape of the results for arrays that are the inputs at some positions, if all results
        have the same; None if not, or if the arrays do not broadcast (the caller has the words)."""
        shape = arrays[0].shape
        if all(a.shape == shape for a in arrays):
            return shape
        try:
            shape = np.broadcast_shapes(*[a.shape for a in arrays])
        except ValueError:
            return None
        shapes = {self.inputs[k]: a.shape for a, k in zip(arrays, positions, strict=True)}
        for e in self.outputs:
            read = [shapes[name] for name in inputs_of([e]) if name in shapes]
            if shape not in read and np.broadcast_shapes(*read) != shape:
                return None
        return shape


def compile_program(source: str, functions, constants: dict, dtype, **names):
    """The function ``program`` of a source; constants become arrays of a dtype if one is given."""
    namespace = {**functions.table, **names}
    for name, value in constants.items():
        if dtype is not None:  # CuPy takes scalars faster than arrays, and copies nothing
            value = np.array(value, dtype) if functions.xp is np else dtype.type(value)
        namespace[name] = value
    exec(compile(source, "<gpugrad array program>", "exec"), namespace)
    function = namespace["program"]
    function.source = source
    return function


def _chooses_constants(e: Expr) -> bool:
    """Whether it is a choice between constants. Python numbers alone make float64 arrays, whatever
    the dtype of the arrays around them."""
    return e.op == "where" and all(a.op == "const" or _chooses_constants(a) for a in e.args[1:])


class _Names:
    """The text of operands: inputs and temporaries by name, constants as ``c0``, ``c1`` ..."""

    def __init__(self, order: Sequence[Expr]):
        self.of = {id(e): e.args[0] for e in order if e.op == "input"}
        self.constants: dict[str, object] = {}

    def __call__(self, e: Expr) -> str:
        if e.op == "const" and id(e) not in self.of:
            self.of[id(e)] = name = f"c{len(self.constants)}"
            self.constants[name] = e.args[0]
        return self.of[id(e)]


BOOLEAN = {
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
    "isnan",
    "isinf",
    "isfinite",
}


# Their results have one column (rows.py).
REDUCTIONS = ("row_sum", "row_mean", "row_max")


def _last_uses(order: list[Expr], outputs: Sequence[Expr]) -> dict[int, int]:
    last: dict[int, int] = {}
    for position, e in enumerate(order):
        if e.op not in ("input", "const"):
            for a in e.args:
                last[id(a)] = position
    for e in outputs:
        last[id(e)] = len(order)
    return last


def _direct_source(outputs, inputs, full) -> tuple[str, dict]:
    lines, results, constants = straight_line(outputs, full)
    returned = results[0] if len(results) == 1 else f"[{', '.join(results)}]"
    head, tail = f"def program({', '.join(inputs)}):", f"    return {returned}"
    return "\n".join([head, *lines, tail]), constants


def straight_line(outputs, full=()) -> tuple[list[str], list[str], dict]:
    """The statements that compute the outputs, the text of each output, and the constants by name.

    Temporaries known to have the shape of the inputs in ``full`` are overwritten once they die.
    """
    order = topological(outputs)
    last = _last_uses(order, outputs)
    names = _Names(order)
    is_full = {id(e): e.op == "input" and e.args[0] in full for e in order}
    lines, owned = [], {}  # owned: temporaries of the program itself that may be overwritten
    for position, e in enumerate(order):
        if e.op in ("input", "const"):
            continue
        reduces = e.op in REDUCTIONS
        is_full[id(e)] = not reduces and any(is_full[id(a)] for a in e.args)
        boolean = e.op in BOOLEAN
        target = None
        for a in () if reduces else e.args:
            if last.get(id(a)) == position and owned.get(id(a)) == boolean and is_full[id(a)]:
                target = names(a)
                break
        arguments = [names(a) for a in e.args] + ([target] if target else [])
        name = target or f"t{position}"
        lines.append(f"    {name} = {e.op}({', '.join(arguments)})")
        names.of[id(e)] = name
        owned[id(e)] = boolean
    results = [repr(e.args[0]) if e.op == "const" else names(e) for e in outputs]
    return lines, results, names.constants


def _block_source(outputs, inputs, in_place) -> tuple[str, dict, int, int]:
    """Assign every value to an output or scratch register, reusing registers as values die."""
    order = topological(outputs)
    last = _last_uses(order, outputs)
    names = _Names(order)
    steps = [(p, e) for p, e in enumerate(order) if e.op not in ("input", "const")]
    home = _output_homes(outputs, order, last, in_place)
    free = {False: [], True: []}
    made = {False: 0, True: 0}
    where: dict[int, str] = {}
    lines = []
    for position, e in steps:
        boolean = e.op in BOOLEAN
        arguments = [names(a) for a in e.args]
        for a in dict.fromkeys(e.args):  # an elementwise step may overwrite its own operand
            if last.get(id(a)) == position and id(a) in where:
                free[a.op in BOOLEAN].append(where.pop(id(a)))
        target = home.get(id(e))
        if target is None:
            if free[boolean]:
                target = free[boolean].pop()
            else:
                target = f"{'b' if boolean else 's'}{made[boolean]}"
                made[boolean] += 1
            where[id(e)] = target
        lines.append(f"    {e.op}({', '.join([*arguments, target])})")
        names.of[id(e)] = target
    for k, e in enumerate(outputs):
        if names(e) != f"o{k}" and names(e) != in_place[k]:
            lines.append(f"    copyto(o{k}, {names(e)})")
    parameters = [*inputs, *[f"o{k}" for k in range(len(outputs))]]
    parameters += [f"s{i}" for i in range(made[False])] + [f"b{i}" for i in range(made[True])]
    source = "\n".join([f"def program({', '.join(parameters)}):", *(lines or ["    pass"])])
    return source, names.constants, made[False], made[True]


def _output_homes(outputs, order, last, in_place) -> dict[int, str]:
    """Outputs that may be computed straight into their array: not if that overwrites an input still
    to be read."""
    home: dict[int, str] = {}
    position_of = {id(e): p for p, e in enumerate(order)}
    for k, e in enumerate(outputs):
        if e.op in ("input", "const") or e.op in BOOLEAN or id(e) in home:
            continue
        overwritten = [i for i in order if i.op == "input" and i.args[0] == in_place[k]]
        if all(last.get(id(i), -1) <= position_of[id(e)] for i in overwritten):
            home[id(e)] = f"o{k}"
    return home


# ------------------------------------------------------------------------------------------------
# layouts


def merge_dimensions(shape, steps: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Sizes, and the steps of every array through them, with dimensions that every array walks
    through at one step made one; dimensions of size 1 are left out."""
    sizes: list[int] = []
    kept: list[list[int]] = [[] for _ in steps]
    for d, n in enumerate(shape):
        if n == 1:
            continue
        here = [s[d] for s in steps]
        if sizes and all(k[-1] == h * n for k, h in zip(kept, here, strict=True)):
            sizes[-1] *= n
            for k, h in zip(kept, here, strict=True):
                k[-1] = h
        else:
            sizes.append(n)
            for k, h in zip(kept, here, strict=True):
                k.append(h)
    return sizes, kept


class Cut(NamedTuple):
    """Blocks of rows: how far apart they are in every array, None where no one distance says it;
    sizes of one block, and the steps of every array through it."""

    steps: list[int | None]
    sizes: Sequence[int]
    strides: Sequence[Sequence[int]]


def cut_dimensions(shape, strides: Sequence[Sequence[int]], count: int) -> Cut | None:
    """Leading dimensions as ``count`` equal blocks; None where they cannot be cut so."""
    outer: list[tuple[int, list[int]]] = []  # sizes and strides of what is between blocks
    inner: list[tuple[int, list[int]]] = []
    for d, n in enumerate(shape):
        here = [s[d] for s in strides]
        if n == 1:
            continue
        if count == 1:
            inner.append((n, here))
        elif count % n == 0:
            outer.append((n, here))
            count //= n
        elif n % count == 0:
            outer.append((count, [s * (n // count) for s in here]))
            inner.append((n // count, here))
            count = 1
        else:
            return None
    if count != 1:
        return None
    steps: list[int | None] = []
    for k in range(len(strides)):
        uniform = all(a[k] == n * b[k] for (_, a), (n, b) in pairwise(outer))
        steps.append(outer[-1][1][k] if uniform else None)
    within = [[here[k] for _, here in inner] for k in range(len(strides))]
    return Cut(steps, [n for n, _ in inner], within)
