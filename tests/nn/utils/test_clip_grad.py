"""Gradient clipping against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn

SHAPES = [(3, 4), (5,), (), (2, 2, 2)]


def _params(rng, tensor, scale=1.0):
    params = [tensor(np.zeros(s, np.float32)).requires_grad_() for s in SHAPES]
    for p in params:
        p.grad = tensor((scale * rng.standard_normal(tuple(p.shape))).astype(np.float32))
    return [*params, tensor(np.zeros(2, np.float32)).requires_grad_()]  # the last has no gradient


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1000.0])
def test_clip_grad_norm_equals_torch(torch, norm_type, max_norm):
    ours = _params(np.random.default_rng(0), gg.tensor)
    theirs = _params(np.random.default_rng(0), torch.tensor)
    grads = [p.grad for p in ours]
    a = nn.utils.clip_grad_norm_(iter(ours), max_norm, norm_type)
    b = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert a.shape == ()
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    for p, q, g in zip(ours[:-1], theirs[:-1], grads, strict=False):
        assert p.grad is g  # in place
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-5)
    assert ours[-1].grad is None


def test_clip_grad_value_equals_torch(torch):
    ours = _params(np.random.default_rng(0), gg.tensor)
    theirs = _params(np.random.default_rng(0), torch.tensor)
    nn.utils.clip_grad_value_(ours, 0.5)
    torch.nn.utils.clip_grad_value_(theirs, 0.5)
    for p, q in zip(ours[:-1], theirs[:-1], strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())
    nn.utils.clip_grad_value_(ours[0], 0.25)
    assert ours[0].grad.abs().max().item() == 0.25


def test_one_tensor_and_no_gradients():
    x = gg.ones(2, requires_grad=True)
    assert nn.utils.clip_grad_norm_(x, 1.0).item() == 0.0
    assert nn.utils.get_total_norm(gg.tensor([3.0, 4.0])).item() == pytest.approx(5.0)
    assert nn.utils.get_total_norm([]).item() == 0.0
    with pytest.warns(UserWarning, match="empty generator"):
        nn.utils.clip_grad_norm_((p for p in ()), 1.0)


# inf * 0 is NaN on purpose here; that NumPy warns of it is the user's np.errstate.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy on inf * 0
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_norms(bad):
    x = gg.ones(2, requires_grad=True)
    x.grad = gg.tensor([1.0, bad])
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_([x], 1.0, error_if_nonfinite=True)
    assert x.grad[0].item() == 1.0
    assert not math.isfinite(nn.utils.clip_grad_norm_([x], 1.0).item())


def test_half_precision_does_not_overflow():
    x = gg.zeros(4, dtype=gg.float16, requires_grad=True)
    x.grad = gg.full((4,), 1000.0, dtype=gg.float16)
    assert nn.utils.clip_grad_norm_([x], 1.0).item() == pytest.approx(2000.0)
    np.testing.assert_allclose(x.grad.numpy(), 0.5, rtol=1e-3)


def test_gradients_with_history_are_clipped_without_recording():
    x = gg.tensor([3.0, 4.0], requires_grad=True)
    (x * x).sum().backward(create_graph=True)
    grad = x.grad
    nn.utils.clip_grad_norm_([x], 1.0)
    assert x.grad is grad
    assert grad.norm().item() == pytest.approx(1.0, rel=1e-5)
