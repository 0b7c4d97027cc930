"""CUDA source to kernels that can be launched: includes, compilation, cache, errors.

``source`` makes one self-contained text of generated code and the files of ``kernels/``; the same
text is what the checks without a GPU compile and run. ``load`` compiles it once per architecture
with NVRTC and keeps the machine code on disk; a failure shows the lines the compiler complains of.
"""

from __future__ import annotations

import os
import re
import warnings
from array import array
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import numpy as np

from ..backend import cupy as backend
from ..config import settings
from ..errors import KernelError

OPTIONS = ("--std=c++17", "--device-as-default-execution-space")
GRANTED = 48 << 10  # bytes of shared memory a kernel may have without asking for it
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"[^\n]*$', re.MULTILINE)


class Unsupported(Exception):
    """What was asked for has no kernel; the reference computes it."""


@cache
def folder() -> str:
    """Where the files of ``kernels/`` are: installed in the package, or beside it."""
    package = os.path.dirname(os.path.dirname(__file__))
    installed = os.path.join(package, "kernels")
    beside = os.path.join(os.path.dirname(package), "kernels")
    return installed if os.path.isdir(installed) else beside


@cache
def file(name: str) -> str:
    """The text of a file of ``kernels/``."""
    with open(os.path.join(folder(), name), encoding="utf-8") as text:
        return text.read()


def source(text: str, name: str = "generated.cu") -> str:
    """A text with the files of ``kernels/`` it includes in their places, each once.

    ``#line`` directives keep the compiler's messages in terms of the files.
    """
    return f'#line 1 "{name}"\n' + _expand(text, name, set())


def _expand(text: str, name: str, seen: set[str]) -> str:
    pieces, start = [], 0
    for found in _INCLUDE.finditer(text):
        pieces.append(text[start : found.start()])
        included, start = found[1], found.end()
        if included not in seen:
            seen.add(included)
            line = text.count("\n", 0, found.end()) + 2
            body = _expand(file(included), included, seen)
            pieces.append(f'#line 1 "{included}"\n{body}\n#line {line - 1} "{name}"\n')
    return "".join([*pieces, text[start:]])


def load(text: str, function: str, name: str = "generated.cu") -> Launcher:
    """The kernel ``function`` of a source, compiled for a device when first launched there."""
    return Launcher(source(text, name), function)


def load_file(name: str, function: str, defines: Sequence[str] = ()) -> Launcher:
    """A kernel of a file of ``kernels/``; ``defines`` such as ``"T=float"`` go before it."""
    head = "".join(f"#define {d.replace('=', ' ', 1)}\n" for d in defines)
    return Launcher(head + source(file(name), name), function)


class Launcher:
    """``launcher(grid, block, args)``: queue a kernel on the current stream of the current device.

    Arguments are arrays (their address is passed, contiguous or not), Python ints and floats
    (``long long`` and ``double``), NumPy scalars (their own type) and NumPy arrays of one element
    (a struct by value).
    """

    __slots__ = ("_functions", "_shared", "function", "text")

    def __init__(self, text: str, function: str):
        self.text, self.function = text, function
        self._functions: dict[int, Any] = {}  # by device
        self._shared = GRANTED

    def on(self, device: int):
        """CuPy's function on a device, compiled now if it has not been."""
        kernel = self._functions.get(device)
        if kernel is None:
            module = _module(self.text, device)
            kernel = self._functions[device] = module.get_function(self.function)
            if self._shared > GRANTED:
                self._allow(self._shared)
        return kernel

    def __call__(self, grid: tuple, block: tuple, args: Sequence, shared: int = 0) -> None:
        device = backend.current_device()
        kernel = self._functions.get(device) or self.on(device)
        if shared > self._shared:
            self._allow(shared)
        kernel(grid, block, args, shared)

    def _allow(self, shared: int) -> None:
        """More shared memory than every device grants without being asked."""
        from cupy_backends.cuda.api import driver

        attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        for kernel in self._functions.values():
            driver.funcSetAttribute(kernel.ptr, attribute, shared)
        self._shared = shared


class Prepared:
    """A kernel with a fixed grid and fixed last arguments, to be launched again and again.

    ``prepared(arrays, numbers)`` takes what changes. The host's part is a third of that of CuPy's
    own launch, which makes an object for every argument.
    """

    __slots__ = ("block", "device", "fixed", "grid", "kernel", "launcher", "numbers", "slots")

    def __init__(
        self, launcher: Launcher, device: int, grid: tuple, block: tuple, numbers: int, fixed
    ):
        self.launcher, self.device, self.grid, self.block = launcher, device, grid, block
        self.numbers, self.fixed = numbers, tuple(fixed)
        self.kernel = launcher.on(device)
        self.slots: list = []  # tables of arguments that no launch is using

    def __call__(self, arrays: Sequence, numbers: Sequence[float], outputs: Sequence) -> None:
        slot = self.slots.pop() if self.slots else self._slot(len(arrays), len(outputs))
        places, values, address, _ = slot
        k = 0
        for a in arrays:
            places[k] = a.data.ptr
            k += 1
        for a in outputs:
            places[k] = a.data.ptr
            k += 1
        if numbers:
            values[:] = array("d", numbers)
        stream = backend.current_stream().ptr
        (x, y), (width, height) = self.grid, self.block
        try:
            _launch(self.kernel.ptr, x, y, 1, width, height, 1, 0, stream, address, 0)
        except RuntimeError:  # a thread's first call, which has no context yet: CuPy's way makes it
            self.kernel(self.grid, self.block, (*arrays, *numbers, *outputs, *self.fixed))
        self.slots.append(slot)

    def _slot(self, arrays: int, outputs: int) -> tuple:
        """Memory for the arguments, and the table of their addresses that the driver reads.

        Their order is that of the kernel: arrays, numbers, outputs, fixed ones.
        """
        places = array("q", [0] * (arrays + outputs) + list(self.fixed))
        values = array("d", [0.0] * self.numbers)
        first, of_numbers = places.buffer_info()[0], values.buffer_info()[0]
        where = [first + 8 * k for k in range(arrays)]
        where += [of_numbers + 8 * k for k in range(self.numbers)]
        where += [first + 8 * k for k in range(arrays, len(places))]
        table = array("q", where)
        return places, values, table.buffer_info()[0], table


_launch: Any = None  # the driver's cuLaunchKernel, once CuPy is there


class PreparedByDevice(dict):
    """``launches[device]``: a kernel prepared for each device when it is first used there."""

    __slots__ = ("arguments",)

    def __init__(self, launcher: Launcher, grid: tuple, block: tuple, numbers: int, fixed):
        self.arguments = launcher, grid, block, numbers, fixed

    def __missing__(self, device: int) -> Prepared:
        launcher, *rest = self.arguments
        found = self[device] = prepare(launcher, *rest)
        return found


def prepare(launcher: Launcher, grid, block, numbers: int, fixed) -> Prepared:
    """A ``Prepared`` for the current device; grid and block are numbers or pairs of them."""
    global _launch
    if _launch is None:
        from cupy_backends.cuda.api import driver

        _launch = driver.launchKernel
    grid, block = ((n, 1) if isinstance(n, int) else n for n in (grid, block))
    return Prepared(launcher, backend.current_device(), grid, block, numbers, fixed)


@cache
def _module(text: str, device: int):
    """The module of a source on a device."""
    backend.cupy()
    from cupy.cuda.function import Module

    from . import cache as disk  # hashlib and tempfile take milliseconds

    arch = architecture(device)
    key = disk.key_of(repr((text, arch, OPTIONS, compiler_version())))
    image = disk.read(key)
    if image is None:
        image = compile(text, arch)
        disk.write(key, image)
    module = Module()
    module.load(image)
    return module


def architecture(device: int) -> str:
    """``sm_90`` or the like: the device's, or the newest the compiler knows."""
    from cupy.cuda import nvrtc

    capability = int(backend.cupy().cuda.Device(device).compute_capability)
    return f"sm_{max(a for a in nvrtc.getSupportedArchs() if a <= capability)}"


def compiler_version() -> tuple:
    from cupy.cuda import nvrtc

    return nvrtc.getVersion()


def compile(text: str, arch: str, options: Sequence[str] = ()) -> bytes:
    """Machine code of a source for an architecture such as ``sm_90``.

    Raises KernelError with the compiler's messages, which show the lines they speak of.
    """
    return compile_with_log(text, arch, options)[0]


def compile_with_log(text: str, arch: str, options: Sequence[str] = ()) -> tuple[bytes, str]:
    """The same, and what the compiler said (``--ptxas-options=-v``: registers and spills)."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, "generated.cu", (), ())
    given = [*OPTIONS, f"-arch={arch}", *[f"-I{d}" for d in include_folders()], *options]
    try:
        nvrtc.compileProgram(program, given)
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise KernelError(f"a kernel does not compile for {arch}:\n{log or error}") from None
    finally:
        nvrtc.destroyProgram(program)


@cache
def include_folders() -> tuple[str, ...]:
    """Folders with NVIDIA's headers (cuda_fp16.h, cuda_bf16.h)."""
    roots = [os.environ[v] for v in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(v)]
    candidates = [os.path.join(root, "include") for root in roots]
    try:
        from cuda.pathfinder import find_nvidia_header_directory

        candidates.append(find_nvidia_header_directory("cudart") or "")
    except ImportError:
        pass
    for found in (*candidates, "/usr/local/cuda/include"):
        if found and os.path.exists(os.path.join(found, "cuda_fp16.h")):
            nested = os.path.join(found, "cccl")
            return (found, nested) if os.path.isdir(nested) else (found,)
    raise KernelError(
        "no CUDA headers (cuda_fp16.h): install gpugrad[cuda13] or gpugrad[cuda12], which bring "
        "them, or set CUDA_PATH to a toolkit"
    )


def enabled() -> bool:
    """Whether kernels may be used: not with ``GPUGRAD_CUDA_KERNELS=0``, and not on a stand-in for
    CuPy that cannot run them."""
    return settings.cuda_kernels and hasattr(backend.cupy(), "RawModule")


def report(error: Exception, what: str) -> None:
    """Say that the reference computes something because its kernel cannot be built."""
    warnings.warn(f"no CUDA kernel for {what}, the slower reference is used: {error}", stacklevel=3)


def override(what: str) -> Callable:
    """Decorate a kernel for a row, ``kernel(*arrays, **params)``.

    It runs on the device of its first array. It answers None, so that the reference computes, where
    it raises Unsupported, for NumPy arrays, and where kernels are switched off. A kernel that
    cannot be built is reported once and not tried again.
    """

    def decorate(kernel: Callable) -> Callable:
        usable = True

        @wraps(kernel)
        def run(*arrays, **params):
            nonlocal usable
            if not usable or isinstance(arrays[0], np.ndarray) or not enabled():
                return None
            try:
                with backend.on_device_of(arrays[0]):
                    return kernel(*arrays, **params)
            except Unsupported:
                return None
            except KernelError as error:
                usable = False
                report(error, what)
                return None

        return run

    return decorate


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
