"""Whole training steps on a CUDA device: the losses of the CPU, and nothing hidden in a step.

A step must not make the host wait, copy to or from it, or allocate memory once the pool is warm.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.nn import functional as F
from gpugrad.train import MLP, Callback, LeNet, fit
from gpugrad.utils.data import DataLoader, Subset
from gpugrad.vision import datasets, transforms

pytestmark = pytest.mark.gpu

WARM = 3  # steps until kernels are compiled, optimizer state exists and the pool holds all blocks


def batches(count, size, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        images = rng.normal(size=(size, 1, 28, 28)).astype(np.float32)
        yield images, rng.integers(0, 10, size)


class Training:
    """A model, an optimizer and batches that are on the device already."""

    def __init__(self, make_model, make_optimizer, device, steps=6, size=16, loss=F.cross_entropy):
        gg.manual_seed(0)
        self.model = make_model().to(device)
        self.optimizer = make_optimizer(self.model.parameters())
        self.loss = loss
        self.batches = [
            (gg.tensor(x, device=device), gg.tensor(y, device=device))
            for x, y in batches(steps, size)
        ]
        self.losses = []  # tensors: reading them would wait

    def step(self, i):
        x, y = self.batches[i]
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())

    def run(self):
        gg.manual_seed(1)  # dropout draws the same on every device
        for i in range(len(self.batches)):
            self.step(i)
        return np.array([loss.item() for loss in self.losses])


def small_mlp():
    return MLP(hidden=(128,))


def norm_net():
    """Every kind of normalization and activation a step may go through."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),  # BatchNorm takes it away
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 7 * 7, 32),
        nn.LayerNorm(32),
        nn.SiLU(),
        nn.Dropout(0.3),
        nn.Linear(32, 10),
    )


def smooth_loss(logits, target):
    return F.cross_entropy(logits, target, label_smoothing=0.1, ignore_index=3)


CASES = {
    "mlp adam": (small_mlp, lambda p: gg.optim.Adam(p, lr=1e-3)),
    "lenet sgd": (LeNet, lambda p: gg.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4)),
    "lenet adam": (LeNet, lambda p: gg.optim.Adam(p, lr=1e-3)),
    "norms adamw": (norm_net, lambda p: gg.optim.AdamW(p, lr=1e-3), smooth_loss),
    "mlp rmsprop": (small_mlp, lambda p: gg.optim.RMSprop(p, lr=1e-4)),
    "mlp adagrad": (small_mlp, lambda p: gg.optim.Adagrad(p, lr=1e-3)),
}


def training(case, device, **kwargs):
    make_model, make_optimizer, *loss = CASES[case]
    if loss:
        kwargs["loss"] = loss[0]
    return Training(make_model, make_optimizer, device, **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_parameters_are_those_of_the_cpu(case):
    """Within the rounding of float32: sums of some hundred numbers in another order, six steps."""
    on_cpu, on_device = training(case, "cpu"), training(case, "cuda")
    expected, found = on_cpu.run(), on_device.run()
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    pairs = zip(on_device.model.named_parameters(), on_cpu.model.parameters(), strict=True)
    for (name, a), b in pairs:
        difference = np.abs(a.detach().cpu().numpy() - b.detach().numpy()).max()
        assert difference < 2e-3, f"{name} differs by {difference}"


@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_the_schedule(case, host_device):
    """Nor on what was in memory before, and nothing is read or written beside its arrays: every
    array has fresh poisoned memory that ends at a guard page. Work runs as late as it may."""
    expected = training(case, "cuda", size=4).run()
    for order in ("reverse", "shuffled"):
        with (
            host_device.exact_allocations(alignment=256),
            host_device.scheduled(order, seed=2),
            host_device.deferred(),
        ):
            found = training(case, "cuda", size=4).run()
        np.testing.assert_array_equal(found, expected)
    gc.collect()
    assert not host_device.overrun()


@pytest.mark.parametrize("case", CASES)
def test_nothing_hidden_in_a_step(case, no_hidden_traffic):
    run = training(case, "cuda", size=4)
    for i in range(WARM):
        run.step(i)
    for i in range(WARM, len(run.batches)):
        with no_hidden_traffic():
            run.step(i)


# Kernels and products of a step, with some room: a change that takes fusion away shows.
MOST_LAUNCHES = {"mlp adam": 18, "lenet adam": 50, "norms adamw": 45}


@pytest.mark.parametrize("case", MOST_LAUNCHES)
def test_launches_of_a_step(case, host_device):
    run = training(case, "cuda", size=4)
    for i in range(WARM):
        run.step(i)
    with host_device.counting() as n:
        run.step(WARM)
    assert n.launches + n.library_calls + n.d2d + n.memsets <= MOST_LAUNCHES[case]


def test_clipping_and_schedulers_hide_nothing(no_hidden_traffic):
    run = training("mlp adam", "cuda", size=4)
    scheduler = gg.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, T_max=10)

    def step(i):
        x, y = run.batches[i]
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        scheduler.step()

    for i in range(WARM):
        step(i)
    for i in range(WARM, len(run.batches)):
        with no_hidden_traffic():
            step(i)


class Traffic(Callback):
    """What the host did to the device in each step of ``fit``."""

    def __init__(self, host_device):
        self.host_device, self.steps, self.before = host_device, [], None

    def on_batch_end(self, progress):
        now = self.host_device.counters()
        if self.before:
            self.steps.append({name: n - self.before[name] for name, n in now.items()})
        self.before = now


DIGITS = {
    "lenet": (LeNet, lambda p: gg.optim.SGD(p, lr=0.05, momentum=0.9)),
    "mlp": (small_mlp, lambda p: gg.optim.Adam(p, lr=1e-3)),
}


@pytest.mark.parametrize("case", DIGITS)
def test_digits_are_learned_as_on_the_cpu(case, host_device):
    """``fit`` end to end, with evaluation: the only traffic of a step is the batch coming in."""
    make_model, make_optimizer = DIGITS[case]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.13,), (0.31,))])
    train_set, test_set = (
        Subset(datasets.MNIST(train=train, transform=transform), range(count))
        for train, count in ((True, 128), (False, 32))
    )
    results = {}
    for device in ("cpu", "cuda"):
        gg.manual_seed(0)
        model = make_model().to(device)
        traffic = Traffic(host_device)
        loader = DataLoader(train_set, batch_size=16, shuffle=True)
        run = fit(
            model,
            loader,
            optimizer=make_optimizer(model.parameters()),
            epochs=2,
            test_loader=DataLoader(test_set, batch_size=32),
            device=device,
            callbacks=[traffic],
        )
        results[device] = [(r.train_loss, r.test_loss) for r in run.history]
    np.testing.assert_allclose(results["cuda"], results["cpu"], rtol=1e-3)
    assert results["cuda"][1][0] < results["cuda"][0][0], "it learns"
    second_epoch = traffic.steps[len(loader) + 1 :]  # the first of its steps comes after evaluation
    for step in second_epoch:
        allowed = {"h2d": 2, "syncs": 0, "d2h": 0, "mallocs": 0, "frees": 0}
        assert {name: step[name] for name in allowed} == allowed


# ---- the checks see what they are there for ------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda run, y: float(run.losses[-1]), "d2h"),
        (lambda run, y: bool(run.losses[-1] > 0), "d2h"),
        (lambda run, y: gg.tensor([1.0], device="cuda"), "h2d"),
        (lambda run, y: gg.cuda.synchronize(), "sync"),
        (lambda run, y: y[y > 3], "sync"),
        (lambda run, y: gg.empty(1 << 24, device="cuda"), "malloc"),
    ],
)
def test_a_fault_in_a_step_is_seen(fault, what, no_hidden_traffic):
    run = training("mlp adam", "cuda", size=4)
    for i in range(WARM):
        run.step(i)
    gg.cuda.empty_cache()  # or memory of other tests would serve
    with pytest.raises(AssertionError, match=what), no_hidden_traffic(what):
        run.step(WARM)
        fault(run, run.batches[WARM][1])
