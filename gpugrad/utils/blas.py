"""The BLAS behind NumPy: which one, for which CPU, with how many threads."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BlasInfo", "blas_info", "set_blas_threads"]


@dataclass(frozen=True)
class BlasInfo:
    """The BLAS behind NumPy; ``kernel`` is the CPU whose code it chose, None is unknown."""

    library: str
    version: str
    kernel: str | None = None
    threads: int | None = None
    file: str | None = None


def blas_info() -> BlasInfo:
    """Return which BLAS NumPy uses, its kernel and its number of threads.

    The kernel and the threads are asked of the OpenBLAS that NumPy's wheels bring (or of any that
    threadpoolctl, where it is installed, finds); Accelerate and MKL do not tell.

    Example:
        >>> from gpugrad.utils.blas import blas_info
        >>> blas_info().library != ""
        True
    """
    import numpy as np

    configuration: Any = np.show_config(mode="dicts")
    built = configuration["Build Dependencies"]["blas"]
    library, version = str(built.get("name", "unknown")), str(built.get("version", "unknown"))
    loaded = _ask_openblas() or _ask_threadpoolctl()
    if loaded is None:
        return BlasInfo(library, version)
    kernel, threads, file = loaded
    return BlasInfo(library, version, kernel, threads, file)


def set_blas_threads(threads: int) -> bool:
    """Set the number of threads of NumPy's OpenBLAS; return False where it is another BLAS.

    Raises:
        ValueError: ``threads`` below 1.

    Example:
        >>> from gpugrad.utils.blas import blas_info, set_blas_threads
        >>> before = blas_info().threads
        >>> if set_blas_threads(1):
        ...     assert blas_info().threads == 1
        ...     assert set_blas_threads(before)
    """
    if threads < 1:
        raise ValueError(f"the number of threads should be positive, got {threads}")
    for library, _ in _openblas_libraries():
        set_threads = _function(library, "openblas_set_num_threads")
        if set_threads is not None:
            set_threads(ctypes.c_int(threads))
            return True
    return False


def _ask_openblas() -> tuple[str, int, str] | None:
    """Kernel, threads and file of the OpenBLAS beside NumPy, through its C interface."""
    for library, file in _openblas_libraries():
        core = _function(library, "openblas_get_corename")
        threads = _function(library, "openblas_get_num_threads")
        if core is not None and threads is not None:
            core.restype = ctypes.c_char_p
            return core().decode(), int(threads()), str(file)
    return None


def _openblas_libraries() -> Iterator[tuple[ctypes.CDLL, Path]]:
    """The OpenBLAS files of NumPy's wheel; opening one again gives the copy that NumPy uses."""
    import numpy

    package = Path(numpy.__file__).parent
    for folder in (package.with_name("numpy.libs"), package / ".dylibs"):
        for file in sorted(folder.glob("*openblas*")):
            try:
                yield ctypes.CDLL(str(file)), file
            except OSError:
                continue


def _function(library: ctypes.CDLL, name: str) -> Any:
    """A function by its name in OpenBLAS, to which wheels add so that several can be loaded."""
    for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", "")):
        function = getattr(library, f"{prefix}{name}{suffix}", None)
        if function is not None:
            return function
    return None


def _ask_threadpoolctl() -> tuple[str | None, int | None, str | None] | None:
    try:
        from threadpoolctl import threadpool_info  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return None
    for pool in threadpool_info():
        if pool.get("user_api") == "blas":
            return pool.get("architecture"), pool.get("num_threads"), pool.get("filepath")
    return None
