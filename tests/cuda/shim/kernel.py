"""Launches of kernels built for the CPU, on NumPy arrays: the calls of ``cupy.RawKernel``."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from .compiler import ShimError, build

FORWARD, REVERSE, SHUFFLED = range(3)
SCHEDULES = ((FORWARD, 0), (REVERSE, 0), (SHUFFLED, 1), (SHUFFLED, 2))
_KINDS = {"f": "f", "i": "i", "u": "u", "b": "b"}  # NumPy's and the signature's agree
_POISON = 0xA5


class Parameter(NamedTuple):
    """Of a kernel: ``p``ointer, ``i``nteger, ``u``nsigned, ``f``loat, ``b``ool or ``s``truct."""

    kind: str
    size: int
    target: str = ""  # what a pointer points to: "f4", "s2"
    constant: bool = False

    def __str__(self) -> str:
        names = {"h2": "__half", "w2": "__nv_bfloat16", "f4": "float", "f8": "double"}
        names |= {"i4": "int", "i8": "long long", "b1": "bool"}
        if self.kind == "p":
            return f"{'const ' * self.constant}{names.get(self.target, self.target or 'void')}*"
        return names.get(f"{self.kind}{self.size}", f"{self.kind}{self.size}")


def parameters(signature: str) -> list[Parameter]:
    found = re.findall(r"([a-z])(\d+)(?::([a-z]\d+))?(c?),", signature)
    return [Parameter(kind, int(size), target, bool(const)) for kind, size, target, const in found]


class GuardedBytes:
    """Memory that ends at an inaccessible page, as closely as its address modulo 16 allows.

    What lies before it, and the few bytes between its end and the page, is poison that must stay.
    """

    def __init__(self, content: bytes, phase: int = 0):
        page, size = mmap.PAGESIZE, len(content)
        rest = -(size + phase) % 16
        inner = (size + rest + page - 1) // page * page
        self.memory = mmap.mmap(-1, inner + 2 * page)
        whole = np.frombuffer(self.memory, np.uint8)
        for guard in (0, page + inner):
            _forbid(whole.ctypes.data + guard, page)
        end = page + inner - rest
        self.before = whole[page : end - size]
        self.bytes = whole[end - size : end]
        self.after = whole[end : page + inner]
        self.before[:] = self.after[:] = _POISON
        self.bytes[:] = np.frombuffer(content, np.uint8)
        self.address = self.bytes.ctypes.data

    def check(self) -> None:
        """ShimError if bytes around the memory were written."""
        for name, poison in (("before the start", self.before), ("after the end", self.after)):
            if not (poison == _POISON).all():
                raise ShimError(f"wrote {name} of an array of {self.bytes.nbytes} bytes")


@cache
def _mprotect():
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def _forbid(address: int, size: int) -> None:
    """Make pages inaccessible."""
    if _mprotect()(address, size, 0):
        raise OSError(ctypes.get_errno(), "mprotect")


class Module:
    """The kernels of a text."""

    def __init__(self, text: str, options: Sequence[str] = ()):
        self.path, self.names = build(text, options)
        self.library = ctypes.CDLL(str(self.path))

    def __getitem__(self, name: str) -> Kernel:
        return Kernel(self.library, name)

    get_function = __getitem__


class Kernel:
    """``kernel(grid, block, args, shared=0)`` runs on the arrays in ``args``, in place.

    Arguments as for a ``Launcher``: contiguous NumPy arrays for pointers, Python ints for 8-byte
    integers, floats for doubles, NumPy scalars of exactly the parameter's type, arrays of one
    element for structs by value. Arrays that share memory share it in the kernel if they are one
    array. ShimError for whatever a GPU would answer with an error, or not answer at all.
    """

    def __init__(self, library: ctypes.CDLL, name: str):
        try:
            self._launch = getattr(library, f"cudacpu_launch_{name}")
            signature = getattr(library, f"cudacpu_sig_{name}")
        except AttributeError:
            raise ShimError(f"the module has no kernel {name}") from None
        signature.restype = ctypes.c_char_p
        self.name = name
        self.parameters = parameters(signature().decode())

    def __call__(self, grid, block, args, shared=0, order=FORWARD, seed=0):
        if len(args) != len(self.parameters):
            raise ShimError(
                f"{self.name} takes {len(self.parameters)} arguments, not {len(args)}: "
                + ", ".join(map(str, self.parameters))
            )
        guarded: dict[int, tuple[np.ndarray, GuardedBytes]] = {}
        values = [
            self._argument(i, argument, parameter, guarded)
            for i, (argument, parameter) in enumerate(zip(args, self.parameters))
        ]
        self.raw(grid, block, values, shared, order, seed)
        for array, memory in guarded.values():
            memory.check()
            if array.flags.writeable:
                array[...] = memory.bytes.view(array.dtype).reshape(array.shape)

    def raw(self, grid, block, values: Sequence[bytes], shared=0, order=FORWARD, seed=0) -> None:
        """A launch with the bytes of every argument; pointers are addresses in this process."""
        stored = [ctypes.create_string_buffer(v, len(v)) for v in values]
        addresses = (ctypes.c_void_p * len(stored))(*(ctypes.addressof(v) for v in stored))
        shape = (ctypes.c_uint * 6)(*_three(grid), *_three(block))
        message = ctypes.create_string_buffer(1000)
        failed = self._launch(
            shape, ctypes.c_size_t(shared), addresses, order, ctypes.c_uint(seed), message, 1000
        )
        if failed:
            raise ShimError(f"{self.name}: {message.value.decode(errors='replace')}")

    def _argument(self, i: int, value, wanted: Parameter, guarded: dict) -> bytes:
        """The bytes of an argument, checked against the parameter."""
        if isinstance(value, np.ndarray) and wanted.kind == "p":
            self._check_array(i, value, wanted)
            if id(value) not in guarded:
                guarded[id(value)] = (value, GuardedBytes(value.tobytes()))
            return np.uint64(guarded[id(value)][1].address).tobytes()
        if isinstance(value, bool):
            value = np.bool_(value)
        elif isinstance(value, int):
            value = np.uint64(value) if wanted.kind == "u" and value >= 0 else np.int64(value)
        elif isinstance(value, float):
            value = np.float64(value)
        fits = isinstance(value, np.generic | np.ndarray) and (
            (value.nbytes == wanted.size)
            and (wanted.kind == "s" or _KINDS.get(value.dtype.kind) == wanted.kind)
        )
        if not fits:
            given = value.dtype if hasattr(value, "dtype") else type(value).__name__
            raise ShimError(f"argument {i} of {self.name} is {wanted}, not {given}")
        return value.tobytes()

    def _check_array(self, i: int, array: np.ndarray, wanted: Parameter) -> None:
        if not array.flags.c_contiguous:
            raise ShimError(f"argument {i} of {self.name}: the array is not contiguous")
        if not wanted.target or wanted.target[0] in "sbhw":  # structs; 16-bit types have views
            return
        kind, size = wanted.target[0], int(wanted.target[1:])
        same = (array.dtype.kind == "f") == (kind == "f") and array.dtype.itemsize == size
        if array.dtype.kind in "fiu" and not same:
            raise ShimError(f"argument {i} of {self.name} is {wanted}, the array {array.dtype}")


def _three(extents) -> tuple[int, int, int]:
    return (*((extents,) if isinstance(extents, int) else tuple(extents)), 1, 1)[:3]


def same_in_every_schedule(
    kernel: Kernel,
    grid,
    block,
    make: Callable[[], Sequence],
    outputs: Sequence[int],
    shared: int = 0,
    tolerance: float = 0.0,
) -> list[np.ndarray]:
    """Outputs of a launch, which must not depend on the order in which threads run.

    ``make()`` gives fresh arguments; ``outputs`` are the positions of those written.
    ``tolerance`` (relative) is for documented atomics.
    """
    first: list[np.ndarray] | None = None
    for order, seed in SCHEDULES:
        args = make()
        kernel(grid, block, args, shared, order, seed)
        results = [args[i] for i in outputs]
        first = first or results
        for a, b in zip(first, results):
            if not same(a, b, tolerance):
                schedule = f"order {order}, seed {seed}"
                raise ShimError(f"{kernel.name}: the result depends on the schedule ({schedule})")
    return first


def same(a: np.ndarray, b: np.ndarray, tolerance: float = 0.0) -> bool:
    """Bit for bit, or within a relative tolerance of the largest value."""
    if a.tobytes() == b.tobytes():
        return True
    if not tolerance or a.dtype.kind not in "fc":
        return False
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = np.abs(a[np.isfinite(a)]).max(initial=1.0)
    return np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
