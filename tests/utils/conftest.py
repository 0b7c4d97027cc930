"""Fixtures of the tests of gpugrad.utils."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def run_in_fresh_python() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a line of code in a Python process that has imported nothing yet."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )

    return run
