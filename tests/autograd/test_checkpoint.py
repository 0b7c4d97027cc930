"""Checkpointed functions give the gradients of the functions, and keep less."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.utils.checkpoint import checkpoint, checkpoint_sequential


def block(x, scale=1.0):
    return gg.tanh(x * x * scale).exp() * x


def gradients(make, *values, **options):
    leaves = [gg.tensor(v, dtype=gg.float64, requires_grad=True) for v in values]
    result = make(*leaves, **options)
    result.sum().backward()
    return result.detach().numpy(), [t.grad.numpy() for t in leaves]


def test_values_and_gradients_are_the_function_s() -> None:
    expected = gradients(lambda x: block(block(x), scale=2.0), [0.3, -0.7])
    found = gradients(
        lambda x: checkpoint(block, checkpoint(block, x), scale=2.0), [0.3, -0.7]
    )  # fmt: skip
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)


def test_beside_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    from torch.utils.checkpoint import checkpoint as judge

    results = []
    for library, call in ((torch, judge), (gg, checkpoint)):
        w = library.tensor([0.5, 1.5], dtype=library.float64, requires_grad=True)
        x = library.tensor([0.3, -0.7], dtype=library.float64, requires_grad=True)
        y = call(lambda a, w=w: (a * w).sin() * w, x, use_reentrant=False)
        (gx,) = library.autograd.grad(y.sum(), x, create_graph=True)
        (gx * gx).sum().backward()
        results.append([np.asarray(t.detach()) for t in (y, gx, x.grad, w.grad)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_parameters_of_a_module(use_reentrant) -> None:
    gg.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = gg.randn(5, 3)  # no gradient of its own
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g.numpy(), rtol=1e-6)


def test_nested_arguments_and_results() -> None:
    def f(pair, *, options):
        a, b = pair
        return {"sum": a + b, "more": [a * b, "text", options["scale"] * a.detach()]}

    a, b = (gg.tensor([v], requires_grad=True) for v in (2.0, 3.0))
    found = checkpoint(f, (a, b), options={"scale": 2.0})
    assert found["more"][1] == "text"
    assert not found["more"][2].requires_grad
    (found["sum"] * 10 + found["more"][0]).sum().backward()
    assert (a.grad.item(), b.grad.item()) == (13.0, 12.0)


def test_an_unused_result_and_an_unused_argument() -> None:
    x, y = (gg.tensor([v], requires_grad=True) for v in (2.0, 3.0))
    first, _ = checkpoint(lambda x, y: (x * x, x * 3.0), x, y)
    first.sum().backward()
    assert x.grad.item() == 4.0
    assert y.grad is None


def test_the_function_runs_again_and_keeps_nothing_meanwhile() -> None:
    calls = []
    kept = []

    class Note(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 1.0

        @staticmethod
        def backward(ctx, g):
            kept.append(ctx.saved_tensors)
            return g

    def f(x):
        calls.append(len(kept))
        return Note.apply(x * 2.0)

    x = gg.ones(3, requires_grad=True)
    y = checkpoint(f, x)
    assert calls == [0]
    y.sum().backward()
    assert calls == [0, 0]
    assert len(kept) == 1
    with gg.no_grad():
        checkpoint(f, x)
    assert len(calls) == 3


def test_memory_between_forward_and_backward() -> None:
    """The records of ten squares are not there while a checkpoint waits."""
    import gc

    def records() -> int:
        gc.collect()
        return sum(issubclass(type(o), gg.autograd.Node) for o in gc.get_objects())

    def f(x):
        for _ in range(10):
            x = x * x
        return x

    def waiting(make) -> int:
        x = gg.ones(1000, requires_grad=True)
        before = records()
        y = make(x)
        count = records() - before
        y.sum().backward()
        return count

    assert waiting(f) == 10
    assert waiting(lambda x: checkpoint(f, x)) <= 2


def test_random_numbers_are_those_of_the_first_run() -> None:
    def f(x):
        return nn.functional.dropout(x, 0.5) * x

    gg.manual_seed(1)
    x = gg.ones(100, requires_grad=True)
    y = checkpoint(f, x)
    after = gg.get_rng_state().tolist()
    gg.rand(3)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * y.detach().numpy())
    gg.manual_seed(1)
    f(gg.ones(100))
    assert gg.get_rng_state().tolist() == after


def test_nested() -> None:
    def inner(x):
        return checkpoint(block, x) * 2.0

    expected = gradients(lambda x: block(x) * 2.0, [0.4])
    found = gradients(lambda x: checkpoint(inner, x), [0.4])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)


def test_double_backward() -> None:
    x = gg.tensor([0.3, -0.7], dtype=gg.float64, requires_grad=True)
    assert gg.autograd.gradcheck(lambda x: checkpoint(block, x), (x,))
    assert gg.autograd.gradgradcheck(lambda x: checkpoint(block, x), (x,))


def test_a_computed_tensor_from_outside_must_be_an_argument() -> None:
    x = gg.ones(2, requires_grad=True)
    h = x * 2.0
    with pytest.raises(RuntimeError, match="pass it as an argument"):
        checkpoint(lambda a: a * h, x)
    checkpoint(lambda a, h: a * h, x, h).sum().backward()
    assert x.grad.tolist() == [4.0, 4.0]


def test_another_result_in_the_second_run_is_noticed() -> None:
    x = gg.ones(2, requires_grad=True)
    sizes = [1, 2]
    y = checkpoint(lambda a: a[: sizes.pop()] * 1.0, x)
    with pytest.raises(RuntimeError, match="gave other results"):
        y.sum().backward()
    with pytest.raises(ValueError, match="determinism_check"):
        checkpoint(block, x, determinism_check="maybe")


def test_a_parameter_written_before_backward_is_noticed() -> None:
    w = gg.ones(2, requires_grad=True)
    x = gg.ones(2, requires_grad=True)
    y = checkpoint(lambda a: a * w, x)
    with gg.no_grad():
        w.add_(1.0)
    with pytest.raises(gg.SavedTensorError):
        y.sum().backward()


def test_forward_mode_runs_the_function() -> None:
    value, tangent = gg.func.jvp(
        lambda x: checkpoint(gg.sin, x), (gg.tensor(0.0),), (gg.tensor(2.0),)
    )
    assert (value.item(), tangent.item()) == (0.0, 2.0)


def test_sequential() -> None:
    expected = gradients(lambda x: gg.exp(gg.sin(gg.exp(x))), [0.4])
    found = gradients(lambda x: checkpoint_sequential([gg.exp, gg.sin, gg.exp], 2, x), [0.4])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)
    with pytest.raises(ValueError, match="4 segments of a chain of 3"):
        checkpoint_sequential([gg.exp, gg.sin, gg.exp], 4, gg.ones(1))
