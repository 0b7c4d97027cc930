"""What every test relies on: hypothesis without deadlines, GPU tests that skip without a GPU."""

from __future__ import annotations

import os

import hypothesis
import pytest

# The machines that run these tests are shared: a deadline would report the neighbours' load. Fixed
# examples make a failure on one machine a failure on all.
hypothesis.settings.register_profile("gpugrad", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("gpugrad")

# A forced OpenBLAS kernel changes both speed and rounding.
os.environ.pop("OPENBLAS_CORETYPE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import gpugrad as gg

    if not gg.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device, or no CuPy: pip install gpugrad[cuda13]")
        for item in on_gpu:
            item.add_marker(skip)
