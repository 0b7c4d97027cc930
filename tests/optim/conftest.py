"""Fixtures of the optim tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
