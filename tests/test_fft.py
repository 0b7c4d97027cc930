"""Fourier transforms beside torch."""

import numpy as np
import pytest

import gpugrad as gg
from tests.cuda import host_device

ONE = ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]
SEVERAL = ["fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn"]
REAL_INPUT = ("rfft", "ihfft", "rfft2", "rfftn")


def values(name, dtype, rng):
    x = rng.normal(size=(3, 4, 6)).astype(dtype)
    if name in REAL_INPUT:
        return x
    return x + 1j * rng.normal(size=x.shape).astype(dtype)


def compare(found, expected, dtype):
    assert str(found.dtype) == str(expected.dtype).removeprefix("torch.")
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found.array, expected.resolve_conj().numpy(), tolerance, tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ONE)
def test_one_dimension(name, dtype, torch, rng):
    x = values(name, dtype, rng)
    for options in (
        {},
        {"n": 5},
        {"n": 9, "dim": 0},
        {"dim": 1, "norm": "ortho"},
        {"norm": "forward"},
    ):
        found = getattr(gg.fft, name)(gg.tensor(x), **options)
        compare(found, getattr(torch.fft, name)(torch.tensor(x), **options), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SEVERAL)
def test_several_dimensions(name, dtype, torch, rng):
    x = values(name, dtype, rng)
    for options in ({}, {"s": (4, 5)}, {"s": (-1, 8)}, {"dim": (0, 1), "norm": "ortho"}):
        found = getattr(gg.fft, name)(gg.tensor(x), **options)
        compare(found, getattr(torch.fft, name)(torch.tensor(x), **options), dtype)


def test_frequencies_and_shifts(torch):
    for n in (1, 4, 7):
        compare(gg.fft.fftfreq(n, 0.5), torch.fft.fftfreq(n, 0.5), "float32")
        compare(gg.fft.rfftfreq(n), torch.fft.rfftfreq(n), "float32")
        x = np.arange(3.0 * n).reshape(3, n)
        for dim in (None, 0, (0, 1)):
            for name in ("fftshift", "ifftshift"):
                found = getattr(gg.fft, name)(gg.tensor(x), dim)
                compare(found, getattr(torch.fft, name)(torch.tensor(x), dim), "float64")


def test_integers_are_computed_in_the_default_dtype():
    assert gg.fft.fft(gg.tensor([1, 2, 3])).dtype == gg.complex64


def test_gradients_and_half_precision_are_refused():
    x = gg.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="silently wrong"):
        gg.fft.rfft(x)
    with gg.no_grad():
        assert gg.fft.rfft(x).shape == (3,)
    with pytest.raises(RuntimeError, match="float16"):
        gg.fft.fft(gg.ones(4, dtype=gg.float16))
    with pytest.raises(RuntimeError, match="norm must be"):
        gg.fft.fft(gg.ones(4), norm="unit")
    with pytest.raises(RuntimeError, match="data points"):
        gg.fft.fft(gg.ones(4), n=0)


@pytest.mark.gpu
def test_on_a_device(rng):
    if host_device.active():
        pytest.skip("the host-memory device has no cuFFT")
    x = rng.normal(size=(3, 8)).astype("float32")
    found = gg.fft.rfft(gg.tensor(x, device="cuda"))
    np.testing.assert_allclose(found.cpu().array, np.fft.rfft(x), 1e-5, 1e-5)
