"""CUDA batch normalisation against float64: moments, running averages, scaling and gradients."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad import nn
from gpugrad.codegen import cuda_batch_norm as kernels
from gpugrad.ops import REGISTRY
from tests.cuda.judging import DTYPES, agrees, broken, on_device, rounded, wide

pytestmark = pytest.mark.gpu

EPS = 1e-3
SHAPES = {
    "images": (3, 5, 8, 12),
    "odd positions": (4, 3, 31),
    "more than a chunk": (5, 3, 33, 31),
    "many chunks": (9, 2, 64, 64),
    "a whole chunk": (4, 2, 32, 32),
    "features": (33, 7),
    "one feature": (1000, 1),
    "more features than a block": (257, 35),
    "few positions": (40, 33, 2, 2),
    "two elements": (2, 9, 1, 1),
    "one image": (1, 3, 257),
}


def operands(rng, name, dtype, parameter=None, offset=0.0):
    """x, weight, bias, g, in float64 as rounded to the dtypes."""
    shape = SHAPES[name]
    x = rounded(rng.normal(size=shape) * 2 + offset, dtype)
    g = rounded(rng.normal(size=shape), dtype)
    weight, bias = (rounded(rng.normal(size=shape[1]), parameter or dtype) for _ in range(2))
    return x, weight, bias, g


def axes(x):
    return (0, *range(2, x.ndim))


def real(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_moments(name, dtype, rng):
    x, *_ = operands(rng, name, dtype)
    found = kernels.moments(on_device(x))
    assert found.dtype == real(dtype)
    expected = np.stack([wide(x).mean(axes(x)), wide(x).var(axes(x))])
    agrees(found, expected, real(dtype))


@pytest.mark.parametrize("name", ["images", "many chunks", "more features than a block"])
def test_moments_far_from_zero(name, rng):
    """The variance of numbers 2000 standard deviations away, whose squares would leave no digit of
    it. A mean of a chunk is off by half its last digit, 1e-4, which costs the fifth digit."""
    x, *_ = operands(rng, name, "float32", offset=4000.0)
    expected = wide(x).var(axes(x))
    np.testing.assert_allclose(wide(kernels.moments(on_device(x)))[1], expected, rtol=1e-4)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["images", "many chunks", "features"])
def test_running_averages(name, stored, rng):
    x, *_ = operands(rng, name, "float64" if stored == "float64" else "float32")
    channels, n = x.shape[1], x.size // x.shape[1]
    mean, variance = rounded(rng.normal(size=channels), stored), rounded(np.ones(channels), stored)
    M, V = on_device(mean, variance)
    kernels.moments(on_device(x), M, V, momentum=0.3)
    expected = 0.7 * wide(mean) + 0.3 * wide(x).mean(axes(x))
    agrees(M, expected, stored)
    unbiased = wide(x).var(axes(x)) * n / (n - 1)
    agrees(V, 0.7 * wide(variance) + 0.3 * unbiased, stored)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parameter", ["same", "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_backward(name, dtype, parameter, training, rng):
    if parameter == "same":
        parameter = dtype
    elif not dtype.endswith("16"):
        pytest.skip("float32 parameters are for half precision")
    x, weight, bias, g = operands(rng, name, dtype, parameter)
    if training:
        moments = wide(x).mean(axes(x)), wide(x).var(axes(x))
    else:
        moments = rng.normal(size=x.shape[1]), rng.random(x.shape[1]) + 0.5
    moments = [m.astype(real(dtype)) for m in moments]
    options = {"eps": EPS, "training": training}
    row = REGISTRY["batch_norm"]
    judged = [wide(a) for a in (x, weight, bias, *moments)]
    y = row.reference(*judged, **options)
    X, W, B, G, M, V = on_device(x, weight, bias, g, *moments)
    agrees(kernels.batch_norm(X, W, B, M, V, **options), y, dtype)
    gx, gweight, gbias = row.vjp(wide(g), y, judged, options, (True,) * 3 + (False,) * 2)[:3]
    found = kernels.backward(G, X, W, M, V, needs=(True, True, True), **options)
    # a sum of n products is off by sqrt(n) roundings of its terms; in double that is nothing
    agrees(found[0], gx, dtype, roundings=8)
    size = max(1.0, np.abs(gweight).max(), np.abs(gbias).max(), (x.size / x.shape[1]) ** 0.5)
    agrees(found[1], gweight, parameter, size=size)
    agrees(found[2], gbias, parameter, size=size)


@pytest.mark.parametrize("name", ["images", "many chunks", "features"])
def test_only_what_is_needed(name, rng):
    x, weight, _, g = operands(rng, name, "float32")
    X, W, G = on_device(x, weight, g)
    moments = kernels.moments(X)
    options = {"eps": EPS, "training": True}
    everything = kernels.backward(G, X, W, *moments, needs=(True,) * 3, **options)
    for needs in ((True, False, False), (False, True, True), (False, False, True)):
        found = kernels.backward(G, X, W, *moments, needs=needs, **options)
        for one, whole, need in zip(found, everything, needs, strict=True):
            assert (one is not None) == need
            if need:
                np.testing.assert_array_equal(one.get(), whole.get())


def test_the_same_in_every_schedule(schedule, exact_allocations, rng):
    for name in ("odd positions", "more than a chunk", "features", "few positions"):
        test_moments(name, "float32", rng)
        test_forward_and_backward(name, "float32", "same", True, rng)


def test_arrays_that_begin_at_odd_places(rng):
    """Elements one by one where 16 bytes at once are not allowed."""
    import cupy

    x, *_ = operands(rng, "images", "float32")
    odd = cupy.empty(x.size + 1, "float32")[1:].reshape(x.shape)
    odd[...] = cupy.asarray(x)
    agrees(kernels.moments(odd)[1], wide(x).var(axes(x)), "float32")


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("if (position >= n.positions) position -= n.positions, ++image;", ""),
        ("sum += squares[k] + (rest", "sum += squares[k] + 0 * (rest"),
        ("(rest < CHUNK ? rest : CHUNK);\n  Real squares", "CHUNK;\n  Real squares"),
        ("squares / (n.count - 1)", "squares / n.count"),
        ("(widen(pack.at[k]) - constant - along)", "(widen(pack.at[k]) - along)"),
        ("inverse * inverse / n.count", "inverse / n.count"),
        ("  scratch[threadIdx.x] = v;\n  __syncthreads();", "  scratch[threadIdx.x] = v;"),
    ],
)
def test_a_broken_kernel_is_noticed(right, wrong, rng, host_device):
    with (
        broken("batch_norm.cu", right, wrong, kernels._load),
        pytest.raises((AssertionError, RuntimeError)),
    ):
        for name in ("more than a chunk", "features", "odd positions"):
            test_moments(name, "float32", rng)
            test_forward_and_backward(name, "float32", "same", True, rng)
            for order in ("reverse", "forward"):
                with host_device.scheduled(order, seed=1):
                    test_moments("features", "float32", rng)
        test_running_averages("features", "float64", rng)


# ---- through the engine


def both(library, build, x, training, steps=2):
    """Results of a module after some steps in a library."""
    module = build(library)
    module.train(training)
    for _ in range(steps):
        y = module(x)
        y.sum().backward()
    return module, y


@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda lib: lib.nn.BatchNorm2d(5), (4, 5, 6, 7)),
        (lambda lib: lib.nn.BatchNorm1d(5, eps=0.1, momentum=0.3), (9, 5)),
        (lambda lib: lib.nn.BatchNorm1d(5, affine=False), (3, 5, 4)),
        (lambda lib: lib.nn.BatchNorm2d(5, track_running_stats=False), (4, 5, 3, 3)),
        (lambda lib: lib.nn.BatchNorm2d(5, momentum=None), (4, 5, 3, 3)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_layers_equal_torch(build, shape, training, torch, rng):
    layer, judge = build(gg).to("cuda"), build(torch)
    for module in (layer, judge):
        module.train(training)
    if layer.weight is not None:
        for name in ("weight", "bias"):
            values = rng.normal(size=5).astype("float32")
            getattr(layer, name).data = gg.tensor(values, device="cuda")
            getattr(judge, name).data = torch.tensor(values)
    for _ in range(2):
        x, g = (rng.normal(size=shape).astype("float32") + 1 for _ in range(2))
        X = gg.tensor(x, device="cuda", requires_grad=True)
        T = torch.tensor(x, requires_grad=True)
        y, z = layer(X), judge(T)
        (y * gg.tensor(g, device="cuda")).sum().backward()
        (z * torch.tensor(g)).sum().backward()
        close(y, z)
        close(X.grad, T.grad)
    for name, theirs in judge.state_dict().items():
        close(layer.state_dict()[name], theirs)
    for ours, theirs in zip(layer.parameters(), judge.parameters(), strict=True):
        close(ours.grad, theirs.grad)


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(
        ours.detach().cpu().numpy(), theirs, rtol=1e-4, atol=1e-5 * max(1, np.abs(theirs).max())
    )


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_gradients(training, rng):
    x, w, b = rng.normal(size=(4, 3, 5)), rng.normal(size=3), rng.normal(size=3)
    found = {}
    for device in ("cpu", "cuda"):
        X, W, B = (gg.tensor(v, device=device, requires_grad=True) for v in (x, w, b))
        running = [gg.tensor(v, device=device) for v in (np.zeros(3), np.ones(3))]
        y = F.batch_norm(X, *running, W, B, training, 0.1, EPS)
        first = gg.autograd.grad((y**3).sum(), (X, W, B), create_graph=True)
        second = gg.autograd.grad(sum((g * g).sum() for g in first), (X, W, B))
        found[device] = [t.detach().cpu().numpy() for t in (y, *running, *first, *second)]
    for a, b in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def test_running_averages_that_were_saved_are_not_overwritten_unseen(rng):
    layer = nn.BatchNorm1d(3).to("cuda")
    x = gg.tensor(rng.normal(size=(8, 3)), dtype=gg.float32, device="cuda", requires_grad=True)
    layer.eval()
    y = layer(x)
    layer.train()
    layer(x)
    with pytest.raises(RuntimeError, match="in place|in-place|inplace"):
        y.sum().backward()


def test_no_hidden_traffic(no_hidden_traffic, rng):
    layer = nn.BatchNorm2d(3).to("cuda")
    x = gg.tensor(rng.normal(size=(4, 3, 5, 5)), dtype=gg.float32, device="cuda")
    x.requires_grad_()

    def run():
        layer(x).sum().backward()

    run()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        run()


def test_launches(host_device, rng):
    """Two kernels forward and two backward, beside the count of batches and the sum of this
    test."""
    x = gg.tensor(rng.normal(size=(4, 3, 8, 8)), dtype=gg.float32, device="cuda")
    x.requires_grad_()
    w, b = (gg.ones(3, device="cuda", requires_grad=True) for _ in range(2))
    running = gg.zeros(3, device="cuda"), gg.ones(3, device="cuda")

    def run():
        return F.batch_norm(x, *running, w, b, True)

    g = gg.ones(4, 3, 8, 8, device="cuda")
    gg.autograd.grad(run(), (x, w, b), g)
    before = host_device.counters()["launches"]
    y = run()
    forward = host_device.counters()["launches"]
    gg.autograd.grad(y, (x, w, b), g)
    assert (forward - before, host_device.counters()["launches"] - forward) == (2, 2)
