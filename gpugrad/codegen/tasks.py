"""Lists of native tasks that one call runs: what a compiled program does on a CPU.

A task is a call of a kernel as ``shares.py`` has it. The records of a list lie in one piece of
memory; a small native function walks over them without holding the GIL.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from . import blas, workers
from .machine import Machine, machine
from .shares import WHOLE


class Operand(NamedTuple):
    """An array of a task that works row by row: ``strides`` lead in bytes from row to row, 0 where
    all rows use the same; ``width`` bytes of a row are read or written."""

    array: Any
    strides: tuple[int, ...]
    width: int
    written: bool = False


class Rows(NamedTuple):
    """What a task says that computes every row of its results from the same row of some operands,
    and from others as a whole.

    ``sizes`` are the dimensions that the rows have, ``cut(count)`` is the same task with shares of
    ``count`` equal blocks of rows, None if it cannot be cut so. It takes about ``nanoseconds`` of
    one core; of that, every share repeats what ``fixed`` rows take, and computes multiples of
    ``tile`` rows.
    """

    sizes: tuple[int, ...]
    operands: tuple[Operand, ...]
    cut: Callable[[int], Task | None]
    nanoseconds: float
    fixed: int = 0
    tile: int = 1


class Task(NamedTuple):
    """One call of a kernel."""

    function: int  # address of the kernel
    table: array  # 64-bit words, typecode "q"
    numbers: array  # doubles, typecode "d"
    parts: int = 1  # into how many shares threads may cut the work
    keep: Any = None  # what the table points to: array objects, scratch memory
    calls_blas: bool = False  # on the threads of the task, see ``blas.thread_functions``
    rows: Rows | None = None  # if it may be a part of a chain, see ``chains.py``
    members: Sequence[Task] = ()  # of a chain


# Words of a record: function, table, numbers, parts, and where the functions are that get and set
# BLAS's number of threads, if it is to be 1 for this task.
_RECORD = 5

# All of one type, and one that converts fast: 0.6 us a call, with c_int64 0.9.
_Run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)

_RUN_TEXT = f"""
define void @kernel(ptr %records, i64 %start, i64 %stop, ptr %control) nounwind {{
entry:
  br label %head
head:
  %i = phi i64 [%start, %entry], [%next, %after]
  %more = icmp slt i64 %i, %stop
  br i1 %more, label %body, label %done
body:
  %word = mul i64 %i, {_RECORD}
  %record = getelementptr i64, ptr %records, i64 %word
  %function = load ptr, ptr %record
  %at.table = getelementptr i64, ptr %record, i64 1
  %table = load ptr, ptr %at.table
  %at.numbers = getelementptr i64, ptr %record, i64 2
  %numbers = load ptr, ptr %at.numbers
  %at.parts = getelementptr i64, ptr %record, i64 3
  %parts = load i64, ptr %at.parts
  %at.blas = getelementptr i64, ptr %record, i64 4
  %blas = load ptr, ptr %at.blas
  %calls.blas = icmp ne ptr %blas, null
  br i1 %calls.blas, label %hold, label %go
hold:
  %get = load ptr, ptr %blas
  %at.set = getelementptr i64, ptr %blas, i64 1
  %set = load ptr, ptr %at.set
  %old.threads = call i32 %get()
  call void %set(i32 1)
  br label %go
go:
  %threads = phi i32 [0, %body], [%old.threads, %hold]
  %release = phi ptr [null, %body], [%set, %hold]
  %several = icmp sgt i64 %parts, 1
  %pool = icmp ne ptr %control, null
  %both = and i1 %several, %pool
  br i1 %both, label %together, label %alone
together:
  call void @parallel(ptr %control, ptr %function, ptr %table, ptr %numbers, i64 %parts)
  br label %ran
alone:
  call void %function(ptr %table, ptr %numbers, i64 0, i64 {WHOLE})
  br label %ran
ran:
  ; 1 may be what another caller has set, who will set it back
  %changed = icmp sgt i32 %threads, 1
  br i1 %changed, label %restore, label %after
restore:
  call void %release(i32 %threads)
  br label %after
after:
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}}
"""


def _run_text(compiler: Machine) -> str:
    return workers.parallel_text(compiler) + _RUN_TEXT


def _runner(compiler: Machine):
    return _Run(compiler.kernel(_run_text))


class TaskList:
    """Tasks in order; ``run`` executes a range of them by one native call.

    Tables may be written between runs (another array object, another number), not resized: a list
    holds the memory of its tasks, so that Python refuses to. Tasks are appended before the first
    run, or between runs.
    """

    def __init__(self):
        """Raises RuntimeError without a compiler (see ``machine``)."""
        compiler = machine()
        if compiler is None:
            raise RuntimeError("a list of native tasks needs llvmlite: pip install gpugrad[jit]")
        self.tasks: list[Task] = []
        self._memory: list[memoryview] = []
        self._records = array("q")
        self._address = 0
        self._shared = False  # whether there is a task with several parts
        self._call = _runner(compiler)

    def __len__(self) -> int:
        return len(self.tasks)

    def calls(self) -> Iterator[Task]:
        """The tasks, members of chains in place of these."""
        for task in self.tasks:
            yield from task.members or (task,)

    def append(self, task: Task) -> int:
        """Add a task; its number."""
        if task.table.typecode != "q" or task.numbers.typecode != "d":
            raise TypeError("a task's table holds 64-bit words ('q'), its numbers doubles ('d')")
        self.tasks.append(task)
        self._memory += (memoryview(task.table), memoryview(task.numbers))
        addresses = [memory.buffer_info()[0] for memory in (task.table, task.numbers)]
        parts = max(1, min(task.parts, workers.MOST_PARTS))
        self._shared = self._shared or parts > 1
        threads = blas.thread_functions() if task.calls_blas else None
        of_blas = threads.buffer_info()[0] if threads else 0
        self._records.extend((task.function, *addresses, parts, of_blas))
        self._address = self._records.buffer_info()[0]
        return len(self.tasks) - 1

    def run(self, start: int = 0, stop: int | None = None) -> None:
        """Execute the tasks from ``start`` up to ``stop`` (default: all) in order.

        Raises IndexError for a range that is not within the list.
        """
        count = len(self.tasks)
        if stop is None:
            stop = count
        if not 0 <= start <= stop <= count:
            raise IndexError(f"tasks {start} to {stop} of a list of {count}")
        pool = workers.current() if self._shared else None
        self._call(self._address, start, stop, None if pool is None else pool.address)
