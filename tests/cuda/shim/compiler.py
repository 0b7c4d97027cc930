"""CUDA C++ text to shared objects that run it on the CPU, with g++.

The text is compiled as it is, after the header of this folder: only declarations of dynamic shared
memory are rewritten, and one line per kernel is added that makes it known by name. Headers and the
runtime are compiled once; objects are kept by a hash of everything they depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

from gpugrad.codegen import cuda_module
from gpugrad.errors import KernelError

HERE = Path(__file__).parent


class ShimError(RuntimeError):
    """A kernel that does not compile for the CPU, or that did what a GPU forbids."""


# ---- flags ---------------------------------------------------------------------------------------

COMMON = ("-std=c++17", "-fPIC", "-g1", "-pthread", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE")
# Products and sums become fused multiply-adds, as NVRTC's default has it.
FMA = ("-mfma", "-mf16c", "-ffp-contract=fast") if platform.machine() in ("x86_64", "AMD64") else ()
# No warnings: NVRTC gives them (test_nvrtc.py), and g++ does not know CUDA's idioms.
KERNEL = (*COMMON, *FMA, "-O1", "-w", "-fvisibility=hidden", "-fno-gnu-unique", "-fmax-errors=5")
CHECKS = ("-fsanitize=bounds,alignment", "-fno-sanitize-recover=all")
THREADS = ("-fsanitize=thread", "-DCUDACPU_THREADS")
# Headers of CuPy that its generated modules include; precompiled together when all are there.
CUPY_HEADERS = ("complex.cuh", "carray.cuh", "atomics.cuh", "math_constants.h")


@cache
def cuda_headers() -> str:
    """A folder with NVIDIA's headers, those for host compilers among them."""
    for folder in (*cuda_module.include_folders(), "/usr/local/cuda/include"):
        if Path(folder, "crt", "host_defines.h").exists():
            return folder
    raise ShimError(
        "no NVIDIA headers with crt/host_defines.h: install a CUDA toolkit, or the packages "
        "nvidia-cuda-runtime and nvidia-cuda-crt"
    )


@cache
def missing() -> str:
    """What is missing to run kernels here, as the reason for skipping a test; "" if nothing is."""
    if not sys.platform.startswith("linux"):
        return "kernels run on the CPU on Linux only"
    if not shutil.which(compiler()):
        return f"kernels run on the CPU with {compiler()}"
    try:
        cuda_headers()
    except (ShimError, KernelError) as error:
        return str(error)
    return ""


def cache_folder() -> Path:
    """Where objects are kept: ``kernels`` in ``GPUGRAD_TEST_CACHE`` or the user's cache."""
    chosen = os.environ.get("GPUGRAD_TEST_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(chosen) if chosen else base / "gpugrad-tests") / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def runtime_source(threads: bool) -> Path:
    return HERE / ("threads.cpp" if threads else "fibers.cpp")


@cache
def identity(threads: bool = False) -> str:
    """What every object depends on beside its text: the compiler, the headers, the runtime."""
    files = [*sorted(HERE.glob("*.h")), runtime_source(threads)]
    try:
        version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise ShimError(f"{compiler()} is needed to run kernels on the CPU") from None
    return "\n".join([version, cuda_headers(), *(f"{f.name}\n{f.read_text()}" for f in files)])


def key_of(threads: bool, *parts: object) -> str:
    return hashlib.sha256(repr((identity(threads), parts)).encode()).hexdigest()[:24]


_locks: dict[Path, threading.Lock] = {}
_guard = threading.Lock()


def made(target: Path, command: Sequence[str], text: str | None = None) -> Path:
    """The file a command makes (its last argument is `-o`), unless it is there already."""
    with _guard:
        lock = _locks.setdefault(target, threading.Lock())
    with lock:
        if target.exists():
            return target
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix="partial-")
        os.close(handle)
        try:
            done = subprocess.run(
                [*command, partial], input=text, capture_output=True, text=True, cwd=target.parent
            )
            if done.returncode:
                raise ShimError(f"{command[0]} says:\n{done.stderr[:6000]}")
            os.replace(partial, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
    return target


# ---- the runtime and the precompiled header ------------------------------------------------------


def runtime(threads: bool = False) -> Path:
    """The shared object with the scheduler: fibers, or one thread of the system per CUDA thread."""
    source = runtime_source(threads)
    standard = ("-std=c++20", "-DCUDACPU_THREADS") if threads else ()
    target = cache_folder() / f"libcudacpu-{key_of(threads, source.name)}.so"
    flags = (*COMMON, *standard, "-O2", "-Wall", "-Wextra", "-Werror", f"-I{cuda_headers()}")
    name = f"-Wl,-soname,{target.name}"
    return made(target, [compiler(), *flags, "-shared", name, str(source), "-o"])


def _header(flags: Sequence[str], threads: bool, cupy: bool) -> Path:
    """The header of this folder (with CuPy's, if asked for), precompiled with these flags."""
    includes = ["cudacpu.h", *(f"cupy/{name}" for name in CUPY_HEADERS if cupy)]
    source = cache_folder() / f"header-{key_of(threads, flags, includes)}.h"
    if not source.exists():
        partial = source.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        partial.write_text("".join(f'#include "{name}"\n' for name in includes))
        os.replace(partial, source)
    command = [compiler(), "-x", "c++-header", *flags, str(source), "-o"]
    made(source.with_name(source.name + ".gch"), command)
    return source


# ---- translation ---------------------------------------------------------------------------------

_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_KERNEL = re.compile(
    r"""(?P<template>template\s*<[^{};()]*>\s*)?
    (?:extern\s+"[^"]*"\s+)?  __global__  \s+ (?:static\s+|inline\s+)*
    (?:__launch_bounds__\s*\((?P<bounds>[^()]*(?:\([^()]*\)[^()]*)*)\)\s*)? void \s+
    (?:__launch_bounds__\s*\((?P<late>[^()]*(?:\([^()]*\)[^()]*)*)\)\s*)? (?P<name>\w+) \s* \(""",
    re.VERBOSE,
)
_DYNAMIC = re.compile(
    r"""extern \s+ __shared__ \s+
    (?:__align__\s*\([^()]*\)\s*|alignas\s*\([^;]*?\)\s*)?
    (?P<type>[\w:\s<>,]+?) \s* \b(?P<name>\w+) \s* \[\s*\] \s* ;""",
    re.VERBOSE,
)
_STATIC = re.compile(r"(?<!extern )\b__shared__\s+(?P<declaration>[^;={}]+);")


def blanked(text: str) -> str:
    """The text with comments and strings replaced by spaces: the same offsets and lines."""
    return _COMMENT.sub(lambda found: re.sub(r"[^\n\"]", " ", found[0]), text)


def kernels(text: str) -> dict[str, str]:
    """Names of the kernels of a text that are no templates, with their launch bounds."""
    code = blanked(text)
    if re.search(r"#\s*define[^\n]*(?:\\\n[^\n]*)*__global__", code):
        code = _preprocessed(text)
    return {
        found["name"]: (found["bounds"] or found["late"] or "").strip()
        for found in _KERNEL.finditer(code)
        if not found["template"]
    }


def _preprocessed(text: str) -> str:
    """Macros expanded, for texts that define kernels by macros; includes are left out."""
    code = re.sub(r"^\s*#\s*include.*$", "", text, flags=re.MULTILINE)
    done = subprocess.run(
        [compiler(), "-E", "-P", "-x", "c++", "-w", "-"], input=code, capture_output=True, text=True
    )
    return done.stdout


def _replaced(text: str, pattern: re.Pattern, replacement) -> str:
    """Substitution where the code matches, comments left alone."""
    pieces, start = [], 0
    for found in pattern.finditer(blanked(text)):
        pieces += [text[start : found.start()], replacement(found)]
        start = found.end()
    return "".join([*pieces, text[start:]])


def _dynamic(found: re.Match) -> str:
    """``extern __shared__ float s[];`` as a pointer to what the launch provides."""
    lines = "\n" * found[0].count("\n")
    kind, name = found["type"].strip(), found["name"]
    return f"{kind}* {name} = reinterpret_cast<{kind}*>(cudacpu::dynamic_shared());{lines}"


def _static(found: re.Match) -> str:
    """``__shared__ float s[8], t;`` as references to storage that the block's threads share."""
    made, kind = [], None
    for declarator in _declarators(found["declaration"]):
        name = re.search(r"(\w+)\s*((?:\[[^\]]*\]\s*)*)$", declarator)
        if kind is None:
            kind = declarator[: name.start()].strip()
        alias = f"cudacpu_type_of_{name[1]}"
        made.append(
            f"typedef {kind} {alias}{name[2].strip()}; "
            f"{alias}& {name[1]} = cudacpu::shared_variable<{alias}>([] {{}});"
        )
    return " ".join(made) + "\n" * found[0].count("\n")


def _declarators(declaration: str) -> Iterable[str]:
    """Parts between commas that stand in no brackets."""
    depth, start = 0, 0
    for i, c in enumerate(declaration):
        depth += (c in "<([") - (c in ">)]")
        if c == "," and not depth:
            yield declaration[start:i].strip()
            start = i + 1
    yield declaration[start:].strip()


def translated(text: str, threads: bool = False) -> str:
    """A text ready for g++ after the header: its kernels exported."""
    code = _replaced(text, _DYNAMIC, _dynamic)
    if threads:
        code = _replaced(code, _STATIC, _static)
    exports = (
        f"CUDACPU_EXPORT({name}, {name}{', ' + bounds if bounds else ''})\n"
        for name, bounds in kernels(text).items()
    )
    return f'#line 1 "kernel.cu"\n{code}\n#line 1 "exports"\n{"".join(exports)}'


# ---- building ------------------------------------------------------------------------------------


def build(text: str, options: Sequence[str] = (), threads: bool = False) -> tuple[Path, list[str]]:
    """The shared object of a text and the names of its kernels.

    ``options`` are further flags such as ``-DN=4``. With ``threads`` every CUDA thread is a thread
    of the system under ThreadSanitizer; such objects run in ``tsan.py`` only. Raises ShimError with
    the compiler's messages.
    """
    path, names = _build(text, tuple(options), threads)
    return path, list(names)


@lru_cache(4096)  # translating takes milliseconds
def _build(text: str, options: tuple[str, ...], threads: bool) -> tuple[Path, list[str]]:
    names = list(kernels(text))
    if not names:
        raise ShimError("the text has no kernel: no __global__ function that is no template")
    checks = THREADS if threads else CHECKS
    target = _built(translated(text, threads), (*KERNEL, *checks), options, threads)
    _keep(text, target.with_suffix(".cu"))
    return target, names


def _keep(text: str, file: Path) -> None:
    """The text beside its object, for those who find only the object (launches.py)."""
    if not file.exists():
        partial = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        partial.write_text(text)
        os.replace(partial, file)


def build_cupy(
    text: str, options: Sequence[str], expressions: Sequence[str] = ()
) -> tuple[Path, dict[str, str]]:
    """A module generated by CuPy: its headers, and instances of templates named by expressions.

    The answer maps each expression to the name its kernel has. CuPy's kernels may return before a
    barrier, which hardware allows and the programming guide does not.
    """
    names = {expression: f"instance{i}" for i, expression in enumerate(expressions)}
    exports = "".join(f"CUDACPU_EXPORT({n}, ({e}))\n" for e, n in names.items())
    given = [o for o in options if re.match(r"-[DIU]", o) and "nvidia/cu1" not in o]
    flags = (*KERNEL, "-DCUDACPU_LENIENT_EXIT", "-D__CUDACC_VER_MAJOR__=13")
    code = translated(text) + exports
    return _built(code, flags, given, cupy=_has_cupy_headers(text, given)), names


def _has_cupy_headers(text: str, options: Sequence[str]) -> bool:
    plain = not any(option.startswith(("-D", "-U")) for option in options)
    return plain and all(f"#include <cupy/{name}>" in text for name in CUPY_HEADERS)


def _built(code, flags, options, threads=False, cupy=False) -> Path:
    own = [option for option in options if not option.startswith("-I")]
    searched = [f"-I{HERE}", f"-I{cuda_headers()}", *(o for o in options if o.startswith("-I"))]
    if own:  # macros can change what the headers mean: they are read anew
        head, command = '#include "cudacpu.h"\n', []
    else:
        flags = (*flags, *searched)
        head, command = "", ["-include", str(_header(flags, threads, cupy))]
        searched = []
    target = cache_folder() / f"kernel-{key_of(threads, code, flags, options)}.so"
    if target.exists():
        return target
    scheduler = runtime(threads)
    # Without default libraries g++ does not add libubsan: the runtime has the handlers.
    linked = [str(scheduler), "-Wl,-rpath,$ORIGIN", "-nodefaultlibs", "-lstdc++", "-lm", "-lc"]
    linked += ["-lgcc_s"] + (["-ltsan"] if threads else [])
    front = [compiler(), *flags, *searched, *own, *command, "-shared", "-x", "c++", "-"]
    return made(target, [*front, "-x", "none", *linked, "-o"], head + code)


def build_all(texts: Iterable[str], threads: bool = False, workers: int | None = None) -> list:
    """Builds several texts at once: for each what ``build`` returns, or the ShimError it raised."""

    def attempt(text):
        try:
            return build(text, threads=threads)
        except ShimError as error:
            return error

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(attempt, texts))
