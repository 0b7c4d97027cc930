"""CUDA kernels of row programs: softmax, norms, losses and their gradients, one launch each.

A team of threads works on a row (kernels/rows.cuh). What is generated here from the expressions of
a ``RowProgram`` is the kernel around it: a pass over the row for every reduction that waits for
another one, and one for the results.

- rows of up to some thousand columns are loaded once and stay in registers; longer ones are read
  once per pass
- 16 bytes are loaded at once where columns and addresses allow it
- sums over rows (COLUMN, TOTAL) are made per group of rows and then over the groups. The groups
  depend on the shape alone: the same bits on every device
- float16 and bfloat16 are computed in float32
- an index that is no column is reported to ``backend/device_errors.py`` and 0 taken instead

Numbers may be Python's or arrays of one element, which the kernel reads: the cotangent of a loss
needs no trip to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..backend import cupy as backend
from ..backend import device_errors
from ..config import settings
from ..errors import KernelError
from . import cuda_module, cuda_reduce
from .cuda import TYPES, Scalars
from .cuda_module import Launcher, PreparedByDevice, Unsupported
from .rows import COLUMN, ELEMENT, EXACT, HOLE, INDEX, NUMBER, ROW, TOTAL, Schedule

if TYPE_CHECKING:
    from .rows import RowProgram

_OPERATORS = {"row_sum": "Sum", "row_mean": "Sum", "row_max": "Max"}
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_ACCESS = 16  # bytes a thread moves at once
# Registers (of 4 bytes) for the part of a row a thread keeps; twice that leaves room for the rest
# of a kernel below 128, which 512 threads may have.
_REGISTERS = 48
# Columns of a thread, at most: kernels are unrolled over them. With 16 of float64 the logarithm of
# a sum of exponentials takes more than 128 registers on sm_100.
_ITEMS = {"float64": 8}
_MOST_ITEMS = 32
_LARGEST_TEAM = 512
_SMALL_BLOCK = 128  # threads of a block of several teams
# Groups of rows for sums over them: four blocks for each multiprocessor of the largest devices, and
# enough rows in each that storing the parts costs little.
_GROUPS = 512
_ROWS_OF_TEAM = 4
_PLANS = 256  # plans a program keeps: for so many shapes
_LONGEST = 1 << 31


class Variant(NamedTuple):
    """What the text of a kernel depends on beside the program."""

    dtype: str
    width: int  # neighbouring columns a thread takes at once
    team: int  # threads of a row
    packs: int  # so many such for each thread, kept in registers; 0: any number, read in each pass
    parts: bool  # whether sums over rows are parts of groups, in the type of arithmetic
    numbers: tuple[str, ...]  # C++ types: double, or T, or C of arrays of one element


# ------------------------------------------------------------------------------------------------
# text


class _Scope(Scalars):
    """Statements of a block of code within another one, whose values it sees."""

    def nested(self) -> _Scope:
        inner = _Scope(self.names, self.booleans)
        inner._texts, inner._keep = dict(self._texts), list(self._keep)
        return inner


class _Writer:
    """Writes ``rows(arrays..., numbers..., outputs..., count, columns, step[, record, site[,
    hole]])``; numbers that are arrays come before the others."""

    def __init__(self, rows: RowProgram, schedule: Schedule, variant: Variant):
        self.rows, self.schedule, self.variant = rows, schedule, variant
        self.outputs = [(f"out{k}", kind, e) for k, (kind, e) in enumerate(rows.outputs)]
        self.arrays = [n for n, kind in rows.inputs.items() if kind not in (NUMBER, HOLE)]
        numbers = [n for n, kind in rows.inputs.items() if kind == NUMBER]
        self.numbers = dict(zip(numbers, variant.numbers, strict=True))
        self.used = rows.program.used
        self.kept = _kept(rows, schedule) if variant.packs else []
        self.scope = _Scope({n: f"v_{n}" for n in (*rows.inputs, "position")})
        self.lines: list[str] = []
        self.depth = 0

    # ---- lines

    def put(self, *lines: str) -> None:
        self.lines += ["  " * self.depth + line if line[:1] != "#" else line for line in lines]

    def open(self, line: str) -> None:
        self.put(line + " {")
        self.depth += 1

    def close(self, count: int = 1) -> None:
        for _ in range(count):
            self.depth -= 1
            self.put("}")

    # ---- the kernel

    def text(self) -> str:
        v = self.variant
        wide = v.dtype == "float64"
        packs = f", PACKS = {v.packs}" if v.packs else ""
        self.put(
            '#include "rows.cuh"',
            f"typedef {TYPES[v.dtype]} T;  // elements",
            f"typedef {'double' if wide else 'float'} C;  // arithmetic",
            f"typedef {'C' if v.parts else 'T'} P;  // sums over rows",
            f"constexpr int TEAM = {v.team}, WIDTH = {v.width}{packs};",
            "",
            "typedef Team<TEAM> Threads;",
            'extern "C" __global__ void __launch_bounds__(Threads::BLOCK, Threads::BLOCKS) rows(',
            f"    {', '.join(self._parameters())}) {{",
        )
        self.depth += 1
        self.put(
            "const int columns = int(width), lane = Threads::lane();",
            "const long long first = blockIdx.x * step, last = min(first + step, count);",
        )
        self._declare()
        self.open("for (long long base = first; base < last; base += Threads::ROWS)")
        self._row()
        self.close()
        self._store_sums()
        self.close()
        return "\n".join([*self.lines, ""])

    def _parameters(self) -> list[str]:
        kinds = self.rows.inputs
        types = {n: "long long" if kinds[n] == INDEX else "T" for n in self.arrays}
        found = [f"const {types[n]}* __restrict__ x_{n}" for n in self.arrays]
        found += [f"const {t}* x_{n}" for n, t in self.numbers.items() if t != "double"]
        found += [f"double x_{n}" for n, t in self.numbers.items() if t == "double"]
        for name, kind, _ in self.outputs:
            found.append(f"{'P' if kind in (COLUMN, TOTAL) else 'T'}* __restrict__ {name}")
        found += ["long long count", "long long width", "long long step"]
        if INDEX in kinds.values():
            found += ["ErrorRecord* record", "long long site"]
        if HOLE in kinds.values():
            found.append("long long hole")
        return found

    def _declare(self) -> None:
        """What lives through all rows."""
        v = self.variant
        for n, type in self.numbers.items():
            value = f"C(x_{n})" if type == "double" else f"widen(*x_{n})"
            self.put(f"const C v_{n} = {value};")
        if v.team > 32 and self.schedule.passes:
            most = max(map(len, self.schedule.reductions))
            self.put(f"__shared__ C scratch[2][{most}][TEAM / 32];", "int turn = 0;")
        for name, kind, _ in self.outputs:
            if kind == TOTAL:
                self.put(f"C s_{name} = C(0);")
            elif kind == COLUMN and v.packs:
                self.put(f"C s_{name}[PACKS][WIDTH] = {{}};")

    def _row(self) -> None:
        s = self.schedule
        self.put(
            "const long long row = base + Threads::row();",
            "const bool active = row < last;  // all threads take part in reductions",
            "const int limit = active ? columns : 0;",
            "const long long start = row * columns;",
        )
        self._row_inputs()
        self._keep()
        for level in range(s.passes + 1):
            for e in s.order:
                constant = e.op not in ("input", "const") and not s.varies[e]
                if constant and s.level[e] == level and id(e) not in self.scope._texts:
                    self.put(self.scope.statement(e))
            if level < s.passes:
                self._reduce(level)
        self._results()

    def _row_inputs(self) -> None:
        for n, kind in self.rows.inputs.items():
            if n not in self.used:
                continue
            if kind == ROW:
                self.put(f"const C v_{n} = active ? widen(x_{n}[row]) : C(0);")
            elif kind == INDEX:
                self._index(n)

    def _index(self, n: str) -> None:
        label = f"checked_label(i_{n}, columns, record, site)"
        if HOLE in self.rows.inputs.values():
            label = f"(i_{n} == hole ? -1 : {label})"
        self.put(f"const long long i_{n} = active ? x_{n}[row] : 0;")
        self.put(f"const C v_{n} = C({label});")

    def _keep(self) -> None:
        """Load what stays in registers."""
        if not self.kept:
            return
        self.put(*[f"Pack<T, WIDTH> k_{n}[PACKS];" for n in self.kept])
        self._open_sweep()
        for n in self.kept:
            self.put(f"k_{n}[p] = load_pack<WIDTH>(x_{n} + start + column);")
        self.close(2)

    def _open_sweep(self) -> None:
        """The loop over the packs of a thread."""
        if self.variant.packs:
            self.put("#pragma unroll")
            self.open("for (int p = 0; p < PACKS; ++p)")
            self.put("const int column = (p * TEAM + lane) * WIDTH;")
            self.open("if (column < limit)")
        else:
            self.open("for (int column = lane * WIDTH; column < limit; column += TEAM * WIDTH)")
            self.open("")

    def _open_columns(self, level: int) -> _Scope:
        """The loop over the columns of a thread, with the inputs a pass needs."""
        needed = [e.args[0] for e in self.schedule.needed[level] if e.op == "input"]
        self._open_sweep()
        for n in needed:
            if n != "position" and n not in self.kept:
                place = "start + column" if self.rows.inputs[n] == ELEMENT else "column"
                self.put(f"const Pack<T, WIDTH> k_{n} = load_pack<WIDTH>(x_{n} + {place});")
        if level == self.schedule.passes:
            elements = [name for name, kind, _ in self.outputs if kind == ELEMENT]
            self.put(*[f"Pack<T, WIDTH> y_{name};" for name in elements])
        self.put("#pragma unroll")
        self.open("for (int k = 0; k < WIDTH; ++k)")
        for n in needed:
            value = f"widen(k_{n}{'[p]' * (n in self.kept)}.at[k])"
            self.put(f"const C v_{n} = {'C(column + k)' if n == 'position' else value};")
        scope, wanted = self.scope.nested(), {id(e) for e in self.schedule.needed[level]}
        computed = [e for e in self.schedule.order if id(e) in wanted and e.op != "input"]
        self.put(*[scope.statement(e) for e in computed])
        return scope

    def _reduce(self, level: int) -> None:
        """One pass for all reductions of a level."""
        found = self.schedule.reductions[level]
        operators = [_OPERATORS[e.op] for e in found]
        sums = f"a{level}"
        start = ", ".join(f"{o}::identity<C>()" for o in operators)
        self.put(f"C {sums}[{len(found)}] = {{{start}}};")
        scope = self._open_columns(level)
        for k, (e, operator) in enumerate(zip(found, operators, strict=True)):
            self.put(f"{sums}[{k}] = {operator}::of({sums}[{k}], {scope.real(e.args[0])});")
        self.close(3)
        scratch = ", scratch, turn" if self.variant.team > 32 else ""
        self.put(f"reduce_team<TEAM, {', '.join(operators)}>({sums}{scratch});")
        for k, e in enumerate(found):
            mean = " / C(columns)" if e.op == "row_mean" else ""
            self.put(self.scope.define(e, f"{sums}[{k}]{mean}"))

    def _results(self) -> None:
        for name, kind, e in self.outputs:
            if kind == ROW:
                value = f"narrow<T>({self.scope.real(e)})"
                self.put(f"if (active && lane == 0) {name}[row] = {value};")
            elif kind == TOTAL:
                self.put(f"if (active) s_{name} += {self.scope.real(e)};")
        if not self.schedule.results:
            return
        scope = self._open_columns(self.schedule.passes)
        for name, kind, e in self.outputs:
            if kind == ELEMENT:
                self.put(f"y_{name}.at[k] = narrow<T>({scope.real(e)});")
            elif kind == COLUMN and self.variant.packs:
                self.put(f"s_{name}[p][k] += {scope.real(e)};")
            elif kind == COLUMN:  # no other thread sees this column
                self.put(f"P& sum_{name} = {name}[blockIdx.x * width + column + k];")
                old = f"(base == first ? C(0) : widen(sum_{name}))"
                self.put(f"sum_{name} = narrow<P>({old} + {scope.real(e)});")
        self.close()
        for name, kind, _ in self.outputs:
            if kind == ELEMENT:
                self.put(f"store_pack({name} + start + column, y_{name});")
        self.close(2)

    def _store_sums(self) -> None:
        """Of the rows of the block."""
        kinds = [kind for _, kind, _ in self.outputs]
        columns = COLUMN in kinds and self.variant.packs
        several = self.variant.team <= 32
        if columns and several:
            self.put("__shared__ C parts[Threads::BLOCK * PACKS * WIDTH];")
        if TOTAL in kinds:
            self.put("__shared__ C totals[32];")
        for name, kind, _ in self.outputs:
            if kind == COLUMN and columns:
                scratch = "parts" if several else "(C*)nullptr"
                place = f"{name} + blockIdx.x * width"
                self.put(f"store_columns<TEAM>({place}, s_{name}, columns, {scratch});")
            elif kind == TOTAL:
                self.put(f"store_total<TEAM>({name} + blockIdx.x, s_{name}, totals);")


def _kept(rows: RowProgram, schedule: Schedule) -> list[str]:
    """The inputs of elements that several passes read."""
    found = []
    for name, kind in rows.inputs.items():
        needed = [[e.args[0] for e in p if e.op == "input"] for p in schedule.needed]
        if kind == ELEMENT and sum(name in names for names in needed) > 1:
            found.append(name)
    return found


# ------------------------------------------------------------------------------------------------
# plans and calls


def _team(
    rows: RowProgram, schedule: Schedule, dtype: str, columns: int, width: int
) -> tuple[int, int]:
    """Threads for a row of a length, and packs of each."""
    size = _BYTES[dtype]
    kept, sums = len(_kept(rows, schedule)), [kind for kind, _ in rows.outputs].count(COLUMN)
    registers = (kept or 1) * size / 4 + sums * max(size / 4, 1)  # for a column
    most = min(_REGISTERS / registers, _ITEMS.get(dtype, _MOST_ITEMS)) / width
    most = 1 << max(int(most).bit_length() - 1, 0)
    packs = -(-columns // width)
    team = _power_of_two(packs if packs <= 32 else max(32, -(-packs // most)))
    if team > _LARGEST_TEAM:
        return _LARGEST_TEAM, 0
    return team, _power_of_two(-(-packs // team))


def _power_of_two(n: int) -> int:
    """The smallest that is not less."""
    return 1 << max(n - 1, 0).bit_length()


def _groups(rows: RowProgram, count: int, team: int) -> tuple[int, int]:
    """Groups of rows, and the rows of a group."""
    at_a_time = _SMALL_BLOCK // team if team <= 32 else 1
    if not any(kind in (COLUMN, TOTAL) for kind, _ in rows.outputs):
        return -(-count // at_a_time), at_a_time
    step = max(-(-count // _GROUPS), at_a_time * _ROWS_OF_TEAM)
    step = -(-step // at_a_time) * at_a_time
    return -(-count // step), step


class Kernels:
    """The kernels of a program, and how they are called for shapes and dtypes."""

    def __init__(self, rows: RowProgram, array: type | None):
        self.rows, self.schedule = rows, Schedule(rows)
        self.launchers: dict[Variant, Launcher] = {}
        self.plans: dict = {}
        self.array = array  # of CuPy
        self.numbers = [k for k, kind in enumerate(rows.inputs.values()) if kind == NUMBER]
        self.broken = False  # a kernel did not build, which has been said
        self.calls: dict[tuple[bool, ...], Callable] = {}  # by which numbers are arrays

    def __call__(self, args: Sequence) -> list | None:
        """The outputs, or None where CuPy must compute them."""
        if self.broken or not settings.cuda_kernels:
            return None
        x = args[0]
        key = (x.shape, x.dtype)
        for k in self.numbers:
            key += (args[k].dtype if args[k].__class__ is self.array else None,)
        plan = self.plans.get(key)
        if plan is None:
            if len(self.plans) >= _PLANS:
                self.plans.clear()
            plan = self.plans[key] = self._plan(args)
        if not plan:
            return None
        try:
            return plan[0](plan, *args)
        except KernelError as error:
            self.broken = True
            cuda_module.report(error, "a function of rows")
            return None

    def _plan(self, args: Sequence) -> tuple:
        """What ``_call_source`` needs to know; empty if there is no kernel."""
        x, rows = args[0], self.rows
        dtype = str(x.dtype)
        if not x.size or dtype not in TYPES or dtype == "bool" or not cuda_module.enabled():
            return ()
        columns = x.shape[-1]
        exact = not rows.reads_position or columns <= EXACT or dtype == "float64"
        if columns >= _LONGEST or not exact:
            return ()
        widest = next(w for w in (8, 4, 2, 1) if w * x.itemsize <= _ACCESS and columns % w == 0)
        try:
            numbers = tuple(self._number_type(x, args[k]) for k in self.numbers)
            ways = [self._way(x, width, numbers) for width in dict.fromkeys((widest, 1))]
        except Unsupported:
            return ()
        shapes = zip(rows.inputs.values(), rows.shapes(x.shape), strict=True)
        wanted = [shape for kind, shape in shapes if kind not in (NUMBER, HOLE)]
        call = self._call(tuple(number != "double" for number in numbers))
        return (call, x.dtype, widest * x.itemsize - 1, ways[0], ways[-1], *wanted)

    def _call(self, arrays: tuple[bool, ...]) -> Callable:
        """The function that checks the arguments and launches the kernel."""
        found = self.calls.get(arrays)
        if found is None:
            names = {
                "float": float,
                "ndarray": self.array,
                "empty": backend.empty,
                "contiguous": _contiguous,
                "sum_parts": cuda_reduce.sum_parts,
                "record": device_errors.record,
                "site": device_errors.site,
                "complaint": self.rows.complaint,
            }
            source = _call_source(self.rows, arrays)
            exec(compile(source, "<gpugrad CUDA row program>", "exec"), names)
            found = self.calls[arrays] = names["call"]
        return found

    def _number_type(self, x, number) -> str:
        if number.__class__ is not self.array:
            return "double"
        if number.dtype == x.dtype:
            return "T"
        if number.dtype == "float32" and x.itemsize == 2:
            return "C"
        raise Unsupported(f"a number of type {number.dtype}")

    def _way(self, x, width: int, numbers: tuple[str, ...]) -> tuple:
        """How it is launched, whether there are parts, and shape and dtype of each output."""
        rows, dtype = self.rows, str(x.dtype)
        columns = x.shape[-1]
        count = x.size // columns
        team, packs = _team(rows, self.schedule, dtype, columns, width)
        groups, step = _groups(rows, count, team)
        sums = any(kind in (COLUMN, TOTAL) for kind, _ in rows.outputs)
        # long rows are summed in memory, which must not be of half precision
        parts = sums and (groups > 1 or (not packs and x.itemsize < 4))
        arithmetic = x.dtype if x.itemsize >= 4 else "float32"
        outputs = []
        for shape, (kind, _) in zip(rows.output_shapes(x.shape, 1), rows.outputs, strict=True):
            part = parts and kind in (COLUMN, TOTAL)
            outputs += [(groups, *shape) if part else shape, arithmetic if part else x.dtype]
        launcher = self.launcher(Variant(dtype, width, team, packs, parts, numbers))
        block = team if team > 32 else _SMALL_BLOCK
        sizes = (count, columns, step)
        if INDEX in rows.inputs.values():  # has an argument that varies
            return ((launcher, (groups,), (block,), sizes), parts, *outputs)
        launch = PreparedByDevice(launcher, groups, block, numbers.count("double"), sizes)
        return (launch, parts, *outputs)

    def launcher(self, variant: Variant) -> Launcher:
        found = self.launchers.get(variant)
        if found is None:
            text = _Writer(self.rows, self.schedule, variant).text()
            found = self.launchers[variant] = cuda_module.load(text, "rows", "rows.cu")
        return found


def _contiguous(array):
    return backend.cupy().ascontiguousarray(array)


def _call_source(rows: RowProgram, arrays_of_numbers: tuple[bool, ...]) -> str:
    """The function that checks the arguments of a program and launches its kernel, written out. For
    the gradient of a softmax it reads

        def call(plan, g, y):
            _, dtype, mask, aligned, unaligned, shape_g, shape_y = plan
            if not (g.__class__ is ndarray and g.shape == shape_g and ...): return None
            if not g._c_contiguous: g = contiguous(g)
            ...
            way = unaligned if (g.data.ptr | y.data.ptr) & mask else aligned
            launch, parts, shape_out0, type_out0 = way
            out0 = empty(shape_out0, type_out0)
            launch[out0.data.device_id]((g, y), (), (out0,))
            return [out0]
    """
    kinds, outputs = rows.inputs, [f"out{k}" for k in range(len(rows.outputs))]
    arrays = [name for name, kind in kinds.items() if kind not in (NUMBER, HOLE)]
    indices = [name for name in arrays if kinds[name] == INDEX]
    numbers = [name for name, kind in kinds.items() if kind == NUMBER]
    of_numbers = [n for n, is_array in zip(numbers, arrays_of_numbers, strict=True) if is_array]
    reals = [n for n in numbers if n not in of_numbers]
    holes = [name for name, kind in kinds.items() if kind == HOLE]
    head = ["_", "dtype", "mask", "aligned", "unaligned", *[f"shape_{a}" for a in arrays]]
    lines = [f"def call(plan, {', '.join(kinds)}):", f"    {', '.join(head)} = plan"]
    for a in arrays:
        dtype = f"{a}.dtype.kind in 'iu'" if a in indices else f"{a}.dtype == dtype"
        fits = f"{a}.__class__ is ndarray and {a}.shape == shape_{a} and {dtype}"
        lines.append(f"    if not ({fits}): return None")
        if a in indices:
            lines.append(f"    if {a}.dtype.itemsize < 8: {a} = {a}.astype('int64')")
        lines.append(f"    if not {a}._c_contiguous: {a} = contiguous({a})")
    address = " | ".join(f"{a}.data.ptr" for a in arrays if a not in indices)
    lines.append(f"    way = unaligned if ({address}) & mask else aligned")
    results = ", ".join(f"shape_{o}, type_{o}" for o in outputs)
    lines.append(f"    launch, parts, {results} = way")
    lines += [f"    {o} = empty(shape_{o}, type_{o})" for o in outputs]
    given, doubles = _sequence([*arrays, *of_numbers]), _sequence([f"float({n})" for n in reals])
    if indices:
        lines.append("    kernel, grid, block, sizes = launch")
        last = ", ".join(["record()", "site(complaint)", *holes])
        everything = f"(*{given}, *{doubles}, *{_sequence(outputs)}, *sizes, {last})"
        lines.append(f"    kernel(grid, block, {everything})")
    else:
        device = "out0.data.device_id"
        lines.append(f"    launch[{device}]({given}, {doubles}, {_sequence(outputs)})")
    sums = [o for o, (k, _) in zip(outputs, rows.outputs, strict=True) if k in (COLUMN, TOTAL)]
    if sums:
        lines.append("    if parts:")
        lines += [f"        {o} = sum_parts({o}, dtype)" for o in sums]
    lines.append(f"    return [{', '.join(outputs)}]")
    return "\n".join(lines)


def _sequence(names: Sequence[str]) -> str:
    """The text of a tuple."""
    return f"({''.join(f'{n}, ' for n in names)})"


def texts(rows: RowProgram) -> Iterator[tuple[str, str, str]]:
    """``(name, source, function)`` of the kernels of a program, in representative variants."""
    kernels = Kernels(rows, None)
    sums = any(kind in (COLUMN, TOTAL) for kind, _ in rows.outputs)
    for dtype, columns, width in (
        ("float32", 33, 1),
        ("float32", 1024, 4),
        ("float32", 1 << 20, 4),
        ("float16", 1024, 8),
        ("bfloat16", 10, 2),
        ("float64", 1000, 2),
    ):
        team, packs = _team(rows, kernels.schedule, dtype, columns, width)
        numbers = ("double",) if columns == 1024 else ("T",)
        numbers *= list(rows.inputs.values()).count(NUMBER)
        variant = Variant(dtype, width, team, packs, sums and columns > 32, numbers)
        yield f"{dtype} of {columns} columns", kernels.launcher(variant).text, "rows"
