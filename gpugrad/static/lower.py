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
from ..codegen import calls, convert, convolution, gemm, llvm, moves, pooling, rows, sums
from ..codegen.arrays import Program
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
from ..codegen.tasks import Task, parameters
from .graph import CheckCall, Node, OpCall, ProductCall, RowsCall, Value, expression_of

_BOOL = np.dtype("bool")
_INT64 = np.dtype("int64")
# Elements of elementwise work from which threads share it.
PARALLEL = 1 << 16
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
    if call.__class__ is ProductCall:
        return _product_with_epilogue(call, node.inputs, of, outputs)
    if call.__class__ is CheckCall:
        return _check(call, of(node.inputs[0]))
    if call.__class__ is OpCall:
        found = _OPERATIONS.get(call.op.name)
        if found is not None:
            inputs = [of(i) for i in node.inputs]
            if all(i.__class__ is _ndarray for i in inputs):
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
    args, changing = [], []
    for k, i in enumerate(inputs):
        if i.__class__ is Value and i.dtype is None:
            args.append(0.0)
            changing.append((i, k))
        else:
            args.append(of(i))
    tasks = elementwise_tasks(program, args, outputs)
    if tasks is None:
        return None
    order = [k for k, (a, n) in enumerate(zip(args, program.inputs, strict=True))
             if a.__class__ is not _ndarray and n in program.used]  # fmt: skip
    places = {k: place for place, k in enumerate(order)}
    numbers = [(v, t.numbers, places[k]) for t in tasks for v, k in changing if k in places]
    return Lowered(tasks, numbers, [])


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
    if not program.outputs or any(e.op == "const" for e in program.outputs):
        return None
    operands = llvm._operands(program, args, integers=True)
    if operands is None or any(o.shape != operands.shape for o in outputs):
        return None
    dtypes = [_BOOL if e.op in llvm.BOOLEAN else operands.dtype for e in program.outputs]
    if any(o.dtype != d for o, d in zip(outputs, dtypes, strict=True)):
        return None
    found = llvm.plan_into(program, operands, outputs)
    if found is None:
        return None
    kernel, table = found
    try:
        numbers = array("d", [args[k] for k in operands.numbers])
    except OverflowError:
        return None
    size = prod(operands.shape)
    parts = 1 if size < PARALLEL else min(64, size >> 13)
    return Task(_address(kernel), table, numbers, parts, (args, outputs))


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
    if len(kept) == 1 and x.dtype in sums._ELEMENTS:
        axis = kept[0]
        inner = prod(x.shape[axis + 1 :])
        if inner >= 8:
            kernel = sums._kernel(sums._ELEMENTS[x.dtype], inner)
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
    return x.reshape(-1, x.shape[-1])


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


def _product_with_epilogue(call, inputs, of: Arrays, outputs: list) -> Lowered | None:
    program, name = call.program, call.product.op.name
    a, b = _operands(name, of(inputs[0]), of(inputs[1]))
    merged = name != "matmul"
    others, changing = [], []
    for k, i in enumerate(inputs[2:], 1):
        if i.__class__ is Value and i.dtype is None:
            changing.append((i, k))
            others.append(0.0)
        else:
            x = of(i)
            full = x.__class__ is _ndarray and x.shape == outputs[0].shape
            others.append(_matrix(x) if merged and full else x)
    targets = [_matrix(o) for o in outputs] if merged else outputs
    order = [k for k, x in enumerate(others, 1)
             if x.__class__ is not _ndarray and program.inputs[k] in program.used]  # fmt: skip
    places = {k: place for place, k in enumerate(order)}
    task = gemm.task(a, b, targets, program=program, inputs=others)
    if task is not None:
        numbers = [(v, task.numbers, 1 + places[k]) for v, k in changing if k in places]
        return Lowered([task], numbers, [])
    # the product into the memory of a result, and the program over it
    into = next(
        (t for t in targets if t.dtype == a.dtype and all(t is not o for o in others)), None
    )
    if into is None:
        into = np.empty(targets[0].shape, a.dtype)
    product = gemm.task(a, b, into)
    rest = elementwise_tasks(program, [into, *others], targets)
    if product is None or rest is None:
        return None
    numbers = [(v, t.numbers, places[k]) for t in rest for v, k in changing if k in places]
    return Lowered([product, *rest], numbers, [])


def _affine(x, w, b, out) -> Lowered | None:
    task = gemm.task(_matrix(x), w.T, _matrix(out), program=_ADD_ROW, inputs=[b])
    if task is not None:
        return _plain([task])
    bias = elementwise_task(_ADD_ROW, [_matrix(out), b], [_matrix(out)])
    return _plain([gemm.task(_matrix(x), w.T, _matrix(out)), bias])


# ------------------------------------------------------------------------------------------------
# convolution and pooling


def _convolution(kernel, source, weights, out) -> Lowered | None:
    """A kernel over images: ``kernel(source, weights, out, scratch, first, last)``."""
    if kernel is None or not all(a.flags.c_contiguous for a in (source, weights, out)):
        return None
    batch = source.shape[0]
    parts = min(_image_parts(kernel, batch), 64)
    scratch = [np.empty((kernel.scratch,), source.dtype) for _ in range(parts)]
    words = [id(source), id(weights), id(out), parts, *map(id, scratch), batch, batch]
    task = calls.task(
        _compiler(), _address(kernel.function), "pppSfl", words,
        parts=parts, keep=(source, weights, out, scratch),
    )  # fmt: skip
    return _plain([task])


def _conv(x, w, out, **options) -> Lowered | None:
    kernel = convolution._kernel(
        convolution._forward_kernel, x, w, x.shape, w.shape, *options.values()
    )
    return _convolution(kernel, x, w, out)


def _conv_input(g, w, out, *, shape, **options) -> Lowered | None:
    kernel = convolution._kernel(convolution._input_kernel, g, w, shape, w.shape, *options.values())
    if kernel is None:
        return None
    layer = kernel.layer
    if not convolution.kernels.input_gradient_weights(layer).packed:
        return _convolution(kernel, g, w, out)
    ordered = w.reshape(layer.groups, layer.width, *w.shape[1:]).transpose(0, 2, 3, 1, 4)
    packed = np.empty(ordered.shape, w.dtype)
    pack, found = moves.copy(ordered, packed), _convolution(kernel, g, packed, out)
    return None if pack is None or found is None else Lowered([pack, *found.tasks], [], [])


def _conv_weight(g, x, out, *, shape, **options) -> Lowered | None:
    """``kernel(g, x, sums, scratch, first, last, per chunk, batch)``, then the sum of the chunks in
    the order of the weights."""
    kernel = convolution._kernel(
        convolution._weight_kernel, g, x, x.shape, shape, *options.values()
    )
    if kernel is None or not all(a.flags.c_contiguous for a in (g, x, out)):
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
    groups, tiles, depth, rows_, channels, columns = total.shape
    target = out.reshape(groups, tiles, channels, depth, rows_, columns)
    tasks.append(moves.copy(total.transpose(0, 1, 4, 2, 3, 5), target))
    return _plain(tasks)


def _image_parts(kernel, batch: int) -> int:
    return 1 if batch * kernel.layer.work < convolution.PARALLEL // 4 else batch


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


def _cat(*arrays, axis) -> Lowered | None:
    *parts, out = arrays
    tasks, start = [], 0
    for part in parts:
        stop = start + part.shape[axis]
        place = (slice(None),) * axis + (slice(start, stop),)
        if part.size:
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
    "conv": _conv,
    "conv_input": _conv_input,
    "conv_weight": _conv_weight,
    "max_pool": _pool("max"),
    "sum_pool": _pool("sum"),
    "max_pool_scatter": _max_pool_scatter,
}
