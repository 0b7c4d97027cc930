"""The tape: what lands in ``.grad``, when, and that nothing else changes."""

import gc
import threading
import weakref

import numpy as np
import pytest

import gpugrad as gg


def leaf(*values, dtype=gg.float64):
    data = values if len(values) > 1 else values[0]
    return gg.tensor(data, dtype=dtype, requires_grad=True)


# ------------------------------------------------------------------------------------------------
# accumulation


def test_a_tensor_used_many_times_in_one_operation():
    x = leaf(3.0)
    (x * x * x + x - x / x).backward()
    assert x.grad.item() == 3 * 9 + 1


def test_a_tensor_used_by_many():
    x = leaf(1.0, 2.0)
    sum((x * float(k) for k in range(100)), start=gg.zeros(2, dtype=gg.float64)).sum().backward()
    assert x.grad.tolist() == [4950.0, 4950.0]


def test_diamonds_visit_every_record_once():
    """2**60 paths, 60 records."""
    x = leaf(1.0)
    y, visits = x, []
    for _ in range(60):
        y = y + y
        y.register_hook(lambda g: visits.append(1))
    y.backward()
    assert x.grad.item() == 2.0**60
    assert len(visits) == 60


def test_paths_of_different_length_meet():
    x = leaf(0.5)
    short, long = x * 2, x
    for _ in range(5):
        long = long.sin()
    y = (short * long).tanh() + long
    y.backward()

    def value(v):
        s = v
        for _ in range(5):
            s = np.sin(s)
        return np.tanh(2 * v * s) + s

    assert x.grad.item() == pytest.approx((value(0.5 + 1e-6) - value(0.5 - 1e-6)) / 2e-6, rel=1e-8)


def test_backward_accumulates_over_calls():
    x = leaf(2.0)
    for k in range(1, 4):
        (x * x).backward()
        assert x.grad.item() == 4.0 * k


def test_a_leaf_may_be_the_output():
    x = leaf(5.0)
    x.backward()
    assert x.grad.item() == 1.0
    assert gg.autograd.grad(x, x)[0].item() == 1.0
    x.backward(gg.tensor(3.0, dtype=gg.float64))
    assert x.grad.item() == 4.0


def test_an_output_that_is_below_another():
    x = leaf(3.0)
    y = x * x
    z = y * 2
    gg.autograd.backward([y, z])
    assert x.grad.item() == 6 + 12


def test_the_same_output_twice():
    x = leaf(3.0)
    y = x * x
    gg.autograd.backward([y, y], [gg.tensor(1.0), gg.tensor(10.0)])
    assert x.grad.item() == 66.0


def test_large_gradients_accumulate_in_place_without_touching_others():
    """Above 64 KiB the engine adds into memory it owns: it must not own what anyone else sees."""
    n = 50_000
    x = gg.ones(n, requires_grad=True)
    y = x * 1.0
    seen = []
    a, b = y * 2.0, y * 3.0
    a.register_hook(seen.append)
    b.register_hook(seen.append)
    y.retain_grad()
    (a + b + y).sum().backward()
    assert all((s == 1.0).all() for s in seen)
    assert (y.grad == 6.0).all()
    assert (x.grad == 6.0).all()
    x.grad.mul_(0)
    assert (y.grad == 6.0).all()
    assert all((s == 1.0).all() for s in seen)


# ------------------------------------------------------------------------------------------------
# gradients alias nothing


def no_shared_memory(tensors):
    for i, a in enumerate(tensors):
        for b in tensors[i + 1 :]:
            assert not np.shares_memory(a.array, b.array)


@pytest.mark.parametrize("n", [3, 40_000])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: gg.cat([x, y]),
        lambda x, y: gg.stack([x, y]),
        lambda x, y: x.view(1, -1) + y,
        lambda x, y: x.expand(2, x.shape[0]) + y,
        lambda x, y: gg.where(gg.ones(x.shape[0], dtype=gg.bool), x, y) + y,
        lambda x, y: x.clone() + y.clone(),
        lambda x, y: x + 0 * y,
        lambda x, y: gg.broadcast_tensors(x, y)[0] + y,
        lambda x, y: x.to(gg.float64) + y,
    ],
)
def test_gradients_share_no_memory(function, n):
    x, y = gg.ones(n, requires_grad=True), gg.ones(n, requires_grad=True)
    out = function(x, y)
    seed = gg.ones(*out.shape, dtype=out.dtype)
    out.backward(seed)
    no_shared_memory([x.grad, y.grad, seed, x, y, out])
    before = y.grad.numpy().copy(), seed.numpy().copy()
    x.grad.add_(100.0)
    np.testing.assert_array_equal(y.grad.numpy(), before[0])
    np.testing.assert_array_equal(seed.numpy(), before[1])


def test_the_gradient_of_a_leaf_is_not_the_users_array():
    x, seed = gg.zeros(4, requires_grad=True), np.ones(4, np.float32)
    x.backward(gg.from_numpy(seed))
    x.grad.add_(5.0)
    assert seed.tolist() == [1.0] * 4


def test_a_second_backward_does_not_write_into_a_gradient_handed_out():
    """torch accumulates into ``.grad`` in place, so a reference sees it: that much and no more."""
    x = gg.ones(2, requires_grad=True)
    (result,) = gg.autograd.grad((x * 3).sum(), x)
    x.grad = None
    (x * 5).sum().backward()
    (x * 7).sum().backward()
    assert result.tolist() == [3.0, 3.0]
    assert x.grad.tolist() == [12.0, 12.0]


def test_grad_returns_separate_arrays_for_the_same_input():
    x = gg.ones(2, requires_grad=True)
    a, b = gg.autograd.grad((x * 3).sum(), [x, x])
    assert a.tolist() == b.tolist() == [3.0, 3.0]


# ------------------------------------------------------------------------------------------------
# freeing and keeping the graph


def test_retain_graph():
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12.0
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()
    assert x.grad.item() == 12.0  # the failed pass added nothing


def test_a_graph_that_saved_nothing_may_be_used_again():
    x = leaf(1.0, 2.0)
    y = (x + 1).sum()
    y.backward()
    y.backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_shared_part_is_freed_by_the_first_backward():
    x = leaf(2.0)
    shared = x * x
    a, b = shared * 3, shared * 4
    a.backward()
    with pytest.raises(RuntimeError, match="second time"):
        b.backward()


def test_saved_memory_is_freed_by_backward():
    x = gg.ones(10, requires_grad=True)
    h = x * 2
    y = (h * h).sum()
    saved = weakref.ref(h)
    del h
    assert saved() is not None
    y.backward()
    gc.collect()
    assert saved() is None


def test_a_dropped_graph_is_freed_without_backward():
    gc.disable()  # reference counts alone must do it
    try:
        x = gg.ones(10, requires_grad=True)
        h = x.exp()
        y = (h * h).sum()
        found = [weakref.ref(h), weakref.ref(y), weakref.ref(y.grad_fn)]
        del h, y
        assert [r() for r in found] == [None] * 3
    finally:
        gc.enable()


def test_a_leaf_that_is_gone_ends_its_branch():
    x, y = leaf(2.0), leaf(3.0)
    z = x * y
    del x
    z.backward()
    assert y.grad.item() == 2.0


def test_dropping_a_chain_of_100_000_operations():
    """Neither backward nor the destruction of the graph recurses."""
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = -y
    del y
    gc.collect()


# ------------------------------------------------------------------------------------------------
# create_graph


def test_third_derivative():
    x = leaf(0.7)
    y = x.sin() * x**4
    orders = [y]
    for _ in range(3):
        orders.append(gg.autograd.grad(orders[-1], x, create_graph=True)[0])
    s, c, v = np.sin(0.7), np.cos(0.7), 0.7
    expected = [
        s * v**4,
        c * v**4 + 4 * s * v**3,
        -s * v**4 + 8 * c * v**3 + 12 * s * v**2,
        -c * v**4 - 12 * s * v**3 + 36 * c * v**2 + 24 * s * v,
    ]
    assert [o.item() for o in orders] == pytest.approx(expected, rel=1e-12)


def test_gradient_penalty_equals_torch(judge, torch):
    """A norm of a gradient in the loss, as in WGAN-GP: through matmul, tanh and broadcasting."""
    r = np.random.default_rng(0)
    arrays = [r.normal(size=s) for s in [(4, 3), (3, 5), (5,), (5, 1)]]

    def penalty(t, x, w, b, v):
        out = t.tanh(x @ w + b) @ v
        (g,) = t.autograd.grad(out.sum(), x, create_graph=True)
        return ((g * g).sum(1).sqrt() - 1).square().mean() + out.mean()

    judge(penalty, *arrays, rtol=1e-9, atol=1e-12)


def test_create_graph_into_grad():
    x = leaf(3.0)
    (x**3).backward(create_graph=True)
    assert x.grad.requires_grad
    (second,) = gg.autograd.grad(x.grad, x)
    assert second.item() == pytest.approx(18.0)


def test_without_create_graph_a_gradient_has_no_history():
    x = leaf(3.0)
    (g,) = gg.autograd.grad(x**3, x)
    assert not g.requires_grad


# ------------------------------------------------------------------------------------------------
# grad() and inputs=


def test_unused_inputs():
    x, y = leaf(1.0), leaf(2.0)
    with pytest.raises(RuntimeError, match="allow_unused=True"):
        gg.autograd.grad(x * 2, [x, y])
    a, b = gg.autograd.grad(x * 2, [x, y], allow_unused=True)
    assert a.item() == 2.0
    assert b is None
    _, b = gg.autograd.grad(x * 2, [x, y], materialize_grads=True)
    assert b.item() == 0.0
    assert b.dtype == y.dtype


def test_grad_touches_no_grad():
    x, y = leaf(1.0), leaf(2.0)
    gg.autograd.grad(x * y, x)
    assert x.grad is None
    assert y.grad is None


def test_grad_with_respect_to_an_intermediate():
    x = leaf(3.0)
    h = x * x
    y = h.exp()
    a, b = gg.autograd.grad(y, [h, x])
    assert a.item() == pytest.approx(np.exp(9.0))
    assert b.item() == pytest.approx(6 * np.exp(9.0))


def test_grad_with_respect_to_the_output_itself():
    x = leaf(3.0)
    y = x * x
    a, b = gg.autograd.grad(y, [y, x])
    assert (a.item(), b.item()) == (1.0, 6.0)


def test_backward_of_inputs_only():
    x, y = leaf(2.0), leaf(3.0)
    h = x * y
    (h * h).backward(inputs=[x])
    assert x.grad.item() == 36.0
    assert y.grad is None
    (x * y).backward(inputs=x)
    assert x.grad.item() == 39.0
    with pytest.raises(RuntimeError, match="empty"):
        (x * y).backward(inputs=[])


def test_non_scalar_outputs_need_a_cotangent():
    x = gg.ones(2, 3, requires_grad=True)
    y = x * 2
    with pytest.raises(RuntimeError, match="scalar outputs"):
        y.backward()
    with pytest.raises(RuntimeError, match=r"shape of \(3,\)"):
        y.backward(gg.ones(3))
    y.backward(gg.full((2, 3), 5.0))
    assert (x.grad == 10.0).all()
    (x * 1).sum(0, keepdim=True)[:, :1].backward()  # one element will do
    assert x.grad[:, 0].tolist() == [11.0, 11.0]


def test_cotangents_of_another_dtype_are_converted():
    x = gg.ones(3, requires_grad=True)
    (x * 2).backward(gg.ones(3, dtype=gg.float64))
    assert x.grad.dtype == gg.float32


@pytest.mark.parametrize("number", [1, 3])
def test_as_many_cotangents_as_outputs(number):
    x = gg.ones(2, requires_grad=True)
    with pytest.raises((RuntimeError, ValueError)):
        gg.autograd.grad([x * 2, x * 3], x, [gg.ones(2)] * number)


def test_what_does_not_require_grad():
    x = gg.ones(3)
    with pytest.raises(RuntimeError, match="does not require grad"):
        x.sum().backward()
    with pytest.raises(RuntimeError, match="does not require grad"):
        gg.autograd.grad(leaf(1.0), x)


# ------------------------------------------------------------------------------------------------
# shapes and dtypes


SHAPED = {
    "slice": lambda t, x, y: (x[1:, ::2] * y[0, :2]).sum(),
    "negative step": lambda t, x, y: (t.flip(x, (0,))[1:] * y[:2]).sum(),
    "row and column": lambda t, x, y: (x[:, :1] * y[:1]).sum(),
    "scalar of a tensor": lambda t, x, y: x[1, 2] * y[0, 0] + x.sum(),
    "expand": lambda t, x, y: (x[0].expand(3, 4) * y).sum(),
    "transpose": lambda t, x, y: (x.T @ y).square().sum(),
    "view of a view": lambda t, x, y: (x.view(2, 6)[1].view(3, 2) * y[:, :2]).sum(),
    "unbind": lambda t, x, y: sum(a * b.sum() for a, b in zip(x.unbind(1), y, strict=False)).sum(),
    "zero-dimensional": lambda t, x, y: (x.sum() * y.mean()) ** 2 / (x.sum() + 100),
    "diagonal": lambda t, x, y: (x.diagonal() * y.diagonal(1)).sum(),
    "index": lambda t, x, y: (x[t.tensor([0, 0, 2])] * y).sum(),
    "mask": lambda t, x, y: (x[x > 0] ** 2).sum() + y.sum(),
    "empty": lambda t, x, y: x[:0].sum() + (x * y).sum(),
    "chunks": lambda t, x, y: sum(
        (a * b).sum() for a, b in zip(x.chunk(2, 1), y.chunk(2, 1), strict=True)
    ),
}


@pytest.mark.parametrize("name", SHAPED)
def test_gradients_of_views_and_broadcasts(judge, name):
    r = np.random.default_rng(3)
    x, y = r.normal(size=(3, 4)), r.normal(size=(3, 4))
    if name == "unbind":
        y = y.T.copy()
    judge(SHAPED[name], x, y)


@pytest.mark.parametrize("a", ["float16", "float32", "float64"])
@pytest.mark.parametrize("b", ["float16", "float32", "float64", "int64", "bool"])
def test_gradients_have_the_dtype_of_their_tensor(judge, a, b):
    r = np.random.default_rng(4)
    x, y = r.uniform(1, 2, (3, 4)).astype(a), (r.uniform(1, 3, 4)).astype(b)
    rtol = 1e-2 if "float16" in (a, b) else 1e-5
    judge(
        lambda t, x, y: t.exp(x * y) + x / y - y * 2 if b != "bool" else x * y,
        x,
        y,
        rtol=rtol,
        atol=rtol,
    )


def test_a_wide_graph():
    xs = [leaf(float(k)) for k in range(2000)]
    gg.stack(xs).square().sum().backward()
    assert [x.grad.item() for x in xs] == [2.0 * k for k in range(2000)]


# ------------------------------------------------------------------------------------------------
# hooks


def test_a_hook_sees_the_complete_gradient_once():
    x = leaf(2.0)
    h = x * x
    seen = []
    h.register_hook(lambda g: seen.append(g.item()))
    (h * 3 + h * 4).backward()
    assert seen == [7.0]


def test_a_hook_may_replace_the_gradient():
    x = leaf(2.0)
    h = x * x
    h.register_hook(lambda g: g * 10)
    h.register_hook(lambda g: g + 1)  # in order of registration
    h.backward()
    assert x.grad.item() == 4 * 11


def test_a_hook_of_a_leaf_runs_before_accumulation():
    x = leaf(2.0)
    x.grad = gg.tensor(100.0, dtype=gg.float64)
    x.register_hook(lambda g: -g)
    (x * 3).backward()
    assert x.grad.item() == 97.0


def test_a_hook_may_be_removed():
    x = leaf(2.0)
    handle = x.register_hook(lambda g: g * 100)
    handle.remove()
    handle.remove()
    with x.register_hook(lambda g: g * 7):
        (x * 1).backward()
    (x * 1).backward()
    assert x.grad.item() == 8.0


def test_hooks_see_gradients_of_grad_too():
    x = leaf(2.0)
    h = x * x
    h.register_hook(lambda g: g * 10)
    assert gg.autograd.grad(h, x)[0].item() == 40.0
    h2 = x * x
    h2.register_hook(lambda g: g * 10)
    assert gg.autograd.grad(h2 * 1, h2)[0].item() == 10.0


def test_a_hook_must_keep_the_shape():
    x = gg.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda g: g.sum())
    with pytest.raises(RuntimeError, match="shape"):
        y.sum().backward()


def test_retain_grad():
    x = leaf(2.0)
    h = x * x
    h.retain_grad()
    h.retain_grad()
    assert h.retains_grad
    (h * 3).backward()
    assert h.grad.item() == 3.0
    (x * x).backward()
    assert h.grad.item() == 3.0
    with pytest.raises(RuntimeError, match="requires_grad=False"):
        gg.ones(1).retain_grad()


def test_retained_gradient_comes_after_hooks():
    x = leaf(2.0)
    h = x * x
    h.retain_grad()
    h.register_hook(lambda g: g * 5)
    h.backward()
    assert h.grad.item() == 5.0


def test_post_accumulate_hook():
    """An optimizer step fused into backward."""
    x = leaf(1.0, 2.0)
    seen = []

    def step(p):
        seen.append(p.grad.tolist())
        with gg.no_grad():
            p.sub_(p.grad)
        p.grad = None

    handle = x.register_post_accumulate_grad_hook(step)
    (x * 2).sum().backward()
    assert seen == [[2.0, 2.0]]
    assert x.tolist() == [-1.0, 0.0]
    assert x.grad is None
    handle.remove()
    (x * 2).sum().backward()
    assert len(seen) == 1
    with pytest.raises(RuntimeError, match="non-leaf"):
        (x * 2).register_post_accumulate_grad_hook(step)


def test_hooks_are_forgotten_with_their_tensor():
    x = leaf(2.0)
    h = x * x

    class Hook:
        def __call__(self, g):
            return g * 2

    hook = Hook()
    h.register_hook(hook)
    found = weakref.ref(hook)
    del h, hook
    gc.collect()
    assert found() is None


# ------------------------------------------------------------------------------------------------
# errors leave the engine usable


class Refuses(gg.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        raise ValueError("refused")


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_exception_in_backward_leaves_the_engine_usable(create_graph):
    x = leaf(2.0)
    with pytest.raises(ValueError, match="refused"):
        (Refuses.apply(x) * x).backward(create_graph=create_graph)
    assert gg.is_grad_enabled()
    x.grad = None
    (x * x).backward()
    assert x.grad.item() == 4.0


def test_an_exception_in_a_hook():
    x = leaf(2.0)

    def fail(g):
        raise KeyError("hook")

    with pytest.raises(KeyError), x.register_hook(fail):
        (x * x).backward()
    (x * x).backward()
    assert x.grad.item() == 4.0


def test_backward_inside_backward():
    """A hook that differentiates something else (as checkpointing does)."""
    x, w = leaf(2.0), leaf(3.0)
    y = x * x

    def hook(g):
        with gg.enable_grad():
            return g * gg.autograd.grad(w * w * w, w)[0]

    y.register_hook(hook)
    y.backward()
    assert x.grad.item() == 4 * 27


# ------------------------------------------------------------------------------------------------
# anomaly mode and saved values


def test_anomaly_mode_names_the_operation_and_its_line():
    x = leaf(-1.0)
    with gg.autograd.detect_anomaly(), np.errstate(invalid="ignore"):
        y = x.sqrt() * 2
        with pytest.raises(RuntimeError, match=r"sqrtBackward.*nan.*test_engine.py"):
            y.backward()


def test_anomaly_mode_is_silent_about_finite_gradients():
    x = leaf(4.0)
    with gg.autograd.detect_anomaly():
        x.sqrt().backward()
    assert x.grad.item() == 0.25


def test_anomaly_mode_ends_with_its_block():
    x = leaf(-1.0)
    with gg.autograd.detect_anomaly():
        pass
    with np.errstate(invalid="ignore"):
        x.sqrt().backward()
    assert np.isnan(x.grad.item())


def test_a_stale_saved_value_names_both_lines_in_anomaly_mode():
    x, w = gg.ones(3, requires_grad=True), gg.ones(3)
    with gg.autograd.detect_anomaly():
        y = x * w
        w.add_(1)
    with pytest.raises(gg.SavedTensorError, match=r"saved.*test_engine.py:\d+.*test_engine.py:\d+"):
        y.sum().backward()


WRITES = {
    "add_": lambda t: t.add_(1),
    "mul_": lambda t: t.mul_(2),
    "+=": lambda t: t.__iadd__(1),
    "setitem": lambda t: t.__setitem__(0, 5.0),
    "setitem by mask": lambda t: t.__setitem__(t > 0, 5.0),
    "zero_": lambda t: t.zero_(),
    "fill_": lambda t: t.fill_(3.0),
    "copy_": lambda t: t.copy_(gg.zeros(3)),
    "normal_": lambda t: t.normal_(),
    "through a view": lambda t: t[1:].add_(1),
    "through a view of a view": lambda t: t.view(3, 1)[0].add_(1),
    "through detach": lambda t: t.detach().add_(1),
    "clamp_": lambda t: t.clamp_(max=0.5),
    "foreach": lambda t: double([t]),
}


@gg.foreach
def double(p):
    return p * 2


@pytest.mark.parametrize("name", WRITES)
def test_every_write_to_a_saved_value_is_noticed(name):
    x, w = gg.ones(3, requires_grad=True), gg.ones(3)
    y = (x * w).sum()
    WRITES[name](w)
    with pytest.raises(gg.SavedTensorError, match="inplace operation"):
        y.backward()


@pytest.mark.parametrize("name", WRITES)
def test_every_write_to_a_saved_output_is_noticed(name):
    x = gg.ones(3, requires_grad=True)
    y = x.exp()
    with gg.no_grad():
        WRITES[name](y)
    with pytest.raises(gg.SavedTensorError):
        y.sum().backward()


def test_writes_before_saving_or_to_other_memory_do_not_matter():
    x, w = gg.ones(3, requires_grad=True), gg.ones(3)
    w.add_(1)
    y = (x * w).sum()
    w.clone().add_(1)
    y.backward()
    assert x.grad.tolist() == [2.0] * 3


def test_a_value_that_is_not_saved_may_be_written():
    x, w = gg.ones(3, requires_grad=True), gg.ones(3)
    y = (x + w).sum()
    w.add_(1)
    y.backward()
    assert x.grad.tolist() == [1.0] * 3


def test_a_parameter_stepped_between_forward_and_backward():
    """The classic mistake of two losses and one early step."""
    w = gg.ones(2, 2, requires_grad=True)
    x = gg.ones(1, 2, requires_grad=True)
    loss = (x @ w).sum()
    with gg.no_grad():
        w -= 0.1
    with pytest.raises(gg.SavedTensorError):
        loss.backward()


# ------------------------------------------------------------------------------------------------
# threads


def test_threads_on_separate_graphs(in_threads):
    def work(seed):
        r = np.random.default_rng(seed)
        for _ in range(30):
            a = r.normal(size=(8, 8))
            x = gg.tensor(a, requires_grad=True)
            (x @ x).tanh().sum().backward()
            s = 1 - np.tanh(a @ a) ** 2
            np.testing.assert_allclose(x.grad.numpy(), s @ a.T + a.T @ s, rtol=1e-10)

    in_threads(work)


def test_threads_that_only_compute_gradients_share_parameters(in_threads):
    w = gg.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)

    def work(k):
        return [gg.autograd.grad((w * k).square().sum(), w)[0].numpy() for _ in range(50)]

    for k, found in enumerate(in_threads(work)):
        for g in found:
            np.testing.assert_array_equal(g, 2 * k * k * w.detach().numpy())


@pytest.mark.parametrize("n", [3, 1_000_000])
def test_threads_add_to_the_grad_of_a_shared_parameter(n, in_threads):
    """No contribution may be lost (torch locks its AccumulateGrad)."""
    w = gg.zeros(n, requires_grad=True)
    w.grad = gg.zeros(n)
    start = threading.Barrier(4)

    def work(_):
        one = gg.ones(n)
        start.wait()
        for _ in range(25):
            w.backward(one)

    in_threads(work)
    assert (w.grad.numpy() == 100.0).all()


def test_modes_belong_to_their_thread():
    inside, go = threading.Event(), threading.Event()
    x = gg.ones(2, requires_grad=True)

    def other():
        with gg.no_grad():
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    try:
        assert gg.is_grad_enabled()
        assert (x * 2).requires_grad
    finally:
        go.set()
        thread.join()


def test_gradients_through_complex_numbers_are_refused_not_wrong():
    """torch's convention conjugates; the rules of the table do not."""
    with pytest.raises(RuntimeError, match="silently wrong"):
        gg.tensor([1 + 2j], requires_grad=True)
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="silently wrong"):
        x * 1j
    with pytest.raises(RuntimeError, match="silently wrong"):
        x.to(gg.complex64)
    with gg.no_grad():
        assert (x * 1j).dtype == gg.complex64
    assert (gg.tensor([1j]) * gg.tensor([1j])).tolist() == [-1]
