"""Kernels with arguments of their own as native tasks (``tasks.py``).

A task's kernel is ``kernel(table, numbers, first, last)``. The kernels of rows, convolutions, pools
and sums take their arguments one by one; a small function between the two takes them out of the
table. Its text depends on the kinds of the arguments alone:

p   a pointer: the next word of the table
i   an integer: the next word
d   a real number: the next of the numbers
f l the share of the next word (a count) where this call begins, or ends
s   a pointer to the sizes of a row kernel: rows, columns, step, groups in the next four words; the
    share is of the groups
S   scratch memory of one part: the next word is how many parts there are, and as many pointers
    follow
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache

from .ir import Code, Value
from .machine import Machine
from .shares import WHOLE, parameters, share
from .tasks import Task


def task(
    compiler: Machine,
    function: int,
    arguments: str,
    words: Sequence[int],
    numbers: Sequence[float] = (),
    *,
    parts: int = 1,
    keep=None,
    status: bool = False,
) -> Task:
    """The task that calls the kernel at an address. With ``status`` the kernel returns an integer,
    and the first word of the table becomes 1 where that is not 0."""
    scratch = words[_scratch_place(arguments)] if "S" in arguments else 0
    address = _trampoline(compiler, arguments, scratch, status)
    table = array("q", [0, function, *words])
    return Task(address, table, array("d", numbers), parts, keep)


# Words before the arguments: the status, the address of the kernel.
FIRST_WORD = 2


def _scratch_place(arguments: str) -> int:
    widths = {"d": 0, "s": 4}
    return sum(widths.get(a, 1) for a in arguments[: arguments.index("S")])


@lru_cache(1024)
def _trampoline(compiler: Machine, arguments: str, scratch: int, status: bool) -> int:
    return compiler.kernel(_text, arguments, scratch, status)


def _text(_: Machine, arguments: str, scratch: int, status: bool) -> str:
    code = Code()
    own = parameters(code)
    table, numbers, first, last = own
    place, number, given = FIRST_WORD, 0, []

    def word(type: str = "i64") -> Value:
        nonlocal place
        place += 1
        return code.load(code.at(table, place - 1), type)

    for kind in arguments:
        if kind == "p":
            given.append(word("ptr"))
        elif kind == "i":
            given.append(word())
        elif kind == "d":
            given.append(code.load(code.at(numbers, number), "double"))
            number += 1
        elif kind in "fl":
            given.append(share(code, word(), first if kind == "f" else last))
        elif kind == "s":
            sizes = code.emit("alloca [5 x i64]", "ptr")
            for k in range(3):
                code.store(word(), code.at(sizes, k))
            groups = word()
            code.store(share(code, groups, first), code.at(sizes, 3))
            code.store(share(code, groups, last), code.at(sizes, 4))
            given.append(sizes)
        elif kind == "S":
            # the number of the part: its share begins at part / parts, rounded down
            part = (word() * first + (WHOLE - 1)).bitwise("lshr", WHOLE.bit_length() - 1)
            given.append(code.load(code.at(code.at(table, place), part), "ptr"))
            place += scratch
    function = code.load(code.at(table, 1), "ptr")
    call = f"{function.name}({', '.join(map(str, given))})"
    if status:
        failed = code.emit(f"call i64 {call}", "i64").compare("ne", 0)
        flag = failed.convert("zext", "i64")
        code.do(f"%before = atomicrmw or {table}, {flag} monotonic")
    else:
        code.do(f"call void {call}")
    return code.function("kernel", own)
