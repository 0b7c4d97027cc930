"""The error function: to the last digits, at the joints of its pieces, in every dtype."""

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen.special import erf

JOINTS = [0.84375, 1.25, 1 / 0.35, 6.0]


def exact(x):
    return np.array([math.erf(v) for v in x])


def ulps(found, expected):
    return np.abs(found - expected) / np.spacing(np.abs(expected))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1e-300),
        (1e-300, 1e-8),
        (1e-8, 0.84375),
        (0.84375, 1.25),
        (1.25, 2.857),
        (2.857, 6),
        (6, 30),
    ],
)
def test_within_two_units_of_the_last_place(low, high):
    """Of C's erf, which is itself within one."""
    x = np.random.default_rng(0).uniform(low, high, 3000)
    assert ulps(erf(x), exact(x)).max() <= 2
    assert ulps(erf(-x), exact(-x)).max() <= 2


@pytest.mark.parametrize("joint", JOINTS)
def test_pieces_meet(joint):
    x = np.array([joint])
    for _ in range(5):
        x = np.concatenate([[np.nextafter(x[0], 0)], x, [np.nextafter(x[-1], 9)]])
    found = erf(x)
    assert ulps(found, exact(x)).max() <= 2
    assert (np.diff(found) >= -2 * np.spacing(found[0])).all()


def test_special_values():
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 1e308])
    found = erf(x)
    np.testing.assert_array_equal(found[:4], [0.0, -0.0, 1.0, -1.0])
    assert np.isnan(found[4])
    assert found[7] == 1.0
    assert math.copysign(1, found[1]) == -1.0


def test_odd_and_monotone():
    x = np.linspace(-7, 7, 20_001)
    found = erf(x)
    np.testing.assert_array_equal(found, -erf(-x))
    assert (np.diff(found) >= -4e-16).all()
    assert (np.abs(found) <= 1).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_dtypes_are_correctly_rounded(dtype):
    x = np.random.default_rng(1).normal(size=3000).astype(dtype)
    found = erf(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, exact(x.astype(np.float64)).astype(dtype))


def test_shapes_and_out():
    x = np.random.default_rng(2).normal(size=(3, 4))
    out = np.empty((3, 4))
    assert erf(x, out) is out
    np.testing.assert_array_equal(out, erf(x))
    assert erf(x.T).shape == (4, 3)
    np.testing.assert_array_equal(erf(x.T), erf(x).T)
    assert erf(np.array(0.5)).shape == ()
    assert erf(np.empty((0, 3))).shape == (0, 3)
    same = x.copy()
    erf(same, same)
    np.testing.assert_array_equal(same, erf(x))


@pytest.mark.parametrize("n", [10, 100_000])
def test_as_an_operation(torch, n):
    """Small and large, with its derivative."""
    x = np.linspace(-4, 4, n)
    ours, theirs = gg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    a, b = ours.erf(), theirs.erf()
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-13, atol=1e-300)
    a.sum().backward()
    b.sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-13)
