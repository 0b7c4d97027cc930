"""bfloat16 on CUDA: every row gives the values and dtypes it gives on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.ops import REGISTRY
from gpugrad.tensor import wrap
from tests.test_bfloat16 import is_real, narrow, rounded
from tests.test_registry import HAVE_SAMPLES, Draw, samples

pytestmark = pytest.mark.gpu
bfloat16 = gg.bfloat16


def evaluate(op, args, params, device):
    """The result and the gradients, as float32 arrays of the CPU with their dtypes."""
    moved = [
        wrap(np.array(a)).to(device) if hasattr(a, "dtype") and not isinstance(a, np.generic) else a
        for a in args
    ]
    leaves = [
        x.requires_grad_()
        for i, x in enumerate(moved)
        if isinstance(x, gg.Tensor) and op.differentiable(i) and is_real(args[i])
    ]
    y = op(*moved, **params)
    found = [y]
    if leaves and y.requires_grad:
        g = rounded(np.random.default_rng(3).normal(size=y.shape).astype(np.float32))
        g = wrap(g.astype(y.dtype)).to(device)
        found += gg.autograd.grad(y, leaves, g, allow_unused=True)
    return [None if t is None else (t.dtype, t.detach().cpu().double().numpy()) for t in found]


@pytest.mark.parametrize("name", [n for n in HAVE_SAMPLES if n not in ("cast", "to_device")])
def test_row(name):
    op = REGISTRY[name]
    for args, params in samples(op, Draw(sum(map(ord, name)))):
        args = [narrow(rounded(a)) if hasattr(a, "dtype") else a for a in args]
        expected = evaluate(op, args, params, "cpu")
        results = evaluate(op, args, params, "cuda")
        for ours, theirs in zip(results, expected, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is None:
                continue
            assert ours[0] == theirs[0]
            scale = max(1.0, float(np.abs(theirs[1]).max(initial=0.0)))
            np.testing.assert_allclose(ours[1], theirs[1], 0.02, 0.02 * scale)


def test_creation_conversion_and_interchange():
    for made in (
        gg.zeros(3, dtype=bfloat16, device="cuda"), gg.ones(3, device="cuda").bfloat16(),
        gg.full((3,), 2.5, dtype=bfloat16, device="cuda"),
        gg.rand(3, dtype=bfloat16, device="cuda"), gg.randn(3, dtype=bfloat16, device="cuda"),
        gg.tensor([1.0, 2.0, 3.0], dtype=bfloat16, device="cuda"),
        gg.arange(3, dtype=bfloat16, device="cuda"),
    ):  # fmt: skip
        assert made.dtype == bfloat16 and made.is_cuda
        assert (made * 2.0 + 1).dtype == (made**2.5).dtype == made.sum().dtype == bfloat16
    x = gg.tensor([1.0, 2.5], dtype=bfloat16, device="cuda")
    assert x.tolist() == x.cpu().tolist() == [1.0, 2.5] and x[1].item() == 2.5
    x += 0.5
    x[0] = 7.0
    assert x.tolist() == [7.0, 3.0] and "dtype=bfloat16" in repr(x)


def test_a_model_trains():
    losses = {}
    for device in ("cpu", "cuda"):
        gg.manual_seed(0)
        model = gg.nn.Sequential(
            gg.nn.Conv2d(1, 4, 3), gg.nn.BatchNorm2d(4), gg.nn.ReLU(), gg.nn.MaxPool2d(2),
            gg.nn.Flatten(), gg.nn.Linear(36, 10), gg.nn.LayerNorm(10), gg.nn.Linear(10, 3),
        ).bfloat16().to(device)  # fmt: skip
        rng = np.random.default_rng(0)
        x = gg.tensor(rng.normal(size=(8, 1, 8, 8)).astype(np.float32), device=device).bfloat16()
        t = gg.tensor(rng.integers(0, 3, 8), device=device)
        optimizer = gg.optim.AdamW(model.parameters(), lr=0.01, master_weights=True)
        history = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = gg.nn.functional.cross_entropy(model(x), t)
            loss.backward()
            assert all(p.grad.dtype == bfloat16 for p in model.parameters())
            optimizer.step()
            history.append(loss.item())
        losses[device] = history
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], 0.1, 0.05)
