"""What a figure depends on: processor, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "numpy", "torch", "jax", "jaxlib", "tensorflow", "tensorflow-cpu", "llvmlite",
    "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")  # the last: XLA


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def vector_instructions() -> list[str]:
    """Which of the vector extensions that decide a kernel's speed the processor has (Linux)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return [
        name
        for name in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile")
        if f" {name}" in flags
    ]


def commit() -> str | None:
    folder = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    import gpugrad  # from this clone, installed or not

    found = {"gpugrad": gpugrad.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(threads: int) -> dict[str, object]:
    return {
        "cpu": cpu_model(),
        "vector_instructions": vector_instructions(),
        "cores": os.cpu_count(),
        "threads": threads,
        "thread_settings": dict.fromkeys(THREADS, str(threads)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def child_environment(threads: int, settings: dict[str, str] | None = None) -> dict[str, str]:
    """What a measuring process inherits: this many threads, and no forced OpenBLAS kernel.

    These are benchmarks of the CPU: peers that would find a GPU are told not to look.
    """
    environment = dict(os.environ)
    environment.pop("OPENBLAS_CORETYPE", None)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an import is timed with its byte code
    environment |= dict.fromkeys(THREADS, str(threads))
    environment |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return environment | (settings or {})


def busy_seconds() -> float | None:
    """CPU seconds spent by all programs since boot (Linux)."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
