"""``gpugrad info``: what this machine and this installation offer, and what is missing.

Nothing optional is imported to find its version (package metadata has it), except CuPy when a GPU
driver is there.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import gpugrad as gg
from gpugrad.utils.blas import BlasInfo, blas_info

__all__ = ["Report", "Row", "add_arguments", "collect", "main"]


class Row(NamedTuple):
    name: str
    value: str
    remark: str = ""


@dataclass
class Report:
    """Sections of rows, and warnings: things that cost speed or do not work."""

    sections: dict[str, list[Row]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class _Optional(NamedTuple):
    distributions: tuple[str, ...]
    purpose: str
    extra: str


_OPTIONAL = (
    _Optional(("llvmlite",), "compiled loops on the CPU", "jit"),
    _Optional(("cupy-cuda13x", "cupy-cuda12x", "cupy"), "NVIDIA GPUs", "cuda12 or cuda13"),
    _Optional(("safetensors",), "checkpoints", "train"),
    _Optional(("rich",), "progress bar and tables", "train"),
    _Optional(("matplotlib",), "curves.png", "train"),
    _Optional(("torch",), "tests and benchmarks compare with it", "oracle"),
)

_VARIABLES = {
    "OPENBLAS_CORETYPE": "forces the BLAS kernel",
    "OPENBLAS_NUM_THREADS": "BLAS threads",
    "OMP_NUM_THREADS": "BLAS threads",
    "MKL_NUM_THREADS": "BLAS threads",
    "NUMPY_MADVISE_HUGEPAGE": "huge pages of large arrays",
    "CUDA_VISIBLE_DEVICES": "GPUs in sight",
    "CUDA_PATH": "CUDA toolkit for CuPy",
    "CUPY_CACHE_DIR": "compiled kernels of CuPy",
    "GPUGRAD_CACHE_DIR": "compiled kernels of gpugrad",
    "GPUGRAD_JIT": "0 switches native kernels off",
}


def collect() -> Report:
    """Gather everything ``gpugrad info`` prints.

    Example:
        >>> from gpugrad.utils.environment import collect
        >>> list(collect().sections)
        ['versions', 'devices', 'BLAS', 'environment variables', 'missing']
    """
    report = Report()
    report.sections["versions"] = list(_versions())
    report.sections["devices"] = list(_devices(report.warnings))
    blas = blas_info()
    report.sections["BLAS"] = _blas_rows(blas)
    report.warnings += _blas_warnings(blas)
    report.sections["environment variables"] = list(_variables())
    report.sections["missing"] = list(_missing())
    return report


# ---- versions and what is missing ----


def _versions() -> Iterator[Row]:
    import numpy as np

    yield Row("gpugrad", gg.__version__, str(Path(gg.__file__).parent))
    yield Row("python", platform.python_version(), sys.executable)
    yield Row("system", platform.platform(terse=True), platform.machine())
    yield Row("numpy", np.__version__)
    for package in _OPTIONAL:
        found = _installed(package)
        if found is not None:
            yield Row(*found, package.purpose)


def _missing() -> Iterator[Row]:
    for package in _OPTIONAL:
        if _installed(package) is None:
            name = "cupy" if package.distributions[-1] == "cupy" else package.distributions[0]
            extra = _cuda_extra() if name == "cupy" else package.extra
            yield Row(name, f'pip install "gpugrad[{extra}]"', package.purpose)


def _installed(package: _Optional) -> tuple[str, str] | None:
    """Name and version of the first distribution that is installed."""
    for name in package.distributions:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


# ---- devices ----


def _devices(warnings: list[str]) -> Iterator[Row]:
    yield Row("cpu", _cpu_name(), f"{_usable_cores()} of {os.cpu_count()} cores usable")
    yield _native_kernels()
    driver = _cuda_driver()
    if gg.cuda.is_available():
        yield from _cuda_devices()
        return
    if driver is None:
        yield Row("cuda", "not available", "no NVIDIA driver (libcuda) was found")
        return
    supports = f"the driver supports CUDA {driver // 1000}.{driver % 1000 // 10}"
    if _installed(_OPTIONAL[1]) is None:
        yield Row("cuda", "not available", f"{supports}, but CuPy is not installed")
        warnings.append(
            f'A GPU driver is here but CuPy is not: pip install "gpugrad[{_cuda_extra()}]"'
        )
    else:
        yield Row("cuda", "not available", f"{supports}, CuPy is installed, but no device answers")
        warnings.append(
            "CuPy finds no device: does nvidia-smi list one, and does CUDA_VISIBLE_DEVICES hide it?"
        )


def _native_kernels() -> Row:
    """Whether elementwise operations and updates run as compiled loops."""
    purpose = "elementwise work, softmax, norms, convolutions, optimizers on the CPU"
    if _installed(_OPTIONAL[0]) is None:
        return Row("native kernels", "not available", 'pip install "gpugrad[jit]"')
    if os.environ.get("GPUGRAD_JIT") == "0":
        return Row("native kernels", "switched off", "unset GPUGRAD_JIT to use them")
    return Row("native kernels", "in use", purpose)


def _cuda_devices() -> Iterator[Row]:
    import cupy

    for index in range(gg.cuda.device_count()):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        memory = properties["totalGlobalMem"] / 2**30
        capability = f"sm_{properties['major']}{properties['minor']}"
        yield Row(f"cuda:{index}", properties["name"].decode(), f"{memory:.1f} GiB, {capability}")


def _cuda_driver() -> int | None:
    """The CUDA version the driver supports, as 1000 * major + 10 * minor; None without a driver."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    version = ctypes.c_int(0)
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def _cuda_extra() -> str:
    driver = _cuda_driver()
    return "cuda13" if driver is not None and driver >= 13000 else "cuda12"


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field_name: str) -> str:
    """The first value of a field in /proc/cpuinfo; empty where there is no such file or field."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith(field_name)), ""
    )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- BLAS ----


def _blas_rows(blas: BlasInfo) -> list[Row]:
    return [
        Row("library", f"{blas.library} {blas.version}", blas.file or ""),
        Row("kernel", blas.kernel or "unknown", "the CPU architecture its code is for"),
        Row("threads", "unknown" if blas.threads is None else str(blas.threads)),
    ]


# OpenBLAS's names of kernels that it chooses for CPUs with AVX-512.
_AVX512_KERNELS = frozenset({"skylakex", "cooperlake", "sapphirerapids", "zen"})


def _blas_warnings(blas: BlasInfo) -> Iterator[str]:
    forced = os.environ.get("OPENBLAS_CORETYPE")
    if forced:
        yield (
            f"OPENBLAS_CORETYPE={forced} forces the kernels of that CPU; a kernel that does not "
            "fit this one can halve the speed of matrix products (225 against 430 GFLOP/s "
            "measured). Unset it: unset OPENBLAS_CORETYPE"
        )
    has_avx512 = "avx512f" in _cpuinfo("flags").split()
    if not forced and has_avx512 and blas.kernel and blas.kernel.lower() not in _AVX512_KERNELS:
        yield (
            f"This CPU has AVX-512, but the BLAS chose its {blas.kernel} kernel: matrix products "
            "may run at half speed. A newer NumPy may know this CPU."
        )
    if blas.threads is not None and blas.threads > _usable_cores():
        yield (
            f"The BLAS uses {blas.threads} threads on {_usable_cores()} usable cores, which slows "
            f"small products down: set OPENBLAS_NUM_THREADS={_usable_cores()}"
        )


def _variables() -> Iterator[Row]:
    own = {name: "" for name in sorted(os.environ) if name.startswith("GPUGRAD_")}
    for name, meaning in {**own, **_VARIABLES}.items():
        if name in os.environ:
            yield Row(name, os.environ[name], meaning)


# ---- the subcommand ----


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``gpugrad info`` has no options."""


def main(options: argparse.Namespace) -> int:
    """Print the report, as a table where rich is installed."""
    report = collect()
    try:
        _print_table(report)
    except ModuleNotFoundError:
        _print_plain(report)
    return 0


def _print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    # A pipe has no width: keep long paths and commands in one piece there.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for title, rows in report.sections.items():
        table.add_row(f"[bold cyan]{title}[/]")
        for row in rows:
            table.add_row(*(_escape(text) for text in (f"  {row.name}", row.value, row.remark)))
        if not rows:
            table.add_row("  none")
        table.add_row()
    console.print(table)
    for warning in report.warnings:
        console.print(f"[bold yellow]warning:[/] {_escape(warning)}")


def _escape(text: str) -> Any:
    from rich.markup import escape

    return escape(text)


def _print_plain(report: Report) -> None:
    for title, rows in report.sections.items():
        print(title)
        for row in rows:
            print(f"  {row.name:22} {row.value:32} {row.remark}".rstrip())
        if not rows:
            print("  none")
        print()
    for warning in report.warnings:
        print(f"warning: {warning}")
