"""Native convolutions and pools against the reference, float64 and guard pages."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.backend import numpy as backend
from gpugrad.codegen import cache, pooling, sums
from gpugrad.codegen import convolution as native
from gpugrad.codegen.machine import Machine, machine
from gpugrad.config import settings
from gpugrad.ops import convolution as reference
from gpugrad.ops import nn as operations

pytest.importorskip("llvmlite")

ROOT = Path(__file__).resolve().parents[2]
KERNELS = (native._forward_kernel, native._weight_kernel, native._input_kernel)
CHOICES = (*KERNELS, native._chosen, native._better_as_products, native.with_epilogue)
# Vector registers and lanes of CPUs: this one; AVX-512 (LLVM splits what is too wide); SSE or NEON.
REGISTERS = {"own": None, "512 bits": (32, [16, 8, 4]), "128 bits": (16, [4, 2])}


@pytest.fixture(autouse=True)
def every_call(monkeypatch):
    """Kernels for the smallest call, outputs and scratch full of NaN."""
    if os.environ.get("GPUGRAD_JIT") == "0":
        pytest.skip("GPUGRAD_JIT=0")
    assert machine() is not None
    take_every_call(monkeypatch.setattr)
    fresh = backend.empty

    def poisoned(shape, dtype):
        out = fresh(shape, dtype)
        if np.issubdtype(dtype, np.inexact):
            out.fill(np.nan)
        return out

    monkeypatch.setattr(backend, "empty", poisoned)
    forget()
    yield
    forget()


def take_every_call(change) -> None:
    change(native, "LEAST_WORK", 1)
    change(pooling, "LEAST", 1)
    change(sums, "LEAST", 1)


@pytest.fixture(params=REGISTERS)
def registers(request, monkeypatch):
    """Tiles for the vector registers of other CPUs too."""
    found = REGISTERS[request.param]
    if found:
        monkeypatch.setattr(native, "_register_file", lambda element: found)
        monkeypatch.setattr(native, "CACHE", 1500)  # weight gradients go by a few rows at a time
        monkeypatch.setattr(native.kernels, "PACKED", 1)
        monkeypatch.setattr(cache, "sources", lambda: None)  # which do not say so
    forget()
    yield
    forget()


def forget() -> None:
    """Choose kernels anew."""
    for choice in CHOICES:
        choice.cache_clear()


def change_choice(monkeypatch, name: str, value) -> None:
    """Change what the choice of kernels depends on."""
    monkeypatch.setattr(native, name, value)
    native._chosen.cache_clear()


def pair(rng, least: int, stop: int) -> tuple[int, int]:
    return tuple(int(n) for n in rng.integers(least, stop, 2))


class Case:
    """One random convolution."""

    def __init__(self, rng):
        groups = int(rng.integers(1, 4))
        kernel = pair(rng, 1, 6)
        stride = pair(rng, 1, 4) if rng.random() < 0.4 else (1, 1)
        dilation = pair(rng, 1, 4) if rng.random() < 0.3 else (1, 1)
        padding = (pair(rng, 0, 4), pair(rng, 0, 4)) if rng.random() < 0.6 else ((0, 0), (0, 0))
        least = [
            max(1, d * (k - 1) + 1 - sum(p))
            for d, k, p in zip(dilation, kernel, padding, strict=True)
        ]
        size = tuple(n + int(rng.choice([0, 1, rng.integers(0, 28)])) for n in least)
        depth, width = pair(rng, 1, 6)
        batch = int(rng.integers(1, 8))
        dtype = rng.choice([np.float32, np.float64])
        self.x = rng.standard_normal((batch, groups * depth, *size)).astype(dtype)
        self.w = rng.standard_normal((groups * width, depth, *kernel)).astype(dtype)
        self.options = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        }  # fmt: skip
        shape = reference.output_shape(self.x.shape, self.w.shape, **self.options)
        self.g = rng.standard_normal(shape).astype(dtype)

    def __str__(self) -> str:
        return f"{self.x.dtype} {self.x.shape} {self.w.shape} {self.options}"

    def results(self, module, g, x, w) -> list:
        return [
            module.forward(x, w, **self.options),
            module.weight_gradient(g, x, shape=w.shape, **self.options),
            module.input_gradient(g, w, shape=x.shape, **self.options),
        ]

    def exact(self, g, x, w) -> list[np.ndarray]:
        """The three results by einsum, in float64."""
        g, x, w = (np.asarray(a, np.float64) for a in (g, x, w))
        (_, _, height, width), groups = x.shape, self.options["groups"]
        (top, bottom), (left, right) = self.options["padding"]
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        gx = np.zeros_like(padded)
        patches, targets = self._patches(padded, g), self._patches(gx, g)
        g = g.reshape(g.shape[0], groups, -1, *g.shape[2:])
        by_group = w.reshape(groups, -1, *w.shape[1:])
        y = np.einsum("ngcklij,gockl->ngoij", patches, by_group)
        gw = np.einsum("ngcklij,ngoij->gockl", patches, g)
        for k in range(w.shape[2]):
            for m in range(w.shape[3]):
                part = np.einsum("ngoij,goc->ngcij", g, by_group[..., k, m])
                targets[:, :, :, k, m] += part
        gx = gx[:, :, top : top + height, left : left + width]
        return [y.reshape(self.g.shape), gw.reshape(w.shape), gx]

    def _patches(self, padded, g):
        """A view: batch, group, channel, tap row, tap column, output row, output column."""
        (n, c, _, _), (sn, sc, sh, sw) = padded.shape, padded.strides
        groups, (step_h, step_w) = self.options["groups"], self.options["stride"]
        dilation_h, dilation_w = self.options["dilation"]
        depth = c // groups
        return np.lib.stride_tricks.as_strided(
            padded,
            (n, groups, depth, *self.w.shape[2:], *g.shape[2:]),
            (sn, depth * sc, sc, dilation_h * sh, dilation_w * sw, step_h * sh, step_w * sw),
        )

    @property
    def terms(self) -> tuple[int, int, int]:
        """Products that make up one element of each result."""
        outputs = self.g.shape[0] * self.g.shape[2] * self.g.shape[3]
        taps = self.w[0].size
        return taps, outputs, taps // self.w.shape[1] * self.w.shape[0]


def check(case: Case, found: list) -> None:
    """Every sum of n products is off by at most n + 2 roundings of the sum of their magnitudes, in
    whatever order it was computed (Higham, Accuracy and Stability, section 3.1); float64 results
    are compared with others that are off as much."""
    wanted = case.exact(case.g, case.x, case.w)
    magnitudes = case.exact(abs(case.g), abs(case.x), abs(case.w))
    rounding = np.finfo(case.x.dtype).eps
    for result, exact, size, terms in zip(found, wanted, magnitudes, case.terms, strict=True):
        if result is None:
            continue
        assert result.shape == exact.shape
        assert result.dtype == case.x.dtype
        assert result.flags.c_contiguous
        assert np.all(abs(result - exact) <= (terms + 2) * rounding * size), str(case)


@pytest.mark.parametrize("seed", range(15))
def test_random_layers(registers, seed):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        case = Case(rng)
        found = case.results(native, case.g, case.x, case.w)
        assert found[0] is not None
        assert found[1] is not None
        assert found[2] is not None
        check(case, found)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="features of x86")
def test_the_oldest_cpu(monkeypatch):
    """Vectors of 128 bits, no fused multiply-add."""
    other = Machine("x86-64", "")
    for module in (native, pooling, sums):
        monkeypatch.setattr(module, "machine", lambda: other)
    forget()
    pooling._compiled.cache_clear()
    sums._kernel.cache_clear()
    rng = np.random.default_rng(2)
    for _ in range(6):
        case = Case(rng)
        check(case, case.results(native, case.g, case.x, case.w))
    test_pools_equal_the_reference("float32", monkeypatch)
    test_sums_to_channels("float64")
    pooling._compiled.cache_clear()
    sums._kernel.cache_clear()


def test_arrays_that_are_not_contiguous():
    rng = np.random.default_rng(1)
    for _ in range(6):
        case = Case(rng)
        g, x, w = (np.asfortranarray(a) for a in (case.g, case.x, case.w))
        check(case, case.results(native, g, x, w))
        case.g = np.broadcast_to(case.g[:1, :1, :1, :1], case.g.shape)
        check(case, case.results(native, case.g, x[:, ::-1][:, ::-1], w))


def layer(n=64, c=6, size=12, o=16, k=5, dtype=np.float32) -> Case:
    """A layer of LeNet."""
    rng = np.random.default_rng(3)
    case = Case(rng)
    case.options = {
        "stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1,
    }  # fmt: skip
    case.x = rng.standard_normal((n, c, size, size)).astype(dtype)
    case.w = rng.standard_normal((o, c, k, k)).astype(dtype)
    out = size - k + 1
    case.g = rng.standard_normal((n, o, out, out)).astype(dtype)
    return case


@pytest.mark.parametrize("sizes", [(64, 1, 28, 6, 5), (64, 6, 12, 16, 5), (4, 32, 34, 32, 3)])
def test_errors_are_those_of_the_reference(sizes, monkeypatch):
    """Blocked sums: not only within the bound, but as small as those of matrix products."""
    case = layer(*sizes)
    exact = case.exact(case.g, case.x, case.w)
    found = case.results(native, case.g, case.x, case.w)
    change_choice(monkeypatch, "machine", lambda: None)
    plain = case.results(reference, case.g, case.x, case.w)
    for a, b, wanted in zip(found, plain, exact, strict=True):
        error, theirs = (np.sqrt(np.mean((r - wanted) ** 2)) for r in (a, b))
        assert error <= 2 * theirs


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_same_bits(threads, monkeypatch):
    monkeypatch.setattr(native, "PARALLEL", 1)
    monkeypatch.setattr(pooling, "PARALLEL", 1)
    monkeypatch.setattr(sums, "PARALLEL", 1)
    monkeypatch.setattr(native, "CHUNK", 1 << 16)
    options = {"kernel": (2, 2), "stride": (2, 2), "dilation": (1, 1)}
    results = []
    for count in (1, threads):
        monkeypatch.setattr(settings, "num_threads", count)
        case = layer(n=13)
        y = pooling.max_pool(case.x, **options)
        pools = [y, pooling.max_pool_scatter(y, case.x, y, **options)]
        pools.append(sums.sum_to(case.g, (16, 1, 1)))
        results.append(pools + case.results(native, case.g, case.x, case.w))
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()


def test_another_batch_size_compiles_nothing():
    check(layer(), layer().results(native, *(getattr(layer(), name) for name in "gxw")))
    compiled, known = machine().compiled, [k.cache_info().misses for k in KERNELS]
    for n in (1, 7, 65):
        case = layer(n)
        check(case, case.results(native, case.g, case.x, case.w))
    assert machine().compiled == compiled
    assert [k.cache_info().misses for k in KERNELS] == known


def test_what_the_reference_does(monkeypatch):
    case = layer(n=1)
    other = case.results(native, *(a.astype(np.float16) for a in (case.g, case.x, case.w)))
    assert other == [None] * 3
    assert native.forward(case.x, case.w.astype(np.float64), **case.options) is None
    wide = np.zeros((1, 1, 1, 40), np.float32)
    assert native.forward(wide, wide, **case.options) is None
    monkeypatch.setattr(native, "BODIES", 3)
    steep = layer(n=1, c=3, size=35, k=11)
    steep.options["stride"] = (4, 4)
    steep.g = steep.g[:, :, :7, :7]
    results = steep.results(native, steep.g, steep.x, steep.w)
    assert [r is None for r in results] == [False, False, True]
    change_choice(monkeypatch, "LEAST_WORK", 1 << 40)
    assert case.results(native, case.g, case.x, case.w) == [None] * 3
    change_choice(monkeypatch, "LEAST_WORK", 1)
    change_choice(monkeypatch, "machine", lambda: None)
    assert case.results(native, case.g, case.x, case.w) == [None] * 3


@pytest.mark.parametrize("groups", [1, 2])
def test_layers_that_are_better_as_matrix_products(groups):
    rng = np.random.default_rng(4)
    for c, o, size, kernel in ((64, 32, 9, 1), (64, 32, 2, 1), (32, 128, 7, 7)):
        case = layer(n=3, c=c, size=size, o=o, k=kernel)
        case.w = rng.standard_normal((o, c // groups, kernel, kernel)).astype(np.float32)
        case.options["groups"] = groups
        if size > 2:
            assert case.results(native, case.g, case.x, case.w) == [None] * 3
        check(case, case.results(reference, case.g, case.x, case.w))


def test_shapes_that_do_not_fit_are_left_to_the_reference():
    case = layer(n=2)
    options, shape = case.options, case.w.shape
    for g in (case.g[:, :, 1:], case.g[:1], case.g[:, 1:]):
        assert native.weight_gradient(g, case.x, shape=shape, **options) is None
        assert native.input_gradient(g, case.w, shape=case.x.shape, **options) is None
    assert native.forward(case.x[:, 1:], case.w, **options) is None
    cropped = {**options, "padding": ((-1, 0), (0, 0))}
    assert native.forward(case.x, case.w, **cropped) is None
    pool = {"kernel": (2, 2), "stride": (2, 2), "dilation": (1, 1)}
    y = pooling.max_pool(case.x, **pool)
    assert pooling.max_pool_scatter(y[:1], case.x, y[:1], **pool) is None


def test_empty_batch():
    case = layer(n=0)
    y, gw, gx = case.results(reference, case.g, case.x, case.w)
    assert (y.shape, gx.shape) == ((0, 16, 8, 8), (0, 6, 12, 12))
    np.testing.assert_array_equal(gw, np.zeros_like(case.w))


def test_switched_off():
    script = (
        "import numpy as np, gpugrad as gg; from gpugrad.codegen import convolution as native\n"
        "x = gg.ones(8, 3, 32, 32); m = gg.nn.Conv2d(3, 8, 3)\n"
        "gg.nn.functional.max_pool2d(m(x), 2).sum().backward(); print(native.machine())"
    )
    environment = {**os.environ, "GPUGRAD_JIT": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (ran.stdout.strip(), ran.returncode) == ("None", 0), ran.stderr


# ---- pools


def random_pool(rng, dtype) -> tuple[np.ndarray, dict]:
    """Small whole numbers, so that windows have ties, and some NaN."""
    kernel = (2, 2) if rng.random() < 0.3 else pair(rng, 1, 5)
    stride = kernel if rng.random() < 0.5 else pair(rng, 1, 6)
    dilation = pair(rng, 1, 3) if rng.random() < 0.3 else (1, 1)
    size = [
        (k - 1) * d + 1 + int(rng.integers(0, 28)) for k, d in zip(kernel, dilation, strict=True)
    ]
    x = rng.integers(0, 5, (*pair(rng, 1, 4), *size)).astype(dtype)
    x[rng.random(x.shape) < 0.02] = np.nan
    return x, {"kernel": kernel, "stride": stride, "dilation": dilation}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pools_equal_the_reference(dtype, monkeypatch):
    rng = np.random.default_rng(5)
    for _ in range(60):
        x, options = random_pool(rng, dtype)
        y, total = pooling.max_pool(x, **options), pooling.sum_pool(x, **options)
        g = rng.integers(-9, 9, y.shape).astype(dtype)  # sums of them are exact in any order
        gx = pooling.max_pool_scatter(g, np.asfortranarray(x), y, **options)
        with monkeypatch.context() as change:
            change.setattr(pooling, "machine", lambda: None)
            np.testing.assert_array_equal(y, operations._max_pool(x, **options))
            np.testing.assert_array_equal(total, operations._sum_pool(x, **options))
            wanted = operations._max_pool_scatter(g, x, y, **options)
        np.testing.assert_array_equal(gx, wanted)


@pytest.mark.parametrize("size", [(24, 24), (8, 4), (6, 62)])
def test_the_transpose_of_sums(size, monkeypatch):
    for rows in (1, 2, 3):
        options = {"kernel": (rows, 2), "stride": (rows, 2), "dilation": (1, 1)}
        shape = (2, 3, size[0] * rows, size[1])
        g = np.random.default_rng(8).standard_normal((2, 3, size[0], size[1] // 2))
        found = pooling.sum_unpool(g, shape=shape, **options)
        with monkeypatch.context() as change:
            change.setattr(pooling, "machine", lambda: None)
            wanted = operations._sum_pool_transpose(g, shape=shape, **options)
        np.testing.assert_array_equal(found, wanted)
        assert pooling.sum_unpool(g, shape=(2, 3, size[0] * rows + 1, size[1]), **options) is None


def test_the_first_of_equal_maxima_takes_the_gradient():
    x = gg.zeros(1, 1, 40, 40).requires_grad_()
    gg.nn.functional.max_pool2d(x, 2).sum().backward()
    wanted = np.zeros((40, 40), np.float32)
    wanted[::2, ::2] = 1
    np.testing.assert_array_equal(x.grad.array[0, 0], wanted)


def test_nan_spreads_in_every_place_of_a_window():
    for place in range(4):
        x = np.ones((1, 1, 32, 32), np.float32)
        x[0, 0, place // 2 :: 2, place % 2 :: 2] = np.nan
        y = pooling.max_pool(x, kernel=(2, 2), stride=(2, 2), dilation=(1, 1))
        assert np.isnan(y).all()


# ---- sums over all axes but one


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_to_channels(dtype):
    rng = np.random.default_rng(6)
    for inner in (*range(8, 75), 576, 1000):
        x = rng.standard_normal((3, 5, inner)).astype(dtype)
        exact, size = (np.float64(a).sum((0, 2)) for a in (x, abs(x)))
        for shape in ((5, 1), (1, 5, 1)):
            found = sums.sum_to(x, shape)
            assert (found.shape, found.dtype) == (shape, x.dtype)
            # blocks of columns, then rows: as few roundings in a row as a pairwise sum has
            bound = (inner / 32 + 8) * np.finfo(dtype).eps * size
            assert np.all(abs(found.ravel() - exact) <= bound)


def test_sums_numpy_does():
    x = np.ones((3, 5, 16), np.float32)
    for shape in ((), (1,), (16,), (5, 16), (1, 1, 1)):
        assert sums.sum_to(x, shape) is None
    assert sums.sum_to(x[:, :, ::2], (5, 1)) is None
    assert sums.sum_to(x.astype(np.float16), (5, 1)) is None


# ---- guard pages: this file run as a program, for a read or write out of bounds ends the process


def guarded(shape, dtype, at_end: bool) -> np.ndarray:
    """An array that ends where a page begins that must not be touched, or begins where one ends."""
    page = mmap.PAGESIZE
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    size = -(-max(nbytes, 1) // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for place in (address, address + page + size):
        assert protect(place, page, 0) == 0
    start = page + size - nbytes if at_end else page
    return np.frombuffer(memory, dtype, nbytes // np.dtype(dtype).itemsize, start).reshape(shape)


def inside(array: np.ndarray, at_end: bool) -> np.ndarray:
    copy = guarded(array.shape, array.dtype, at_end)
    copy[...] = array
    return copy


def run_guarded(at_end: bool) -> None:
    take_every_call(setattr)
    backend.empty = lambda shape, dtype: guarded(shape, dtype, at_end)
    rng = np.random.default_rng(7)
    for _ in range(40):
        case = Case(rng)
        arrays = [inside(a, at_end) for a in (case.g, case.x, case.w)]
        check(case, case.results(native, *arrays))
        x, options = random_pool(rng, "float32")
        x = inside(x, at_end)
        y = pooling.max_pool(x, **options)
        pooling.sum_pool(x, **options)
        pooling.max_pool_scatter(y, x, y, **options)
        sums.sum_to(x, (x.shape[1], 1, 1))
    options = {"kernel": (2, 2), "stride": (2, 2), "dilation": (1, 1)}
    g = inside(np.ones((2, 3, 6), np.float32), at_end)
    pooling.sum_unpool(g, shape=(2, 6, 12), **options)
    print("inside")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as on Linux")
@pytest.mark.parametrize("side", ["end", "start"])
def test_nothing_is_touched_outside_of_the_arrays(side):
    ran = subprocess.run([sys.executable, __file__, side], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "inside", ran.stderr


if __name__ == "__main__":
    run_guarded(sys.argv[1] == "end")
