"""From LLVM IR to functions in this process, and how they find the memory of NumPy's arrays."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable

import numpy as np

# What LLVM calls the elements that kernels compute with.
ELEMENTS = {np.dtype("float32"): "float", np.dtype("float64"): "double"}
# LLVM's types of NumPy's integers; truth values are bytes.
INTEGERS = {
    np.dtype("int64"): "i64",
    np.dtype("int32"): "i32",
    np.dtype("int16"): "i16",
    np.dtype("int8"): "i8",
    np.dtype("uint8"): "i8",
    np.dtype("bool"): "i8",
}

# The words of PyArrayObject after the type, as in NumPy's ndarraytypes.h; part of its ABI.
_FIELDS = ("type", "data", "ndim", "shape", "strides", "base", "dtype", "flags")


class Machine:
    """LLVM for the CPU of this process: compiles texts, loads and calls their functions."""

    def __init__(self, cpu: str | None = None, features: str | None = None):
        """``cpu`` and ``features``: for another CPU of the same family (tests); default: this
        one."""
        import llvmlite
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._llvm = llvm
        self.offsets = object_offsets()
        self.cpu = llvm.get_host_cpu_name() if cpu is None else cpu
        host = llvm.get_host_cpu_features()
        self.features = host.flatten() if features is None else features
        self._has = frozenset(self.features.split(","))
        version = ".".join(map(str, llvm.llvm_version_info))
        self.version = f"llvmlite {llvmlite.__version__}, LLVM {version}"
        self.triple = llvm.get_process_triple()
        parts = (self.triple, self.cpu, self.features, self.version, repr(self.offsets))
        self._identity = "\n".join(parts)
        self._compiler = self._target_machine()
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._target_machine())
        self._loaded: dict[str, int] = {}
        self.checker = None  # made by llvm.py
        self.compiled = 0  # kernels compiled by this process, not found on disk
        self._lock = threading.Lock()

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self._has

    @property
    def rounds(self) -> bool:
        """Whether floor and its like are instructions (on x86 since SSE 4.1), not library calls."""
        return not self.triple.startswith(("x86", "i686")) or self.has("sse4.1") or self.has("avx")

    def lanes(self, element: str) -> int:
        """Elements of two vector registers: where one computation waits for its own results, the
        other goes on (mish: 3.6 instead of 5.1 ns per element)."""
        register = 64 if self.has("avx512f") else 32 if self.has("avx") else 16
        return 2 * register // (8 if element in ("double", "i64") else 4)

    def _target_machine(self):
        """A fresh one: an engine takes ownership of its own."""
        target = self._llvm.Target.from_triple(self.triple)
        return target.create_target_machine(
            self.cpu, self.features, opt=2, reloc="pic", codemodel="jitdefault", jit=True
        )

    def kernel(self, write: Callable[..., str], *arguments) -> int:
        """The address of the function ``@kernel`` of the text ``write(self, *arguments)``.

        The text must depend on this machine, the arguments and the package's sources alone. By
        these its object code is found on disk, without the text: to write one takes 0.2 to 2 ms, to
        describe what it is written for 0.03.
        """
        from . import cache

        sources = cache.sources()
        if sources is None:
            return self.load(write(self, *arguments))
        what = cache.described((write, *arguments))
        return self._load(f"{sources}\n{what}", lambda: write(self, *arguments))

    def load(self, text: str) -> int:
        """The address of the function ``@kernel`` of a text, compiled if need be."""
        return self._load(text, lambda: text)

    def _load(self, what: str, text: Callable[[], str]) -> int:
        """The address of the function of a text that is known by what it is, or by itself."""
        from . import cache

        key = cache.key_of(f"{what}\n{self._identity}")
        with self._lock:
            address = self._loaded.get(key)
            if address is None:
                symbol = f"gpugrad_{key[:32]}"
                code = cache.read(key)
                if code is None:
                    code = self._compile(text().replace("@kernel(", f"@{symbol}("))
                    self.compiled += 1
                    cache.write(key, code)
                self._engine.add_object_file(self._llvm.ObjectFileRef.from_data(code))
                self._engine.finalize_object()
                address = self._loaded[key] = self._engine.get_function_address(symbol)
        return address

    def _compile(self, text: str) -> bytes:
        module = self._llvm.parse_assembly(f'target triple = "{self.triple}"\n{text}')
        return self._compiler.emit_object(module)


# ------------------------------------------------------------------------------------------------
# NumPy's arrays


def object_offsets() -> dict[str, int]:
    """Where the fields of an ndarray lie in its memory, in bytes; checked against arrays made for
    it.

    Reading the address from there costs nothing; ``array.ctypes.data`` costs 0.6 us.
    """
    if sys.implementation.name != "cpython":
        raise ImportError("native kernels need CPython")
    samples = [np.zeros(3), np.ones((2, 5), np.float32)[:, 1:], np.zeros((4, 1, 2), bool).T]
    words = (ctypes.c_size_t * 8).from_address(id(samples[0]))
    start = list(words).index(id(np.ndarray))
    offsets = {name: 8 * (start + i) for i, name in enumerate(_FIELDS)}
    for a in samples:
        if _fields(a, offsets) != (a.ctypes.data, a.ndim, a.shape, id(a.dtype), a.flags.num):
            raise ImportError("this NumPy lays arrays out in an unknown way")
    return offsets


def _fields(a: np.ndarray, offsets: dict[str, int]) -> tuple:
    """What the memory of an array says: address, ndim, shape, id of the dtype, flags."""

    def read(name: str, kind) -> int:
        return kind.from_address(id(a) + offsets[name]).value

    ndim = read("ndim", ctypes.c_int)
    shape = (ctypes.c_ssize_t * a.ndim).from_address(read("shape", ctypes.c_size_t))
    address = read("data", ctypes.c_size_t)
    return address, ndim, tuple(shape), read("dtype", ctypes.c_size_t), read("flags", ctypes.c_int)


# ------------------------------------------------------------------------------------------------
# the compiler of this process

_machine: list[Machine | None] = []  # empty until asked for
_starting = threading.Lock()


def machine() -> Machine | None:
    """The compiler of this process, or None: without llvmlite, or with ``GPUGRAD_JIT=0``."""
    if not _machine:
        with _starting:
            if not _machine:
                _machine.append(_start())
    return _machine[0]


def enabled() -> bool:
    """Whether native kernels are wanted: ``GPUGRAD_JIT=0`` switches them off."""
    return os.environ.get("GPUGRAD_JIT", "1") != "0"


def _start() -> Machine | None:
    if not enabled():
        return None
    try:
        return Machine()
    except ImportError:
        return None
    except Exception as error:  # e.g. an LLVM that does not know this CPU: slower, not wrong
        warnings.warn(f"no native kernels, LLVM does not start: {error}", stacklevel=2)
        return None
