"""Arrays of other libraries in and out: without copies where torch makes none, without warnings
(which are errors in tests)."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


class OnlyArray:
    """An object that speaks NumPy's protocol and nothing else (pandas, h5py, PIL)."""

    def __init__(self, array):
        self.array_ = array

    def __array__(self, dtype=None, copy=None):
        return self.array_


class OnlyDLPack:
    def __init__(self, array, device=None):
        self.array_, self.device_ = array, device

    def __dlpack__(self, **options):
        return self.array_.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device_ or self.array_.__dlpack_device__()


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")


@pytest.mark.parametrize("make", [gg.as_tensor, gg.asarray, gg.from_dlpack])
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "int64", "int32", "uint8"])
def test_a_torch_tensor_is_shared(torch, make, name: str) -> None:
    source = torch.arange(6, dtype=getattr(torch, name)).reshape(2, 3).T
    t = make(source)
    assert t.data_ptr() == source.data_ptr()
    assert str(t.dtype) == name
    t[0, 1] = 42
    assert source[0, 1].item() == 42
    assert t.tolist() == source.tolist()


def test_tensor_copies(torch) -> None:
    source = torch.arange(3.0)
    t = gg.tensor(source)
    t[0] = 42.0
    assert source.tolist() == [0.0, 1.0, 2.0]
    assert gg.tensor(source, dtype=gg.float64).dtype == gg.float64
    assert gg.as_tensor(source, gg.int64).tolist() == [0, 1, 2]


def test_lists_of_torch_tensors(torch) -> None:
    assert gg.tensor([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1.0, 2.0]
    assert gg.tensor([torch.ones(2), torch.zeros(2)]).tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("make", [gg.tensor, gg.as_tensor, gg.from_dlpack])
def test_what_cannot_be_shared_says_what_to_do(torch, make) -> None:
    with pytest.raises(BufferError, match="detach"):
        make(torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match=r"float8.*convert it first"):
        make(torch.ones(2).to(torch.float8_e4m3fn))


def test_a_device_that_is_neither_cpu_nor_cuda_is_refused() -> None:
    with pytest.raises(BufferError, match="type 8"):
        gg.from_dlpack(OnlyDLPack(np.ones(2), (8, 0)))


def test_torch_takes_our_tensors(torch) -> None:
    t = gg.arange(4.0)
    shared = torch.from_dlpack(t)
    shared[0] = 9.0
    assert t.tolist() == [9.0, 1.0, 2.0, 3.0]
    with pytest.raises(BufferError, match="detach"):
        torch.from_dlpack(gg.ones(2, requires_grad=True))


@pytest.mark.parametrize("kind", [OnlyArray, OnlyDLPack])
def test_protocols_keep_dtype_and_memory(kind) -> None:
    a = np.ones(3)
    shared, copied = gg.as_tensor(kind(a)), gg.tensor(kind(a))
    assert shared.dtype == copied.dtype == gg.float64
    assert shared.data_ptr() == a.ctypes.data != copied.data_ptr()


def test_numpy_reads_tensors_without_a_copy() -> None:
    t = gg.ones(3)
    assert np.asarray(t) is t.array
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(gg.ones(2, requires_grad=True))


@pytest.mark.parametrize("scalar", [np.float64(2), np.float32(2), np.int64(2)])
def test_numpy_scalars_are_numbers(scalar):
    """They do not widen a tensor, and gradients pass: numpy.float64 is a subclass of float."""
    x = gg.tensor([1.0, 3.0], requires_grad=True)
    y = x * scalar + x / scalar + gg.maximum(x, scalar)
    assert y.dtype == gg.float32
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [2.5, 3.5])
