"""The two models: shapes, sizes, and LeNet against torch."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.train import MLP, LeNet


def test_lenet_has_the_classic_size():
    model = LeNet()
    assert sum(p.numel() for p in model.parameters()) == 44426
    assert tuple(model(gg.zeros(3, 1, 28, 28)).shape) == (3, 10)


def test_mlp_layers():
    model = MLP(784, hidden=(32, 16), num_classes=7)
    assert [tuple(p.shape) for p in model.parameters()] == [
        (32, 784),
        (32,),
        (16, 32),
        (16,),
        (7, 16),
        (7,),
    ]
    assert tuple(model(gg.zeros(2, 1, 28, 28)).shape) == (2, 7)


def test_lenet_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    ours = LeNet()
    state = {
        name: torch.from_numpy(value.numpy().copy()) for name, value in ours.state_dict().items()
    }
    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32)

    functional = torch.nn.functional
    h = functional.max_pool2d(
        functional.conv2d(torch.from_numpy(x), state["conv1.weight"], state["conv1.bias"]).relu(), 2
    )
    h = functional.max_pool2d(
        functional.conv2d(h, state["conv2.weight"], state["conv2.bias"]).relu(), 2
    ).flatten(1)
    h = functional.linear(h, state["fc1.weight"], state["fc1.bias"]).relu()
    h = functional.linear(h, state["fc2.weight"], state["fc2.bias"]).relu()
    theirs = functional.linear(h, state["fc3.weight"], state["fc3.bias"])
    np.testing.assert_allclose(ours(gg.from_numpy(x)).detach().numpy(), theirs.numpy(), atol=1e-5)
