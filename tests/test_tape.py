"""GradientTape: TensorFlow's documented behaviour, by closed forms."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import GradientTape


def test_watch_and_gradient() -> None:
    x = gg.tensor([1.0, 2.0])
    with GradientTape() as tape:
        tape.watch(x)
        y = x * x
    assert tape.gradient(y, x).tolist() == [2.0, 4.0]  # of the sum
    assert not x.requires_grad  # watching ends with the block
    assert x.grad is None
    x.add_(1.0)


def test_variables_are_watched_by_themselves() -> None:
    w = gg.tensor(3.0, requires_grad=True)
    with GradientTape() as tape:
        y = w * w
    assert tape.gradient(y, w).item() == 6.0
    assert w.requires_grad
    with GradientTape(watch_accessed_variables=False) as tape:
        y = w * w
    assert tape.gradient(y, w) is None
    with GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(w)
        y = w * w
    assert tape.gradient(y, w).item() == 6.0
    assert w.requires_grad


def test_structures_of_sources_and_targets() -> None:
    a, b = gg.tensor(2.0), gg.tensor(3.0)
    with GradientTape() as tape:
        tape.watch({"a": a, "b": [b]})
        first, second = a * b, b * b
    found = tape.gradient([first, second], {"a": a, "b": [b]})
    assert found["a"].item() == 3.0
    assert found["b"][0].item() == 8.0
    assert len(tape.watched_variables()) == 2


def test_cotangents_and_intermediate_sources() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    with GradientTape(persistent=True) as tape:
        h = x * x
        y = h * 3.0
    g = gg.tensor([1.0, 10.0])
    assert tape.gradient(y, x, output_gradients=g).tolist() == [6.0, 120.0]
    assert tape.gradient(y, h).tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match="2 output_gradients for 1 targets"):
        tape.gradient(y, x, output_gradients=[g, g])


def test_once_unless_persistent() -> None:
    x = gg.tensor(3.0, requires_grad=True)
    with GradientTape() as tape:
        y = x * x
    tape.gradient(y, x)
    with pytest.raises(RuntimeError, match="persistent=True"):
        tape.gradient(y, x)
    with GradientTape(persistent=True) as tape:
        y = x * x
        z = y * y
    assert tape.gradient(z, x).item() == 108.0
    assert tape.gradient(y, x).item() == 6.0


def test_what_is_not_connected() -> None:
    x, other = gg.tensor(3.0, requires_grad=True), gg.ones(2)
    with GradientTape(persistent=True) as tape:
        tape.watch(other)
        y = x * x
    assert tape.gradient(y, other) is None
    assert tape.gradient(y, [x, other], unconnected_gradients="zero")[1].tolist() == [0.0, 0.0]
    assert tape.gradient(gg.ones(1), x) is None
    with pytest.raises(ValueError, match="unconnected_gradients"):
        tape.gradient(y, x, unconnected_gradients="nil")


def test_second_and_third_order() -> None:
    x = gg.tensor(3.0)
    with GradientTape() as third:
        third.watch(x)
        with GradientTape() as second:
            second.watch(x)
            with GradientTape() as first:
                first.watch(x)
                y = x**4
            d1 = first.gradient(y, x)
        d2 = second.gradient(d1, x)
    d3 = third.gradient(d2, x)
    assert [d.item() for d in (d1, d2, d3)] == [108.0, 108.0, 72.0]
    assert not d3.requires_grad


def test_an_inner_watch_is_not_an_outer_one() -> None:
    x = gg.tensor(3.0)
    with GradientTape() as outer:
        with GradientTape() as inner:
            inner.watch(x)
            y = x * x
        slope = inner.gradient(y, x)
    assert slope.item() == 6.0
    assert outer.gradient(slope, x) is None


def test_jacobian() -> None:
    x, w = gg.tensor([1.0, 2.0, 3.0]), gg.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    with GradientTape() as tape:
        tape.watch([x, w])
        y = w @ (x * x)
    of_x, of_w = tape.jacobian(y, [x, w])
    np.testing.assert_allclose(of_x.numpy(), w.numpy() * 2 * x.numpy())
    np.testing.assert_allclose(of_w.numpy(), np.einsum("ij,k->ijk", np.eye(2), x.numpy() ** 2))
    with pytest.raises(RuntimeError, match="non-persistent"):
        tape.jacobian(y, x)


def test_stop_recording() -> None:
    x = gg.tensor(3.0)
    with GradientTape() as tape:
        tape.watch(x)
        y = x * x
        with tape.stop_recording():
            z = y * y
        total = y + z
    assert not z.requires_grad
    assert tape.gradient(total, x).item() == 6.0


def test_it_records_inside_no_grad() -> None:
    x = gg.tensor(3.0)
    with gg.no_grad(), GradientTape() as tape:
        tape.watch(x)
        y = x * x
    assert tape.gradient(y, x).item() == 6.0


def test_reset() -> None:
    x = gg.tensor(3.0)
    with GradientTape() as tape:
        tape.watch(x)
        y = x * x
        tape.reset()
        assert not x.requires_grad
        tape.watch(x)
        z = x * 5.0
    assert tape.gradient(z, x).item() == 5.0
    assert y.item() == 9.0


def test_a_tape_entered_again_begins_anew() -> None:
    x, tape = gg.tensor(3.0), GradientTape()
    for factor in (2.0, 5.0):
        with tape:
            tape.watch(x)
            y = x * factor
        assert tape.gradient(y, x).item() == factor


def test_misuse() -> None:
    x = gg.tensor(3.0)
    tape = GradientTape()
    for call in (lambda: tape.watch(x), tape.reset, lambda: tape.stop_recording().__enter__()):
        with pytest.raises((RuntimeError, ValueError), match="block"):
            call()
    with tape:
        with pytest.raises(TypeError, match="takes tensors, got float"):
            tape.watch(1.0)
        with pytest.raises(RuntimeError, match="floating point"):
            tape.watch(gg.tensor(1))
        with pytest.raises(ValueError, match="still recording"):
            tape.__enter__()
    with pytest.raises(TypeError, match="sources must be tensors"):
        tape.gradient(x, 3.0)


def test_an_exception_ends_the_watch() -> None:
    x = gg.tensor(3.0)
    with pytest.raises(ArithmeticError), GradientTape() as tape:
        tape.watch(x)
        raise ArithmeticError
    assert not x.requires_grad
    assert gg.is_grad_enabled()


def test_training_with_a_tape() -> None:
    gg.manual_seed(0)
    x = gg.randn(64, 3)
    y = x @ gg.tensor([[1.0], [-2.0], [0.5]])
    w = gg.zeros(3, 1, requires_grad=True)
    for _ in range(200):
        with GradientTape() as tape:
            loss = (x @ w - y).square().mean()
        g = tape.gradient(loss, w)
        with gg.no_grad():
            w.sub_(0.1 * g)
    np.testing.assert_allclose(w.detach().numpy()[:, 0], [1.0, -2.0, 0.5], atol=1e-4)
