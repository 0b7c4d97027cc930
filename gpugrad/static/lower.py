"""From nodes of a graph to native tasks (``codegen/tasks.py``).

``lower(node, arrays)`` gives the tasks that compute a node from arrays that are its inputs into
arrays that are its outputs, or None where there is no kernel and Python must call NumPy. The arrays
stay where they are for the life of a program; numbers that change at every call are reported, with
the place in a task's numbers where each is expected.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from ..backend.arrays import _ndarray
from ..backend.numpy import xp as np
from ..codegen import (
    calls,
    convert,
    convolution,
    gemm,
    llvm,
    moves,
    pooling,
    rows,
    sums,
    vector_math,
)
from ..codegen.arrays import Program
from ..codegen.convolution_epilogues import PLAIN, Epilogue, describe
from ..codegen.expr import build, variable
from ..codegen.ir import Code
from ..codegen.machine import Machine, machine
from ..codegen.rows import (
    COLUMN,
    ELEMENT,
    HOLE,
    INDEX,
    NUMBER,
    ROW,
    TOTAL,
    RowProgram,
    row_max,
    row_sum,
)
from ..codegen.shares import parameters
from ..codegen.tasks import Operand, Rows, Task
from .graph import (
    CheckCall,
    EpilogueCall,
    Node,
    OpCall,
    PrologueCall,
    RowsCall,
    Value,
    expression_of,
)

_BOOL = np.dtype("bool")
_INT64 = np.dtype("int64")
# Elements of elementwise work from which threads share it.
PARALLEL = 1 << 16
# What an element of a program over rows takes, about.
NANOSECONDS = 1.0
# Tasks that one node may be cut into.
MOST_TASKS = 64


class Lowered(NamedTuple):
    """Tasks of a node. ``numbers`` are (value, table, place) for numbers that come with a call;
    ``scalars`` are (array, table, place) for numbers that the program computes; ``status`` are
    (table, message) whose first word is not 0 after an index out of range."""

    tasks: list[Task]
    numbers: list[tuple[Value, array, int]]
    status: list[tuple[array, str]]


Arrays = Callable[[Any], Any]  # the array of a value; numbers, None and Meta as they are


def _compiler() -> Machine:
    """The compiler, which there is where anything is lowered."""
    found = machine()
    assert found is not None
    return found


def lower(node: Node, of: Arrays) -> Lowered | None:
    """The tasks of a node, or None."""
    if machine() is None:
        return None
    outputs = [of(v) for v in node.outputs]
    program = expression_of(node)
    if program is not None:
        return _elementwise(program, node.inputs, of, outputs)
    call = node.call
    if call.__class__ is RowsCall:
        return _rows(call.program, node.inputs, of, outputs)
    if call.__class__ is EpilogueCall:
        return _with_epilogue(call, node.inputs, of, outputs)
    if call.__class__ is PrologueCall:
        return _with_prologue(call, node.inputs, of, node.outputs)
    if call.__class__ is CheckCall:
        return _check(call, of(node.inputs[0]))
    if call.__class__ is OpCall:
        found = _OPERATIONS.get(call.op.name)
        if found is not None:
            inputs = [of(i) for i in node.inputs]
            if all(i.__class__ in (_ndarray, gemm.Computed) for i in inputs):
                return found(*inputs, *outputs, **call.params)
    return None


def knows(op) -> bool:
    """Whether there are tasks for an operation, for some arrays at least."""
    return op.name in _OPERATIONS


def _plain(tasks: list[Task | None]) -> Lowered | None:
    return None if None in tasks else Lowered(tasks, [], [])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------
# elementwise


def _elementwise(program: Program, inputs: Sequence, of: Arrays, outputs: list) -> Lowered | None:
    args, changing = _arguments(inputs, of)
    tasks = elementwise_tasks(program, args, outputs)
    if tasks is None:
        return None
    places = _places(args, program.inputs, program)
    numbers = [(v, t.numbers, places[k]) for t in tasks for v, k in changing if k in places]
    return Lowered(tasks, numbers, [])


def _arguments(inputs: Sequence, of: Arrays) -> tuple[list, list[tuple[Value, int]]]:
    """Arrays and numbers for inputs, and which of them are numbers that come with a call."""
    args: list = []
    changing = []
    for k, i in enumerate(inputs):
        if i.__class__ is Value and i.dtype is None:
            args.append(0.0)
            changing.append((i, k))
        else:
            args.append(of(i))
    return args, changing


def _places(args: Sequence, names: Sequence[str], program: Program) -> dict[int, int]:
    """The place of each number among those that a program reads."""
    order = [k for k, (a, n) in enumerate(zip(args, names, strict=True))
             if a.__class__ is not _ndarray and n in program.used]  # fmt: skip
    return {k: place for place, k in enumerate(order)}


def elementwise_tasks(program: Program, args: Sequence, outputs: list) -> list[Task] | None:
    """A program over arrays and numbers, into arrays that may be inputs themselves: one task, or
    one for each index of the first dimension where the strides need a loop too many."""
    task = elementwise_task(program, args, outputs)
    if task is not None:
        return [task]
    shape = outputs[0].shape
    if len(shape) < 4 or not 0 < shape[0] <= MOST_TASKS or any(o.shape != shape for o in outputs):
        return None
    tasks: list[Task] = []
    for k in range(shape[0]):
        part = [_slice(a, k, len(shape)) for a in args]
        found = elementwise_tasks(program, part, [o[k] for o in outputs])
        if found is None or len(tasks) + len(found) > MOST_TASKS:
            return None
        tasks += found
    return tasks


def _slice(a, k: int, ndim: int):
    """An argument at one index of the first of ``ndim`` dimensions it is broadcast to."""
    if a.__class__ is not _ndarray or a.ndim < ndim:
        return a
    return a[0 if a.shape[0] == 1 else k]


def elementwise_task(program: Program, args: Sequence, outputs: list) -> Task | None:
    """A program over arrays and numbers as one task; None if it has no kernel."""
    plan = llvm.plan_into(program, args, outputs)
    if plan is None:
        return None
    table = _table_of(plan, args, outputs)
    try:
        numbers = array("d", [args[k] for k in plan.numbers])
    except OverflowError:
        return None
    parts = 1 if plan.size < PARALLEL else min(64, plan.size >> 13)
    task = Task(_address(plan.kernel), table, numbers, parts, (args, outputs))
    return task._replace(rows=_rows_of(program, args, plan, outputs, task))


def _table_of(plan: llvm.Into, args: Sequence, outputs: list) -> array:
    """The table of a plan for these arrays."""
    table = plan.table[:]
    for place, a in zip(plan.places, [*[args[k] for k in plan.positions], *outputs], strict=True):
        table[place] = id(a)
    return table


def _rows_of(
    program: Program, args: Sequence, plan: llvm.Into, outputs: list, task: Task
) -> Rows | None:
    """Every element of elementwise work is computed from its like."""
    shape = outputs[0].shape
    if len(shape) < 2:
        return None

    def cut(count: int) -> Task | None:
        found = llvm.plan_into(program, args, outputs, count)
        if found is None:
            return None
        table = _table_of(found, args, outputs)
        return task._replace(function=_address(found.kernel), table=table)

    def operand(a, written: bool) -> Operand:
        *lead, last = llvm.strides_in(a.shape, a.strides, len(shape))
        return Operand(a, tuple(lead), (shape[-1] - 1) * last + a.itemsize, written)

    read = [operand(args[k], False) for k in plan.positions]
    operands = *read, *[operand(o, True) for o in outputs]
    return Rows(shape[:-1], operands, cut, plan.size * vector_math.nanoseconds(program))


def _address(function) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_X = variable("x")
_COPY = Program([build("positive", _X)], ["x"], ["x"])


def copy_task(source, target) -> Task | None:
    """The task that copies an array into another of the same shape and dtype."""
    if source.dtype != target.dtype:
        return None
    return elementwise_task(_COPY, [source], [target]) or moves.copy(source, target)


# ------------------------------------------------------------------------------------------------
# rows


def _rows(program: RowProgram, inputs: Sequence, of: Arrays, outputs: list) -> Lowered | None:
    kinds = list(program.inputs.values())
    args: list = []
    changing = []
    for i, kind in zip(inputs, kinds, strict=True):
        if kind == NUMBER and i.__class__ is Value and i.dtype is None:
            changing.append((i, sum(k == NUMBER for k in kinds[: len(args)])))
            args.append(0.0)
        else:
            args.append(of(i))
    return rows_task(program, args, outputs, changing)


def rows_task(program: RowProgram, args: list, outputs: list, changing=()) -> Lowered | None:
    """A program over rows of arrays."""
    kinds = list(program.inputs.values())
    x = args[0]
    if x.__class__ is not _ndarray or not x.size or HOLE in kinds:
        return None
    kernel = program._kernel(x.dtype, x.shape[-1])
    if kernel is None:
        return None
    arrays, scalars = [], []
    numbers: list[float] = []
    for a, kind, shape in zip(args, kinds, program.shapes(x.shape), strict=True):
        if kind == NUMBER:
            if a.__class__ is _ndarray:
                if a.dtype != x.dtype or a.size != 1:
                    return None
                scalars.append((a, len(numbers)))
                a = 0.0
            numbers.append(a)
            continue
        dtype = _INT64 if kind == INDEX else x.dtype
        if a.__class__ is not _ndarray or a.shape != shape or a.dtype != dtype:
            return None
        if not a.flags.c_contiguous:
            return None
        arrays.append(a)
    columns = x.shape[-1]
    count, step = x.size // columns, max(1, rows.GROUP // columns)
    groups = -(-count // step)
    wanted = program.output_shapes(x.shape, groups)
    targets = [
        o if o.shape == shape else np.empty(shape, x.dtype)
        for o, shape in zip(outputs, wanted, strict=True)
    ]
    if any(o.dtype != x.dtype or not o.flags.c_contiguous for o in targets):
        return None
    signature = "p" * (len(arrays) + len(targets)) + "d" * len(numbers) + "s"
    words = [*map(id, arrays), *map(id, targets), count, columns, step, groups]
    parts = 1 if x.size < rows.PARALLEL // 4 else min(groups, 64)
    task = calls.task(
        _compiler(), _address(kernel), signature, words, numbers,
        parts=parts, keep=(arrays, targets), status=True,
    )  # fmt: skip
    task = task._replace(rows=_by_rows(program, x, arrays, targets, task))
    before = [scalar_task(a, task.numbers, place) for a, place in scalars]
    after = []
    for target, output in zip(targets, outputs, strict=True):
        if target is not output:
            after.append(_sum_leading(target, output))
    if None in after:
        return None
    numbers_of = [(v, task.numbers, place) for v, place in changing]
    status = [(task.table, "an index is no column")] if INDEX in kinds else []
    return Lowered([*before, task, *after], numbers_of, status)  # type: ignore[list-item]


def _by_rows(program: RowProgram, x, arrays: list, targets: list, task: Task) -> Rows | None:
    """The rows of a program over rows; None where it sums over rows, in groups that depend on the
    shape alone, or looks for an index, which is reported in the task's own table."""
    kinds = [k for k in program.inputs.values() if k != NUMBER]
    of_outputs = [k for k, _ in program.outputs]
    if INDEX in kinds or not {*of_outputs} <= {ELEMENT, ROW}:
        return None
    columns, step = x.shape[-1], calls.FIRST_WORD + len(kinds) + len(of_outputs) + 2
    count = x.size // columns

    def cut(blocks: int) -> Task | None:
        if count % blocks:
            return None
        table = array("q", task.table)
        table[step : step + 2] = array("q", [count // blocks, blocks])  # rows of a group, groups
        return task._replace(table=table)

    def operand(a, kind: str, written: bool) -> Operand:
        width = a.itemsize if kind == ROW else columns * a.itemsize
        return Operand(a, (0 if kind == COLUMN else width,), width, written)

    operands = (
        *[operand(a, kind, False) for a, kind in zip(arrays, kinds, strict=True)],
        *[operand(a, kind, True) for a, kind in zip(targets, of_outputs, strict=True)],
    )
    return Rows((count,), operands, cut, x.size * NANOSECONDS)


@lru_cache(8)
def _scalar_kernel(element: str) -> int:
    code, compiler = Code(element, 1), _compiler()
    given = parameters(code)
    table = given[0]
    source = llvm._data(code, compiler, code.load(table, "ptr"))
    value = code.load(source, element)
    if element != "double":
        value = value.convert("fpext", "double")
    code.store(value, code.load(code.at(table, 1), "ptr"))
    return compiler.load(code.function("kernel", given))


def scalar_task(a, numbers: array, place: int) -> Task:
    """The task that puts the one element of an array among the numbers of another task."""
    address = numbers.buffer_info()[0] + 8 * place
    table = array("q", [id(a), address])
    return Task(_scalar_kernel(llvm.ELEMENTS[a.dtype]), table, array("d", [0.0]), 1, (a, numbers))


# ------------------------------------------------------------------------------------------------
# sums


_V = variable("x")
_SUM_OF_ROWS = RowProgram([(ROW, row_sum(_V))], {"x": ELEMENT})
_SUM_OF_COLUMNS = RowProgram([(COLUMN, build("positive", _V))], {"x": ELEMENT})
_SUM_OF_ALL = RowProgram([(TOTAL, row_sum(_V))], {"x": ELEMENT})
_SCALED = Program([build("mul", _V, variable("n"))], ["x", "n"], ["x"])


def _sum_leading(x, out) -> Task | None:
    """The sum over the first axis, of one for each group of rows."""
    return moves.sum_middle(x.reshape(1, x.shape[0], -1), out.reshape(1, -1))


def _reduce(x, axes: tuple[int, ...], out) -> Lowered | None:
    """The sum over some axes of a contiguous array; the output has any shape of its size."""
    if not x.size or not x.flags.c_contiguous or not out.flags.c_contiguous:
        return None
    axes = tuple(a for a in axes if x.shape[a] != 1)
    kept = tuple(a for a in range(x.ndim) if a not in axes and x.shape[a] != 1)
    target = out.reshape(-1)
    if not axes:
        return _plain([copy_task(x.reshape(-1), target)])
    if not kept:
        return rows_task(_SUM_OF_ALL, [x.reshape(1, -1)], [target.reshape(())])
    reduced = prod(x.shape[a] for a in axes)
    if max(kept) < min(axes):
        return rows_task(_SUM_OF_ROWS, [x.reshape(-1, reduced)], [target.reshape(-1, 1)])
    if max(axes) < min(kept):
        return rows_task(_SUM_OF_COLUMNS, [x.reshape(reduced, -1)], [target])
    if len(kept) == 1 and x.dtype in llvm.ELEMENTS:
        axis = kept[0]
        inner = prod(x.shape[axis + 1 :])
        if inner >= 8:
            kernel = sums._kernel(llvm.ELEMENTS[x.dtype], inner)
            words = [
                id(x),
                id(target),
                prod(x.shape[:axis]),
                x.shape[axis],
                x.shape[axis],
                x.shape[axis],
            ]
            parts = min(x.shape[axis], 64) if x.size >= PARALLEL else 1
            return _plain([calls.task(_compiler(), _address(kernel), "ppiifl", words, parts=parts,
                                      keep=(x, target))])  # fmt: skip
    first, last = min(axes), max(axes)
    if not any(first < a < last for a in kept):  # one run of axes in the middle
        shape = (prod(x.shape[:first]), reduced, prod(x.shape[last + 1 :]))
        return _plain([moves.sum_middle(x.reshape(shape), target)])
    return None


def _sum(x, out, *, axes, keepdims) -> Lowered | None:
    return _reduce(x, tuple(range(x.ndim)) if axes is None else axes, out)


def _mean(x, out, *, axes, keepdims) -> Lowered | None:
    found = _sum(x, out, axes=axes, keepdims=keepdims)
    if found is None:
        return None
    flat = out.reshape(-1)
    scale = elementwise_task(_SCALED, [flat, flat.size / x.size], [flat])
    return None if scale is None else Lowered([*found.tasks, scale], [], [])


def _sum_to(x, out, *, shape) -> Lowered | None:
    lead = x.ndim - len(shape)
    axes = [*range(lead), *[a for a, n in enumerate(shape, lead) if n == 1 and x.shape[a] != 1]]
    return _reduce(x, tuple(axes), out)


# ------------------------------------------------------------------------------------------------
# products of matrices


def _product(a, b, out) -> Lowered | None:
    return _plain([gemm.task(a, b, out)])


def _matmul(a, b, out) -> Lowered | None:
    if a.ndim < 2:
        a = a.reshape(1, -1)
        out = out.reshape(*out.shape[: b.ndim - 2], 1, *out.shape[max(b.ndim - 2, 0) :])
    if b.ndim < 2:
        b, out = b.reshape(-1, 1), out.reshape(*out.shape, 1)
    return _product(a, b, out)


def _matrix(x):
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _linear(x, w, out) -> Lowered | None:
    return _product(_matrix(x), w.T, _matrix(out))


_ADD_ROW = Program([build("add", variable("y"), variable("b"))], ["y", "b"], ["y"])


def _operands(name: str, a, b) -> tuple:
    """The two matrices whose product an operation is, leading dimensions merged."""
    if name in ("affine", "linear"):
        return _matrix(a), b.T
    if name == "linear_input":
        return _matrix(a), b
    if name == "linear_weight":
        return _matrix(a).T, _matrix(b)
    return a, b


def _product_epilogue(call, a, b, others: list, outputs: list) -> _Joined | None:
    name = call.producer.op.name
    a, b = _operands(name, a, b)
    if name != "matmul":
        shape = outputs[0].shape
        full = [x.__class__ is _ndarray and x.shape == shape for x in others]
        others = [_matrix(x) if f else x for x, f in zip(others, full, strict=True)]
        outputs = [_matrix(o) for o in outputs]
    task = gemm.task(a, b, outputs, program=call.program, inputs=others)
    return None if task is None else _Joined([task], [task], 1)


def _affine(x, w, b, out) -> Lowered | None:
    task = gemm.task(_matrix(x), w.T, _matrix(out), program=_ADD_ROW, inputs=[b])
    if task is not None:
        return _plain([task])
    bias = elementwise_task(_ADD_ROW, [_matrix(out), b], [_matrix(out)])
    return _plain([gemm.task(_matrix(x), w.T, _matrix(out)), bias])


# ------------------------------------------------------------------------------------------------
# convolution and pooling


class _Target(NamedTuple):
    """Where the results of a convolution's kernel go."""

    epilogue: Epilogue
    arrays: Sequence  # its inputs and outputs
    numbers: Sequence[float] = ()


def _images(make, source, weights, x_shape, options, target: _Target) -> Task | None:
    """A kernel over images: ``kernel(source, weights, <arrays>, scratch, <numbers>, first,
    last)``."""
    layer = convolution.native_layer(source.dtype, x_shape, weights.shape, *options.values())
    kernel = None if layer is None else convolution.with_epilogue(make, layer, target.epilogue)
    if kernel is None or not (source.flags.c_contiguous and weights.flags.c_contiguous):
        return None
    batch, arrays, numbers = source.shape[0], target.arrays, target.numbers
    parts = min(_image_parts(kernel, batch), 64)
    scratch = [np.empty((kernel.scratch,), source.dtype) for _ in range(parts)]
    words = [*map(id, (source, weights, *arrays)), parts, *map(id, scratch), batch, batch]
    signature = "pp" + "p" * len(arrays) + "S" + "d" * len(numbers) + "fl"
    return calls.task(
        _compiler(), _address(kernel.function), signature, words, numbers,
        parts=parts, keep=(source, weights, *arrays, scratch),
    )  # fmt: skip


def _forward(x, w, target: _Target, **options) -> list[Task | None]:
    return [_images(convolution._forward_kernel, x, w, x.shape, options, target)]


def _input_gradient(g, w, target: _Target, *, shape, **options) -> list[Task | None]:
    kernel = convolution._input_kernel
    layer = convolution.native_layer(w.dtype, shape, w.shape, *options.values())
    if layer is None or not convolution.kernels.input_gradient_weights(layer).packed:
        return [_images(kernel, g, w, shape, options, target)]
    packed = np.empty(w.shape, w.dtype)
    ordered = w.reshape(layer.groups, layer.width, *w.shape[1:]).transpose(0, 2, 3, 1, 4)
    pack = moves.copy(ordered, packed.reshape(ordered.shape))
    return [pack, _images(kernel, g, packed, shape, options, target)]


def _over_images(tasks: Callable) -> Callable:
    """The lowering of a convolution whose kernel goes through images."""

    def lower(a, b, out, **params) -> Lowered | None:
        contiguous = out.flags.c_contiguous
        return _plain(tasks(a, b, _Target(PLAIN, [out]), **params)) if contiguous else None

    return lower


def _images_epilogue(tasks: Callable) -> Callable:
    """The same with an epilogue."""

    def lower(call, a, b, others: list, outputs: list) -> _Joined | None:
        epilogue = describe(call.program, others, outputs)
        if epilogue is None:
            return None
        given = dict(zip(call.program.inputs[1:], others, strict=True))
        read = [given[name] for name, _ in epilogue.arrays]
        target = _Target(epilogue, [*read, *outputs], [given[n] for n in epilogue.numbers])
        found = tasks(a, b, target, **call.producer.params)
        return None if None in found else _Joined(found, found[-1:])

    return lower


def _weight_sums(g, x, *, shape, **options) -> tuple[list[Task | None], Any] | None:
    """Tasks, and where they leave the weight gradient: a view of it, cut into (group, tile of
    channels, channel, input channel, row, column).

    ``kernel(g, x, sums, scratch, first, last, per chunk, batch)``, then the sum of the chunks.
    """
    kernel = convolution._kernel(
        convolution._weight_kernel, g, x, x.shape, shape, *options.values()
    )
    if kernel is None or not (g.flags.c_contiguous and x.flags.c_contiguous):
        return None
    layer, tile, batch = kernel.layer, kernel.tile, x.shape[0]
    per_chunk, chunks = convolution._chunks(layer, tile, batch)
    sums_ = np.empty((chunks, *convolution._tiled_shape(layer, tile)), x.dtype)
    parts = chunks if batch * layer.work >= convolution.PARALLEL // 4 else 1
    scratch = [np.empty((kernel.scratch,), x.dtype) for _ in range(parts)]
    words = [id(g), id(x), id(sums_), parts, *map(id, scratch), chunks, chunks, per_chunk, batch]
    task = calls.task(
        _compiler(), _address(kernel.function), "pppSflii", words,
        parts=parts, keep=(g, x, sums_, scratch),
    )  # fmt: skip
    tasks: list[Task | None] = [moves.fill(sums_), task]
    total = sums_[0]
    if chunks > 1:
        total = np.empty(sums_.shape[1:], x.dtype)
        tasks.append(_sum_leading(sums_, total))
    return tasks, total.transpose(0, 1, 4, 2, 3, 5)


def _conv_weight(g, x, out, **params) -> Lowered | None:
    """The weight gradient, copied into the order of the weights."""
    found = _weight_sums(g, x, **params)
    if found is None or not out.flags.c_contiguous:
        return None
    tasks, total = found
    return _plain([*tasks, moves.copy(total, out.reshape(total.shape))])


def _weight_epilogue(call, g, x, others: list, outputs: list) -> _Joined | None:
    """The weight gradient; instead of the copy the program, if it takes one task."""
    found = _weight_sums(g, x, **call.producer.params)
    shape = outputs[0].shape
    if found is None or not all(o.flags.c_contiguous for o in outputs):
        return None
    tasks, total = found
    args = [total]
    for a in others:
        if a.__class__ is _ndarray and a.size > 1:
            if a.shape != shape or not a.flags.c_contiguous:
                return None
            a = a.reshape(total.shape)
        args.append(a)
    last = elementwise_tasks(call.program, args, [o.reshape(total.shape) for o in outputs])
    if None in tasks or last is None or len(last) > 1:
        return None
    return _Joined([*tasks, *last], last)


def _image_parts(kernel, batch: int) -> int:
    return 1 if batch * kernel.layer.work < convolution.PARALLEL // 4 else batch


# ------------------------------------------------------------------------------------------------
# producers with an epilogue


class _Joined(NamedTuple):
    """Tasks that compute a producer and its epilogue."""

    tasks: list
    numbered: list[Task]  # those that read the numbers of the program
    first: int = 0  # where they begin among the numbers of these tasks


_EPILOGUES: dict[str, Callable] = {
    "conv": _images_epilogue(_forward),
    "conv_input": _images_epilogue(_input_gradient),
    "conv_weight": _weight_epilogue,
}
# Producers whose epilogue may compute an element twice: it may not read where it writes.
COMPUTE_TWICE = ("conv", "conv_input")


def _with_epilogue(call, inputs, of: Arrays, outputs: list) -> Lowered | None:
    """A product or a convolution and the program of its result: in one task where there is a kernel
    for both."""
    a, b = of(inputs[0]), of(inputs[1])
    others, changing = _arguments(inputs[2:], of)
    join = _EPILOGUES.get(call.producer.op.name, _product_epilogue)
    found = join(call, a, b, others, outputs) or _separately(call, a, b, others, outputs)
    if found is None:
        return None
    places = _places(others, call.program.inputs[1:], call.program)
    numbers = [(v, t.numbers, found.first + places[k]) for t in found.numbered for v, k in changing
               if k in places]  # fmt: skip
    return Lowered(found.tasks, numbers, [])


def _separately(call, a, b, others: list, outputs: list) -> _Joined | None:
    """The producer's result into memory that the program then reads and may overwrite."""
    name = call.producer.op.name
    free = [o for o in outputs if o.dtype == a.dtype and all(o is not x for x in others)]
    into = free[0] if free else np.empty(outputs[0].shape, a.dtype)
    operation = "linear" if name == "affine" else name  # the program adds its bias
    producer = _OPERATIONS[operation](a, b, into, **call.producer.params)
    rest = elementwise_tasks(call.program, [into, *others], outputs)
    return None if producer is None or rest is None else _Joined([*producer.tasks, *rest], rest)


# ------------------------------------------------------------------------------------------------
# products with a prologue


def _with_prologue(call, inputs, of: Arrays, outputs: Sequence[Value]) -> Lowered | None:
    """A product and the program that computes its second operand: in one task where there is a
    kernel for both."""
    (a, *others), given = call.split(inputs)
    program = call.program
    args, changing = _arguments(given, of)
    places = _places(args, program.inputs, program)
    arrays = [x for x, n in zip(args, program.inputs, strict=True)
              if x.__class__ is _ndarray and n in program.used]  # fmt: skip
    shape = np.broadcast_shapes(*[x.shape for x in arrays])
    operand = Value(-1, shape, of(outputs[0]).dtype)
    product = Node(call.consumer, [a, operand, *others], outputs)

    def lowered(b) -> Lowered | None:
        b = b.swapaxes(-1, -2) if call.transposed else b
        return lower(product, lambda i: b if i is operand else of(i))

    joined = lowered(gemm.Computed(program, args, shape))
    if joined is not None:
        numbers = joined.tasks[0].numbers
        first = len(numbers) - len(places)
        own = [(v, numbers, first + places[k]) for v, k in changing if k in places]
        return joined._replace(numbers=[*own, *joined.numbers])
    into = np.empty(shape, operand.dtype)
    before, after = _elementwise(program, given, of, [into]), lowered(into)
    if before is None or after is None:
        return None
    return Lowered([*before.tasks, *after.tasks], [*before.numbers, *after.numbers], [])


def _pool(kind: str):
    def lower(x, out, *, kernel, stride, dilation) -> Lowered | None:
        found = pooling._sizes(x.dtype, x.shape, kernel, stride, dilation)
        if found is None or not (x.flags.c_contiguous and out.flags.c_contiguous):
            return None
        function = _address(pooling._compiled(kind, found))
        planes = prod(x.shape[:-2])
        parts = min(planes, 64) if x.size >= PARALLEL else 1
        words = [id(x), id(out), planes, planes]
        return _plain(
            [calls.task(_compiler(), function, "ppfl", words, parts=parts, keep=(x, out))]
        )

    return lower


def _max_pool_scatter(g, x, out, gx, *, kernel, stride, dilation) -> Lowered | None:
    arrays = (g, x, out, gx)
    if not all(a.flags.c_contiguous for a in arrays):
        return None
    found = pooling._sizes(x.dtype, x.shape, kernel, stride, dilation)
    if found is None:
        return None
    function = _address(pooling._compiled("scatter", found))
    planes = prod(x.shape[:-2])
    parts = min(planes, 64) if x.size >= PARALLEL else 1
    words = [*map(id, arrays), planes, planes]
    return _plain([calls.task(_compiler(), function, "ppppfl", words, parts=parts, keep=arrays)])


_LARGEST = RowProgram([(ROW, row_max(_V))], {"x": ELEMENT})
_SMALLEST = RowProgram([(ROW, build("neg", row_max(build("neg", _V))))], {"x": ELEMENT})


def _extreme(program: RowProgram) -> Callable:
    def lower(x, out, *, axes, keepdims) -> Lowered | None:
        axes = tuple(range(x.ndim)) if axes is None else axes
        inner = axes == tuple(range(x.ndim - len(axes), x.ndim))
        if not (x.size and inner and x.flags.c_contiguous and out.flags.c_contiguous):
            return None
        columns = prod(x.shape[a] for a in axes)
        return rows_task(program, [x.reshape(-1, columns)], [out.reshape(-1, 1)])

    return lower


def _check(call: CheckCall, index) -> Lowered | None:
    """A check whose function says which parameter bounds the indices (``bounded_by``)."""
    name = getattr(call.function, "bounded_by", None)
    if name is None or index.__class__ is not _ndarray:
        return None
    task = moves.check_range(index, call.params[name])
    return None if task is None else Lowered([task], [], [(task.table, "index out of range")])


_BAD_ROW = "index out of range in embedding"


def _embedding(table, index, out, *, padding) -> Lowered | None:
    task = moves.take_rows(table, index, out)
    return None if task is None else Lowered([task], [], [(task.table, _BAD_ROW)])


def _embedding_add(g, index, out, *, shape, padding) -> Lowered | None:
    tasks = moves.add_rows(g, index, out)
    if tasks is None:
        return None
    if padding is not None:
        clear = moves.fill(out[padding])
        if clear is None:
            return None
        tasks.append(clear)
    return Lowered(tasks, [], [(tasks[1].table, _BAD_ROW)])


def _putslice(g, out, *, shape, index) -> Lowered | None:
    part = out[index]
    if part.__class__ is not _ndarray or part.shape != g.shape:
        return None
    return _plain([moves.fill(out), copy_task(g, part)])


def _put_view(base, value, out, *, chain) -> Lowered | None:
    """The base with a view of it overwritten."""
    part = out
    for op, params in chain:
        part = op.eval(part, **params)
    if not part.size or not np.may_share_memory(part, out):
        return None
    return _plain([copy_task(base, out), copy_task(np.broadcast_to(value, part.shape), part)])


def _is_same(a, b) -> bool:
    """Whether two arrays of one shape are the same memory, element by element."""
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides and a.dtype == b.dtype


def _cat(*arrays, axis) -> Lowered | None:
    *parts, out = arrays
    tasks, start = [], 0
    for part in parts:
        stop = start + part.shape[axis]
        place = (slice(None),) * axis + (slice(start, stop),)
        if part.size and not _is_same(part, out[place]):  # it may have been computed there
            tasks.append(copy_task(part, out[place]))
        start = stop
    return _plain(tasks)


_TRUE = Program([build("ne", _V, 0)], ["x"], ["x"])


def _cast(x, out, *, dtype) -> Lowered | None:
    if out.dtype == _BOOL:
        return _plain([elementwise_task(_TRUE, [x], [out])])
    return _plain([convert.task(x, out)])


_OPERATIONS: dict[str, Callable] = {
    "amax": _extreme(_LARGEST),
    "amin": _extreme(_SMALLEST),
    "cast": _cast,
    "embedding": _embedding,
    "embedding_add": _embedding_add,
    "putslice": _putslice,
    "reshape": lambda x, out, *, shape: _plain([copy_task(x, out.reshape(x.shape))]),
    "spread": lambda x, out, *, shape: _plain([copy_task(np.broadcast_to(x, shape), out)]),
    "put_view": _put_view,
    "cat": _cat,
    "sum": _sum,
    "mean": _mean,
    "sum_to": _sum_to,
    "matmul": _matmul,
    "linear": _linear,
    "linear_input": lambda g, w, out: _product(_matrix(g), w, _matrix(out)),
    "linear_weight": lambda g, x, out: _product(_matrix(g).T, _matrix(x), out),
    "affine": _affine,
    "conv": _over_images(_forward),
    "conv_input": _over_images(_input_gradient),
    "conv_weight": _conv_weight,
    "max_pool": _pool("max"),
    "sum_pool": _pool("sum"),
    "max_pool_scatter": _max_pool_scatter,
}
