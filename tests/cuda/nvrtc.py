"""NVRTC for checks without a GPU: compile for any architecture, read what ptxas says, remember it.

Results are kept on disk by text, architecture, options and compiler version, so a second run only
compiles what changed. ``sm_70`` needs the compiler of CUDA 12 (wheel nvidia-cuda-nvrtc-cu12).
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

VERBOSE = "--ptxas-options=-v"
# CUDA 13 has dropped what came before Turing.
OF_CUDA_12 = ("sm_70",)


class Usage(NamedTuple):
    """Of one kernel on one architecture."""

    function: str
    registers: int
    spill_bytes: int  # stored, of the kernel and of functions it calls
    shared_bytes: int  # static
    stack_bytes: int


class Compiled(NamedTuple):
    """What the compiler said of a text."""

    error: str  # empty if it compiled
    log: str

    @property
    def warnings(self) -> list[str]:
        """Each with the source line it shows; but not that sm_70 will be dropped."""
        pattern = r"^(?!Remark:|.*are deprecated).*\bwarning\b.*(?:\n[ \t]+.*){0,4}"
        return [w.rstrip() for w in re.findall(pattern, self.log, re.MULTILINE)]

    @property
    def usage(self) -> dict[str, Usage]:
        """By function. ptxas prints properties of called functions before those of a kernel."""
        found, kernel, spills, stack = {}, "", 0, 0
        for line in self.log.splitlines():
            if match := re.search(r"Compiling entry function '(\w+)'", line):
                kernel, spills, stack = match[1], 0, 0
            elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
                stack, spills = max(stack, int(match[1])), spills + int(match[2])
            elif match := re.search(r"Used (\d+) registers", line):
                shared = re.search(r"(\d+) bytes smem", line)
                shared_bytes = int(shared[1]) if shared else 0
                found[kernel] = Usage(kernel, int(match[1]), spills, shared_bytes, stack)
        return found


class Job(NamedTuple):
    text: str
    arch: str


def compile_all(jobs: Sequence[Job], workers: int | None = None) -> list[Compiled]:
    """All jobs, those of earlier runs from the disk, the rest in processes side by side."""
    known = {job: _read(job) for job in jobs}
    todo = [job for job, result in known.items() if result is None]
    if todo:
        # A fresh interpreter: NVRTC does not survive fork, and no test device is active there.
        context = get_context("spawn")
        with ProcessPoolExecutor(workers or min(os.cpu_count() or 1, 8), context) as pool:
            for job, result in zip(todo, pool.map(compile_one, todo, chunksize=4)):
                known[job] = result
    return [known[job] for job in jobs]


def compile_one(job: Job) -> Compiled:
    """One text now, in this process; the result is kept."""
    compile_ = _by_cuda_12 if job.arch in OF_CUDA_12 else _by_cupy
    result = compile_(job.text, job.arch)
    partial = _file(job).with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(result))
    os.replace(partial, _file(job))
    return result


def _read(job: Job) -> Compiled | None:
    try:
        return Compiled(*json.loads(_file(job).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _file(job: Job) -> Path:
    from gpugrad.codegen import cuda_module

    identity = (cuda_12_version() if job.arch in OF_CUDA_12 else cupy_version(), VERBOSE)
    key = repr((job, cuda_module.OPTIONS, cuda_module.include_folders(), identity))
    return _folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


@cache
def _folder() -> Path:
    from tests.cuda.shim.compiler import cache_folder

    folder = cache_folder().parent / "nvrtc"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---- the compiler that CuPy finds ----------------------------------------------------------------


@cache
def cupy_version() -> tuple[int, int]:
    from cupy.cuda import nvrtc

    return nvrtc.getVersion()


def _by_cupy(text: str, arch: str) -> Compiled:
    from gpugrad.codegen import cuda_module
    from gpugrad.errors import KernelError

    try:
        return Compiled("", cuda_module.compile_with_log(text, arch, [VERBOSE])[1])
    except KernelError as error:
        return Compiled(str(error), "")


# ---- CUDA 12's, by ctypes ------------------------------------------------------------------------


@cache
def _cuda_12() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else ():
        for file in Path(place).glob("cuda_nvrtc/lib/libnvrtc.so.12*"):
            return ctypes.CDLL(str(file))
    return None


def cuda_12_version() -> tuple[int, int] | None:
    """Of the compiler for ``sm_70``, or None without it."""
    library = _cuda_12()
    if library is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _by_cuda_12(text: str, arch: str) -> Compiled:
    from gpugrad.codegen import cuda_module

    library, program = _cuda_12(), ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"generated.cu", 0, None, None)
    options = [
        *cuda_module.OPTIONS,
        f"-arch={arch}",
        *(f"-I{folder}" for folder in cuda_module.include_folders()),
        VERBOSE,
    ]
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed = library.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    said = log.value.decode(errors="replace")
    return Compiled(said or f"error {failed}" if failed else "", "" if failed else said)


# ---- a table -------------------------------------------------------------------------------------


def table(rows: Iterable[tuple[str, str, Usage]]) -> str:
    """Markdown of ``(kernel, architecture, usage)``, most registers first."""
    lines = [
        "| kernel | function | arch | registers | spilled bytes | shared bytes | stack bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel, arch, u in sorted(rows, key=lambda r: (-r[2].registers, r[0], r[1])):
        lines.append(
            f"| {kernel} | {u.function} | {arch} | {u.registers} | {u.spill_bytes} "
            f"| {u.shared_bytes} | {u.stack_bytes} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # python -m tests.cuda.nvrtc FILE.cu [sm_90]
    shown = compile_one(Job(Path(sys.argv[1]).read_text(), (*sys.argv[2:], "sm_90")[0]))
    print(shown.error or shown.log)
