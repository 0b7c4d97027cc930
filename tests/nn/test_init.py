"""Initial values: bounds, moments and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn

init = nn.init
SHAPE = (120, 80)
FAN_IN, FAN_OUT = 80, 120


def _draw(fn, *args, shape=SHAPE, **kwargs):
    gg.manual_seed(0)
    w = nn.Parameter(gg.zeros(*shape))
    assert fn(w, *args, **kwargs) is w
    assert w.is_leaf
    assert w.requires_grad
    return w.detach().numpy()


@pytest.mark.parametrize(
    ("fn", "args", "bound"),
    [
        (init.uniform_, (-2.0, 2.0), 2.0),
        (init.xavier_uniform_, (1.5,), 1.5 * math.sqrt(6 / (FAN_IN + FAN_OUT))),
        (init.kaiming_uniform_, (), math.sqrt(2) * math.sqrt(3 / FAN_IN)),
        (init.kaiming_uniform_, (math.sqrt(5),), 1 / math.sqrt(FAN_IN)),
        (init.kaiming_uniform_, (0, "fan_out", "relu"), math.sqrt(2 * 3 / FAN_OUT)),
    ],
)
def test_uniform_bounds(fn, args, bound):
    values = _draw(fn, *args)
    assert np.abs(values).max() <= bound
    assert values.max() > 0.99 * bound
    assert values.min() < -0.99 * bound
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("fn", "args", "mean", "std"),
    [
        (init.normal_, (1.0, 0.5), 1.0, 0.5),
        (init.xavier_normal_, (2.0,), 0.0, 2 * math.sqrt(2 / (FAN_IN + FAN_OUT))),
        (init.kaiming_normal_, (0, "fan_in", "relu"), 0.0, math.sqrt(2 / FAN_IN)),
        (init.kaiming_normal_, (0, "fan_out", "tanh"), 0.0, 5 / 3 / math.sqrt(FAN_OUT)),
    ],
)
def test_normal_moments(fn, args, mean, std):
    values = _draw(fn, *args)
    assert values.mean() == pytest.approx(mean, abs=5 * std / math.sqrt(values.size))
    assert values.std() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [(0.0, 1.0, -2.0, 2.0), (0.0, 1.0, -0.1, 0.2), (1.0, 0.5, 1.5, 2.0), (0.0, 0.02, -2.0, 2.0)],
)
def test_truncated_normal_has_the_distribution(mean, std, a, b):
    """Kolmogorov-Smirnov distance to the exact distribution, both ways of sampling."""
    values = np.sort(_draw(init.trunc_normal_, mean, std, a, b).ravel()).astype(float)
    assert values[0] >= np.float32(a)
    assert values[-1] <= np.float32(b)

    def cdf(x):
        return (1 + np.vectorize(math.erf)((x - mean) / std / math.sqrt(2))) / 2

    expected = (cdf(values) - cdf(a)) / (cdf(b) - cdf(a))
    distance = np.abs(expected - (np.arange(values.size) + 0.5) / values.size).max()
    assert distance < 1.95 / math.sqrt(values.size)  # passes with probability 0.999


def test_truncated_normal_far_from_the_mean_warns():
    with pytest.warns(UserWarning, match="more than 2 std"):
        values = _draw(init.trunc_normal_, 0.0, 1.0, 3.0, 4.0)
    assert values.min() >= 3.0


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (8, 2, 3, 3), (30, 2, 3)])
def test_orthogonal(shape):
    q = _draw(init.orthogonal_, 2.0, shape=shape).reshape(shape[0], -1).astype(float)
    small = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-5)


def test_constants():
    assert set(_draw(init.ones_).ravel()) == {1.0}
    assert set(_draw(init.zeros_).ravel()) == {0.0}
    assert set(_draw(init.constant_, 2.5).ravel()) == {2.5}
    np.testing.assert_array_equal(_draw(init.eye_), np.eye(*SHAPE))


@pytest.mark.parametrize(
    "fn",
    [
        init.uniform_,
        init.normal_,
        init.trunc_normal_,
        init.xavier_uniform_,
        init.xavier_normal_,
        init.kaiming_uniform_,
        init.kaiming_normal_,
        init.orthogonal_,
    ],
)
def test_generators_repeat(fn):
    a, b = (fn(gg.empty(4, 5), generator=gg.Generator().manual_seed(3)) for _ in range(2))
    c = fn(gg.empty(4, 5), generator=gg.Generator().manual_seed(4))
    assert gg.equal(a, b)
    assert not gg.equal(a, c)


@pytest.mark.parametrize(
    ("name", "param"),
    [
        ("linear", None),
        ("conv2d", None),
        ("sigmoid", None),
        ("tanh", None),
        ("relu", None),
        ("leaky_relu", None),
        ("leaky_relu", 0.3),
        ("selu", None),
    ],
)
def test_gains_are_those_of_torch(torch, name, param):
    assert init.calculate_gain(name, param) == torch.nn.init.calculate_gain(name, param)


@pytest.mark.parametrize(
    "action",
    [
        lambda: init.calculate_gain("softmax"),
        lambda: init.calculate_gain("leaky_relu", True),
        lambda: init.xavier_uniform_(gg.empty(3)),
        lambda: init.kaiming_normal_(gg.empty(3, 3), mode="fan"),
        lambda: init.orthogonal_(gg.empty(3)),
        lambda: init.eye_(gg.empty(3)),
    ],
)
def test_errors(action):
    with pytest.raises(ValueError):
        action()


def test_empty_tensors_warn():
    with pytest.warns(UserWarning, match="no-op"):
        init.kaiming_uniform_(gg.empty(0, 3))


def test_fans_count_the_window():
    assert init.fan_in_and_fan_out(gg.empty(8, 4, 3, 5)) == (60, 120)
