"""The BLAS behind NumPy: asked and set at run time."""

from __future__ import annotations

import pytest

import gpugrad as gg
from gpugrad.utils import blas


@pytest.fixture
def threads():
    """The number of BLAS threads, put back after the test; skips where the BLAS does not tell."""
    info = blas.blas_info()
    if "openblas" not in info.library:
        pytest.skip(f"NumPy uses {info.library} here, which does not tell its kernel")
    yield info.threads
    blas.set_blas_threads(info.threads)


def test_openblas_tells_its_kernel_and_threads(threads):
    info = blas.blas_info()
    assert info.kernel
    assert info.threads >= 1
    assert "openblas" in info.file


def test_threads_are_set(threads):
    assert blas.set_blas_threads(1)
    assert blas.blas_info().threads == 1


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="got 0"):
        blas.set_blas_threads(0)


def test_another_blas_is_left_alone(monkeypatch):
    monkeypatch.setattr(blas, "_openblas_libraries", lambda: iter(()))
    monkeypatch.setattr(blas, "_ask_threadpoolctl", lambda: None)
    assert not blas.set_blas_threads(1)
    info = blas.blas_info()
    assert info.library
    assert info.kernel is None


def test_the_public_number_of_threads_is_also_that_of_the_blas(threads):
    before = gg.get_num_threads()
    try:
        for count in (1, 2):
            gg.set_num_threads(count)
            assert gg.get_num_threads() == count
            assert blas.blas_info().threads == count
        with pytest.raises(RuntimeError, match="positive integer, got 0"):
            gg.set_num_threads(0)
        assert blas.blas_info().threads == 2
    finally:
        gg.set_num_threads(before)
