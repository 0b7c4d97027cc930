"""Forward and backward hooks, compared with torch call for call."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def test_forward_hooks_run_in_order_and_can_replace():
    layer, calls = nn.Identity(), []
    layer.register_forward_pre_hook(lambda m, args: calls.append("pre1"))
    layer.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    layer.register_forward_pre_hook(lambda m, args: calls.append("pre0"), prepend=True)
    layer.register_forward_hook(lambda m, args, out: calls.append("post1"))
    handle = layer.register_forward_hook(lambda m, args, out: out * 10)
    assert layer(gg.tensor(1.0)).item() == 20.0
    assert calls == ["pre0", "pre1", "post1"]
    handle.remove()
    handle.remove()
    assert layer(gg.tensor(1.0)).item() == 2.0


def test_forward_hooks_with_kwargs():
    class Add(nn.Module):
        def forward(self, a, b=0.0):
            return a + b

    layer = Add()
    layer.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "b": 5.0}), with_kwargs=True
    )
    layer.register_forward_hook(lambda m, args, kwargs, out: out + kwargs["b"], with_kwargs=True)
    assert layer(gg.tensor(1.0), b=1.0).item() == 11.0


def test_a_pre_hook_with_kwargs_must_return_a_pair():
    layer = nn.Identity()
    layer.register_forward_pre_hook(lambda m, args, kwargs: 3, with_kwargs=True)
    with pytest.raises(RuntimeError, match="new_args, new_kwargs"):
        layer(gg.ones(1))


def test_a_hook_may_remove_itself_while_running():
    layer, calls = nn.Identity(), []

    def once(module, args):
        calls.append(1)
        handle.remove()

    handle = layer.register_forward_pre_hook(once)
    layer(gg.ones(1))
    layer(gg.ones(1))
    assert calls == [1]


def test_only_callables_are_hooks():
    with pytest.raises(TypeError):
        nn.Identity().register_forward_hook(3)


def _record_backward(lib, tensor, make_grad):
    """Gradients seen by a backward hook on the second layer of a small net, and those of x."""
    model = lib.Sequential(lib.Linear(3, 4), lib.Tanh(), lib.Linear(4, 2))
    w = np.random.default_rng(1)
    for p in model.parameters():
        p.data.copy_(tensor(w.standard_normal(tuple(p.shape)).astype(np.float32)))
    seen = []
    model[1].register_full_backward_hook(
        lambda m, gin, gout: seen.append([g.detach().numpy().copy() for g in (*gin, *gout)])
    )
    x = tensor(w.standard_normal((5, 3)).astype(np.float32))
    make_grad(x)
    y = model(x)
    (y * y).sum().backward()
    return seen, x.grad.numpy(), [p.grad.numpy() for p in model.parameters()]


def test_full_backward_hook_sees_what_torch_shows(torch):
    ours = _record_backward(nn, gg.tensor, lambda x: x.requires_grad_())
    theirs = _record_backward(torch.nn, torch.tensor, lambda x: x.requires_grad_())
    assert len(ours[0]) == len(theirs[0]) == 1
    for a, b in zip(ours[0][0], theirs[0][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-6)
    for a, b in zip(ours[2], theirs[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Mul(nn.Module):
    def forward(self, a, b):
        return a * b


def test_full_backward_hook_sees_the_module_alone():
    """The input is used outside of the module too: that part of its gradient is not grad_input."""
    layer, seen = Mul(), []
    layer.register_full_backward_hook(
        lambda m, gin, gout: seen.append([None if g is None else g.item() for g in (*gin, *gout)])
    )
    x, c = gg.tensor(3.0, requires_grad=True), gg.tensor(5.0)
    (layer(x, c) * 2 + 100 * x).backward()
    assert seen == [[10.0, None, 2.0]]
    assert x.grad.item() == 110.0


def test_full_backward_hook_can_replace_the_gradient():
    layer = Mul()
    layer.register_full_backward_hook(lambda m, gin, gout: (gin[0] * 3, gin[1]))
    layer.register_full_backward_pre_hook(lambda m, gout: (gout[0] * 10,))
    x, y = gg.tensor(3.0, requires_grad=True), gg.tensor(5.0, requires_grad=True)
    layer(x, y).backward()
    assert x.grad.item() == 150.0
    assert y.grad.item() == 30.0


def test_full_backward_hook_with_inputs_that_need_no_gradient():
    layer, seen = nn.Linear(2, 1), []
    layer.register_full_backward_hook(lambda m, gin, gout: seen.append((gin, gout[0].shape)))
    layer(gg.ones(3, 2)).sum().backward()
    assert seen == [((None,), (3, 1))]
    assert layer.weight.grad is not None


def test_full_backward_hook_checks_what_hooks_return():
    layer = Mul()
    handle = layer.register_full_backward_hook(lambda m, gin, gout: (gin[0],))
    x, y = gg.tensor(3.0, requires_grad=True), gg.tensor(5.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="got 1, but expected 2"):
        layer(x, y).backward()
    handle.remove()
    layer.register_full_backward_hook(lambda m, gin, gout: gout)
    layer.register_parameter("w", nn.Parameter(gg.ones(1)))
    layer.forward = lambda a, b: a * b * layer.w
    with pytest.raises(RuntimeError, match="no input requires gradient"):
        layer(gg.ones(1), gg.ones(1)).sum().backward()


def test_full_backward_hook_with_several_outputs():
    class Split(nn.Module):
        def forward(self, x):
            return x * 2, x * 3

    layer, seen = Split(), []
    layer.register_full_backward_hook(
        lambda m, gin, gout: seen.append([None if g is None else g.item() for g in (*gin, *gout)])
    )
    x = gg.tensor(1.0, requires_grad=True)
    a, b = layer(x)
    (a + 10 * b).backward()
    x.grad = None
    layer(x)[0].backward()
    assert seen == [[32.0, 1.0, 10.0], [2.0, 1.0, None]]


def test_backward_hooks_do_not_run_without_recording():
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda m, gin, gout: pytest.fail("ran"))
    with gg.no_grad():
        assert not layer(gg.ones(1, 2)).requires_grad


def test_hooked_call_equals_plain_call(lenet):
    x = gg.randn(2, 1, 28, 28)
    plain = lenet(x).detach().numpy()
    for module in lenet.modules():
        module.register_forward_hook(lambda m, args, out: None)
        module.register_full_backward_hook(lambda m, gin, gout: None)
    hooked = lenet(x)
    np.testing.assert_array_equal(hooked.detach().numpy(), plain)
    hooked.sum().backward()
    assert all(p.grad is not None for p in lenet.parameters())
