"""Parameter and Buffer."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def test_a_parameter_is_a_leaf_that_shares_memory():
    data = gg.zeros(3)
    p = nn.Parameter(data)
    assert isinstance(p, gg.Tensor)
    assert p.is_leaf
    assert p.requires_grad
    data.fill_(2.0)
    assert p.detach().tolist() == [2.0, 2.0, 2.0]
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    assert nn.Parameter(np.ones(2, np.float32)).detach().tolist() == [1.0, 1.0]
    assert nn.Parameter().numel() == 0


def test_a_parameter_made_from_a_computed_tensor_is_a_leaf():
    x = gg.ones(2, requires_grad=True)
    p = nn.Parameter(x * 2)
    assert p.is_leaf
    (p * 3).sum().backward()
    assert p.grad.tolist() == [3.0, 3.0]
    assert x.grad is None


def test_operations_on_parameters_give_tensors():
    y = nn.Parameter(gg.ones(2)) * 2
    assert type(y) is gg.Tensor


def test_integers_cannot_be_parameters():
    with pytest.raises(RuntimeError, match="floating point"):
        nn.Parameter(gg.tensor([1, 2]))
    assert nn.Parameter(gg.tensor([1, 2]), requires_grad=False).dtype == gg.int64


def test_copies_are_parameters():
    p = nn.Parameter(gg.ones(2), requires_grad=False)
    p.no_decay = True
    twin = copy.deepcopy(p)
    assert isinstance(twin, nn.Parameter)
    assert not twin.requires_grad
    assert twin.no_decay
    assert isinstance(pickle.loads(pickle.dumps(p)), nn.Parameter)


def test_repr(torch):
    assert repr(nn.Parameter(gg.ones(2))) == repr(torch.nn.Parameter(torch.ones(2)))


def test_buffers_register_themselves():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = nn.Buffer(gg.ones(2))
            self.left_out = nn.Buffer(gg.ones(2), persistent=False)

    net = Net()
    assert [n for n, _ in net.named_buffers()] == ["kept", "left_out"]
    assert list(net.state_dict()) == ["kept"]
    assert not list(net.parameters())
