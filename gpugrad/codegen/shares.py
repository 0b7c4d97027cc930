"""How kernels of native programs are called: ``kernel(table, numbers, first, last)``.

The table is of 64-bit words (sizes, strides, array objects), the numbers are doubles; ``first`` and
``last`` say which share of the work the call does, in units of 1/65536. (A division in the kernel
would cost 3 ms of compile time.)
"""

from __future__ import annotations

from .ir import Code, Value

# The whole of a kernel's work, as ``last``.
WHOLE = 1 << 16


def parameters(code: Code) -> list[Value]:
    """The parameters of a kernel: table, numbers, first, last."""
    names = (("table", "ptr"), ("numbers", "ptr"), ("first", "i64"), ("last", "i64"))
    return [code.parameter(*p) for p in names]


def share(code: Code, count: Value, bound: Value) -> Value:
    """Where the share of a call begins or ends among ``count`` pieces of work; ``bound`` is
    ``first`` or ``last``."""
    return (count * bound).bitwise("lshr", WHOLE.bit_length() - 1)
