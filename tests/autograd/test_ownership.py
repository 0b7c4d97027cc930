"""Who owns the memory of a gradient: no copy where nobody else can see it, one where they can."""

from __future__ import annotations

import numpy as np

import gpugrad as gg
from gpugrad.backend.memory import pool


def from_pool(tensor) -> bool:
    """Whether the array lies in a recycled buffer, as results do and copies do not."""
    return tensor.array.base is not None and pool.owns(tensor.array.base)


def test_the_gradient_of_a_large_weight_is_not_copied():
    weight = gg.randn(200, 300, requires_grad=True)
    gg.nn.functional.linear(gg.randn(50, 300), weight).sum().backward()
    assert from_pool(weight.grad)


def test_one_cotangent_for_two_leaves_becomes_two_gradients():
    a, b = (gg.randn(200, 300, requires_grad=True) for _ in range(2))
    (a + b).mul(2.0).sum().backward()
    assert not np.shares_memory(a.grad.array, b.grad.array)
    a.grad.zero_()
    assert (b.grad == 2).all()


def test_the_users_gradient_is_not_written_into():
    x = gg.randn(200, 300, requires_grad=True)
    seed = gg.ones(200, 300)
    y = x + 0.0
    gg.autograd.backward([y, x * 3.0], [seed, gg.ones(200, 300)])
    assert (seed == 1).all()
    assert (x.grad == 4).all()
    assert not np.shares_memory(x.grad.array, seed.array)


def test_large_cotangents_are_added_in_place():
    """Three uses of x: the sum of their cotangents takes no more memory than the terms."""
    x = gg.randn(400, 500, requires_grad=True)
    y = x * 2.0 + x * 3.0 + x * 4.0
    held = pool.stats()["held"]
    y.backward(gg.ones(400, 500))
    assert (x.grad == 9).all()
    assert from_pool(x.grad)
    assert pool.stats()["held"] <= held + 3 * 900_000
