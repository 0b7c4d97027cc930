"""Build the host-memory device: ``python -m tests.cuda.host_device.build``.

Some libraries come of it, in a folder of the cache named by a hash of everything they depend on:

- ``libcuda.so.1``: the device (``*.cpp`` here); CuPy's driver module finds it by its soname;
- ``libcublas.so.13``, ``libcublasLt.so.13``, ``libcusolver.so.12``: products and factorizations of
  matrices, named as the libraries CuPy asks for;
- ``runtime.*.so``: CuPy's module of the CUDA runtime. The one in the wheel has NVIDIA's runtime
  linked in, which talks to a real driver only, so this one module is built anew from CuPy's sdist
  against our ``libcuda``.

Needs g++, pip and Cython. pip brings the sdist; ``GPUGRAD_CUPY_SDIST`` names a copy instead, for
machines without a network. ``GPUGRAD_TEST_CACHE`` moves the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
DEVICE_SOURCES = ("system.cpp", "memory.cpp", "streams.cpp", "kernels.cpp", "recording.cpp")
# What is not modelled answers cudaErrorNotSupported, or an error code of the libraries.
CUDA_NOT_SUPPORTED, LIBRARY_NOT_SUPPORTED = 801, 15
# cuda-pathfinder wants to see these before it takes cuSOLVER; nothing of them is called.
EMPTY = ("libnvJitLink.so.13", "libcusparse.so.12")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter")


class BuildError(RuntimeError):
    """The device cannot be built; the message says what is missing."""


def cache_folder() -> Path:
    """Where builds are kept: ``GPUGRAD_TEST_CACHE``, else the user's folder for caches."""
    chosen = os.environ.get("GPUGRAD_TEST_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen) if chosen else base / "gpugrad-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(*command: str, cwd: Path | None = None, env: dict | None = None) -> str:
    """Standard output of a command; BuildError with what it said if it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is needed and not installed") from None
    if done.returncode:
        shown = (done.stderr + done.stdout)[-4000:]
        raise BuildError(f"{' '.join(command)}\n{shown}")
    return done.stdout


# ---- what the build depends on -------------------------------------------------------------------


@cache
def cupy_version() -> str:
    for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    raise BuildError('the host-memory device runs the real CuPy: pip install "gpugrad[ladder]"')


@cache
def headers() -> Path:
    """The folder of NVIDIA's headers, those for the host compiler (``crt``) among them."""
    from gpugrad.codegen.cuda_module import include_folders

    for folder in include_folders():
        if (Path(folder) / "crt" / "host_defines.h").exists():
            return Path(folder)
    raise BuildError(
        f"no crt/host_defines.h in {', '.join(include_folders())}: "
        'pip install "gpugrad[ladder]" (it is in nvidia-cuda-crt)'
    )


def sources() -> list[Path]:
    return sorted([*HERE.glob("*.cpp"), *HERE.glob("*.hpp")])


def key(paths: list[Path]) -> str:
    """A hash of files, of all versions and of this Python."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    compiler = run("g++", "--version").splitlines()[0]
    tag = sysconfig.get_config_var("EXT_SUFFIX")
    described = (cupy_version(), compiler, tag, sys.version, str(headers()), cython_version())
    digest.update(repr(described).encode())
    return digest.hexdigest()[:20]


def cython_version() -> str:
    try:
        return importlib.metadata.version("cython")
    except importlib.metadata.PackageNotFoundError:
        raise BuildError('Cython is needed: pip install "gpugrad[ladder]"') from None


# ---- CuPy's sources ------------------------------------------------------------------------------


def sdist() -> Path:
    """CuPy's source archive of exactly the installed version."""
    given = os.environ.get("GPUGRAD_CUPY_SDIST")
    if given:
        return Path(given)
    folder = cache_folder() / "sdist"
    archive = folder / f"cupy-{cupy_version()}.tar.gz"
    if not archive.exists():
        # READTHEDOCS selects CuPy's stub build: without it making the metadata, which pip wants
        # to see before it hands out an archive, demands the CUDA libraries.
        environment = {**os.environ, "READTHEDOCS": "True"}
        run(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", "cupy", f"cupy=={cupy_version()}", "--dest", str(folder)),
            env=environment,
        )
    return archive


def unpack_backends(to: Path) -> Path:
    """The folder ``cupy_backends`` of the sdist, unpacked."""
    top = f"cupy-{cupy_version()}"
    with tarfile.open(sdist()) as archive:
        wanted = [m for m in archive if m.name.startswith(f"{top}/cupy_backends/")]
        archive.extractall(to, wanted, filter="data")
    return to / top / "cupy_backends"


# ---- compiling -----------------------------------------------------------------------------------


def compile_source(source: Path, out: Path, *options: str) -> Path:
    run(
        *("g++", "-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", *WARNINGS),
        *("-isystem", str(headers()), *options, "-c", str(source), "-o", str(out)),
    )
    return out


def symbols(path: Path, *options: str) -> set[str]:
    return {
        line.split()[-1].split("@")[0]
        for line in run("nm", *options, str(path)).splitlines()
        if line and not line.endswith(":")
    }


def stubs(missing: set[str], answer: int, work: Path, name: str) -> Path:
    """An object with functions that only answer with an error code."""
    text = "".join(
        f'__attribute__((visibility("default"))) int {f}(void) {{ return {answer}; }}\n'
        for f in sorted(missing)
    )
    source = work / f"{name}.c"
    source.write_text(text)
    run("gcc", "-fPIC", "-w", "-fno-builtin", "-c", str(source), "-o", str(work / f"{name}.o"))
    return work / f"{name}.o"


def link(out: Path, objects: list[Path], *options: str) -> None:
    names = [str(o) for o in objects]
    run("g++", "-shared", f"-Wl,-soname,{out.name}", *names, "-o", str(out), *options)


def runtime_object(work: Path, cuda_version: int) -> Path:
    """CuPy's runtime module as an object file; kept apart, for it does not depend on our sources
    and takes most of the time."""
    kept = cache_folder() / f"runtime-{key([Path(__file__)])}.o"
    if not kept.exists():
        build_runtime_object(work, cuda_version).rename(kept)
    return kept


def build_runtime_object(work: Path, cuda_version: int) -> Path:
    backends = unpack_backends(work)
    constants = (
        f"CUPY_USE_CUDA_PYTHON=False,CUPY_CUFFT_STATIC=False,"
        f"CUPY_CUDA_VERSION={cuda_version},CUPY_HIP_VERSION=0"
    )
    generated = work / "runtime.cpp"
    run(
        *(sys.executable, "-m", "cython", "-3", "--cplus", "-E", constants),
        *("cupy_backends/cuda/api/runtime.pyx", "-o", str(generated)),
        cwd=backends.parent,
    )
    # Two functions, in a wheel of their own; nothing calls them here.
    (work / "cuda_profiler_api.h").write_text(
        'extern "C" int cudaProfilerStart(void);\nextern "C" int cudaProfilerStop(void);\n'
    )
    out = work / "runtime.o"
    python = sysconfig.get_paths()["include"]
    folders = (python, backends / "cuda" / "api", backends, headers(), work)
    run(
        *("g++", "-std=c++17", "-O0", "-w", "-fPIC", *[f"-I{f}" for f in folders]),
        *(f"-DCUPY_CUDA_VERSION={cuda_version}", "-c", str(generated), "-o", str(out)),
    )
    return out


def build_device(work: Path, runtime: Path, cuda_version: int) -> None:
    version = f"-DHOST_DEVICE_CUDA_VERSION={cuda_version}"
    objects = [
        compile_source(HERE / name, work / f"{name}.o", "-O1", version) for name in DEVICE_SOURCES
    ]
    have = set().union(*(symbols(o, "--defined-only") for o in objects))
    needed = {s for s in symbols(runtime, "-u") if s.startswith("cu")}
    objects.append(stubs(needed - have, CUDA_NOT_SUPPORTED, work, "cuda_stubs"))
    link(work / "libcuda.so.1", objects, "-ldl")


def build_library(work: Path, soname: str, source: Path, needed: set[str]) -> None:
    """A library beside the device; what it lacks of ``needed`` answers "not supported"."""
    objects = []
    have: set[str] = set()
    if source.exists():
        objects.append(compile_source(source, work / f"{source.name}.o", "-O3"))
        have = symbols(objects[0], "--defined-only")
    name, _, _ = soname.partition(".")
    objects.append(stubs(needed - have, LIBRARY_NOT_SUPPORTED, work, f"stubs_of_{name}"))
    link(work / soname, objects, f"-L{work}", "-l:libcuda.so.1", "-Wl,-rpath,$ORIGIN")


def imported_by(name: str) -> tuple[str, set[str]]:
    """The library that a module of CuPy needs, such as ``libcublas.so.13``, and its functions."""
    import cupy_backends

    folder = Path(cupy_backends.__file__).parent / "cuda" / "libs"
    (module,) = folder.glob(f"{name}.*.so")
    listed = run("readelf", "--dynamic", str(module))
    (soname,) = re.findall(rf"NEEDED.*\[(lib{name}\.so[.\d]*)\]", listed)
    return soname, {s for s in symbols(module, "-D", "-u") if s.startswith(name)}


def built_for() -> int:
    """The CUDA version CuPy's wheel was built for, such as 13020."""
    from cupy_backends.cuda.api import driver

    return driver.get_build_version()


def build_all(work: Path) -> None:
    cuda_version = built_for()
    runtime = runtime_object(work, cuda_version)
    build_device(work, runtime, cuda_version)
    for name in ("cublas", "cusolver"):
        soname, functions = imported_by(name)
        build_library(work, soname, HERE / f"{name}.cpp", functions)
    for soname in EMPTY:
        build_library(work, soname, HERE / "none", set())
    lt = f"libcublasLt.so.{cuda_version // 1000}"
    build_library(work, lt, HERE / "cublaslt.cpp", {"cublasLtGetVersion"})
    extension = work / f"runtime{sysconfig.get_config_var('EXT_SUFFIX')}"
    link(extension, [runtime], f"-L{work}", "-l:libcuda.so.1", "-Wl,-rpath,$ORIGIN")


@contextlib.contextmanager
def only_one(path: Path):
    """One process at a time; others wait."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def libraries() -> Path:
    """The folder with the libraries, built if need be (about half a minute)."""
    folder = cache_folder() / f"host_device-{key([*sources(), Path(__file__)])}"
    if folder.exists():
        return folder
    with only_one(cache_folder() / "host_device.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
                build_all(Path(work))
                finished = Path(work) / "lib"
                finished.mkdir()
                for library in Path(work).glob("*.so*"):
                    library.rename(finished / library.name)
                finished.rename(folder)
    return folder


if __name__ == "__main__":
    print(libraries())
