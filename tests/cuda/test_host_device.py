"""The host-memory device: CuPy works on it, it counts, and it refuses what a GPU refuses."""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

f4 = np.float32
WRITE = """extern "C" __global__ void k(float* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) a[i] = 1;
}"""


@pytest.fixture
def cp(host_device):
    import cupy

    return cupy


@pytest.fixture
def write(cp):
    return cp.RawKernel(WRITE, "k")


def new_stream(cp):
    return cp.cuda.Stream(non_blocking=True)


# ---- CuPy on it ----------------------------------------------------------------------------------


def test_cupy_computes(cp):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 7))
    x = cp.asarray(a)
    for function in (
        lambda xp, v: xp.tanh(v) * 2 + v,
        lambda xp, v: v.sum(0) - v.max(),
        lambda xp, v: xp.cumsum(v, axis=1)[:, ::-2],
        lambda xp, v: v[xp.asarray([3, 1]), :][:, v[0] > 0],
        lambda xp, v: xp.sort(v, axis=0) + xp.argsort(v, axis=0, kind="stable"),
        lambda xp, v: v @ v.T,
        lambda xp, v: xp.matmul(v.reshape(5, 1, 7), v.reshape(5, 7, 1)),
        lambda xp, v: xp.where(v > 0, v, xp.float32(0)).astype(np.float16),
        lambda xp, v: xp.einsum("ij,ik->jk", v, v),
    ):
        np.testing.assert_allclose(function(cp, x).get(), function(np, a), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_products_in_every_layout(cp, dtype):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 5)).astype(dtype), rng.normal(size=(5, 3)).astype(dtype)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    for x in (cp.asarray(a), cp.asarray(np.asfortranarray(a))):
        for y in (cp.asarray(b), cp.asarray(np.asfortranarray(b))):
            tolerance = 1e-2 if dtype == "float16" else 1e-5
            np.testing.assert_allclose((x @ y).get(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        (cp.asarray(a) @ cp.asarray(b)[:, 0]).get(), expected[:, 0], rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_of_matrices(cp, dtype, shape):
    rng = np.random.default_rng(2)
    a = (rng.normal(size=shape) + 4 * np.eye(shape[-1])).astype(dtype)
    b = rng.normal(size=(*shape[:-1], 2)).astype(dtype)
    symmetric = a @ a.swapaxes(-1, -2)
    cases = {"inv": (a,), "solve": (a, b), "det": (a,), "slogdet": (a,), "cholesky": (symmetric,)}
    for name, arrays in cases.items():
        found = getattr(cp.linalg, name)(*map(cp.asarray, arrays))
        expected = getattr(np.linalg, name)(*arrays)
        if not isinstance(found, tuple):
            found, expected = (found,), (expected,)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x.get(), y, rtol=1e-4, err_msg=name)
    with pytest.raises(NotImplementedError):  # CuPy's refusal
        stream = new_stream(cp)
        with stream:
            stream.begin_capture()
            try:
                cp.linalg.inv(cp.asarray(cp.eye(3)))
            finally:
                stream.end_capture()


def test_two_devices(cp, write):
    with cp.cuda.Device(1):
        there = cp.ones(3, f4)
    assert there.device.id == 1
    here = cp.zeros(3, f4)
    here[...] = there  # a copy between devices
    assert here.sum() == 3
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="memory of device 1"):
        write((1,), (32,), (there, np.int32(3)))


# ---- counters ------------------------------------------------------------------------------------


def test_counters(cp, host_device):
    a = cp.arange(10, dtype=f4)
    a + 1  # compiled
    with host_device.counting() as n:
        b = a + 1
    assert (n.launches, n.kernels, n.syncs, n.d2h) == (1, 1, 0, 0)
    with host_device.counting() as n:
        b.data.copy_from_device_async(a.data, 40, cp.cuda.get_current_stream())
        b.data.memset_async(0, 40)
    assert (n.launches, n.d2d, n.memsets) == (0, 1, 1)
    with host_device.counting() as n:
        b.get()
    assert (n.d2h, n.d2h_bytes, n.syncs > 0) == (1, 40, True)
    with host_device.counting() as n:
        cp.asarray(np.ones(6, f4))
    assert (n.h2d, n.h2d_bytes) == (1, 24)
    with host_device.counting() as n:
        cp.cuda.alloc_pinned_memory(1 << 20)
    assert (n.host_mallocs, n.mallocs) == (1, 0)


def test_who_waited_is_shown(cp, host_device):
    a = cp.ones(3)
    with host_device.watch("sync", "d2h") as events:
        float(a.sum())
    assert {e.what for e in events} == {"sync", "d2h"}
    assert all("float(a.sum())" in e.where for e in events)
    with host_device.watch("sync") as events:
        a + 1
    assert not events


# ---- memory --------------------------------------------------------------------------------------


def test_fresh_memory_is_poison(cp, exact_allocations):
    assert np.isnan(cp.empty(100, f4).get()).all()
    assert (cp.empty(5, np.int64).get() == -1).all()


def test_writing_over_the_end(cp, write, host_device):
    with host_device.exact_allocations():
        a = cp.zeros(16, f4)
        write((1,), (32,), (a, np.int32(16)))
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="illegal address"):
            write((1,), (32,), (a, np.int32(17)))
        b = cp.zeros(1, f4)
        host_device.overrun()
        # within the 16 bytes that allocations are rounded to
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="behind an allocation of 4 bytes"):
            write((1,), (32,), (b, np.int32(2)))
        write((1,), (32,), (b, np.int32(1)))  # said once
        cp.cuda.runtime.memset(b.data.ptr, 1, 9)
        del a, b
        gc.collect()
        assert "behind an allocation of 4 bytes" in host_device.overrun()


def test_addresses_that_are_not_the_devices(cp, write, host_device):
    host = np.zeros(4, f4)
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="argument 0 is an illegal address"):
        write((1,), (1,), (host.ctypes.data, np.int32(1)))
    with host_device.exact_allocations():
        a = cp.zeros(4, f4)
        address = a.data.ptr
        del a
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="freed"):
            write((1,), (1,), (address, np.int32(1)))
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="host memory as device memory"):
        cp.cuda.runtime.memcpy(host.ctypes.data, host.ctypes.data, 4, 1)


def test_capacity(cp, host_device):
    with host_device.exact_allocations(), host_device.capacity(host_device.used() + (1 << 20)):
        cp.empty(1 << 19, np.uint8)
        with pytest.raises((MemoryError, RuntimeError), match="(?i)out of memory"):
            cp.empty(1 << 21, np.uint8)
        free, total = cp.cuda.runtime.memGetInfo()
        assert free <= 1 << 20 < total


# ---- launches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [(1025,), (1, 1, 128), (32, 64)])
def test_blocks_no_gpu_launches(cp, write, block):
    a = cp.zeros(4, f4)
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="InvalidValue"):
        write((1,), block, (a, np.int32(4)))


def test_dynamic_shared_memory_must_be_asked_for(cp):
    text = """extern "C" __global__ void k(float* a) {
        extern __shared__ float s[];
        s[12500] = 2;
        a[0] = s[12500];
    }"""
    kernel, a = cp.RawKernel(text, "k"), cp.zeros(1, f4)
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="dynamic shared memory"):
        kernel((1,), (1,), (a,), shared_mem=60_000)
    kernel.max_dynamic_shared_size_bytes = 60_000
    kernel((1,), (1,), (a,), shared_mem=60_000)
    assert a[0] == 2


def test_order_of_threads(cp, host_device):
    text = 'extern "C" __global__ void k(int* a) { a[0] = threadIdx.x + 32 * blockIdx.x; }'
    kernel, a = cp.RawKernel(text, "k"), cp.zeros(1, np.int32)
    last = {}
    for order in host_device.ORDERS:
        with host_device.scheduled(order, seed=4):
            kernel((2,), (32,), (a,))
        last[order] = int(a[0])
    assert last["forward"] == 63
    assert last["reverse"] == 0


# ---- streams -------------------------------------------------------------------------------------


def test_a_missing_wait_shows_when_work_is_deferred(cp, deferred):
    first, second = new_stream(cp), new_stream(cp)
    a, b, c = (cp.zeros(10) for _ in range(3))
    cp.cuda.Device().synchronize()
    with first:
        a.fill(3)
    with second:
        cp.add(a, 1, out=b)  # does not wait for the first stream
        second.wait_event(first.record())
        cp.add(a, 1, out=c)
    second.synchronize()
    assert b[0] == 1
    assert c[0] == 4


def test_the_default_stream_and_blocking_streams_wait_for_each_other(cp, deferred):
    stream, a, b = cp.cuda.Stream(), cp.zeros(10), cp.zeros(10)
    with stream:
        a.fill(3)
    cp.add(a, 1, out=b)
    with stream:
        a.fill(5)
        c = b + a
    assert c.get(stream=stream)[0] == 9


def test_pageable_memory_is_read_at_the_call_and_pinned_memory_later(cp, deferred):
    stream = new_stream(cp)
    for pinned, expected in ((False, 1), (True, 2)):
        source = np.ones(4, f4)
        if pinned:
            memory = cp.cuda.alloc_pinned_memory(16)
            source = np.frombuffer(memory, f4, 4)
            source[:] = 1
        a = cp.empty(4, f4)
        with stream:
            a.data.copy_from_host_async(source.ctypes.data, 16, stream)
        source[:] = 2
        stream.synchronize()
        assert a.get()[0] == expected


def test_errors_of_deferred_kernels_come_with_the_wait(cp, write, host_device):
    with host_device.exact_allocations():
        a = cp.zeros(16, f4)
        stream = new_stream(cp)
        with host_device.deferred():
            with stream:
                write((1,), (32,), (a, np.int32(20)))
            with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="IllegalAddress"):
                stream.synchronize()


def test_events_measure_time(cp):
    a, b = cp.cuda.Event(), cp.cuda.Event()
    a.record()
    cp.ones(10)
    b.record()
    assert cp.cuda.get_elapsed_time(a, b) >= 0
    assert b.done


# ---- capture -------------------------------------------------------------------------------------

FORBIDDEN = {
    "matmul": lambda cp, s, a: a @ a,  # CuPy's own refusal
    "get": lambda cp, s, a: a.get(),
    "bool": lambda cp, s, a: bool(a.sum() > 0),
    "from host": lambda cp, s, a: cp.asarray(np.ones(3)),
    "mask": lambda cp, s, a: a[a > 0],
    "synchronize": lambda cp, s, a: s.synchronize(),
    "device synchronize": lambda cp, s, a: cp.cuda.Device().synchronize(),
    "done": lambda cp, s, a: s.done or s.end_capture(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cannot_be_captured(cp, what):
    stream, a = new_stream(cp), cp.ones((4, 4), f4)
    assert a.sum() > 0  # compiled
    with stream:
        stream.begin_capture()
        with pytest.raises((RuntimeError, NotImplementedError)):
            FORBIDDEN[what](cp, stream, a)
        with contextlib.suppress(RuntimeError):  # invalid, or ended
            stream.end_capture()
    stream.synchronize()  # works again
    assert (a + 1).sum() == 32


def test_the_legacy_stream_spoils_a_blocking_capture(cp):
    stream, a = cp.cuda.Stream(), cp.ones(4)
    a + 1
    with stream:
        stream.begin_capture()
    with pytest.raises(RuntimeError, match="Implicit"):
        a + 1
    with stream, pytest.raises(RuntimeError, match="Invalidated"):
        stream.end_capture()


def test_allocation_in_strict_capture_mode(cp, host_device):
    stream = new_stream(cp)
    with stream, host_device.exact_allocations():
        stream.begin_capture(cp.cuda.runtime.streamCaptureModeGlobal)
        with pytest.raises(RuntimeError, match="CaptureUnsupported"):
            cp.empty(10)
        with pytest.raises(RuntimeError, match="Invalidated"):
            stream.end_capture()


def test_forks_must_be_joined(cp):
    first, second = new_stream(cp), new_stream(cp)
    a = cp.ones(4)
    a.fill(1)
    for joined in (False, True):
        with first:
            first.begin_capture()
            second.wait_event(first.record())
            with second:
                a.fill(2)
                done = second.record()
            if joined:
                first.wait_event(done)
                first.end_capture().launch(first)
                first.synchronize()
                assert a.get(stream=first)[0] == 2
            else:
                with pytest.raises(RuntimeError, match="Unjoined"):
                    first.end_capture()


def test_a_graph_runs_what_was_captured(cp, host_device):
    stream, a = new_stream(cp), cp.zeros(4)
    a += 1
    cp.cuda.get_current_stream().synchronize()
    with stream:
        with host_device.counting() as n:
            stream.begin_capture()
            a += 1
            graph = stream.end_capture()
        assert (n.launches, n.kernels) == (0, 0)
        with host_device.counting() as n:
            for _ in range(3):
                graph.launch(stream)
        assert (n.launches, n.kernels, n.graph_launches) == (0, 3, 3)
    stream.synchronize()
    assert a.get()[0] == 4
    assert "digraph" in graph.debug_dot_str()
