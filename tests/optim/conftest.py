"""Fixtures of the optim tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    torch.set_num_threads(1)  # its threads spin: on a busy machine tiny steps take 50 times as long
    return torch
