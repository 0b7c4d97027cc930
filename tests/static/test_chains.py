"""Chains in compiled programs: the same bits with and without them, by any number of threads."""

from __future__ import annotations

import threading
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.functional as F
from gpugrad import nn
from gpugrad.codegen import chains
from gpugrad.codegen.machine import machine
from gpugrad.static.run_cpu import NativeProgram

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request):
    before = gg.get_num_threads()
    gg.set_num_threads(request.param)
    yield request.param
    gg.set_num_threads(before)


@pytest.fixture
def programs(monkeypatch):
    """The native programs that are built, with chains wherever there can be one."""
    monkeypatch.setattr(chains.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(chains, "LEAST", 0.0)
    monkeypatch.setattr(chains, "GAIN", 1e9)
    built, build = [], NativeProgram._build

    def collect(program: NativeProgram, inputs) -> None:
        build(program, inputs)
        built.append(program)

    monkeypatch.setattr(NativeProgram, "_build", collect)
    return built


def longest(program: NativeProgram) -> int:
    return max(len(task.members) for task in program.tasks.tasks)


class Gated(nn.Module):
    """A recurrent cell with slices of one product: gates and what they let through."""

    def __init__(self, width: int):
        super().__init__()
        self.given, self.own = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.width = width

    def forward(self, x, h):
        n = self.width
        a, b = self.given(x), self.own(h)
        reset = gg.sigmoid(a[:, :n] + b[:, :n])
        update = gg.sigmoid(a[:, n : 2 * n] + b[:, n : 2 * n])
        new = gg.tanh(a[:, 2 * n :] + reset * b[:, 2 * n :])
        return (1 - update) * new + update * h


def prepared(batch: int, width: int = 24, steps: int = 5):
    """A function that trains: it gives losses, states, and the parameters in the end."""
    gg.manual_seed(batch)
    cell = Gated(width)
    optimizer = gg.optim.SGD(cell.parameters(), lr=0.1)
    rng = np.random.default_rng(batch)

    @gg.compile
    def step(h, target):
        optimizer.zero_grad()
        x = h
        for _ in range(steps):
            h = cell(x, h)
        loss = F.mse_loss(h, target)
        loss.backward()
        optimizer.step()
        return loss.detach(), h.detach()

    def train() -> list[np.ndarray]:
        given = []
        for _ in range(7):
            h, target = (gg.tensor(rng.normal(size=(batch, width)).astype("f")) for _ in range(2))
            given += [t.numpy().copy() for t in step(h, target)]
        assert step.stats["replays"] >= 3
        return [*given, *[p.detach().numpy().copy() for p in cell.parameters()]]

    return train


@pytest.mark.parametrize("batch", [2, 3, 13, 32])
def test_the_same_bits(batch, threads, programs):
    with_chains = prepared(batch)()
    assert longest(programs[-1]) > 10
    with mock.patch.object(chains, "joined", list):
        without = prepared(batch)()
    assert longest(programs[-1]) == 0
    for a, b in zip(with_chains, without, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_row_has_no_chain(programs):
    prepared(1)()
    assert longest(programs[-1]) == 0


def test_arguments_and_numbers_of_a_call(threads, programs):
    """Members read arrays where a call has them, and numbers that change."""
    rng = np.random.default_rng(0)
    weights = [gg.tensor(rng.normal(size=(16, 16)).astype("f") / 4) for _ in range(6)]

    def run(h, scale):
        for w in weights:
            h = gg.tanh(h @ w) * scale
        return h

    compiled = gg.compile(run)
    for k in range(12):
        h = gg.tensor(rng.normal(size=(9, 16)).astype("f"))
        np.testing.assert_allclose(compiled(h, 1 + k / 8), run(h, 1 + k / 8), rtol=0, atol=2e-5)
    assert compiled.stats["replays"] >= 5
    assert longest(programs[-1]) == 6
    assert "6 of them in 1 chains, shared by rows" in compiled.explain()


def test_layers_of_other_widths(programs):
    """Memory that a layer leaves is not at once another one's, whose rows lie elsewhere in it."""
    gg.manual_seed(0)
    widths = [24, 40, 16, 72, 8, 24, 32, 24, 40, 8]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    model = nn.Sequential(*layers)

    def run(x):
        with gg.no_grad():
            return model(x)

    compiled = gg.compile(run)
    for _ in range(6):
        x = gg.randn(21, 24)
        np.testing.assert_allclose(compiled(x), run(x), rtol=0, atol=2e-5)
    assert longest(programs[-1]) == 9
    assert programs[-1].bytes < 21 * 4 * sum(widths)


def test_several_callers(threads, programs):
    """Programs of several threads at once, of which one has the workers."""
    batches = (5, 16, 27)
    wanted = [prepared(batch)() for batch in batches]
    trainings = [prepared(batch) for batch in batches]
    found: dict[int, list] = {}

    def call(k: int) -> None:
        found[k] = trainings[k]()

    callers = [threading.Thread(target=call, args=(k,)) for k in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for k, expected in enumerate(wanted):
        for a, b in zip(found[k], expected, strict=True):
            np.testing.assert_array_equal(a, b)
