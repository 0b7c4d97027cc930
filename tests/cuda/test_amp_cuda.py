"""autocast and GradScaler on CUDA: dtypes by torch's lists, skipped steps, nothing waited for."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn
from gpugrad.autocasting import TABLES
from tests.amp.test_autocast import CALLS
from tests.amp.test_grad_scaler import OPTIMIZERS, OVERFLOWS

pytestmark = pytest.mark.gpu
VALUES = np.random.default_rng(0).uniform(0.1, 0.9, (4, 4)).astype(np.float32)
POLICIES = {name: policy for name, policy in TABLES["cuda"].items() if name in CALLS}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("lower", ["float16", "bfloat16"])
def test_dtypes_follow_the_lists(name, lower):
    lower = gg.dtypes.as_dtype(lower)
    for dtype in (gg.float32, lower):
        a = gg.tensor(VALUES, device="cuda").to(dtype).requires_grad_()
        with gg.autocast("cuda", dtype=lower):
            y = CALLS[name](gg, F, a)
        policy = POLICIES[name]
        expected = {"lower": lower, "float32": gg.float32, "promote": dtype}[policy]
        assert y.dtype == expected, name
        y.float().sum().backward()
        assert a.grad.dtype == dtype


def test_binary_cross_entropy_is_refused():
    p = gg.tensor(VALUES, device="cuda")
    with gg.autocast("cuda"), pytest.raises(RuntimeError, match="unsafe to autocast"):
        F.binary_cross_entropy(p, p)
    with gg.autocast("cpu"):  # says nothing about CUDA
        assert F.binary_cross_entropy(p, p).dtype == gg.float32


def test_only_tensors_of_the_device_are_cast():
    a, b = gg.ones(2, 2, device="cuda"), gg.ones(2, 2)
    with gg.autocast("cuda"):
        assert (a @ a).dtype == gg.float16 and (b @ b).dtype == gg.float32
        with gg.autocast("cpu"):
            assert (a @ a).dtype == gg.float16 and (b @ b).dtype == gg.bfloat16
    with gg.cuda.amp.autocast():
        assert (a @ a).dtype == gg.float16


def steps(device, name, options, count=12):
    """Parameters, state and scales with overflows forced."""
    w = gg.tensor([0.5, -1.0, 2.0], device=device, requires_grad=True)
    optimizer = getattr(gg.optim, name)([w], **options)
    scaler = gg.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2)
    history = []
    for step in range(count):
        optimizer.zero_grad()
        scaler.scale((w * w).sum()).backward()
        if step in OVERFLOWS:
            w.grad[1] = float(OVERFLOWS[step])
        scaler.step(optimizer)
        scaler.update()
        history.append([*w.detach().cpu().tolist(), scaler.get_scale()])
    return np.array(history)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_scaled_steps_are_those_of_the_cpu(name, options):
    ours, theirs = steps("cuda", name, options), steps("cpu", name, options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("overflow", [False, True])
def test_an_iteration_does_not_wait_or_copy(name, overflow, no_hidden_traffic):
    gg.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 3))
    model.to("cuda")
    x = gg.randn(4, 8, device="cuda")
    t = gg.tensor([0, 1, 2, 0], device="cuda")
    optimizer = getattr(gg.optim, name)(model.parameters(), lr=0.01)
    scaler = gg.amp.GradScaler("cuda", init_scale=1024.0)
    huge = gg.full((), float("inf") if overflow else 1.0, device="cuda")

    def iterate():
        optimizer.zero_grad()
        with gg.autocast("cuda"):
            loss = F.cross_entropy(model(x), t)
        scaler.scale(loss * huge).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    for _ in range(3):
        iterate()
    before = [p.detach().clone() for p in model.parameters()]
    with no_hidden_traffic("sync", "h2d", "d2h"):
        iterate()
    same = [gg.equal(p.detach(), b) for p, b in zip(model.parameters(), before, strict=True)]
    assert all(same) if overflow else not any(same)
    assert scaler.get_scale() == (1024.0 / 2**4 if overflow else 1024.0)


def test_losses_are_close_to_those_of_the_cpu():
    losses = []
    for device in ("cpu", "cuda"):
        gg.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3),
        ).to(device)  # fmt: skip
        rng = np.random.default_rng(0)
        x = gg.tensor(rng.normal(size=(8, 1, 8, 8)).astype(np.float32), device=device)
        t = gg.tensor(rng.integers(0, 3, 8), device=device)
        optimizer, scaler = gg.optim.SGD(model.parameters(), lr=0.05), gg.amp.GradScaler(device)
        history = []
        for _ in range(6):
            optimizer.zero_grad()
            with gg.autocast(device, dtype=gg.float16):
                loss = F.cross_entropy(model(x), t)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            history.append(loss.item())
        losses.append(history)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02, atol=0.01)
    assert losses[1][-1] < losses[1][0]


class Step:
    """A whole iteration on fixed buffers, with clipping, scaling and a rate on the device."""

    def __init__(self):
        gg.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).to("cuda")
        self.rate = gg.tensor(0.05, device="cuda")
        parameters = self.model.parameters()
        self.optimizer = gg.optim.Adam(parameters, lr=self.rate, capturable=True)
        self.scaler = gg.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=2)
        self.x = gg.zeros(4, 8, device="cuda")
        self.t = gg.zeros(4, dtype=gg.int64, device="cuda")
        self.loss = gg.zeros((), device="cuda")

    def __call__(self):
        self.optimizer.zero_grad()
        with gg.autocast("cuda"):
            loss = F.cross_entropy(self.model(self.x), self.t)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with gg.no_grad():
            self.loss.copy_(loss)


def test_an_iteration_can_be_captured_and_replayed():
    """The replays make the eager steps to the bit: growth, an overflow that is skipped, another
    learning rate."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(9, 4, 8)).astype(np.float32)
    images[5, 0, 0] = np.inf
    labels = rng.integers(0, 3, (9, 4))
    histories = []
    for capture in (False, True):
        step, graph, history = Step(), None, []
        for i in range(9):
            step.x.copy_(gg.tensor(images[i], device="cuda"))
            step.t.copy_(gg.tensor(labels[i], device="cuda"))
            if i == 7:
                step.rate.fill_(0.01)
            if capture and i == 3:
                graph = gg.cuda.CUDAGraph()
                with gg.cuda.graph(graph):
                    step()
            step() if graph is None else graph.replay()
            values = [p.detach().cpu().tolist() for p in step.model.parameters()]
            history.append((values, repr(step.loss.item()), step.scaler.get_scale()))
        histories.append(history)
    assert histories[0] == histories[1]
    assert [scale for *_, scale in histories[0]][4:7] == [4096.0, 2048.0, 2048.0]
    assert histories[0][5][0] == histories[0][4][0]  # the step with an overflow was skipped
