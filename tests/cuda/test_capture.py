"""A whole training step recorded as a CUDA graph and replayed: the losses of the CPU.

What a static mode will do is written out by hand here: fixed buffers for inputs, numbers that
change from step to step in device memory, a private stream and memory pool, warm-up, one launch per
step. docs: gpugrad/cuda/graphs.py says why each is needed.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, nn
from gpugrad.nn import functional as F
from gpugrad.train import MLP, LeNet

pytestmark = pytest.mark.gpu

WARM = 2


def data(count, size=8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, size, 1, 28, 28)).astype(np.float32)
    return images, rng.integers(0, 10, (count, size))


class Momentum:
    """SGD with momentum, its learning rate in a tensor of the parameters' device."""

    def __init__(self, parameters, lr):
        self.parameters = list(parameters)
        self.lr = lr
        self.velocities = [gg.zeros_like(p) for p in self.parameters]

    def step(self):
        for p, v in zip(self.parameters, self.velocities, strict=True):
            v.mul_(0.9).add_(p.grad)
            p.sub_(self.lr * v)

    def state(self):
        return self.velocities


class Adam:
    """Adam whose learning rate and number of steps are tensors, so that a recording can count."""

    def __init__(self, parameters, lr, betas=(0.9, 0.999), eps=1e-8):
        self.parameters = list(parameters)
        self.lr, self.steps = lr, gg.zeros_like(lr)
        self.betas, self.eps = betas, eps
        self.means = [gg.zeros_like(p) for p in self.parameters]
        self.squares = [gg.zeros_like(p) for p in self.parameters]

    def step(self):
        beta1, beta2 = self.betas
        self.steps.add_(1)
        mean_bias, square_bias = (1 - beta**self.steps for beta in self.betas)
        lists = zip(self.parameters, self.means, self.squares, strict=True)
        for p, mean, square in lists:
            mean.mul_(beta1).add_(p.grad * (1 - beta1))
            square.mul_(beta2).add_(p.grad * p.grad * (1 - beta2))
            size = (square / square_bias).sqrt().add_(self.eps)
            p.sub_(self.lr / mean_bias * mean / size)

    def state(self):
        return [*self.means, *self.squares, self.steps]


class Ours:
    """One of gpugrad.optim; the learning rate is a tensor."""

    def __init__(self, name, parameters, lr, **options):
        self.optimizer = getattr(gg.optim, name)(parameters, lr=lr, **options)

    def step(self):
        self.optimizer.step()

    def state(self):
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return [value for value in kept if isinstance(value, gg.Tensor)]


class Step:
    """One training step on fixed buffers ``x`` and ``y``; the loss is left in ``loss``."""

    def __init__(self, model, make_optimizer, device, size=8):
        gg.manual_seed(0)
        self.model = model().to(device)
        self.lr = gg.zeros((), device=device)
        self.optimizer = make_optimizer(list(self.model.parameters()), self.lr)
        self.x = gg.zeros(size, 1, 28, 28, device=device)
        self.y = gg.zeros(size, dtype=gg.int64, device=device)
        self.loss = gg.zeros((), device=device)

    def __call__(self):
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        with gg.no_grad():
            self.optimizer.step()
            self.loss.copy_(loss)
        self.model.zero_grad()

    def values(self):
        """What a step changes, without the optimizer's state."""
        return [t.detach() for t in (*self.model.parameters(), *self.model.buffers())]

    def restart(self, values):
        for now, then in zip(self.values(), values, strict=True):
            now.copy_(then)
        for t in self.optimizer.state():
            t.zero_()

    def feed(self, x, y):
        self.x.copy_(x)
        self.y.copy_(y)


def lr_of(step):
    return 0.002 / (1 + step)


def losses_of_cpu(model, make_optimizer, images, labels):
    step = Step(model, make_optimizer, "cpu")
    losses = []
    for i, (x, y) in enumerate(zip(images, labels, strict=True)):
        step.lr.fill_(lr_of(i))
        step.feed(gg.tensor(x), gg.tensor(y))
        step()
        losses.append(step.loss.item())
    return losses, [t.numpy() for t in step.values()]


def batch_norm_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 24),
        nn.LayerNorm(24),
        nn.GELU(),
        nn.Linear(24, 10),
    )


def mlp():
    return MLP(hidden=(128,))


CASES = {
    "mlp adam": (mlp, Adam),
    "lenet momentum": (LeNet, Momentum),
    "batch norm adam": (batch_norm_net, Adam),
    "mlp gpugrad's adamw": (mlp, lambda p, lr: Ours("AdamW", p, lr, capturable=True)),
    "lenet gpugrad's sgd": (LeNet, lambda p, lr: Ours("SGD", p, lr, momentum=0.9)),
}


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_step_trains_as_the_cpu_does(case, order, host_device, no_hidden_traffic):
    images, labels = data(6)
    expected, expected_values = losses_of_cpu(*CASES[case], images, labels)

    step = Step(*CASES[case], "cuda")
    xs, ys = gg.tensor(images, device="cuda"), gg.tensor(labels, device="cuda")
    start = [t.clone() for t in step.values()]
    graph, _ = cuda.capture(step, warmup=WARM)  # runs it for real WARM times
    step.restart(start)

    losses = gg.zeros(len(images), device="cuda")
    rates = gg.tensor([lr_of(i) for i in range(len(images))], dtype=gg.float32, device="cuda")

    def replay(i):
        step.lr.copy_(rates[i])
        step.feed(xs[i], ys[i])
        graph.replay()
        losses[i] = step.loss

    replay(0)  # the copies compile here
    with host_device.scheduled(order, seed=3):
        for i in range(1, len(images)):
            with host_device.counting() as n, no_hidden_traffic():
                replay(i)
            assert n.graph_launches == 1
            assert n.kernels - n.launches + n.library_calls > 10, "the work is in the graph"
    np.testing.assert_allclose(losses.tolist(), expected, rtol=1e-4)
    for found, wanted in zip(step.values(), expected_values, strict=True):
        np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=1e-2, atol=1e-3)


def test_recorded_by_cupy_alone(host_device):
    """The recipe without gpugrad.cuda: CuPy's stream, pool and capture around gpugrad's step."""
    import cupy

    images, labels = data(4)
    expected, _ = losses_of_cpu(*CASES["mlp adam"], images, labels)
    step = Step(*CASES["mlp adam"], "cuda")
    xs, ys = gg.tensor(images, device="cuda"), gg.tensor(labels, device="cuda")
    start = [t.clone() for t in step.values()]
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.get_current_stream().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        for _ in range(WARM):
            step()
        stream.synchronize()
        gc.collect()
        gc.disable()
        held = pool.total_bytes()
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        gc.enable()
        assert pool.total_bytes() == held
        step.restart(start)
        for i, wanted in enumerate(expected):
            step.lr.fill_(lr_of(i))
            step.feed(xs[i], ys[i])
            graph.launch(stream)
            np.testing.assert_allclose(step.loss.item(), wanted, rtol=1e-4)


# ---- the checks see what they are there for ------------------------------------------------------


def recorded(work):
    """A graph of some work, in the pool everything else uses: how it must not be done."""
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        work()
        stream.synchronize()
        stream.begin_capture()
        work()
        return stream, stream.end_capture()


def test_memory_shared_with_a_graph_is_corrupted_by_replay(host_device):
    """The hazard of CuPy's pool: a temporary of the recording is given to the next who asks on that
    stream, and replay writes into it. With the private pool it does not happen."""
    import cupy

    x, out = gg.ones(64, device="cuda"), gg.zeros(64, device="cuda")

    def work():
        out.copy_(x * 2 + 1)

    stream, graph = recorded(work)
    with stream:
        victims = [cupy.full(64, 7, np.float32) for _ in range(4)]
        graph.launch(stream)
        stream.synchronize()
        damaged = [not (v == 7).all().item() for v in victims]
    assert any(damaged)

    graph, _ = cuda.capture(work)
    with cuda.stream(cuda.Stream()):
        victims = [gg.full((64,), 7.0, device="cuda") for _ in range(4)]
        graph.replay()
        assert all((v == 7).all().item() for v in victims)


def test_allocation_during_replay_is_seen(no_hidden_traffic):
    x = gg.ones(64, device="cuda")
    graph, _ = cuda.capture(lambda: x * 2)
    with no_hidden_traffic():
        graph.replay()
    cuda.empty_cache()
    with pytest.raises(AssertionError, match="malloc"), no_hidden_traffic():
        graph.replay()
        gg.empty(1 << 24, device="cuda")


def test_waiting_in_a_recorded_step_is_an_error():
    step = Step(*CASES["mlp adam"], "cuda")

    def faulty():
        step()
        if float(step.loss) > 100:
            raise ArithmeticError

    with pytest.raises(RuntimeError, match="captur"):
        cuda.capture(faulty)
    step()  # all is as before
    assert np.isfinite(step.loss.item())


def test_steps_counted_on_the_host_cannot_be_recorded():
    step = Step(mlp, lambda p, lr: Ours("Adam", p, 1e-3), "cuda")
    with pytest.raises(RuntimeError, match="capturable=True"):
        cuda.capture(step)
    first = Step(mlp, lambda p, lr: Ours("SGD", p, 1e-3, momentum=0.9), "cuda")
    with pytest.raises(RuntimeError, match="after its first step"):
        cuda.capture(first, warmup=0)


def test_a_missing_dependency_between_streams_shows(host_device):
    """Work of a second stream that the first does not wait for, at its end and in the middle."""
    import cupy

    def fork(first, wait_in_the_middle):
        second = cupy.cuda.Stream(non_blocking=True)
        a, b, c = (cupy.zeros(100) for _ in range(3))
        with first:
            first.begin_capture()
            second.wait_event(first.record())
            with second:
                a.fill(3)
                done = second.record()
            if wait_in_the_middle:
                first.wait_event(done)
            cupy.add(a, 1, out=b)
            if not wait_in_the_middle:
                first.wait_event(done)
            cupy.add(b, 1, out=c)
            return first.end_capture(), c

    cupy.add(cupy.zeros(100), 1, out=cupy.zeros(100))
    cupy.cuda.get_current_stream().synchronize()
    found = {}
    for waits in (True, False):
        for order in ("forward", "reverse"):
            first = cupy.cuda.Stream(non_blocking=True)
            graph, c = fork(first, waits)
            with host_device.scheduled(order):
                graph.launch(first)
                first.synchronize()
                found[waits, order] = c.get()[0]
    assert found[True, "forward"] == found[True, "reverse"] == 5
    assert found[False, "reverse"] != found[False, "forward"]
