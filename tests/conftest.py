"""What every test relies on: hypothesis without deadlines, GPU tests that skip without a GPU, torch
as the judge."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# A forced OpenBLAS kernel changes both speed and rounding; it is read when NumPy is imported.
os.environ.pop("OPENBLAS_CORETYPE", None)

# GPU tests on a device made of host memory, which must be there before CuPy is imported.
if os.environ.get("GPUGRAD_TEST_DEVICE") == "host":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.cuda import host_device

    host_device.activate()
elif os.environ.get("GPUGRAD_TEST_DEVICE") == "strict":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.cuda import strict

    strict.activate()

import hypothesis
import numpy as np
import pytest

import gpugrad as gg

# The machines that run these tests are shared: a deadline would report the neighbours' load. Fixed
# examples make a failure on one machine a failure on all.
hypothesis.settings.register_profile("gpugrad", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("gpugrad")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    if not gg.cuda.is_available():
        skip = pytest.mark.skip(
            reason="no CUDA device, or no CuPy: pip install gpugrad[cuda13]; or run them on host "
            "memory: make host-device"
        )
        for item in on_gpu:
            item.add_marker(skip)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def in_threads():
    """Calls ``work(k)`` for k = 0 to 3 in four threads at once: the results, or an exception."""

    def run(work):
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(work, range(4)))

    return run


class Judge:
    """Runs one call in gpugrad and in torch and compares results, dtypes, shapes and gradients."""

    def __init__(self, torch):
        self.torch = torch

    def tensors(self, arguments, gradient=True):
        """The arguments for gpugrad and for torch: arrays become tensors, floats with gradient."""
        for library in (gg, self.torch):
            yield [
                library.tensor(a.copy(), requires_grad=gradient and a.dtype.kind == "f")
                if isinstance(a, np.ndarray)
                else a
                for a in arguments
            ]

    def __call__(self, call, *arguments, rtol=1e-10, atol=1e-12, gradient=True, libraries=None):
        """``call(library, *arguments)`` must give the same in both libraries."""
        ours, theirs = self.tensors(arguments, gradient)
        library, judge = libraries or (gg, self.torch)
        results, expected = call(library, *ours), call(judge, *theirs)
        self.same(results, expected, rtol, atol)
        if gradient:
            self.same_gradients(results, expected, ours, theirs, rtol, atol)

    def same(self, ours, theirs, rtol=0.0, atol=0.0):
        """Equal structure, dtype, shape and (nearly) values."""
        if isinstance(theirs, self.torch.Tensor):
            assert isinstance(ours, gg.Tensor), f"{type(ours)} instead of a tensor"
            assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
            assert tuple(ours.shape) == tuple(theirs.shape)
            assert ours.requires_grad == theirs.requires_grad
            found, expected = ours.detach().numpy(), theirs.detach().resolve_neg().numpy()
            np.testing.assert_allclose(found, expected, rtol, atol)
        elif isinstance(theirs, tuple | list):
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                self.same(a, b, rtol, atol)
        else:
            assert type(ours) is type(theirs)
            assert ours == theirs

    def same_gradients(self, ours, theirs, our_inputs, their_inputs, rtol=0.0, atol=0.0):
        """Equal gradients of everything for the same cotangents; None and zeros are the same."""
        pairs = [
            (a, b)
            for a, b in zip(self.flat(ours, gg), self.flat(theirs, self.torch), strict=True)
            if b.requires_grad
        ]
        inputs = [
            (a, b)
            for a, b in zip(our_inputs, their_inputs, strict=True)
            if isinstance(b, self.torch.Tensor) and b.requires_grad
        ]
        if not pairs or not inputs:
            return
        cotangents = [
            np.cos(np.arange(b.numel()) + 1.0).reshape(tuple(b.shape)).astype(str(a.dtype))
            for a, b in pairs
        ]
        found, expected = (
            library.autograd.grad(
                [p[k] for p in pairs],
                [x[k] for x in inputs],
                [library.tensor(c) for c in cotangents],
                allow_unused=True,
            )
            for k, library in enumerate((gg, self.torch))
        )
        for f, e in zip(found, expected, strict=True):
            if f is not None and e is not None:
                self.same(f, e, rtol, atol)
            else:
                assert not any(v is not None and v.any() for v in (f, e)), f"{f} instead of {e}"

    def flat(self, value, library):
        """All tensors of a nested result."""
        if isinstance(value, library.Tensor):
            return [value]
        if isinstance(value, tuple | list):
            return [t for v in value for t in self.flat(v, library)]
        return []

    def same_error(self, call, *arguments, libraries=None):
        """Both must raise, and ours an exception of torch's built-in class."""
        ours, theirs = self.tensors(arguments)
        library, judge = libraries or (gg, self.torch)
        with pytest.raises(Exception) as expected:
            call(judge, *theirs)
        kinds = (IndexError, TypeError, ValueError, RuntimeError)
        kind = next(k for k in kinds if issubclass(expected.type, k))
        with pytest.raises(kind):
            call(library, *ours)


@pytest.fixture
def judge(torch):
    return Judge(torch)
