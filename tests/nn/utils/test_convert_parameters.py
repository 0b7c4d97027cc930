"""Parameters as one vector and back."""

from __future__ import annotations

import pytest

import gpugrad as gg
from gpugrad import nn

utils = nn.utils


def test_round_trip():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    weight = b.weight
    vector = utils.parameters_to_vector(a.parameters())
    assert vector.shape == (8,)
    utils.vector_to_parameters(vector, b.parameters())
    assert b.weight is weight
    assert gg.equal(a.weight, b.weight)
    assert gg.equal(a.bias, b.bias)
    vector.detach().fill_(0.0)
    assert b.weight.abs().sum().item() > 0  # a copy


def test_differentiable():
    layer = nn.Linear(3, 2)
    (utils.parameters_to_vector(layer.parameters()) * 2).sum().backward()
    assert set(layer.weight.grad.reshape(-1).tolist()) == {2.0}


def test_errors():
    layer = nn.Linear(3, 2)
    with pytest.raises(TypeError):
        utils.vector_to_parameters([1.0], layer.parameters())
    with pytest.raises(RuntimeError, match="8 elements"):
        utils.vector_to_parameters(gg.zeros(7), layer.parameters())
