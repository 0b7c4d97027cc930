"""Fixtures of the nn tests: torch as the judge, and a LeNet in both libraries."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = x.flatten(1)
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


@pytest.fixture
def lenet():
    gg.manual_seed(0)
    return LeNet()


@pytest.fixture
def torch_lenet(torch):
    """The same class body, made of torch's layers."""
    from torch import nn as tnn

    class LeNet(tnn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = tnn.Conv2d(1, 6, 5)
            self.conv2 = tnn.Conv2d(6, 16, 5)
            self.pool = tnn.MaxPool2d(2, 2)
            self.fc1 = tnn.Linear(16 * 4 * 4, 120)
            self.fc2 = tnn.Linear(120, 84)
            self.fc3 = tnn.Linear(84, 10)
            self.relu = tnn.ReLU()

        def forward(self, x):
            x = self.pool(self.relu(self.conv1(x)))
            x = self.pool(self.relu(self.conv2(x)))
            x = x.flatten(1)
            return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))

    return LeNet()
