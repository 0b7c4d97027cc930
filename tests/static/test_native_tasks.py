"""Native tasks beside NumPy: copies, conversions, rows by index, sums; poisoned outputs."""

import ctypes
import itertools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen import calls, convert, moves
from gpugrad.codegen.arrays import Program
from gpugrad.codegen.expr import build, inputs_of, variable
from gpugrad.codegen.functions import functions_for
from gpugrad.codegen.ir import Code
from gpugrad.codegen.machine import machine
from gpugrad.codegen.shares import WHOLE
from gpugrad.codegen.tasks import TaskList
from gpugrad.static import lower

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")


INTEGERS = ("int64", "int32", "int16", "int8", "uint8")


def run(*tasks) -> None:
    everything = TaskList()
    for task in tasks:
        assert task is not None
        everything.append(task)
    everything.run()


def run_shares(task, parts: int, count: int | None = None) -> None:
    """The shares of threads, one after the other; all or the first ones."""
    run_share = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
    )(task.function)
    table, numbers = (a.buffer_info()[0] for a in (task.table, task.numbers))
    for k in range(parts if count is None else count):
        run_share(table, numbers, k * WHOLE // parts, (k + 1) * WHOLE // parts)


def poisoned(shape, dtype):
    out = np.empty(shape, dtype)
    out.view(np.uint8)[...] = 0xA5
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "bool"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((7,), (0,)),
        ((5, 3), (1, 0)),
        ((32, 48), (1, 0)),
        ((33, 17), (1, 0)),
        ((3, 4, 32, 16), (0, 2, 1, 3)),
        ((2, 3, 4, 5), (3, 1, 0, 2)),
        ((2, 3, 16, 2, 3), (4, 2, 0, 3, 1)),
    ],
)
def test_copies(shape, axes, dtype, rng):
    x = (rng.normal(size=shape) * 10).astype(dtype).transpose(axes)
    out = poisoned(x.shape, dtype)
    run(moves.copy(x, out))
    np.testing.assert_array_equal(out, x)


def test_copies_into_and_out_of_slices(rng):
    x = rng.normal(size=(40, 64)).astype("float32")
    out = np.zeros((50, 70), "float32")
    expected = out.copy()
    expected[3:43:2, 5:69] = x[::2]
    run(moves.copy(x[::2], out[3:43:2, 5:69]))
    np.testing.assert_array_equal(out, expected)
    backwards = poisoned((40, 64), "float32")
    run(moves.copy(x[::-1, ::-1], backwards))
    np.testing.assert_array_equal(backwards, x[::-1, ::-1])
    broadcast = poisoned((3, 40, 64), "float32")
    run(moves.copy(np.broadcast_to(x, (3, 40, 64)), broadcast))
    np.testing.assert_array_equal(broadcast, np.broadcast_to(x, (3, 40, 64)))


def test_copies_that_have_no_task():
    assert moves.copy(np.ones(3), np.ones(3, "float32")) is None
    assert moves.copy(np.ones(3, "complex128"), np.ones(3, "complex128")) is None


@pytest.mark.parametrize("n", [1, 7, 8, 1000])
@pytest.mark.parametrize("target", ["float32", "float64", *INTEGERS])
@pytest.mark.parametrize("source", ["float32", "float64", *INTEGERS, "bool"])
def test_conversions(source, target, n, rng):
    x = (rng.normal(size=n) * 1000).astype("int64").astype(source)
    if x.dtype.kind == "f":
        x += x.dtype.type(0.3)
    out = poisoned(n, target)
    task = convert.task(x, out)
    if x.dtype.kind == "f" and out.dtype.kind in "iu":
        assert task is None
        return
    run(task)
    np.testing.assert_array_equal(out, x.astype(target))


# ---- integers and masks: the bits of NumPy

A, B, MASK = (variable(name) for name in ("a", "b", "mask"))
ORDERS = ("lt", "le", "gt", "ge", "eq", "ne")
LOGIC = ("logical_and", "logical_or", "logical_xor")
OF_INTEGERS = {
    **{op: build(op, A, B) for op in ("add", "sub", "mul", "maximum", "minimum", *ORDERS, *LOGIC)},
    **{op: build(op, A) for op in ("neg", "positive", "square", "abs", "sign", "logical_not")},
    "where": build("where", MASK, A, B),
    "where a number": build("where", MASK, A, 0),
    "where not zero": build("where", A, B, 7),
    "numbers": build("maximum", A * 3 - B + 100, 5),
    "mask of two": build("logical_and", MASK, A > B),
}
OF_MASKS = {
    **{op: build(op, A, B) for op in ("add", "mul", "maximum", "minimum", *ORDERS, *LOGIC)},
    "logical_not": build("logical_not", A),
    "where": build("where", MASK, A, B),
    "several": build("logical_or", build("logical_and", A, B), build("logical_not", MASK)),
}
SHAPES = (
    ((1,), (1,)),
    ((1003,), (1003,)),
    ((37, 19), (37, 1)),
    ((37, 19), (19,)),
    ((5, 1, 17), (1, 7, 17)),
)


def integers(shape, dtype, rng) -> np.ndarray:
    """Of all sizes, the limits and zero among them."""
    if dtype == "bool":
        return rng.random(shape) > 0.5
    limits = np.iinfo(dtype)
    some = np.array([limits.min, limits.max, 0, 1, limits.max - 1, 5], dtype)
    drawn = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return np.where(
        rng.random(shape) > 0.3, drawn >> int(rng.integers(0, 8)), rng.choice(some, shape)
    )


def check_program(e, shapes, dtype, rng) -> None:
    program = Program([e], ["a", "b", "mask"], ())
    args = [*(integers(s, dtype, rng) for s in shapes), rng.random(shapes[0]) > 0.5]
    wanted = program.direct(functions_for(np), None, False)(*args)
    out = poisoned(wanted.shape, wanted.dtype)
    run(lower.elementwise_task(program, args, [out]))
    np.testing.assert_array_equal(out.view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", OF_INTEGERS)
def test_integers(name, dtype, rng):
    e = OF_INTEGERS[name]
    for a, b in SHAPES if dtype in ("int64", "int32") else SHAPES[1:3]:
        check_program(e, (a, b if "b" in inputs_of([e]) else a), dtype, rng)


@pytest.mark.parametrize("name", OF_MASKS)
def test_masks(name, rng):
    for a, b in SHAPES:
        e = OF_MASKS[name]
        check_program(e, (a, b if "b" in inputs_of([e]) else a), "bool", rng)


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_slices_of_integers(dtype, rng):
    a = integers((9, 50), dtype, rng)
    program = Program([build("eq", A, B)], ["a", "b"], ())
    out = poisoned((9, 20), "bool")
    run(lower.elementwise_task(program, [a[:, 3:23], a[:, 30:]], [out]))
    np.testing.assert_array_equal(out, a[:, 3:23] == a[:, 30:])


def test_integers_and_masks_that_have_no_task(rng):
    """What NumPy promotes to another dtype, or refuses."""
    small, large = np.ones(5, "int8"), np.ones(5, "int64")
    mask, out = np.ones(5, bool), np.empty(5, "int8")
    for e, a, b in (
        (A + B, small, large),
        (A + 200, small, small),
        (A > -1, np.ones(5, "uint8"), small),
        (A * 0.5, small, small),
        (build("where", MASK, 1, 0), small, small),
        (build("lt", build("where", MASK, 100, 0) + A, 0), small, small),
        (build("lt", B + 127, 0), mask, mask),
        (build("lt", A + B, 0), mask, small),
        (A + 1, mask, mask),
        (A - B, mask, mask),
        (build("neg", A), mask, mask),
        (build("floor_divide", A, B), small, small),
        (build("pow", A, B), small, small),
        (build("sin", A), small, small),
    ):
        program = Program([e], ["a", "b", "mask"], ())
        for target in (out, np.empty(5, bool), np.empty(5, "int64"), np.empty(5)):
            assert lower.elementwise_task(program, [a, b, mask], [target]) is None, e
    program = Program([build("add", A, B)], ["a", "b"], ())
    for number in (2**31, 0.5, np.int32(3)):
        assert lower.elementwise_task(program, [np.ones(5, "i4"), number], [out]) is None
    for number in (2**53 + 1, 2**64):
        assert lower.elementwise_task(program, [large, number], [np.empty(5, "i8")]) is None


def test_arrays_that_are_laid_out_alike_have_tasks_of_their_own(rng):
    """Their plan is made once; numbers that equal each other without being the same have others."""
    program = Program([build("add", A, build("mul", B, MASK))], ["a", "b", "mask"], ())
    for dtype, numbers in (("float32", (2.0, -3.5)), ("int16", (1, True, 3))):
        layouts = [lambda x: x, lambda x: x[:, 1:4], lambda x: x[::2], lambda x: x[0]]
        tasks = []
        for layout in layouts * 2:
            for number in numbers:
                a, b = (layout(rng.integers(-9, 9, (6, 6)).astype(dtype)) for _ in range(2))
                out = poisoned(a.shape, dtype)
                task = lower.elementwise_task(program, [a, b, number], [out])
                tasks.append((task, out, a + b * number))
        assert len(program.plans) == len(layouts) * (1 if dtype == "float32" else len(numbers))
        program.plans.clear()
        for task, out, wanted in tasks:
            run(task)
            np.testing.assert_array_equal(out, wanted)


def test_a_program_of_integers_calls_no_numpy(rng):
    def masked(x, i, keep):
        chosen = (i * 2 + 1 > 7) & keep | ~(i == 3)
        counts = gg.where(chosen, i, 0).abs() + i.clamp(2, 5)
        return x * chosen.to(x.dtype) + counts.to(x.dtype), counts, counts.bool(), x.bool()

    compiled = gg.compile(masked)
    for _ in range(5):
        x = rng.normal(size=(6, 7)).astype("float32") * (rng.random((6, 7)) > 0.5)
        given = gg.tensor(x), gg.tensor(rng.integers(-9, 9, (6, 7))), gg.tensor(rng.random(7) > 0.5)
        for a, b in zip(compiled(*given), masked(*given), strict=True):
            assert (a.dtype, a.array.tobytes()) == (b.dtype, b.array.tobytes())
    assert compiled.stats["replays"] == 3
    assert not compiled.programs[-1].run.fallbacks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 5, 64, 67])
def test_rows_by_index(width, dtype, rng):
    table = rng.normal(size=(11, width)).astype(dtype)
    index = rng.integers(0, 11, size=(4, 9))
    out = poisoned((4, 9, width), dtype)
    run(moves.take_rows(table, index, out))
    np.testing.assert_array_equal(out, table[index])
    added, expected = poisoned(table.shape, dtype), np.zeros_like(table)
    np.add.at(expected, index, out)
    run(*moves.add_rows(out, index, added))
    np.testing.assert_array_equal(added, expected)


@pytest.mark.parametrize("bad", [-1, 11, 2**40])
def test_an_index_out_of_range_is_noticed(bad, rng):
    table = rng.normal(size=(11, 8)).astype("float32")
    index = np.array([3, bad, 5])
    for task in (
        moves.take_rows(table, index, np.empty((3, 8), "float32")),
        moves.check_range(index, 11),
    ):
        run(task)
        assert task.table[0] == 1
    for good in (moves.check_range(np.array([0, 10]), 11),):
        run(good)
        assert good.table[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 5), (2, 7, 33), (1, 100, 64), (64, 32, 64)])
def test_sums_along_a_middle_axis(shape, dtype, rng):
    x = rng.normal(size=shape).astype(dtype)
    out = poisoned((shape[0], shape[2]), dtype)
    run(moves.sum_middle(x, out))
    exact = x.astype("float64").sum(1)
    bound = np.abs(x).astype("float64").sum(1) * shape[1] * np.finfo(dtype).eps
    assert (np.abs(out - exact) <= bound).all()


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_shares_of_a_sum_along_a_middle_axis(parts, rng):
    """Threads share columns if there is one matrix: the same bits whoever computes them."""
    for shape in [(1, 16, 4099), (1, 3, 20_000), (1, 1, 40_000), (5, 9, 1000)]:
        x = rng.normal(size=shape).astype("float32")
        whole, out = poisoned((2, shape[0], shape[2]), "float32")
        task = moves.sum_middle(x, out)
        assert task.parts > 1
        run(moves.sum_middle(x, whole))
        untouched = out.copy()
        run_shares(task, parts)
        np.testing.assert_array_equal(out, whole)
        out[...] = untouched
        run_shares(task, parts, 1)  # nothing is written in another share
        first = max(1, out.shape[0] // parts), max(1, out.shape[1] // parts)
        rest = (slice(None), slice(first[1], None)) if shape[0] == 1 else slice(first[0], None)
        assert out[rest].tobytes() == untouched[rest].tobytes()


@pytest.mark.parametrize("n", [0, 1, 31, 1000])
def test_filling(n):
    out = poisoned(n, "float32")
    run(moves.fill(out, 1.5))
    np.testing.assert_array_equal(out, np.full(n, 1.5, "float32"))


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 10, 48, 64])
def test_parts_have_scratch_of_their_own(parts):
    """Two threads that work on parts of one task must not share scratch memory, whatever the
    rounding of their shares."""
    compiler = machine()
    code = Code("double", 1)
    scratch, first, last = (
        code.parameter(n, t) for n, t in (("scratch", "ptr"), ("first", "i64"), ("last", "i64"))
    )
    data = code.load(code.at(scratch, compiler.offsets["data"], "i8"), "ptr")
    code.store(first, data)
    code.store(last, code.at(data, 1))
    kernel = compiler.load(code.function("kernel", [scratch, first, last]))
    own = [np.full(2, -1) for _ in range(parts)]
    count = 100
    words = [parts, *map(id, own), count, count]
    task = calls.task(compiler, kernel, "Sfl", words, parts=parts, keep=own)
    run_shares(task, parts)
    found = [tuple(a) for a in own]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert (found[0][0], found[-1][1]) == (0, count)
