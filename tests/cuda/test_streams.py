"""Streams and events: what is queued where, and who waits for whom."""

import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda

pytestmark = pytest.mark.gpu


def test_a_stream_is_current_inside_its_context():
    s = cuda.Stream()
    outer = cuda.current_stream()
    with cuda.stream(s) as context:
        assert context.stream is s
        assert cuda.current_stream() == s
        with s:  # a stream is a context too, also inside itself
            assert cuda.current_stream() == s
        assert cuda.current_stream() == s
    assert cuda.current_stream() == outer == cuda.default_stream()
    with pytest.raises(KeyError), cuda.stream(s):
        raise KeyError
    assert cuda.current_stream() == outer
    with cuda.stream(None):
        assert cuda.current_stream() == outer


def test_cupy_and_gpugrad_share_the_current_stream():
    import cupy

    s = cuda.Stream()
    with s:
        assert cupy.cuda.get_current_stream().ptr == s.cuda_stream
    theirs = cupy.cuda.Stream(non_blocking=True)
    with theirs:
        assert cuda.current_stream().cuda_stream == theirs.ptr
    assert s.__cuda_stream__() == (0, s.cuda_stream)
    external = cuda.ExternalStream(theirs.ptr)
    with external:
        assert cupy.cuda.get_current_stream().ptr == theirs.ptr
    assert cuda.ExternalStream(theirs).cuda_stream == theirs.ptr


def test_set_stream_and_threads():
    s = cuda.Stream()
    cuda.set_stream(s)
    try:
        seen = []
        thread = threading.Thread(target=lambda: seen.append(cuda.current_stream()))
        thread.start()
        thread.join()
        assert cuda.current_stream() == s
        assert seen == [cuda.default_stream()]  # the current stream belongs to a thread
    finally:
        cuda.set_stream(cuda.default_stream())
    assert cuda.current_stream() == cuda.default_stream()


def test_identity():
    a, b = cuda.Stream(), cuda.Stream(priority=-1)
    assert a != b
    assert a == a
    assert len({a, b, cuda.default_stream(), cuda.default_stream()}) == 3
    assert a != "stream"
    assert "cuda:0" in repr(a)
    assert a.device == gg.device("cuda:0")
    assert cuda.default_stream().cuda_stream == 0


def test_streams_are_shared_beyond_the_pool():
    made = [cuda.Stream() for _ in range(100)]
    assert 1 < len(set(made)) <= 32
    assert all(s.cuda_stream for s in made)


@pytest.mark.usefixtures("deferred")
def test_work_of_a_stream_waits_for_an_event():
    """Queued work runs as late as allowed here: without the waits the sums would be of garbage."""
    x = gg.zeros(1000, device="cuda")
    cuda.synchronize()
    a, b = cuda.Stream(), cuda.Stream()
    with a:
        x.fill_(3.0)
        done = cuda.Event()
        done.record()
    done.wait(b)
    with b:
        total = x.sum()
    b.synchronize()
    assert total.cpu().item() == 3000.0


@pytest.mark.usefixtures("deferred")
def test_wait_stream():
    x = gg.zeros(1000, device="cuda")
    cuda.synchronize()
    a, b = cuda.Stream(), cuda.Stream()
    with a:
        x.fill_(2.0)
    b.wait_stream(a)
    with b:
        y = x * 2.0
    cuda.current_stream().wait_stream(b)
    assert y.cpu().tolist() == [4.0] * 1000


@pytest.mark.usefixtures("deferred")
def test_the_device_notices_a_missing_wait():
    """What the two tests above rely on."""
    x = gg.zeros(1000, device="cuda")
    cuda.synchronize()
    a, b = cuda.Stream(), cuda.Stream()
    with a:
        x.fill_(2.0)
    with b:
        y = x * 2.0
    b.synchronize()
    with b:
        assert y.cpu().tolist() == [0.0] * 1000
    cuda.synchronize()


@pytest.mark.usefixtures("deferred")
def test_queries():
    s = cuda.Stream()
    assert s.query()
    with s:
        gg.zeros(10, device="cuda").fill_(1.0)
    event = s.record_event()
    assert not s.query()
    assert not event.query()
    event.synchronize()
    assert event.query()
    s.synchronize()
    assert s.query()


def test_events_measure_time():
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    gg.ones(1000, device="cuda").sum()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0.0
    assert start.cuda_event != 0


def test_errors_of_events():
    timed, untimed = cuda.Event(enable_timing=True), cuda.Event()
    with pytest.raises(ValueError, match="enable_timing=True"):
        timed.elapsed_time(untimed)
    with pytest.raises(ValueError, match="recorded"):
        timed.elapsed_time(cuda.Event(enable_timing=True))
    with pytest.raises(ValueError, match="interprocess"):
        cuda.Event(enable_timing=True, interprocess=True)


def test_an_event_that_was_not_recorded_holds_nobody_up():
    event = cuda.Event()
    assert event.query()
    event.synchronize()
    event.wait()
    assert event.cuda_event == 0
    assert "uninitialized" in repr(event)


def test_record_event_takes_or_makes_an_event():
    s = cuda.Stream()
    mine = cuda.Event()
    assert s.record_event(mine) is mine
    assert s.record_event().query()
    assert "0x" in repr(mine)


@pytest.mark.usefixtures("deferred")
def test_record_stream_keeps_memory_from_being_used_too_early():
    """A tensor made on one stream, read on another and dropped: the next tensor of its size gets
    the same memory, and must not write to it before the reader is done."""
    side = cuda.Stream()
    x = gg.full((1000,), 1.0, device="cuda")
    side.wait_stream(cuda.current_stream())
    with side:
        total = x.sum()
    x.record_stream(side)
    address = x.data_ptr()
    del x
    y = gg.full((1000,), 7.0, device="cuda")
    assert y.data_ptr() == address
    cuda.default_stream().synchronize()  # the write has been done
    with side:
        assert total.cpu().item() == 1000.0
    with pytest.raises(RuntimeError, match="CUDA tensor"):
        gg.ones(2).record_stream(side)


def test_training_on_a_side_stream_equals_the_cpu():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 5)), rng.normal(size=(5, 3))
    expected = gg.tensor(w, requires_grad=True)
    (gg.tanh(gg.tensor(x) @ expected)).sum().backward()
    side = cuda.Stream()
    with side:
        found = gg.tensor(w, device="cuda", requires_grad=True)
        (gg.tanh(gg.tensor(x, device="cuda") @ found)).sum().backward()
        grad = found.grad.cpu()
    np.testing.assert_allclose(grad.numpy(), expected.grad.numpy(), rtol=1e-10)


def test_nvtx_and_the_rest_of_the_names():
    with cuda.nvtx.range("forward"):
        cuda.nvtx.mark("here")
    assert {"Stream", "nvtx", "memory_allocated"} <= set(dir(cuda))
    assert all(hasattr(cuda, name) for name in cuda.__all__)
