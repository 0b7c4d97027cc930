"""Arrays for kernels, and their results against float64 on the CPU."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from gpugrad.codegen import cuda_module

# One rounding of a result, relative to the numbers that were added up.
ROUNDING = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-14}
DTYPES = tuple(ROUNDING)


def dtype_named(name: str) -> np.dtype:
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def rounded(values, dtype: str) -> np.ndarray:
    """Values as an array of a dtype: what a kernel gets, and, widened, what its judge gets."""
    return np.asarray(values).astype(dtype_named(dtype))


def on_device(*arrays):
    """CuPy arrays of these values; one array for one."""
    import cupy

    moved = [cupy.asarray(a) for a in arrays]
    return moved[0] if len(moved) == 1 else moved


def wide(array) -> np.ndarray:
    """The values of an array of either device in float64."""
    return (array.get() if hasattr(array, "get") else np.asarray(array)).astype(np.float64)


def agrees(found, expected, dtype: str, *, roundings: float = 4, size: float | None = None):
    """``found`` has the dtype and shape it should and lies within ``roundings`` of ``expected``,
    relative to ``size``, by default the largest value."""
    assert found is not None, "no kernel computed this"
    assert found.dtype == dtype_named(dtype)
    expected = wide(expected)
    assert found.shape == expected.shape
    size = np.abs(expected).max(initial=1.0) if size is None else size
    np.testing.assert_allclose(
        wide(found), expected, rtol=0, atol=roundings * ROUNDING[dtype] * size
    )


@contextlib.contextmanager
def broken(file: str, right: str, wrong: str, *caches):
    """Kernels of a file with one piece of its text replaced; ``caches`` hold kernels of before."""
    text = cuda_module.file(file)
    assert right in text, "the text to break is not in the file any more"
    original = cuda_module.file

    def changed(name):
        return text.replace(right, wrong) if name == file else original(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_module, "file", changed)
        for cache in caches:
            cache.cache_clear()
        try:
            yield
        finally:
            for cache in caches:
                cache.cache_clear()
