"""CUDA graphs: recorded once, replayed with new values; memory of their own; what cannot be
recorded says so."""

import gc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, nn

pytestmark = pytest.mark.gpu


def on(array):
    return gg.tensor(array, device="cuda")


def test_torchs_way():
    x = on(np.arange(6.0))
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with side:
        (x * 2 + 1).sum()
    cuda.current_stream().wait_stream(side)
    g = cuda.CUDAGraph()
    with cuda.graph(g):
        assert cuda.is_current_stream_capturing()
        y = x * 2 + 1
    assert not cuda.is_current_stream_capturing()
    for k in range(3):
        x.copy_(gg.full((6,), float(k), dtype=x.dtype))
        g.replay()
        assert y.tolist() == [2.0 * k + 1] * 6


def test_begin_and_end_by_hand():
    x = on(np.ones(4))
    g, s = cuda.CUDAGraph(), cuda.Stream()
    s.wait_stream(cuda.current_stream())
    with s:
        x.exp()
        g.capture_begin()
        y = x + 1
        g.capture_end()
    g.replay()
    assert y.tolist() == [2.0] * 4


def step_of(model, optimizer, x, target):
    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_a_training_step_replays_as_the_cpu_trains():
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(8, 5)), rng.normal(size=(8, 3))) for _ in range(6)]

    def losses(device, record):
        gg.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double().to(device)
        optimizer = gg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, target = (gg.tensor(a, device=device) for a in data[0])
        step, g, found = step_of(model, optimizer, x, target), None, []
        for k, (new_x, new_target) in enumerate(data):
            x.copy_(gg.tensor(new_x))
            target.copy_(gg.tensor(new_target))
            if not record or k < 2:
                loss = step()
            elif g is None:
                g, loss = cuda.capture(step, warmup=0)
                g.replay()
            else:
                g.replay()
            found.append(loss.item())
        return found

    # the steps before the recording ran on the default stream, so nothing is warmed up there
    np.testing.assert_allclose(losses("cuda", True), losses("cpu", False), rtol=1e-9)


def test_capture_warms_up_and_replays_without_traffic(no_hidden_traffic, host_device):
    w = gg.ones(100, device="cuda", requires_grad=True)
    x = gg.ones(100, device="cuda")

    def step():
        w.grad = None
        loss = ((w * x) ** 2).sum()
        loss.backward()
        with gg.no_grad():
            w.sub_(w.grad * 0.1)
        return loss

    g, loss = cuda.capture(step)
    held = cuda.memory_reserved()
    with host_device.counting() as n, no_hidden_traffic():
        for _ in range(5):
            g.replay()
    assert (n.graph_launches, n.launches) == (5, 0)
    assert cuda.memory_reserved() == held
    # two runs to warm up and five replays; the recorded run has computed nothing
    np.testing.assert_allclose(w.detach().cpu().numpy(), 0.8**7, rtol=1e-5)
    np.testing.assert_allclose(loss.item(), 100 * 0.8**12, rtol=1e-5)


def test_memory_of_a_graph_is_not_given_to_others():
    """Temporaries freed while recording are written again by every replay."""
    x = on(np.ones(1000))
    g, y = cuda.capture(lambda: ((x * 2) + 1) * 3)
    others = [gg.full((1000,), 7.0, dtype=gg.float64, device="cuda") for _ in range(20)]
    with cuda.graph(cuda.CUDAGraph()):  # another recording on the same stream, with its own memory
        x + 1
    g.replay()
    cuda.synchronize()
    assert all(o.tolist() == [7.0] * 1000 for o in others)
    assert y.tolist() == [9.0] * 1000


def test_the_pool_lives_as_long_as_the_graph_and_may_be_shared():
    x = on(np.ones(1 << 18))
    before = cuda.memory_allocated()
    g, y = cuda.capture(lambda: x * 2)
    assert cuda.memory_allocated() > before
    other = cuda.CUDAGraph()
    with cuda.graph(other, pool=g.pool()):
        z = y + 1
    assert other.pool() is g.pool()
    g.replay()
    other.replay()
    assert z[:3].tolist() == [3.0] * 3
    handle = cuda.graph_pool_handle()
    third = cuda.CUDAGraph()
    with cuda.graph(third, pool=handle):
        x + 1
    assert third.pool() is handle
    g.reset()
    other.reset()
    del y, z, g, other
    gc.collect()
    assert cuda.memory_allocated() <= before + 512


def test_reset_and_capture_again():
    x = on(np.ones(3))
    g = cuda.CUDAGraph()
    with cuda.graph(g):
        y = x + 1
    with pytest.raises(RuntimeError, match="already owns a captured graph"), cuda.graph(g):
        pass
    g.reset()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        g.replay()
    with cuda.graph(g):
        y = x + 2
    g.replay()
    assert y.tolist() == [3.0] * 3


READS = {
    "item": lambda x: x.sum().item(),
    "print": lambda x: str(x),
    "bool": lambda x: bool(x.sum() > 0),
    "cpu": lambda x: x.cpu(),
    "not blocking": lambda x: x.to("cpu", non_blocking=True),
    "numpy": lambda x: x.numpy(force=True),
    "from lists": lambda x: gg.tensor([1.0, 2.0], device="cuda"),
    "from the cpu": lambda x: x.copy_(gg.zeros(4)),
    "synchronize": lambda x: cuda.synchronize(),
    "stream": lambda x: cuda.current_stream().synchronize(),
}


@pytest.mark.parametrize("name", READS)
def test_what_cannot_be_recorded_says_so(name):
    x = on(np.ones(4))
    assert x.sum() > 0  # compiled before
    g = cuda.CUDAGraph()
    with pytest.raises(RuntimeError) as caught, cuda.graph(g):
        READS[name](x)
    said = str(caught.value) + "".join(caught.value.__notes__)
    assert "cannot be captured" in said
    # everything is as before
    assert gc.isenabled()
    assert not cuda.is_current_stream_capturing()
    assert cuda.current_stream() == cuda.default_stream()
    with pytest.raises(RuntimeError, match="without a preceding"):
        g.replay()
    assert (x + 1).tolist() == [2.0] * 4
    with cuda.graph(g):
        y = x + 5
    g.replay()
    assert y.tolist() == [6.0] * 4


def test_the_default_stream_cannot_be_recorded():
    g = cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="non-default stream"):
        g.capture_begin()
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="capture_begin"):
        g.capture_end()


def test_capture_must_end_on_its_stream():
    g, s = cuda.CUDAGraph(), cuda.Stream()
    with s:
        g.capture_begin()
    with pytest.raises(RuntimeError, match="same stream"):
        g.capture_end()
    assert gc.isenabled()


def test_a_run_that_differs_is_refused():
    x, runs = on(np.ones(1 << 18)), []
    kept = []

    def step():
        runs.append(None)
        if len(runs) > 2:
            kept.append([x + k for k in range(4)])
        return x + 1

    with pytest.raises(RuntimeError, match="more memory than the 2 runs before"):
        cuda.capture(step)


def test_wrong_arguments():
    strict = cuda.graph(cuda.CUDAGraph(), capture_error_mode="strict")
    with pytest.raises(RuntimeError, match="Unknown capture error mode"), strict:
        pass
    assert cuda.current_stream() == cuda.default_stream()
    with pytest.raises(RuntimeError, match="pool"):
        cuda.CUDAGraph().pool()
    with pytest.raises(RuntimeError, match="debug_dump"):
        cuda.CUDAGraph().debug_dump("x")


def test_debug_dump(tmp_path):
    x = on(np.ones(3))
    g, _ = cuda.capture(lambda: x + 1)
    g.debug_dump(str(tmp_path / "graph.dot"))
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")


def test_collection_stays_off_while_recording_only():
    x = on(np.ones(3))
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with cuda.graph(cuda.CUDAGraph()):
                assert not gc.isenabled()
                x + 1
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
