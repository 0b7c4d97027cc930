"""CUDA pools equal the reference: to the bit where nothing is added, NaN and ties included."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad.codegen import cuda_pooling as kernels
from gpugrad.ops import REGISTRY
from tests.cuda.judging import DTYPES, agrees, broken, on_device, rounded, wide

pytestmark = pytest.mark.gpu


def reference(name):
    return REGISTRY[name].reference


def pool(kernel, stride=None, dilation=(1, 1)):
    return {"kernel": kernel, "stride": stride or kernel, "dilation": dilation}


# The shape of the image, and the pool.
POOLS = {
    "tiles": ((2, 3, 8, 6), pool((2, 2))),
    "rest beyond the tiles": ((3, 9, 7), pool((2, 3))),
    "overlap": ((2, 2, 11, 13), pool((3, 3), (2, 1))),
    "gaps": ((1, 2, 13, 12), pool((2, 2), (4, 5))),
    "dilation": ((2, 12, 17), pool((3, 2), (1, 2), (2, 3))),
    "one window": ((4, 1, 5, 31), pool((5, 31))),
    "one pixel": ((5, 1, 3, 4), pool((1, 1), (2, 1))),
    "no planes": ((0, 3, 6, 6), pool((2, 2))),
    "only an image": ((33, 35), pool((3, 3), (2, 2))),
    "more than a block": ((7, 3, 33, 17), pool((2, 2), (1, 1))),
}


def image(rng, shape, dtype, nan=False):
    """Few different numbers, so that many are equal; every tenth NaN if wanted."""
    x = rng.integers(-2, 3, shape).astype(float)
    if nan:
        x[rng.random(shape) < 0.1] = np.nan
    return rounded(x, dtype)


def equal(found, expected):
    assert found is not None, "no kernel computed this"
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(wide(found), wide(expected))


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOLS)
@np.errstate(invalid="ignore")  # comparisons of NaN in bfloat16
def test_maxima(name, dtype, nan, rng):
    shape, options = POOLS[name]
    x = image(rng, shape, dtype, nan)
    out = reference("max_pool")(x, **options)
    g, h = rounded(rng.integers(-3, 4, out.shape), dtype), rounded(rng.normal(size=shape), dtype)
    X, O, G, H = on_device(x, out, g, h)
    equal(kernels.max_pool(X, **options), out)
    # sums of few small integers are exact in every dtype
    scattered = reference("max_pool_scatter")(g, x, out, **options)
    equal(kernels.max_pool_scatter(G, X, O, **options), scattered)
    equal(
        kernels.max_pool_gather(H, X, O, **options),
        reference("max_pool_gather")(h, x, out, **options),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOLS)
def test_sums(name, dtype, rng):
    shape, options = POOLS[name]
    x = rounded(rng.normal(size=shape), dtype)
    expected = reference("sum_pool")(wide(x), **options)
    g = rounded(rng.normal(size=expected.shape), dtype)
    X, G = on_device(x, g)
    agrees(kernels.sum_pool(X, **options), expected, dtype)
    expected = reference("sum_unpool")(wide(g), shape=shape, **options)
    agrees(kernels.sum_unpool(G, shape=shape, **options), expected, dtype)


def test_infinities(rng):
    x = np.full((2, 6, 6), -np.inf, "float32")
    x[0, 2, 3] = np.inf
    options = pool((3, 3), (2, 2))
    out = reference("max_pool")(x, **options)
    g = rng.normal(size=out.shape).astype("float32")
    X, O, G = on_device(x, out, g)
    equal(kernels.max_pool(X, **options), out)
    expected = reference("max_pool_scatter")(g, x, out, **options)
    equal(kernels.max_pool_scatter(G, X, O, **options), expected)


def test_64_bit_places(rng, monkeypatch):
    """Pools with more elements than 32 bits count; here the limit is lowered instead."""
    shape, options = POOLS["overlap"]
    x = image(rng, shape, "float32")
    out = reference("max_pool")(x, **options)
    X, O = on_device(x, out)
    used = []
    original = kernels._kernel
    monkeypatch.setattr(kernels, "_kernel", lambda *key: used.append(key) or original(*key))
    monkeypatch.setattr(kernels, "_MOST", 500)
    equal(kernels.max_pool(X, **options), out)
    equal(
        kernels.max_pool_scatter(O, X, O, **options),
        reference("max_pool_scatter")(out, x, out, **options),
    )
    assert all(wide_places for *_, wide_places in used)


def test_images_that_are_not_contiguous(rng):
    x = image(rng, (6, 4, 8, 10), "float32")
    options = pool((2, 3), (1, 2))
    X = on_device(x)
    for ours, view in ((X.transpose(1, 0, 3, 2), x.transpose(1, 0, 3, 2)), (X[::2], x[::2])):
        equal(kernels.max_pool(ours, **options), reference("max_pool")(view, **options))


def test_the_same_in_every_schedule(schedule, exact_allocations, rng):
    for name in ("overlap", "dilation", "more than a block"):
        test_maxima(name, "float32", True, rng)
        test_sums(name, "float32", rng)


def test_what_has_no_kernel_is_left_to_the_reference(rng):
    X = on_device(rng.integers(0, 9, (2, 6, 6)))
    assert kernels.max_pool(X, **pool((2, 2))) is None
    x = X.astype("float32")
    assert kernels.max_pool(x, **pool((7, 2))) is None
    assert kernels.sum_unpool(x, shape=(2, 6, 6), **pool((2, 2))) is None
    assert kernels.max_pool(X.astype("float32").get(), **pool((2, 2))) is None


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("b < (a < i ? p.columns.taps : j)", "b < j"),
        ("found < windows", "found <= windows"),
        ("found * stride == corner", "true"),
        ("if (at.number >= count) return;\n  const Real value", "const Real value"),
        ("return;\n      }\n  found", "}\n  found"),
    ],
)
def test_a_broken_kernel_is_noticed(right, wrong, rng, host_device):
    with (
        broken("pooling.cu", right, wrong, kernels._kernel),
        host_device.exact_allocations(),
        pytest.raises((AssertionError, RuntimeError)),
    ):
        for name in ("overlap", "gaps", "rest beyond the tiles", "dilation"):
            test_maxima(name, "float32", False, rng)
        if host_device.overrun():
            raise AssertionError("wrote beyond an array")


# ---- through the engine


@pytest.mark.parametrize(
    "function",
    [
        lambda f, x: f.max_pool2d(x, 3, 2, 1),
        lambda f, x: f.max_pool2d(x, (2, 3), ceil_mode=True),
        lambda f, x: f.avg_pool2d(x, 2),
        lambda f, x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ],
)
def test_equals_torch(function, torch, rng):
    x = rng.integers(-3, 4, (2, 3, 9, 11)).astype("float64")  # ties: the first maximum
    X = gg.tensor(x, device="cuda", requires_grad=True)
    T = torch.tensor(x, requires_grad=True)
    y, z = function(F, X), function(torch.nn.functional, T)
    (y * y).sum().backward()
    (z * z).sum().backward()
    np.testing.assert_allclose(y.detach().cpu().numpy(), z.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(X.grad.cpu().numpy(), T.grad.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d])
def test_gradients_of_gradients(function, rng):
    x = rng.normal(size=(2, 3, 7, 6))
    found = {}
    for device in ("cpu", "cuda"):
        X = gg.tensor(x, device=device, requires_grad=True)
        y = function(X, 3, 2)
        (gx,) = gg.autograd.grad((y**3).sum(), (X,), create_graph=True)
        (ggx,) = gg.autograd.grad((gx * gx).sum(), (X,))
        found[device] = [t.detach().cpu().numpy() for t in (y, gx, ggx)]
    for a, b in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_no_hidden_traffic(no_hidden_traffic, rng):
    x = gg.tensor(rng.normal(size=(2, 3, 8, 8)), device="cuda", requires_grad=True)

    def run():
        F.max_pool2d(F.avg_pool2d(x, 2), 2).sum().backward()

    run()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        run()
