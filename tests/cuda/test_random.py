"""Random numbers drawn on a device: the stream of the CPU."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.nn import functional as F

pytestmark = pytest.mark.gpu

SIZES = [0, 1, 2, 3, 5, 31, 257, 1000, 100_003]


def both(call, seed=5, skip=0):
    """The same call for the CPU and for the device, from the same place of the stream."""
    results = []
    for device in ("cpu", "cuda"):
        gg.manual_seed(seed)
        gg.rand(skip)
        results.append(call(device).cpu())
        results.append(gg.get_rng_state())
    found = [results[2], results[0]]
    assert gg.equal(results[1], results[3]), "the two must take equally much of the stream"
    return found


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64, gg.float16])
@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_uniform_numbers_have_the_bits_of_the_cpu(dtype, skip):
    for n in SIZES:
        found, expected = both(lambda d, n=n: gg.rand(n, dtype=dtype, device=d), skip=skip)
        np.testing.assert_array_equal(found.array, expected.array)


def test_uniform_bfloat16():
    found, expected = both(lambda d: gg.rand(1000, dtype=gg.bfloat16, device=d))
    np.testing.assert_array_equal(found.float().array, expected.float().array)


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("skip", [0, 3])
def test_normal_numbers_are_those_of_the_cpu_to_rounding(dtype, skip):
    for n in SIZES:
        found, expected = both(lambda d, n=n: gg.randn(n, dtype=dtype, device=d), skip=skip)
        rtol = 2e-6 if dtype == gg.float32 else 1e-13
        np.testing.assert_allclose(found.array, expected.array, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [gg.int64, gg.int32, gg.int8, gg.uint8])
@pytest.mark.parametrize(("low", "high"), [(0, 10), (-100, 100), (5, 6)])
def test_integers_have_the_bits_of_the_cpu(dtype, low, high):
    if dtype == gg.uint8 and low < 0:
        low = 0
    for n in SIZES:
        found, expected = both(
            lambda d, n=n: gg.randint(low, high, (n,), dtype=dtype, device=d), skip=n % 4
        )
        np.testing.assert_array_equal(found.array, expected.array)


def test_a_range_of_64_bits():
    found, expected = both(lambda d: gg.randint(-(2**63), 2**63 - 1, (100,), device=d))
    np.testing.assert_array_equal(found.array, expected.array)


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64, gg.float16])
def test_dropout_keeps_and_scales_what_the_cpu_does(dtype):
    for n in SIZES:
        x = gg.randn(n).to(dtype)
        found, expected = both(lambda d, x=x: F.dropout(x.to(d), 0.3), skip=n % 4)
        np.testing.assert_allclose(found.array, expected.array, rtol=1e-3 if n else 0)
        assert ((found.array == 0) == (expected.array == 0)).all()


def test_the_gradient_of_dropout_draws_the_same_numbers():
    x = gg.randn(7, 11).cuda().requires_grad_()
    y = F.dropout(x, 0.5)
    y.sum().backward()
    kept = (y != 0).cpu().array
    np.testing.assert_array_equal(x.grad.cpu().array, kept * 2.0)
    y = F.dropout(x.detach().T.requires_grad_(), 0.5)  # not contiguous
    assert y.shape == (11, 7)


def test_dropout_in_place_and_without_training():
    x = gg.ones(100).cuda()
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.5, inplace=True) is x
    assert set(x.tolist()) == {0.0, 2.0}


def test_nothing_waits_for_the_device(no_hidden_traffic):
    def draws():
        x = gg.rand(100, device="cuda") + gg.randn(100, device="cuda")
        gg.randint(0, 5, (100,), device="cuda")
        return F.dropout(x, 0.1)

    draws()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        draws()


def test_a_graph_draws_fresh_numbers_at_every_replay():
    """And those of the CPU, which draws the same amount at a time."""
    x = gg.zeros(50, device="cuda")

    def step():
        x.copy_(gg.rand(50, device="cuda"))

    step()  # compiles
    gg.manual_seed(3)
    graph = gg.cuda.CUDAGraph()
    with gg.cuda.graph(graph):
        step()
    found = []
    for _ in range(3):
        graph.replay()
        gg.cuda.synchronize()
        found.append(x.cpu().array)
    gg.manual_seed(3)
    for values in found:
        np.testing.assert_array_equal(values, gg.rand(50).array)
    gg.manual_seed(9)
    graph.replay()
    gg.cuda.synchronize()
    gg.manual_seed(9)
    np.testing.assert_array_equal(x.cpu().array, gg.rand(50).array)
