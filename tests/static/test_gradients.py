"""Gradients that compiled steps leave in their own memory: nobody may notice."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.codegen.machine import machine
from gpugrad.static.run_cpu import NativeProgram

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")

X = gg.randn(16, 64)


def pair():
    """A compiled step and an eager one, with their models of equal weights."""
    ours = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 60))
    theirs = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 60))
    theirs.load_state_dict(ours.state_dict())
    steps = []
    for model in (ours, theirs):
        optimizer = gg.optim.SGD(model.parameters(), lr=0.3)

        def step(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        steps.append(step)
    return gg.compile(steps[0]), steps[1], ours, theirs


def warm(compiled, eager):
    for _ in range(5):
        compiled(X)
        eager(X)
    program = compiled.programs[-1]
    assert program.run.__class__ is NativeProgram
    assert len(program.run.apart) == 2  # the weights; biases are small
    return program


def check(ours, theirs):
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        gg.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        gg.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_training_loop_copies_no_gradients():
    compiled, eager, ours, theirs = pair()
    program = warm(compiled, eager)
    memory = {a.ctypes.data for a in program.run.outputs}
    for k in range(6):
        compiled(X)
        eager(X)
        check(ours, theirs)
        assert ours[0].weight.grad.array.ctypes.data in memory
        if k == 3:  # what is done to a gradient by itself is not in the way
            for model in (ours, theirs):
                model[0].weight.grad.mul_(2)
                model[2].weight.grad = None
    assert compiled._fast is program.short is not None
    assert len(program.run.apart) == 2


KEEP = {
    "tensor": lambda grad: grad,
    "array": lambda grad: grad.array,
    "numpy": lambda grad: grad.numpy(),
    "view of the tensor": lambda grad: grad[1:, ::2],
    "view of the array": lambda grad: grad.array.T[3:],
    "memoryview": lambda grad: memoryview(grad.array),
    "both": lambda grad: (grad, grad.array),
    "dlpack": lambda grad: np.from_dlpack(grad.array),
}


def contents(kept) -> np.ndarray:
    kept = kept[1] if isinstance(kept, tuple) else kept
    return np.array(kept.array if isinstance(kept, gg.Tensor) else kept)


@pytest.mark.parametrize("how", KEEP)
def test_gradients_that_somebody_keeps_stay_as_they_are(how):
    compiled, eager, ours, theirs = pair()
    warm(compiled, eager)
    kept = []
    for k in range(8):
        compiled(X)
        eager(X)
        check(ours, theirs)
        if k in (1, 2, 5):
            found, expected = (KEEP[how](m[0].weight.grad) for m in (ours, theirs))
            kept.append((found, contents(expected)))
        for found, expected in kept:
            np.testing.assert_allclose(contents(found), expected, 1e-4, 1e-6)
    assert compiled.stats["programs"] == 1


def test_other_parameters_with_the_same_gradient():
    """A tensor that is .grad of something else, too."""
    compiled, eager, ours, theirs = pair()
    warm(compiled, eager)
    other = gg.zeros(80, 64, requires_grad=True)
    other.grad = ours[0].weight.grad
    expected = other.grad.clone()
    for _ in range(3):
        compiled(X)
        eager(X)
    gg.testing.assert_close(other.grad, expected, rtol=0, atol=0)
    check(ours, theirs)


def test_a_call_that_fails_leaves_gradients_as_they_were():
    table, head = nn.Embedding(50, 100), nn.Linear(100, 50)
    optimizer = gg.optim.SGD([*table.parameters(), *head.parameters()], lr=0.1)

    @gg.compile
    def step(i, y):
        loss = nn.functional.cross_entropy(head(table(i)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    for k in range(6):
        step(gg.arange(6) + k, gg.arange(6))
    assert step.programs[-1].run.apart
    before = [p.grad.clone() for p in (table.weight, head.weight)]
    for wrong in ((gg.full((6,), 50), gg.arange(6)), (gg.arange(6), gg.full((6,), 77))):
        with pytest.raises(IndexError):
            step(*wrong)
        for p, grad in zip((table.weight, head.weight), before, strict=True):
            gg.testing.assert_close(p.grad, grad, rtol=0, atol=0)
    step(gg.arange(6), gg.arange(6))
    assert not gg.equal(head.weight.grad, before[1])


def test_branches_and_gradients_that_are_read_are_copied():
    layer = nn.Linear(80, 80)

    @gg.compile
    def guarded(x):
        layer.weight.grad = None
        loss = layer(x).square().mean()
        if loss > 0:
            loss.backward()
        return loss

    @gg.compile
    def accumulating(x):
        layer(x).square().mean().backward()

    for _ in range(5):
        guarded(gg.ones(4, 80))
    assert not guarded.programs[-1].run.apart
    expected = layer.weight.grad.clone()
    for k in range(5):
        accumulating(gg.ones(4, 80))
        gg.testing.assert_close(layer.weight.grad, expected * (k + 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strided", [False, True])
def test_gradients_of_the_call_before_are_read_where_they_are(strided, monkeypatch):
    """An update first, the backward pass last: the program is planned once, not at every call."""
    _, _, ours, theirs = pair()
    steps = []
    for model in (ours, theirs):
        optimizer = gg.optim.SGD(model.parameters(), lr=0.3)
        for p in model.parameters():
            p.grad = gg.zeros_like(p)

        def step(x, model=model, optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        steps.append(step)
    builds, build = [], NativeProgram._build
    monkeypatch.setattr(NativeProgram, "_build", lambda *a: builds.append(1) or build(*a))
    compiled = gg.compile(steps[0])
    for _ in range(8):
        gg.testing.assert_close(compiled(X), steps[1](X), rtol=1e-4, atol=1e-6)
        check(ours, theirs)
        if strided:
            for model in (ours, theirs):
                model[0].weight.grad = gg.tensor(model[0].weight.grad.array.T.copy()).T
    assert compiled.stats["programs"] == 1
    assert len(builds) == 1
