"""Chains of tasks: the bits of the tasks one after the other, whichever rows are computed first."""

from __future__ import annotations

import ctypes
import threading
from array import array

import numpy as np
import pytest

from gpugrad.codegen import chains, gemm, moves, shares
from gpugrad.codegen.arrays import Program, cut_dimensions
from gpugrad.codegen.expr import build, variable
from gpugrad.codegen.ir import Code
from gpugrad.codegen.machine import machine
from gpugrad.codegen.rows import ELEMENT, ROW, RowProgram, row_max, row_sum
from gpugrad.codegen.shares import WHOLE
from gpugrad.codegen.tasks import Operand, Rows, Task, TaskList
from gpugrad.config import settings
from gpugrad.static import lower

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")

X, Y = variable("x"), variable("y")
ADD_TANH = Program([build("tanh", build("add", X, Y))], ["x", "y"], ["x", "y"])
SCALED = Program([build("mul", build("sub", X, Y), 0.5)], ["x", "y"], ["x", "y"])
SOFTMAX = RowProgram(
    [(ELEMENT, build("exp", X - row_max(X)) / row_sum(build("exp", X - row_max(X))))],
    {"x": ELEMENT},
)
LARGEST = RowProgram([(ROW, row_max(X))], {"x": ELEMENT})


@pytest.fixture
def eager_chains(monkeypatch):
    """Chains wherever there can be one."""
    monkeypatch.setattr(chains, "LEAST", 0.0)
    monkeypatch.setattr(chains, "GAIN", 1e9)
    monkeypatch.setattr(chains.os, "cpu_count", lambda: 4)


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request, monkeypatch):
    monkeypatch.setattr(settings, "num_threads", request.param)
    return request.param


def function_of(task: Task):
    words = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    call = ctypes.CFUNCTYPE(None, *words)(task.function)
    table, numbers = task.table.buffer_info()[0], task.numbers.buffer_info()[0]
    return lambda first, last: call(table, numbers, first, last)


def run_in_order(tasks: list[Task]) -> None:
    for task in tasks:
        function_of(task)(0, WHOLE)


def run_by_parts(tasks: list[Task], order) -> None:
    """The parts of chains in an order, each to its end before the next begins: what may happen to
    threads that wait for nothing. A part that needs something of a later one shows."""
    for task in tasks:
        parts = task.parts if task.members else 1
        for k in order(range(parts)):
            function_of(task)(k * WHOLE // parts, (k + 1) * WHOLE // parts)


def waiting(rounds: int, rows: int) -> Task:
    """A task that lets some threads fall behind: it counts, longer in the first shares."""
    code = Code("double", 1)
    given = shares.parameters(code)
    table, _, first, _ = given
    place = code.emit("alloca i64", "ptr")
    some = (code.integer(WHOLE) - first) * code.load(table, "i64")
    with code.loop(code.integer(0), some.bitwise("lshr", 16)) as i:
        code.do(f"store volatile {i}, {place}")
    address = machine().load(code.function("kernel", given))
    task = Task(address, array("q", [rounds]), array("d", [0.0]))
    return task._replace(rows=Rows((rows,), (), lambda count: task, 0.0))


def elementwise(program: Program, inputs: list, out) -> Task:
    task = lower.elementwise_task(program, inputs, [out])
    assert task is not None
    return task


def by_rows(program: RowProgram, x, out) -> Task:
    lowered = lower.rows_task(program, [x], [out])
    assert lowered is not None
    (task,) = lowered.tasks
    return task


def network(rng, rows: int, width: int, steps: int, dtype="float32"):
    """Tasks like those of a recurrent network, its results, and a function that poisons what is
    computed."""
    start, weight = rng.normal(size=(rows, width)), rng.normal(size=(width, width)) / width**0.5
    h, weight = start.astype(dtype), weight.astype(dtype)
    x = rng.normal(size=(steps, rows, width)).astype(dtype)
    states = np.empty((steps, rows, width), dtype)
    soft, most = np.empty((rows, width), dtype), np.empty((rows, 1), dtype)
    wide = np.empty((rows, 3 * width), dtype)
    tasks = []
    for t in range(steps):
        b = weight if t % 2 else weight.T
        tasks.append(gemm.task(h, b, states[t], program=ADD_TANH, inputs=[x[t]]))
        tasks.append(waiting(int(rng.integers(2000)), rows))
        tasks.append(by_rows(SOFTMAX, states[t], soft))
        tasks.append(by_rows(LARGEST, soft, most))
        tasks.append(moves.fill(wide, 3.0))
        place = wide[:, width : 2 * width]
        tasks.append(elementwise(SCALED, [soft, most], place))
        tasks.append(elementwise(SCALED, [place, states[t]], states[t]))
        h = states[t]
    results = [states, soft, most, wide]

    def poison() -> None:
        for a in results:
            a.view(np.uint8)[...] = 0xA5

    return tasks, results, poison


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "width"), [(2, 16), (3, 8), (13, 24), (32, 64), (97, 20), (5, 2)])
def test_the_bits_of_tasks_without_chains(rows, width, dtype, threads, eager_chains, rng):
    tasks, results, poison = network(rng, rows, width, 6, dtype)
    poison()
    run_in_order(tasks)
    expected = [a.copy() for a in results]
    assert np.isfinite(expected[0]).all()
    made = chains.joined(tasks)
    (chain,) = made
    assert len(chain.members) == len(tasks)
    everything = TaskList()
    everything.append(chain)
    for run in (
        lambda: run_by_parts(made, list),
        lambda: run_by_parts(made, reversed),
        *[everything.run] * 20,
    ):
        poison()
        run()
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def test_parts_cover_all_rows(eager_chains, monkeypatch, rng):
    """Any number of parts, also such that their bounds are no whole rows."""
    tasks, results, poison = network(rng, 37, 8, 2)
    run_in_order(tasks)
    expected = [a.copy() for a in results]
    for parts in range(2, 38):
        monkeypatch.setattr(chains, "_time", lambda r, c, n, cores, parts=parts: abs(n - parts))
        monkeypatch.setattr(chains.workers, "PARTS", 64)
        (chain,) = made = chains.joined(tasks)
        assert chain.parts == parts
        poison()
        run_by_parts(made, reversed)
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        states, written = results[0].view(np.int32), []
        for k in range(parts):
            states[:] = -1
            function_of(chain)(k * WHOLE // parts, (k + 1) * WHOLE // parts)
            written.append((states[0] != -1).any(1).sum())
        assert sum(written) == 37
        assert min(written) == 37 // parts


def test_matrices_of_a_batch(eager_chains, rng):
    """Attention: products of the matrices of each sequence, and of its rows with weights."""
    x, w = rng.normal(size=(5, 9, 16)).astype("f"), rng.normal(size=(16, 48)).astype("f")
    qkv, scores, out = np.empty((5, 9, 48), "f"), np.empty((5, 2, 9, 9), "f"), np.empty_like(x)
    q, k, v = qkv.reshape(5, 9, 3, 2, 8).transpose(2, 0, 3, 1, 4)
    heads = out.reshape(5, 9, 2, 8).transpose(0, 2, 1, 3)
    tasks = [
        gemm.task(x.reshape(45, 16), w, qkv.reshape(45, 48)),
        gemm.task(q, k.swapaxes(-1, -2), scores, alpha=0.3),
        by_rows(SOFTMAX, scores, scores),
        gemm.task(scores, v, heads),
        gemm.task(out.reshape(45, 16), w, qkv.reshape(45, 48)),
    ]
    run_in_order(tasks)
    expected = out.copy(), qkv.copy()
    (chain,) = made = chains.joined(tasks)
    assert len(chain.members) == 5
    for order in (list, reversed):
        for a in (qkv, scores, out):
            a.view(np.uint8)[...] = 0xA5
        run_by_parts(made, order)
        np.testing.assert_array_equal(out, expected[0])
        np.testing.assert_array_equal(qkv, expected[1])


def test_random_memory(eager_chains, rng):
    """Tasks over views of one small piece of memory, in which much overlaps: chains end where a
    row of one is not the same row of another."""
    lengths = []
    for _ in range(300):
        rows, memory = int(rng.integers(2, 9)), rng.normal(size=4000).astype("f")
        weights = (rng.normal(size=(8, 8)) / 4).astype("f")

        def matrix(columns: int, rows=rows, memory=memory):
            """Places and distances of few kinds, so that many fit."""
            step = int(rng.choice([columns, 16, 32]))
            start = int(rng.choice([0, 8, 16, 4 * rows, 500, 1000, 1500, 2000]))
            return np.lib.stride_tricks.as_strided(memory[start:], (rows, columns), (4 * step, 4))

        tasks = []
        while len(tasks) < 8:
            out, a, b = matrix(8), matrix(8), matrix(8)
            kind = int(rng.integers(4))
            if kind == 0:
                task = gemm.task(a, weights, out)
            elif kind == 1:  # all rows of b are read
                task = gemm.task(a, b.T, matrix(rows))
            elif kind == 2 and not (np.may_share_memory(out, a) or np.may_share_memory(out, b)):
                task = elementwise(SCALED, [a, b], out)
            elif kind == 3:
                task = elementwise(SCALED, [a, weights[0]], a)
            else:
                continue
            if task is not None:
                tasks.append(task)
        start = memory.copy()
        run_in_order(tasks)
        expected = memory.copy()
        made = chains.joined(tasks)
        lengths += [len(task.members) for task in made if task.members]
        for order in (list, reversed):
            memory[:] = start
            run_by_parts(made, order)
            np.testing.assert_array_equal(memory.view(np.int32), expected.view(np.int32))
    assert len(lengths) > 100
    assert max(lengths) > 3


def test_products_of_arrays_backwards(eager_chains, rng):
    """What lies before the address of an array is read, too."""
    a, b = rng.normal(size=(6, 8)).astype("f"), rng.normal(size=(8, 8)).astype("f")
    out, last = np.empty((6, 8), "f"), np.empty((6, 8), "f")
    for x, y in ((out[:, ::-1], b), (out[::-1], b), (b[:6], out.T[:, ::-1])):
        tasks = [gemm.task(a, b, out)]
        k = y.shape[1]
        tasks.append(gemm.task(x[:, : y.shape[0]], y, last[:, :k]))
        run_in_order(tasks)
        expected = last.copy()
        last[:] = np.nan
        out[:] = np.nan
        run_by_parts(chains.joined(tasks), reversed)
        np.testing.assert_array_equal(last[:, :k], expected[:, :k])
    empty = gemm.task(np.empty((6, 0), "f"), np.empty((0, 8), "f"), out)
    run_by_parts(chains.joined([empty, gemm.task(out, b, last)]), reversed)
    assert not out.any()
    assert not last.any()


# ---- which tasks may follow

ALL = np.zeros(4096, np.uint8)


def piece(start: int, step: int, width: int, written: bool, count: int = 4) -> Rows:
    """One operand."""
    operand = Operand(ALL[start:], (step,), width, written)
    return Rows((count,), (operand,), lambda count: None, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "follows"),
    [
        (piece(0, 64, 64, True), piece(0, 64, 64, False), True),
        (piece(0, 64, 64, True), piece(16, 64, 16, True), True),
        (piece(0, 64, 32, True), piece(32, 64, 32, True), True),
        (piece(16, 64, 32, True), piece(0, 64, 64, False), True),
        (piece(0, 64, 64, True), piece(64, 64, 64, False), False),  # another row
        (piece(0, 64, 64, False), piece(64, 64, 64, True), False),
        (piece(0, 64, 64, False), piece(64, 64, 64, False), True),  # nobody writes
        (piece(0, 64, 64, True), piece(0, 32, 32, False), False),  # other rows
        (piece(0, 64, 64, True), piece(0, 0, 64, False), False),  # one row for all
        (piece(0, 0, 256, False), piece(0, 64, 64, True), False),
        (piece(0, 64, 64, True), piece(0, 0, 256, True), False),
        (piece(0, 64, 64, True), piece(256, 0, 64, False), True),  # beside it
        (piece(256, 64, 64, True), piece(0, 64, 64, True), True),
        (piece(48, 64, 32, True), piece(64, 64, 48, False), True),
        (piece(48, 64, 32, True), piece(64, 64, 52, False), False),  # the row before, too
        (piece(0, 64, 64, True), piece(0, 64, 64, False, 3), False),  # not so many rows
        (piece(0, -64, 64, False), piece(0, 64, 64, False), True),
        (piece(1000, -64, 64, False), piece(936, 64, 64, True), False),
    ],
)  # fmt: skip
def test_memory(first, second, follows):
    memory = chains._Memory(4)
    assert memory.takes(first)
    before = list(memory._pieces)
    assert memory.takes(second) == follows
    assert follows or memory._pieces == before


def test_rows_that_are_written_lie_apart():
    assert not chains._Memory(4).takes(piece(0, 64, 65, True))
    assert not chains._Memory(4).takes(piece(0, 0, 64, True))
    assert not chains._Memory(4).takes(piece(1000, -64, 64, True))
    assert not chains._Memory(4).takes(piece(0, 64, 64, False, 6))


def test_blocks_of_dimensions():
    assert cut_dimensions((6, 4), [[40, 8]], 5) is None
    assert cut_dimensions((6, 4), [[40, 8]], 6) == ([40], [4], [[8]])
    assert cut_dimensions((6, 4), [[40, 8]], 3) == ([80], [2, 4], [[40, 8]])
    assert cut_dimensions((6, 4), [[40, 8]], 12) == ([None], [2], [[8]])
    assert cut_dimensions((6, 4), [[32, 8]], 12) == ([16], [2], [[8]])
    assert cut_dimensions((1, 6, 1), [[7, 0, 3]], 6) == ([0], [], [[]])
    assert cut_dimensions((), [[]], 2) is None


def test_only_what_gains(monkeypatch, rng):
    monkeypatch.setattr(chains.os, "cpu_count", lambda: 2)
    small, *_ = network(rng, 4, 8, 1)
    assert not any(task.members for task in chains.joined(small))
    large, *_ = network(rng, 32, 64, 3)
    assert any(task.members for task in chains.joined(large))
    monkeypatch.setattr(chains.os, "cpu_count", lambda: 1)
    assert chains.joined(large) == large


def test_several_callers(eager_chains, threads, rng):
    """Each its own chain at the same time."""
    lists, wanted, failed = [], [], []
    for rows in (7, 32, 50):
        tasks, results, poison = network(rng, rows, 16, 4)
        run_in_order(tasks)
        wanted.append([a.copy() for a in results])
        everything = TaskList()
        for task in chains.joined(tasks):
            everything.append(task)
        lists.append((everything, results, poison))

    def call(k: int) -> None:
        everything, results, poison = lists[k]
        for _ in range(60):
            poison()
            everything.run()
            if not all(np.array_equal(a, b) for a, b in zip(results, wanted[k], strict=True)):
                failed.append(k)

    callers = [threading.Thread(target=call, args=(k,)) for k in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failed
