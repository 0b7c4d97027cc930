"""Kernels of reductions against NumPy in float64: axes, layouts, dtypes, special values, orders."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen import cuda_reduce
from gpugrad.ops import reduce, shape

pytestmark = pytest.mark.gpu

cupy = pytest.importorskip("cupy")

# shapes and axes: few results of many elements, many of few, by rows, columns, in the middle
CASES = [
    ((), None), ((1,), (0,)), ((31,), None), ((1000,), None), ((40_000,), None), ((3, 33), (1,)),
    ((33, 257), (0,)), ((7, 64), (1,)), ((2, 5, 36), (0, 2)), ((4, 3, 8, 8), (0, 2, 3)),
    ((5, 6, 7), (1,)), ((3000, 8), (0,)), ((6, 5, 4), (0, 1, 2)), ((2, 3, 4, 5), (1, 3)),
    ((2, 9000), (1,)), ((300, 1, 3), (0,)), ((4, 5), ()),
]  # fmt: skip
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
NUMPY = {"max": np.max, "min": np.min, "sum": np.sum, "mean": np.mean, "any": np.any}
NUMPY |= {"all": np.all, "argmax": np.argmax, "argmin": np.argmin}
INEXACT = ("sum", "mean")


def dtype_of(name):
    return np.dtype(getattr(gg, name, name))


def expected(operation, a, axes, keepdims=False):
    wide = a if a.dtype.kind in "iub" else a.astype(np.float64)
    axes = axes[0] if operation.startswith("arg") and axes else axes
    return np.asarray(NUMPY[operation](wide, axis=axes, keepdims=keepdims))


def check(operation, a, x, axes, keepdims=False) -> bool:
    """Whether there is a kernel, which then gives NumPy's results."""
    found = cuda_reduce.reduce(operation, x, axes, keepdims)
    if found is None:
        return False
    wanted = expected(operation, a, axes, keepdims)
    assert found.shape == wanted.shape
    values = found.get()
    if a.dtype.kind not in "iub" and operation in (*INEXACT, "max", "min"):
        assert found.dtype == a.dtype
        magnitude = expected(operation, np.abs(a.astype(np.float64)), axes, keepdims)
        factor = 8 * EPS[str(a.dtype)] * (operation in INEXACT)
        error = np.abs(values.astype(np.float64) - wanted)
        assert (error <= factor * np.abs(magnitude)).all()
    else:
        np.testing.assert_array_equal(values, wanted, strict=True)
    return True


def numbers(size, dtype, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=size) * 3).astype(dtype)


@pytest.mark.parametrize("operation", ["sum", "mean", "max"])
def test_axes_and_layouts(operation):
    for size, axes in CASES:
        a = numbers(size, "f4")
        spread = np.zeros((*size[:-1], 2 * (size or (1,))[-1] + 1), "f4")
        if size:
            spread[..., 1::2] = a
        layouts = {
            "contiguous": cupy.asarray(a),
            "transposed": cupy.asarray(a.T.copy()).T,
            "strided": cupy.asarray(spread)[..., 1::2] if size else cupy.asarray(a),
            "backwards": cupy.asarray(np.flip(a).copy())[(slice(None, None, -1),) * a.ndim],
        }
        for layout, x in layouts.items():
            for keepdims in (False, True):
                assert check(operation, a, x, axes, keepdims) or layout != "contiguous"


@pytest.mark.parametrize("operation", cuda_reduce.OPERATIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "bool", "int32", "int64"])
def test_dtypes(operation, dtype):
    for size, axes in (((40,), None), ((6, 64), (1,)), ((70, 9), (0,)), ((9000,), None)):
        a = numbers(size, dtype_of(dtype))
        known = check(operation, a, cupy.asarray(a), axes)
        assert known or (operation == "mean" and dtype in ("bool", "int32", "int64"))


def test_one_more_dimension_than_the_kernels_have_is_left_to_cupy():
    x = cupy.zeros((2, 3, 2, 3, 2), "f4")
    assert cuda_reduce.reduce("sum", x, (0, 2, 4), False) is None
    assert gg.tensor(x).sum((0, 2, 4)).shape == (3, 3)


def test_nothing_to_reduce_is_left_to_cupy():
    assert cuda_reduce.reduce("sum", cupy.zeros((0, 3), "f4"), (0,), False) is None
    np.testing.assert_array_equal(gg.zeros(0, 3, device="cuda").sum(0).cpu().numpy(), np.zeros(3))
    assert gg.zeros(3, 0, device="cuda").sum(0).shape == (0,)


@pytest.mark.parametrize("operation", ["max", "min", "argmax", "argmin", "sum"])
@pytest.mark.parametrize("size", [(3, 70), (3, 5000)])
def test_special_values(operation, size):
    """NaN wins, the first of them; so does the first of equal numbers."""
    a = np.zeros(size, "f4")
    a[0, [7, 50]] = np.nan
    a[1, [60, 61]] = np.inf
    a[1, [20, 21]] = -np.inf
    a[2] = -np.inf
    with np.errstate(invalid="ignore"):
        for axes in ((1,), (0,)):
            found = cuda_reduce.reduce(operation, cupy.asarray(a), axes, False).get()
            np.testing.assert_array_equal(found, expected(operation, a, axes).astype(found.dtype))


def test_any_and_all_of_numbers():
    a = np.array([[0.0, np.nan, 0], [0, -0.0, 0], [1, 2, np.inf]], "f4")
    for operation in ("any", "all"):
        assert check(operation, a, cupy.asarray(a), (1,))


def test_64_bit_offsets(monkeypatch):
    monkeypatch.setattr(cuda_reduce, "_WIDE", 0)
    cuda_reduce._plan.cache_clear()
    for size, axes in CASES:
        a = numbers(size, "f4")
        assert check("sum", a, cupy.asarray(a), axes)
    cuda_reduce._plan.cache_clear()


def test_misaligned_addresses():
    a = numbers((1, 65), "f4")
    x = cupy.asarray(a.reshape(-1))[1:]
    assert check("sum", a[0, 1:], x, None)


def test_half_precision_sums_do_not_overflow_on_the_way():
    a = np.full((5000,), 100, "f2")
    a[2500:] = -100
    assert float(cuda_reduce.reduce("sum", cupy.asarray(a), None, False)) == 0
    assert float(cuda_reduce.reduce("mean", cupy.asarray(np.abs(a)), None, False)) == 100


@pytest.mark.parametrize("target", [(), (7,), (1, 7), (5, 1), (6, 5, 7), (6, 1, 1), (1, 1, 1)])
def test_sum_to(target):
    a = numbers((6, 5, 7), "f8")
    x = cupy.asarray(a)
    found = shape.sum_to(x, shape=target)
    np.testing.assert_allclose(found.get(), shape.sum_to(a, shape=target), rtol=1e-14, strict=True)
    if target == a.shape:
        assert found is x


def test_parts_are_summed_and_rounded_once():
    a = numbers((300, 6), "f4")
    found = cuda_reduce.sum_parts(cupy.asarray(a), dtype_of("float16"))
    np.testing.assert_allclose(found.get(), a.sum(0), rtol=1e-3, atol=1e-3)
    assert found.dtype == "f2"


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_the_operation_takes_the_kernel(name, monkeypatch):
    op, calls = getattr(reduce, name), []
    run = cuda_reduce._run
    monkeypatch.setattr(cuda_reduce, "_run", lambda *a: calls.append(a) or run(*a))
    x = gg.tensor(numbers((3, 4), "f8"), device="cuda", requires_grad=True)
    op(x, axes=(0,), keepdims=False).sum().backward()
    assert calls
    y = gg.tensor(x.detach().cpu().numpy(), requires_grad=True)
    op(y, axes=(0,), keepdims=False).sum().backward()
    np.testing.assert_allclose(x.grad.cpu().numpy(), y.grad.numpy())
    gg.autograd.gradcheck(lambda x: op(x, axes=(1,), keepdims=True), [x])


def test_bits_do_not_depend_on_the_order_of_threads(host_device):
    for size, axes in (((9000,), None), ((700, 9), (0,)), ((6, 70, 33), (0, 2))):
        x, found = cupy.asarray(numbers(size, "f4")), []
        for order in ("forward", "reverse", "shuffled"):
            with host_device.scheduled(order, seed=1):
                found.append(cuda_reduce.reduce("sum", x, axes, False).get())
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])


MUTATIONS = {
    "no barrier": (r"__syncthreads\(\);", ""),
    "a column too many": (r"pack < packs", "pack <= packs"),
    "a chunk too long": (r"l\.chunk, ", "l.chunk + 1, "),
    "half a warp": (r"lanes = TEAM / 2", "lanes = TEAM / 4"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_kernel_is_noticed(name, host_device, monkeypatch, exact_allocations):
    pattern, replacement = MUTATIONS[name]
    load = cuda_reduce.cuda_module.load

    def broken(text, function, title):
        launcher = load(text, function, title)
        launcher.text, count = re.subn(pattern, replacement, launcher.text)
        assert count
        return launcher

    caches = cuda_reduce._launcher, cuda_reduce._plan
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(cuda_reduce.cuda_module, "load", broken)
    failed = []
    for size, axes in (((6000,), None), ((4, 1000), (1,)), ((70, 9), (0,)), ((9000, 3), (0,))):
        a = numbers(size, "f4")
        for order in ("forward", "reverse", "shuffled"):
            try:
                with host_device.scheduled(order, seed=1):
                    check("sum", a, cupy.asarray(a), axes)
            except Exception as error:  # a wrong number, a wrong address, a barrier not reached
                failed.append(error)
    for cache in caches:
        cache.cache_clear()
    assert failed


def test_corpus_has_every_operation():
    names = " ".join(name for name, _, _ in cuda_reduce.corpus())
    assert all(operation in names for operation in cuda_reduce.OPERATIONS)
