"""Lists of native tasks and the threads that share them: every share once, whoever runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pytest

from gpugrad.codegen import llvm, shares, workers
from gpugrad.codegen.ir import Code
from gpugrad.codegen.machine import machine
from gpugrad.codegen.tasks import Task, TaskList
from gpugrad.config import settings

pytest.importorskip("llvmlite")

ROOT = Path(__file__).resolve().parents[2]
pool_needed = pytest.mark.skipif(os.name != "posix", reason="threads share tasks on POSIX only")


@pytest.fixture(autouse=True)
def compiler():
    if os.environ.get("GPUGRAD_JIT") == "0":
        pytest.skip("GPUGRAD_JIT=0")
    assert machine() is not None


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request, monkeypatch):
    monkeypatch.setattr(settings, "num_threads", request.param)
    return request.param


def adding(amount: int) -> int:
    """The address of a kernel that adds to its share of the words of a table, after their count."""
    code = Code("double", 1)
    parameters = shares.parameters(code)
    table, _, first, last = parameters
    count = code.load(table, "i64")
    with code.loop(*llvm._share(code, count, first, last, 1)) as i:
        word = code.at(table, i + 1)
        code.store(code.load(word, "i64") + amount, word)
    return machine().load(code.function("kernel", parameters))


def stack_address() -> int:
    """The address of a kernel that works for a while and then writes to the word of its part where
    the stack of its thread is. The table: the parts, a word for each."""
    code = Code("double", 1)
    parameters = shares.parameters(code)
    table, _, first, last = parameters
    place = code.emit("alloca i64", "ptr")
    start, stop = llvm._share(code, code.load(table, "i64"), first, last, 1)
    with code.loop(start, stop) as part:
        with code.loop(code.integer(0), code.integer(1_000_000)) as i:
            code.do(f"store volatile {i}, {place}")
        code.store(place.convert("ptrtoint", "i64"), code.at(table, part + 1))
    return machine().load(code.function("kernel", parameters))


def words(count: int) -> array:
    return array("q", [count, *[0] * count])


def task(amount: int, table: array, parts: int) -> Task:
    return Task(adding(amount), table, array("d"), parts)


def test_ranges_of_a_list():
    table = words(3)
    tasks = TaskList()
    assert [tasks.append(task(10**k, table, 1)) for k in range(4)] == [0, 1, 2, 3]
    for bounds, wanted in (
        ((), 1111),
        ((1,), 2221),
        ((0, 2), 2232),
        ((2, 2), 2232),
        ((3, 4), 3232),
    ):
        tasks.run(*bounds)
        assert list(table[1:]) == [wanted] * 3
    for bounds in ((-1, 2), (3, 5), (3, 2)):
        with pytest.raises(IndexError, match="of a list of 4"):
            tasks.run(*bounds)
    assert list(table[1:]) == [3232] * 3


def test_a_list_holds_its_memory():
    tasks, table = TaskList(), words(100)
    for amount in range(1, 4):
        tasks.append(task(amount, table, 1))
    with pytest.raises(BufferError):
        table.append(0)
    tasks.append(task(4, words(1000), 1))  # nobody else has this table
    tasks.run()
    assert list(tasks.tasks[3].table[1:]) == [4] * 1000
    table[0] = 1  # between runs it may be written
    tasks.run()
    assert list(table[1:]) == [12] + [6] * 99
    with pytest.raises(TypeError, match="64-bit words"):
        tasks.append(Task(adding(1), array("d"), array("d")))


PARTS = (1, 2, 3, 7, 64, 1000, 4095, 5000)


@pytest.mark.parametrize("count", [0, 1, 3, 100, 9973])
def test_every_share_once(count, threads):
    tables = [words(count) for _ in PARTS]
    tasks = TaskList()
    for table, parts in zip(tables, PARTS, strict=True):
        tasks.append(task(1, table, parts))
        tasks.append(task(1000, table, parts))
    for _ in range(50):
        tasks.run()
    for table in tables:
        assert set(table[1:]) <= {50 * 1001}


def test_jobs_do_not_mix(threads):
    """Thousands of short jobs of other kernels, tables and numbers of parts one after the other."""
    rng = np.random.default_rng(threads)
    tables = [words(int(n)) for n in rng.integers(1, 60, 12)]
    wanted = np.zeros(len(tables), int)
    tasks = TaskList()
    for _ in range(400):
        k, amount = int(rng.integers(len(tables))), int(rng.integers(1, 4))
        tasks.append(task(amount, tables[k], int(rng.integers(1, 9))))
        wanted[k] += amount
    for _ in range(20):
        tasks.run()
    for table, total in zip(tables, wanted, strict=True):
        assert set(table[1:]) == {20 * total}


@pool_needed
def test_workers_take_part(monkeypatch):
    monkeypatch.setattr(settings, "num_threads", 2)
    tasks, table = TaskList(), words(8)
    tasks.append(Task(stack_address(), table, array("d"), 8))
    stacks: set[int] = set()
    deadline = time.monotonic() + 60
    while len(stacks) < 2 and time.monotonic() < deadline:
        tasks.run()
        stacks |= {address >> 16 for address in table[1:]}
    assert len(stacks) == 2


def test_several_callers(threads):
    """One has the workers, the others run alone; all at once also change the number of threads."""
    tables = [words(500) for _ in range(3)]
    lists = []
    for table in tables:
        tasks = TaskList()
        for parts in (2, 5, 9):
            tasks.append(task(1, table, parts))
        lists.append(tasks)

    def call(tasks: TaskList) -> None:
        for _ in range(500):
            tasks.run()

    callers = [threading.Thread(target=call, args=(tasks,)) for tasks in lists]
    for caller in callers:
        caller.start()
    for number in (4, 2, 3, 1, 2):
        time.sleep(0.01)
        settings.num_threads = number
    for caller in callers:
        caller.join()
    for table in tables:
        assert set(table[1:]) == {1500}


@pool_needed
def test_workers_leave_with_their_pool(monkeypatch):
    monkeypatch.setattr(settings, "num_threads", 3)
    old = workers.current()
    assert [thread.is_alive() for thread in old.workers] == [True, True]
    assert workers.current() is old
    monkeypatch.setattr(settings, "num_threads", 2)
    assert len(workers.current().workers) == 1
    for thread in old.workers:
        thread.join(30)
        assert not thread.is_alive()
    monkeypatch.setattr(settings, "num_threads", 1)
    assert workers.current() is None


@pool_needed
def test_a_system_without_threads(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(settings, "num_threads", 5)
    table, tasks = words(100), TaskList()
    tasks.append(task(1, table, 7))
    tasks.run()
    assert list(table[1:]) == [1] * 100
    assert not workers.current().workers
    workers._close()


# ---- what a process does as a whole

SCRIPT = """
import os, sys, time
sys.path.insert(0, "tests/codegen")
from test_tasks import *
settings.num_threads = 2
table, tasks = words(1000), TaskList()
for parts in (2, 3, 5, 8):
    tasks.append(task(1, table, parts))
def check(runs):
    before = table[1]
    for _ in range(runs):
        tasks.run()
    assert set(table[1:]) == {before + 4 * runs}
check(200)
"""


def run_script(*lines: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", "\n".join((SCRIPT, *lines))],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    return ran.stdout


@pool_needed
def test_the_interpreter_ends():
    """With workers that sleep, and with workers that still look for work."""
    assert run_script("time.sleep(0.1); print('slept')") == "slept\n"
    assert run_script("print('at once')") == "at once\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_makes_its_own_pool():
    lines = """
for _ in range(5):
    child = os.fork()
    if not child:
        assert not workers._pools
        check(200)
        assert workers.current().workers[0].is_alive()
        os._exit(7)
    check(200)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("parent")
"""
    assert run_script(lines) == "parent\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot be bound to a core")
def test_one_core_for_all_threads():
    """Caller and workers on one core: the caller does what the workers do not get to."""
    lines = """
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
settings.num_threads = 4
check(10)
start = time.perf_counter()
check(500)
print((time.perf_counter() - start) / 2000)
"""
    # Waiting for a time slice at every dispatch would take 2000 times 1-10 ms.
    assert float(run_script(lines)) < 1e-3
