"""Both ways to run a compiled program, for tests that compare them with eager mode."""

from __future__ import annotations

from unittest import mock

import pytest

from gpugrad.codegen.machine import machine
from gpugrad.static import passes, replay, run_cpu, run_python

RUNNERS = {
    # graphs as they were recorded, by the functions that eager mode calls: the same bits
    "python": (run_python.compile_graph, (passes.drop_dead,)),
    # optimised, by own kernels: functions to an ulp or two, sums in another order
    "native": (run_cpu.compile_graph, passes.NATIVE),
}


@pytest.fixture(params=RUNNERS)
def tolerance(request):
    """Programs are run by one of the runners; the relative tolerance of its results."""
    if request.param == "native" and machine() is None:
        pytest.skip("no compiler: pip install gpugrad[jit]")
    runner, chosen = RUNNERS[request.param]

    def optimized(graph, algebra):
        return passes.optimize(graph, chosen)

    with (
        mock.patch.object(replay, "runner_for", runner),
        mock.patch.object(replay, "optimized", optimized),
    ):
        yield 0.0 if request.param == "python" else 1e-12
