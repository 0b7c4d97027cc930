"""Every operation of the table on a CUDA device equals the same operation on the CPU: forward,
reverse, double backward and forward mode.

The samples are those of tests/test_registry.py, so a new row is tested by existing. Once with
kernels and once with ``GPUGRAD_CUDA_KERNELS=0``, where CuPy computes every row by its reference.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.ops import REGISTRY
from tests.cuda import host_device
from tests.test_registry import HAVE_SAMPLES, Draw, samples

pytestmark = pytest.mark.gpu

# Relative to the largest value of a result: sums in another order, other functions.
TOLERANCE = {"float64": 1e-10, "float32": 3e-5, "float16": 2e-2}
FORWARD_ONLY = sorted(
    name
    for name, op in REGISTRY.items()
    if name not in HAVE_SAMPLES
    and op.kind != "composite"
    and (getattr(op, "samples", None) is not None or hasattr(op, "domain"))
)


def cast(value, dtype):
    """An argument in a dtype: floating-point arrays only."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype)
    return value


def tensors(op, args, device):
    """Arguments as tensors on a device; those that can have gradients require them."""
    made = []
    for i, value in enumerate(args):
        if isinstance(value, np.ndarray):
            value = gg.tensor(value, device=device)
            if op.differentiable(i) and value.is_floating_point():
                value.requires_grad_()
        made.append(value)
    return made


def results(y):
    return list(y) if isinstance(y, tuple | list) else [y]


def cotangents(ys, seed):
    """Fixed numbers of the shape of each result, on its device."""
    rng = np.random.default_rng(seed)
    return [gg.tensor(rng.normal(size=y.shape), dtype=y.dtype, device=y.device) for y in ys]


def weighted_sum(ys, seed):
    pairs = zip(ys, cotangents(ys, seed), strict=True)
    return sum(((y * c).sum() for y, c in pairs), gg.zeros((), device=ys[0].device))


def everything(op, args, params, device):
    """Named results of all modes, on the CPU."""
    found = {}

    def keep(name, values):
        for i, value in enumerate(values):
            found[f"{name} {i}"] = None if value is None else value.detach().cpu().numpy()

    xs = tensors(op, args, device)
    wanted = [x for x in xs if isinstance(x, gg.Tensor) and x.requires_grad]
    ys = results(op(*xs, **params))
    for y in ys:
        assert str(y.device).removesuffix(":0") == device
    keep("forward", ys)
    differentiable = [y for y in ys if y.requires_grad]
    if not wanted or not differentiable:
        return found
    loss = weighted_sum(differentiable, 1)
    first = gg.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    keep("reverse", first)
    again = [g for g in first if g is not None and g.requires_grad]
    if again:
        second = gg.autograd.grad(weighted_sum(again, 2), wanted, allow_unused=True)
        keep("double backward", second)
    keep("forward mode", forward_mode(op, xs, wanted, params))
    return found


def forward_mode(op, xs, wanted, params):
    def function(*values):
        given = iter(values)
        filled = [next(given) if any(x is w for w in wanted) else x for x in xs]
        return op(*filled, **params)

    points = tuple(x.detach() for x in wanted)
    _, tangents = gg.func.jvp(function, points, tuple(cotangents(points, 3)))
    return results(tangents)


def compare(name, found, expected, dtype):
    assert found.keys() == expected.keys()
    for what, b in expected.items():
        a = found[what]
        if a is None or b is None:
            assert not np.any(a) and not np.any(b), f"{name}, {what}: {a} and {b}"
            continue
        assert a.dtype == b.dtype, f"{name}, {what}: {a.dtype} instead of {b.dtype}"
        assert a.shape == b.shape, f"{name}, {what}: {a.shape} instead of {b.shape}"
        if a.dtype.kind != "f":
            np.testing.assert_array_equal(a, b, err_msg=f"{name}, {what}")
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        scale = np.abs(b[np.isfinite(b)]).max(initial=1.0)
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * scale, err_msg=f"{name}, {what}"
        )


# Copies between devices: tests/cuda/test_transfers.py.
ROWS = sorted(set(HAVE_SAMPLES) - {"to_device"})


def check(name, dtype):
    op = REGISTRY[name]
    draw = Draw(sum(map(ord, name)))
    for args, params in samples(op, draw):
        args = [cast(a, dtype) for a in args]
        expected = everything(op, args, params, "cpu")
        compare(name, everything(op, args, params, "cuda"), expected, dtype)


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    check(name, "float64")


@pytest.fixture
def strictly():
    """On the host-memory device: threads in another order, every array poisoned and guarded."""
    if not host_device.active():
        yield
        return
    host_device.overrun()  # of others
    with host_device.exact_allocations(alignment=256), host_device.scheduled("shuffled", seed=1):
        yield
        gc.collect()
    assert not host_device.overrun()


@pytest.mark.parametrize("name", ROWS)
def test_row_in_float32(name, strictly):
    check(name, "float32")


@pytest.mark.parametrize("name", ROWS)
def test_row_without_kernels(name, monkeypatch):
    monkeypatch.setattr(gg.config.settings, "cuda_kernels", False)
    check(name, "float64")


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_row_without_gradient(name):
    op = REGISTRY[name]
    for args, params in samples(op, Draw(5)):
        args = [cast(a, "float32") for a in args]
        found = {}
        for device in ("cpu", "cuda"):
            ys = results(op(*tensors(op, args, device), **params))
            found[device] = {str(i): y.detach().cpu().numpy() for i, y in enumerate(ys)}
        compare(name, found["cuda"], found["cpu"], "float32")
