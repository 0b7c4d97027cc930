"""Tests of CUDA: on a GPU if there is one, on host memory with ``GPUGRAD_TEST_DEVICE=host``.

``make host-device`` runs them on the real CuPy over a device made of host memory
(tests/cuda/host_device); the root conftest activates it. Tests that need its counters or switches
take one of the fixtures below and skip on a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import sys

import pytest

import gpugrad as gg
from tests.cuda import host_device as device


@pytest.fixture(autouse=True)
def little_unused_memory():
    """Give free memory back after a test that left much of it: arrays that stay (workspaces) would
    settle in the middle of large blocks, and tests of memory would find room where they expect
    none."""
    yield
    module = sys.modules.get("cupy")
    if hasattr(module, "get_default_memory_pool") and gg.cuda.is_available():  # no stand-in
        pool = module.get_default_memory_pool()
        if pool.free_bytes() > 2 << 20:
            pool.free_all_blocks()


@pytest.fixture
def host_device():
    """The host-memory device: counters, schedules, memory limits. Skips elsewhere."""
    if not device.active():
        pytest.skip("needs the counters of the host-memory device: GPUGRAD_TEST_DEVICE=host")
    return device


# They build every kernel of the project: `make nvrtc`, `make shim` and `make tsan` name them.
collect_ignore = [
    "test_nvrtc.py",
    "test_shim.py",
    "test_shim_races.py",
    "test_kernels_on_cpu.py",
]

FORBIDDEN = ("sync", "h2d", "d2h", "malloc", "free")


@pytest.fixture
def no_hidden_traffic(host_device):
    """``with no_hidden_traffic(): step()`` fails if the host waits, copies or allocates in it.

    What must not happen can be named: ``no_hidden_traffic("sync", "h2d")``. The message shows the
    lines that did it.
    """

    @contextlib.contextmanager
    def checked(*forbidden: str):
        gc.collect()  # what the block did not make shall not be freed in it
        with host_device.watch(*(forbidden or FORBIDDEN)) as events:
            yield
        if events:
            shown = "\n".join(map(str, events[:5]))
            raise AssertionError(f"{len(events)} times in this block, first:\n{shown}")

    return checked


@pytest.fixture(params=["forward", "reverse", "shuffled"])
def schedule(request, host_device):
    """The test runs with threads, blocks and graph nodes in each order."""
    with host_device.scheduled(request.param, seed=1):
        yield request.param


@pytest.fixture
def exact_allocations(host_device):
    """Every array its own poisoned allocation that ends at a guard page."""
    host_device.overrun()  # of others
    with host_device.exact_allocations():
        yield
        gc.collect()
    assert not host_device.overrun()


@pytest.fixture
def deferred(host_device):
    """Queued work runs as late as CUDA allows."""
    with host_device.deferred():
        yield
