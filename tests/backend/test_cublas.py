"""What of the CUDA matrix products can be checked without a CUDA device: numbers and sizes of
attributes against NVIDIA's library where it is installed, plans, switches."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.backend import cublas


def nvidia_library() -> str | None:
    """libcublasLt of a wheel; descriptors need no GPU."""
    try:
        from cuda.pathfinder import find_nvidia_header_directory
    except ImportError:
        return None
    header = find_nvidia_header_directory("cublas")
    lib = Path(header).parent / "lib" if header else None
    found = sorted(lib.glob("libcublasLt.so.*")) if lib and lib.is_dir() else []
    return str(found[-1]) if found else None


@pytest.fixture(scope="module")
def library():
    path = nvidia_library()
    if path is None:
        pytest.skip("NVIDIA's cuBLASLt is not installed: pip install gpugrad[cuda13]")
    return cublas.load(path)


DESCRIPTORS = {
    "MatmulDesc": (
        (68, 0),
        [
            (cublas._TRANS_A, 1),
            (cublas._TRANS_B, 1),
            (cublas._BIAS_POINTER, 256),
            (cublas._AUX_POINTER, 256),
            (cublas._AUX_LD, 128),
            *[(cublas._EPILOGUE, number) for number in cublas.EPILOGUES.values()],
        ],
    ),
    "MatrixLayout": ((14, 3, 4, 5), [(cublas._BATCH_COUNT, 7), (cublas._BATCH_STRIDE, 20)]),
    "MatmulPreference": (
        (),
        [
            (cublas._MAX_WORKSPACE, 32 << 20),
            (cublas._REDUCTIONS, 2),
            *[(attribute, 16) for attribute in cublas._ALIGNMENTS],
        ],
    ),
}


@pytest.mark.parametrize("kind", DESCRIPTORS)
def test_nvidias_library_takes_the_attributes(library, kind):
    """And gives them back: number, size and type are as in its header."""
    arguments, attributes = DESCRIPTORS[kind]
    made = ctypes.c_void_p()
    assert getattr(library, f"cublasLt{kind}Create")(ctypes.byref(made), *arguments) == 0
    write = getattr(library, f"cublasLt{kind}SetAttribute")
    read = getattr(library, f"cublasLt{kind}GetAttribute")
    for (number, type_), value in attributes:
        cell, back, size = type_(value), type_(), ctypes.c_size_t(ctypes.sizeof(type_))
        assert write(made, number, ctypes.byref(cell), size) == 0, (kind, number)
        assert read(made, number, ctypes.byref(back), size, None) == 0
        assert back.value == value
        assert write(made, number, ctypes.byref(cell), ctypes.c_size_t(size.value + 1)) == 7
    assert getattr(library, f"cublasLt{kind}Destroy")(made) == 0


def test_nvidias_library_names_statuses_alike(library):
    library.cublasLtGetStatusName.restype = ctypes.c_char_p
    for status, name in cublas._STATUS.items():
        assert library.cublasLtGetStatusName(status).decode() == name


def test_results_of_the_heuristic_have_the_size_of_the_header():
    assert ctypes.sizeof(cublas._Heuristic) == 64 + 8 + 4 + 4 + 16


def test_another_file_is_not_the_library(tmp_path):
    with pytest.raises(cublas.NoLibrary, match="nothing.so"):
        cublas.load(str(tmp_path / "nothing.so"))


# ---- plans: what is read in place and what is copied


class Layout:
    """An array without memory."""

    def __init__(self, x):
        self.shape, self.strides, self.ndim, self.itemsize = x.shape, x.strides, x.ndim, x.itemsize


def plan(a, b):
    return cublas._plan_matmul(Layout(a), Layout(b))


X = np.zeros((4, 6, 8))


@pytest.mark.parametrize(
    "a, b, batch, copies",
    [
        (X[0], X[0].T, 1, 0),  # a transposed operand is no copy
        (X, X[0].T, 1, 0),  # one matrix on the right: rows of one product
        (X, X.swapaxes(1, 2), 4, 0),
        (X[:, ::2], X[0].T, 1, 0),  # every second row: a leading dimension
        (X[:, :5], X[0, :, :].T, 4, 0),
        (X[0, :, ::2], X[0, :, ::2].T, 1, 2),  # every second column
        (X[0, ::-1], X[0].T, 1, 1),
        (X[::-1], X[0].T, 1, 1),
        (X[0, 0], X[0].T, 1, 0),
        (X[0, :, 3], X[0], 1, 0),  # a column
        (np.broadcast_to(X[0], (4, 6, 8)), X.swapaxes(1, 2), 4, 0),
        (np.broadcast_to(X[0, 0], (6, 8)), X[0].T, 1, 1),
        (np.zeros((2, 3, 6, 8)).transpose(1, 0, 2, 3), X[0].T, 3, 0),
    ],
)
def test_copies_only_what_cublas_cannot_read(a, b, batch, copies):
    found = plan(a, b)
    assert found.problem.batch == batch
    assert found.a.copied + found.b.copied == copies
    assert found.shape == np.matmul(a, b).shape


def test_batches_of_two_strides_are_a_call_for_each():
    found = plan(np.zeros((5, 1, 2, 3)), np.zeros((6, 3, 4)))
    assert found.problem.batch == 6 and len(found.offsets) == 5 and not found.a.copied
    many = plan(np.zeros((50, 1, 2, 3)), np.zeros((1, 60, 3, 4)))  # 50 calls: copied instead
    assert many.problem.batch == 3000 and many.offsets is None and many.a.copied and many.b.copied


def test_nothing_to_compute():
    assert plan(np.zeros((0, 3)), np.zeros((3, 4))).problem is None
    assert plan(np.zeros((2, 0)), np.zeros((0, 4))).shape == (2, 4)


def test_alignment_of_addresses():
    assert [cublas.lowest_bit(a) for a in (512, 256, 48, 8, 2)] == [256, 256, 16, 8, 2]


# ---- switches


@pytest.fixture
def matmul():
    yield gg.backends.cuda.matmul
    gg.set_float32_matmul_precision("highest")


def test_precision_and_tf32_are_one_switch(matmul):
    assert gg.get_float32_matmul_precision() == "highest" and matmul.allow_tf32 is False
    gg.set_float32_matmul_precision("medium")
    assert gg.get_float32_matmul_precision() == "medium" and matmul.allow_tf32 is True
    matmul.allow_tf32 = False
    assert gg.get_float32_matmul_precision() == "highest"
    with pytest.raises(RuntimeError, match="'highest', 'high' or 'medium', got 'low'"):
        gg.set_float32_matmul_precision("low")


def test_switches_take_booleans_and_no_other_names(matmul):
    matmul.allow_fp16_reduced_precision_reduction = True
    assert matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = False
    assert not matmul.allow_bf16_reduced_precision_reduction
    with pytest.raises(TypeError, match="True or False"):
        matmul.allow_tf32 = 1
    with pytest.raises(AttributeError, match="allow_tf23"):
        matmul.allow_tf23 = True
    assert gg.backends.cuda.is_built()
