"""Products that compute their second operand while they pack it: the bits of the program and the
product one after the other."""

from __future__ import annotations

import ctypes
import itertools
import platform

import numpy as np
import pytest

from gpugrad.codegen import gemm
from gpugrad.codegen.arrays import Program
from gpugrad.codegen.expr import build, const, variable
from gpugrad.codegen.gemm import Computed
from gpugrad.codegen.machine import Machine, machine
from gpugrad.codegen.tasks import Task, TaskList
from gpugrad.config import settings
from gpugrad.static import lower

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")

DTYPES = ("float32", "float64")
w, s, n, mask = map(variable, ("w", "s", "n", "mask"))
PROGRAMS = {
    "scaled": Program([w * s], ["w", "s"], ["w"]),
    "shifted": Program([(w - s) * n], ["w", "unused", "n", "s"], ["w"]),
    "masked": Program([build("where", mask, w / s, const(0.5))], ["mask", "w", "s"], ["w"]),
    "clipped": Program([build("maximum", build("sqrt", abs(w)), s)], ["s", "w"], ["w"]),
}
# Shapes of the other inputs beside a matrix; a number has none.
KINDS = {
    "full": lambda shape: shape,
    "row": lambda shape: shape[-1:],
    "column": lambda shape: (shape[-2], 1),
    "one": lambda shape: (1,),
    "number": lambda shape: shape,
}
RELU = Program(
    [build("maximum", variable("y") * 0.5 + variable("bias"), const(0))], ["y", "bias"], ["y"]
)


def run(*tasks: Task | None) -> None:
    assert None not in tasks
    found = TaskList()
    for task in tasks:
        found.append(task)
    found.run()


def poisoned(shape, dtype) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


def inputs_of(program: Program, shape, kind: str, dtype, rng) -> list:
    """Inputs of a matrix of this shape; ``kind`` is that of all but ``w``."""
    found: list = []
    for name in program.inputs:
        if name in ("unused", "n") or (kind == "number" and name == "s"):
            found.append(float(rng.normal()))
        else:
            x = rng.normal(size=shape if name == "w" else KINDS[kind](shape))
            found.append(x > 0 if name == "mask" else x.astype(dtype))
    return found


def assert_same(a, computed: Program, given, shape, transposed: bool, **epilogue) -> Task:
    """The task computes the bits of the two tasks."""
    b, separate = Computed(computed, given, shape), poisoned(shape, a.dtype)
    operand = separate
    if transposed:
        b, operand = b.T, separate.swapaxes(-1, -2)
    size = (*np.broadcast_shapes(a.shape[:-2], shape[:-2]), a.shape[-2], operand.shape[-1])
    found, wanted = poisoned(size, a.dtype), poisoned(size, a.dtype)
    task = gemm.task(a, b, found, alpha=0.75, **epilogue)
    run(task)
    before = lower.elementwise_tasks(computed, given, [separate])
    run(*before, gemm.task(a, operand, wanted, alpha=0.75, **epilogue))
    assert found.tobytes() == wanted.tobytes()
    return task


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_and_layouts(name, dtype, kind):
    program, rng = PROGRAMS[name], np.random.default_rng(3)
    for m, k, n in ((1, 1, 1), (3, 5, 7), (2, 33, 130), (7, 17, 15), (13, 700, 33), (9, 70, 1)):
        a = rng.normal(size=(m, k)).astype(dtype)
        for transposed in (False, True):
            shape = (n, k) if transposed else (k, n)
            inputs = inputs_of(program, shape, kind, dtype, rng)
            assert_same(a, program, inputs, shape, transposed)
            bias = [rng.normal(size=n).astype(dtype)]
            assert_same(a, program, inputs, shape, transposed, program=RELU, inputs=bias)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches(dtype, transposed):
    rng, program = np.random.default_rng(4), PROGRAMS["scaled"]
    for batch, (m, k, n) in itertools.product(((5,), (2, 3)), ((3, 20, 9), (1, 9, 40))):
        a = rng.normal(size=(*batch, m, k)).astype(dtype)
        shape = (*batch, n, k) if transposed else (*batch, k, n)
        for scale in ((), shape, (*batch, 1, 1), (*shape[:-1], 1), shape[-1:]):
            inputs = [rng.normal(size=size).astype(dtype) for size in (shape, scale)]
            task = assert_same(a, program, inputs, shape, transposed)
            assert task.rows is not None
    # one matrix for a whole batch, whose rows are those of one larger one
    a = rng.normal(size=(4, 5, 20)).astype(dtype)
    shape = (9, 20) if transposed else (20, 9)
    inputs = [rng.normal(size=shape).astype(dtype), 0.5]
    assert assert_same(a, program, inputs, shape, transposed).rows is None


@pytest.mark.parametrize("transposed", [False, True])
def test_special_values(transposed):
    """NaN, infinities, signed zeros and denormals go the way they go in a pass of its own."""
    rng = np.random.default_rng(5)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38], np.float32)
    for name, (m, k, n) in itertools.product(PROGRAMS, ((5, 40, 23), (1, 17, 70))):
        shape = (n, k) if transposed else (k, n)
        inputs = inputs_of(PROGRAMS[name], shape, "full", np.float32, rng)
        for x in inputs:
            if x.__class__ is np.ndarray and x.dtype == np.float32:
                x.flat[rng.choice(x.size, 8)] = special
        a = rng.normal(size=(m, k)).astype(np.float32)
        a[:, ::3] = -0.0
        assert_same(a, PROGRAMS[name], inputs, shape, transposed)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_change_no_bit(threads, monkeypatch):
    monkeypatch.setattr(settings, "num_threads", threads)
    rng, program = np.random.default_rng(6), PROGRAMS["masked"]
    for m, k, n in ((64, 300, 257), (8, 400, 300), (1, 1024, 512)):
        a = rng.normal(size=(m, k)).astype(np.float32)
        for transposed in (False, True):
            shape = (n, k) if transposed else (k, n)
            inputs = inputs_of(program, shape, "full", np.float32, rng)
            task = assert_same(a, program, inputs, shape, transposed)
            assert task.parts > 1 or m == 1


def test_where_there_is_no_such_task(monkeypatch):
    rng, program = np.random.default_rng(7), PROGRAMS["scaled"]

    def task(a_shape, b_shape, program=program, inputs=None):
        given = [rng.normal(size=b_shape).astype(np.float32), 2.0] if inputs is None else inputs
        a = rng.normal(size=a_shape).astype(np.float32)
        out = poisoned((*np.broadcast_shapes(a_shape[:-2], b_shape[:-2]), a_shape[-2], b_shape[-1]),
                       np.float32)  # fmt: skip
        return gemm.task(a, Computed(program, given, b_shape), out)

    assert task((64, 20), (20, 30)) is not None
    assert task((65, 20), (20, 30)) is None  # too many rows
    assert task((64, 5000), (5000, 16)) is None  # threads share the rows
    assert task((64, 1024), (1024, 1024)) is None  # BLAS
    turned = rng.normal(size=(2, 3, 9, 20)).astype(np.float32).swapaxes(0, 1)
    assert task((2, 1, 4, 20), (3, 20, 9)) is None  # a matrix of several products
    assert task((3, 2, 4, 9), (3, 2, 9, 20), inputs=[turned, 2.0]) is not None
    slow = Program([build("exp", w) * s], ["w", "s"], ["w"])
    assert task((4, 20), (20, 30), slow) is None
    wide = [rng.normal(size=(20, 60)).astype(np.float32)[:, ::2], 2.0]
    assert task((4, 20), (20, 30), inputs=wide) is None  # neighbours lie apart
    mixed = [rng.normal(size=(20, 30)).astype(np.float32) for _ in range(2)]
    mixed[1] = np.asfortranarray(mixed[1])
    assert task((4, 20), (20, 30), inputs=mixed) is None
    double = [np.ones((20, 30)), 2.0]
    assert task((4, 20), (20, 30), inputs=double) is None
    truth = Program([build("gt", w, s)], ["w", "s"], ["w"])
    assert task((4, 20), (20, 30), truth) is None


def test_an_output_that_is_read_by_the_prologue():
    x = np.ones((20, 20), np.float32)
    assert gemm.task(np.ones((20, 20), np.float32), Computed(PROGRAMS["scaled"], [x, 2.0], x.shape),
                     x) is None  # fmt: skip


def test_shares_of_matrices():
    """What a chain cuts a task into: each share computes its matrices from its own."""
    rng, program = np.random.default_rng(8), PROGRAMS["scaled"]
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)
    a, x, scale = (rng.normal(size=size).astype(np.float32)
                   for size in ((6, 4, 20), (6, 20, 9), (6, 1, 1)))  # fmt: skip
    out = poisoned((6, 4, 9), np.float32)
    task = gemm.task(a, Computed(program, [x, scale], x.shape), out)
    assert [o.array is y for o, y in zip(task.rows.operands, (a, x, scale, out), strict=True)]
    assert [o.written for o in task.rows.operands] == [False] * 3 + [True]
    assert [o.width for o in task.rows.operands] == [320, 720, 4, 144]
    part = task.rows.cut(3)
    for k in (2, 0, 1):
        addresses = (part.table.buffer_info()[0], part.numbers.buffer_info()[0])
        kind(part.function)(*addresses, -(-(1 << 16) * k // 3), -(-(1 << 16) * (k + 1) // 3))
    wanted = poisoned(out.shape, np.float32)
    run(gemm.task(a, x * scale, wanted))
    assert out.tobytes() == wanted.tobytes()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="features of x86")
@pytest.mark.parametrize("features", ["", "+avx", "+avx,+avx2,+fma"])
def test_other_cpus(features, monkeypatch):
    import llvmlite.binding

    host = llvmlite.binding.get_host_cpu_features()
    if not all(host.get(f[1:]) for f in features.split(",") if f):
        pytest.skip(f"this CPU lacks one of {features}")
    other = Machine("x86-64", features)
    monkeypatch.setattr(gemm, "machine", lambda: other)
    y = variable("y")
    monkeypatch.setattr(gemm, "_PLAIN", Program([y], ["y"], ()))
    rng = np.random.default_rng(9)
    for dtype, transposed in itertools.product(DTYPES, (False, True)):
        program = Program([w * s], ["w", "s"], ["w"])
        for m, k, n in ((33, 70, 21), (1, 60, 100)):
            a = rng.normal(size=(m, k)).astype(dtype)
            shape = (n, k) if transposed else (k, n)
            inputs = inputs_of(program, shape, "column", dtype, rng)
            assert_same(a, program, inputs, shape, transposed)
