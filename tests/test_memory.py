"""Training neither grows nor asks the operating system for pages, step after step."""

from __future__ import annotations

import gc
import os
import sys

import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn

resource = pytest.importorskip("resource", reason="Windows has no getrusage")

# Over a window of 200 steps, of which the best of five counts: malloc extends its heap now and
# then, whereas one array of the smallest recycled size in fresh memory is 16 faults in every step.
FAULTS = 20
# Caches that still fill; a leak of one object per step is thousands.
BLOCKS = 300


def mlp():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    return training(model, gg.randn(16, 8), gg.randint(0, 4, (16,)))


def lenet():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    return training(model, gg.randn(8, 1, 28, 28), gg.randint(0, 10, (8,)))


def large():
    """Every array is large enough to be recycled by the pool instead of by malloc."""
    x, w = gg.randn(512, 512), gg.randn(512, 512, requires_grad=True)

    def step():
        w.grad = None
        (gg.tanh(x * w) * x + w.exp()).mean().backward()

    return step


def training(model, inputs, targets):
    optimizer = gg.optim.Adam(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


@pytest.fixture
def no_gc():
    """Without the collector: what remains is what reference counts do not free."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def run(step, times: int) -> None:
    for _ in range(times):
        step()


def blocks() -> int:
    """Blocks that Python holds, without its lists of free tuples, which a collection empties."""
    gc.collect()
    return sys.getallocatedblocks()


def resident() -> int:
    """Bytes in memory now (where the system tells; else at most)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def faults_of(step, times: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(step, times)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.slow
@pytest.mark.parametrize(("make", "steps"), [(mlp, 10_000), (lenet, 1500)])
def test_training_is_flat(no_gc, make, steps: int) -> None:
    gg.manual_seed(0)
    step = make()
    run(step, 300)
    held, memory = blocks(), resident()
    run(step, steps)
    assert blocks() - held < BLOCKS
    assert resident() - memory < 2 << 20


@pytest.mark.parametrize("make", [mlp, lenet, large])
def test_no_record_needs_the_collector(no_gc, make) -> None:
    """The tape has no reference cycles: it goes when the loss goes."""
    step = make()
    run(step, 3)
    gc.collect()
    run(step, 10)
    assert gc.collect() == 0


@pytest.mark.parametrize("make", [mlp, lenet, large])
def test_steps_take_no_fresh_pages(no_gc, make) -> None:
    gg.manual_seed(0)
    step = make()
    run(step, 50)
    found = []
    for _ in range(5):
        found.append(faults_of(step, 200))
        if found[-1] <= FAULTS:
            return
    pytest.fail(f"page faults in windows of 200 steps: {found}")


def test_a_long_chain_is_dropped_without_recursion(no_gc) -> None:
    """Never differentiated: the records are freed from the last to the first."""
    x = gg.tensor([1.0], requires_grad=True)
    y = x * 1.0
    for _ in range(3):  # warm up
        y = y * 1.5
    held = blocks()
    for _ in range(100_000):
        y = y * 1.0
    assert sys.getallocatedblocks() - held > 100_000
    del y
    assert blocks() - held < BLOCKS


def test_a_backward_that_fails_frees_the_tape(no_gc) -> None:
    class Fails(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, g):
            raise ArithmeticError("as asked")

    def step():
        x = gg.ones(1000, requires_grad=True)
        try:
            (Fails.apply(x * 2.0) * 3.0).sum().backward()
        except ArithmeticError:
            pass

    run(step, 500)
    held = blocks()
    run(step, 1000)
    assert blocks() - held < BLOCKS
