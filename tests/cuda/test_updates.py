"""Updates, norms and unscaling of lists of CUDA tensors: values, launches, no waiting."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.codegen import cuda_updates
from gpugrad.lists import unscale

pytestmark = pytest.mark.gpu

SHAPES = [(1,), (31,), (33, 7), (257,), (0, 3), (), (1000, 40), (3,), (16384,), (16385,)]
DTYPES = {
    "float32": ["float32"] * 4,
    "float64": ["float64"] * 4,
    "float16": ["float16"] * 4,
    "bfloat16": ["bfloat16"] * 4,
    "mixed": ["bfloat16", "float32", "float32", "bfloat16"],
    "wide state": ["float32", "float64", "float64", "float16"],
}


@gg.foreach
def adam(p, m, v, g, *, lr, beta1, beta2, eps, step):
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    root = (1 - beta2**step) ** 0.5
    return p - lr * root / (1 - beta1**step) * m / (gg.sqrt(v) + eps * root), m, v


NUMBERS = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "step": 3.0}


def lists(dtypes, shapes=SHAPES, seed=0, device="cuda", offset=0):
    """Lists of positive random tensors; with an offset they begin at odd addresses."""
    rng = np.random.default_rng(seed)
    made = []
    for name in dtypes:
        dtype = gg.dtypes.as_dtype(name)
        row = []
        for shape in shapes:
            n = math.prod(shape)
            values = rng.uniform(0.1, 1.0, n + offset).astype(np.float32)
            flat = gg.tensor(values.astype(dtype), device=device)
            row.append(flat[offset:].reshape(shape))
        made.append(row)
    return made


def close(ours, theirs, exact):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        a, b = a.cpu().double().numpy(), b.double().numpy()
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            half = 2e-2 if gg.dtypes.is_half(theirs[0].dtype) else 1e-6
            np.testing.assert_allclose(a, b, half, 1e-6)


def launches(host_device, call):
    with host_device.counting() as counted:
        call()
    return counted.launches


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_values_are_those_of_the_cpu(dtypes, offset):
    """To the bit in one floating type where the GPU's square root and division are IEEE's."""
    ours = lists(DTYPES[dtypes], offset=offset)
    theirs = lists(DTYPES[dtypes], device="cpu", offset=offset)
    adam(*ours, **NUMBERS)
    adam(*theirs, **NUMBERS)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, exact=dtypes in ("float32", "float64", "float16", "bfloat16"))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("dtypes", ["float32", "mixed", "float64"])
def test_numbers_on_the_device(dtypes, each):
    ours, theirs = lists(DTYPES[dtypes]), lists(DTYPES[dtypes], device="cpu")
    lr = gg.tensor(0.1, dtype=gg.float64, device="cuda")
    steps = [gg.tensor(3.0, device="cuda") for _ in SHAPES]
    adam(*ours, **{**NUMBERS, "lr": lr, "step": steps if each else steps[0]})
    adam(*theirs, **NUMBERS)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, exact=False)


def test_numbers_of_each_tensor():
    @gg.foreach
    def move(p, *, by):
        return p + by

    tensors = [gg.zeros(n, device="cuda") for n in (3, 70000, 5)]
    move(tensors, by=[gg.tensor(float(k), device="cuda") for k in range(3)])
    for k, t in enumerate(tensors):
        assert (t == k).all().item()


@pytest.mark.parametrize("dtypes", ["float32", "mixed"])
@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_a_flag_on_the_device_forbids_the_update(dtypes, flag):
    ours, before = lists(DTYPES[dtypes]), lists(DTYPES[dtypes], device="cpu")
    done = lists(DTYPES[dtypes], device="cpu")
    adam(*done, **NUMBERS)
    adam(*ours, unless=gg.tensor(flag, device="cuda"), **NUMBERS)
    for a, b in zip(ours, before if flag else done, strict=True):
        close(a, b, exact=True)


def test_one_launch_for_many_tensors(host_device):
    tensors = [gg.zeros(k % 5 + 1, device="cuda") for k in range(60)]
    many = [gg.zeros(2, device="cuda") for _ in range(1000)]

    @gg.foreach
    def increase(p, *, by):
        return p + by

    increase(tensors, by=1.0)
    assert launches(host_device, lambda: increase(tensors, by=1.0)) == 1
    per_launch = cuda_updates.table_type(1)[1]
    expected = -(-1000 // per_launch)
    assert launches(host_device, lambda: increase(many, by=1.0)) == expected < 10
    assert all((t == 2).all().item() for t in tensors) and all((t == 1).all().item() for t in many)


def test_layouts_without_a_kernel_are_computed_by_cupy():
    x = gg.tensor(np.arange(12, dtype=np.float32).reshape(3, 4), device="cuda")
    y, expected = x[:, ::2], x.cpu().numpy()
    expected[:, ::2] *= 2.0

    @gg.foreach
    def scale(p, *, by):
        return p * by

    scale([y, gg.ones(2, device="cuda")], by=2.0)
    np.testing.assert_array_equal(x.cpu().numpy(), expected)
    scale([y], by=gg.tensor(0.5, device="cuda"))
    scale([y], by=gg.tensor(9.0, device="cuda"), unless=gg.ones((), device="cuda"))
    np.testing.assert_array_equal(x.cpu().numpy(), np.arange(12).reshape(3, 4))


def test_a_tensor_that_is_listed_twice_is_updated_twice():
    @gg.foreach
    def double_it(p, *, by):
        return p * by + 1

    x = gg.ones(70000, device="cuda")
    double_it([x, x], by=2.0)
    assert (x == 7).all().item()


def test_tensors_of_both_devices_and_wrong_shapes():
    @gg.foreach
    def add(p, g):
        return p + g

    a, b = gg.zeros(3), gg.zeros(3, device="cuda")
    add([a, b], [gg.ones(3), gg.ones(3, device="cuda")])
    assert a.tolist() == b.tolist() == [1.0] * 3
    with pytest.raises(RuntimeError, match="same shape"):
        add([b], [gg.ones(4, device="cuda")])


def test_without_kernels(monkeypatch):
    from gpugrad.config import settings

    monkeypatch.setattr(settings, "cuda_kernels", False)
    ours, theirs = lists(DTYPES["mixed"]), lists(DTYPES["mixed"], device="cpu")
    adam(*ours, **NUMBERS, unless=gg.zeros((), device="cuda"))
    adam(*theirs, **NUMBERS)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, exact=False)


def test_a_broken_kernel_is_noticed(monkeypatch):
    """An element too many at the end of a chunk: the values differ."""
    text = cuda_updates.kernel_text

    def broken(formula, variant):
        return text(formula, variant).replace("i < chunk.size", "i < chunk.size - 1")

    monkeypatch.setattr(cuda_updates, "kernel_text", broken)

    @gg.foreach
    def increase(p, *, by):
        return p + by

    x = gg.zeros(31, device="cuda")
    increase([x], by=1.0)
    assert x.sum().item() == 30.0


# ---- optimizers

OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.1, "amsgrad": True}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}),
]


def parameters(device, dtype="float32"):
    made = lists([dtype], [(31,), (33, 7), (5,), ()], device=device)[0]
    return [p.clone().requires_grad_() for p in made]


def set_gradients(params, step, dtype="float32"):
    gradients = lists([dtype], [tuple(p.shape) for p in params], seed=step, device="cpu")[0]
    for p, g in zip(params, gradients, strict=True):
        p.grad = (g - 0.5).to(p.device)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_optimizers_make_the_steps_of_the_cpu(name, options, capturable):
    if capturable and name in ("SGD", "Adagrad"):
        pytest.skip("torch's option of the others")
    more = {"capturable": True} if capturable else {}
    ours, theirs = parameters("cuda"), parameters("cpu")
    a = getattr(gg.optim, name)(ours, **options, **more)
    b = getattr(gg.optim, name)(theirs, **options)
    for step in range(4):
        for p in (ours, theirs):
            set_gradients(p, step)
        a.step()
        b.step()
        close([p.detach() for p in ours], [p.detach() for p in theirs], exact=not capturable)


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_step_does_not_wait_copy_or_allocate(
    name, options, master, no_hidden_traffic, host_device
):
    dtype = "bfloat16" if master else "float32"
    params = parameters("cuda", dtype)
    optimizer = getattr(gg.optim, name)(params, **options, master_weights=master)
    set_gradients(params, 0, dtype)
    for _ in range(3):
        optimizer.step()
    with no_hidden_traffic():
        optimizer.step()
    assert launches(host_device, optimizer.step) == 1


def test_the_learning_rate_may_be_a_tensor_of_the_device(no_hidden_traffic):
    ours, theirs = parameters("cuda"), parameters("cpu")
    lr = gg.tensor(0.5, device="cuda")
    a, b = gg.optim.Adam(ours, lr=lr, capturable=True), gg.optim.Adam(theirs, lr=0.5)
    for step, rate in enumerate((0.5, 0.25, 0.125)):
        lr.fill_(rate)
        b.param_groups[0]["lr"] = rate
        for p in (ours, theirs):
            set_gradients(p, step)
        if step < 2:
            a.step()
        else:
            with no_hidden_traffic("sync", "h2d", "d2h"):
                a.step()
        b.step()
    close([p.detach() for p in ours], [p.detach() for p in theirs], exact=False)


def test_state_moves_between_counting_on_the_host_and_on_the_device():
    ours, theirs = parameters("cuda"), parameters("cpu")
    a, b = gg.optim.Adam(ours, lr=0.1), gg.optim.Adam(theirs, lr=0.1)
    for step in range(4):
        a.param_groups[0]["capturable"] = step >= 2
        for p in (ours, theirs):
            set_gradients(p, step)
        a.step()
        b.step()
    assert a.state[ours[0]]["step"].is_cuda and a.state[ours[0]]["step"].item() == 4.0
    close([p.detach() for p in ours], [p.detach() for p in theirs], exact=False)
    twin = gg.optim.Adam(ours, lr=0.1)
    twin.load_state_dict(a.state_dict())
    assert twin.state[ours[0]]["step"].item() == 4.0


def test_zero_grad(host_device):
    params = parameters("cuda")
    set_gradients(params, 0)
    params[0].grad[0] = math.nan
    optimizer = gg.optim.SGD(params, lr=0.1)
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all().item() for p in params)
    assert launches(host_device, lambda: optimizer.zero_grad(set_to_none=False)) == 1


# ---- norms, clipping, unscaling


@pytest.mark.parametrize("order", [2.0, 1.0, 3.0, 0.0, math.inf, -math.inf])
@pytest.mark.parametrize("dtypes", [["float32"], ["float16"], ["bfloat16"], ["float64", "float16"]])
def test_norms_of_lists(dtypes, order):
    tensors = [t for row in lists(dtypes) for t in row]
    values = np.concatenate([t.cpu().double().numpy().reshape(-1) for t in tensors])
    found = gg.foreach_norm(tensors, order)
    assert found.is_cuda and found.shape == ()
    assert found.dtype == (gg.float64 if "float64" in dtypes else gg.float32)
    np.testing.assert_allclose(found.item(), np.linalg.norm(values, order), 1e-6)


def test_norms_keep_what_is_not_finite():
    for value in (math.inf, math.nan):
        tensors = [gg.ones(40000, device="cuda"), gg.ones(3, device="cuda")]
        tensors[0][33333] = value
        for order in (2.0, 1.0, math.inf):
            np.testing.assert_equal(gg.foreach_norm(tensors, order).item(), value)


def test_many_tensors_take_few_launches(host_device):
    tensors = [gg.ones(3, device="cuda") for _ in range(900)]
    gg.foreach_norm(tensors)
    expected = -(-900 // cuda_updates.table_type(1)[1]) + 1
    assert launches(host_device, lambda: gg.foreach_norm(tensors)) == expected
    assert gg.foreach_norm(tensors).item() == pytest.approx(math.sqrt(2700))


def test_clipping_equals_the_cpu_and_does_not_wait(no_hidden_traffic):
    for clip in (
        lambda p: nn.utils.clip_grad_norm_(p, 0.5),
        lambda p: nn.utils.clip_grad_norm_(p, 1e6, 1.0),
        lambda p: nn.utils.clip_grad_value_(p, 0.25),
    ):
        ours, theirs = parameters("cuda"), parameters("cpu")
        for p in (ours, theirs):
            set_gradients(p, 1)
        clip(ours)
        with no_hidden_traffic("sync", "h2d", "d2h"):
            clip(ours)
        clip(theirs)
        clip(theirs)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.grad.cpu().numpy(), b.grad.numpy(), 1e-5)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [None, math.inf, -math.inf, math.nan])
def test_unscaling(dtype, bad, offset):
    (tensors,) = lists([dtype], offset=offset)
    if bad is not None:
        tensors[6][999, 39] = bad
    expected = [t.cpu().double().numpy() * 0.25 for t in tensors]
    found = gg.zeros((), device="cuda")
    unscale(tensors, gg.tensor(0.25, device="cuda"), found)
    assert found.item() == (bad is not None)
    for t, e in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(t.cpu().double().numpy(), e, 1e-2 if "16" in dtype else 1e-6)
