"""Mixed precision in compiled programs on the CPU: autocasting inside and around them, scaled
losses with steps that are skipped, learning rates in tensors, master copies."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.nn import functional as F
from gpugrad.static import runners

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

STEPS = 14
OVERFLOWS = (5, 6, 10)
OPTIMIZERS = {
    "sgd": lambda p: gg.optim.SGD(p, lr=0.05),
    "momentum": lambda p: gg.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.5),
    "adam": lambda p: gg.optim.Adam(p, lr=1e-2, capturable=True),
    "rate in a tensor": lambda p: gg.optim.AdamW(p, lr=gg.tensor(1e-2)),
    "master": lambda p: gg.optim.AdamW(p, lr=1e-2, master_weights=True),
}


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 3))


def train(optimizer, compiled, where, lower, half=False):
    """After each step: the loss, the scaler's state, parameters and the optimizer's state. Some
    inputs are infinite, and so are the gradients then."""
    gg.manual_seed(3)
    model = network().to(lower if half else gg.float32)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    scaler = gg.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)

    def inner(x, y):
        optimizer.zero_grad()
        if where == "inside":
            with gg.autocast("cpu", dtype=lower):
                loss = F.cross_entropy(model(x), y)
        else:
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    step = gg.compile(inner, fullgraph=True) if compiled else inner
    rng, history = np.random.default_rng(0), []
    for k in range(STEPS):
        x = rng.normal(size=(4, 8)).astype(np.float32)
        if k in OVERFLOWS:
            x[1, 2] = np.inf
        x, y = gg.tensor(x).to(model[0].weight.dtype), gg.tensor(rng.integers(0, 3, 4))
        if k == 8:  # as a schedule would
            for group in optimizer.param_groups:
                if isinstance(group["lr"], gg.Tensor):
                    group["lr"].fill_(0.004)
                else:
                    group["lr"] = 0.004
        with gg.autocast("cpu", dtype=lower, enabled=where == "outside"):
            loss = step(x, y)
        found = [v for s in optimizer.state.values() for v in s.values()]
        state = [v for v in found if isinstance(v, gg.Tensor)]
        values = [t.detach().double().numpy().copy() for t in (*model.parameters(), *state)]
        history.append((loss.item(), scaler.state_dict(), values))
    if compiled:
        assert len(step.programs) == 2  # made and skipped
        assert step.stats["replays"] >= STEPS - 6
    return history


CASES = [
    *[(name, "inside", "float16") for name in OPTIMIZERS],
    ("adam", "inside", "bfloat16"),
    ("adam", "outside", "float16"),
    ("momentum", "outside", "bfloat16"),
    ("master", "half", "bfloat16"),
]


@pytest.mark.parametrize("optimizer, where, lower", CASES)
@pytest.mark.parametrize("native", [True, False])
def test_training_is_that_of_eager_mode(optimizer, where, lower, native, monkeypatch):
    """Fused loops and native sums round otherwise in the last place of float32; where that decides
    how a 16-bit number is rounded, more: a thousandth for losses, a tenth of a step for others."""
    if not native:
        monkeypatch.setattr(runners, "machine", lambda: None)
    given = (where, getattr(gg, lower), where == "half")
    expected, found = train(optimizer, False, *given), train(optimizer, True, *given)
    for a, b in zip(found, expected, strict=True):
        assert a[1] == b[1]
        np.testing.assert_allclose(a[0], b[0], rtol=1e-3)
        for x, y in zip(a[2], b[2], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=4e-4)
    scales = [scaler["scale"] for _, scaler, _ in expected]
    if where != "half":  # an infinite input of a bfloat16 network is one, too
        assert min(scales) < 2.0**10 < max(scales)


# ------------------------------------------------------------------------------------------------
# autocasting around a compiled function


def product(w):
    @gg.compile(fullgraph=True)
    def f(x):
        return x @ w

    return f


def dtypes_of(f, x, calls=4):
    return {str(f(x).dtype) for _ in range(calls)}


def test_each_state_is_a_variant(rng):
    w = gg.tensor(rng.normal(size=(3, 5)).astype(np.float32), requires_grad=True)
    x = gg.tensor(rng.normal(size=(2, 3)).astype(np.float32))
    f = product(w)
    for _ in range(2):
        assert dtypes_of(f, x) == {"float32"}
        for lower in (gg.float16, gg.bfloat16):
            with gg.autocast("cpu", dtype=lower):
                assert dtypes_of(f, x) == {str(lower)}
                with gg.autocast("cpu", enabled=False):
                    assert dtypes_of(f, x) == {"float32"}
                with gg.no_grad():
                    assert dtypes_of(f, x) == {str(lower)}
    assert f.stats["variants"] == 5
    assert f.stats["replays"] >= f.calls - 2 * 5
    with gg.autocast("cpu"):
        f(x).float().sum().backward()
    expected = x.bfloat16().float().sum(0)[:, None].expand(3, 5)
    np.testing.assert_allclose(w.grad.numpy(), expected.numpy(), rtol=1e-2)


def test_short_ways_are_not_those_of_a_region(rng):
    x = gg.tensor(rng.normal(size=(2, 3)).astype(np.float32))
    f = product(gg.tensor(rng.normal(size=(3, 5)).astype(np.float32)))
    for _ in range(3):
        with gg.autocast("cpu", dtype=gg.float16):
            assert dtypes_of(f, x) == {"float16"}
        assert dtypes_of(f, x) == {"float32"}
        with gg.no_grad(), gg.autocast("cpu", dtype=gg.float16):
            assert dtypes_of(f, x) == {"float16"}
        with gg.no_grad():
            assert dtypes_of(f, x) == {"float32"}


def test_the_default_dtype_of_regions_inside(rng):
    x = gg.tensor(rng.normal(size=(3, 3)).astype(np.float32))

    @gg.compile
    def f(x):
        with gg.autocast("cpu"):
            return x @ x

    default = gg.amp.get_autocast_dtype("cpu")
    try:
        for lower in (default, gg.float16, default):
            gg.amp.set_autocast_dtype("cpu", lower)
            assert dtypes_of(f, x) == {str(lower)}
    finally:
        gg.amp.set_autocast_dtype("cpu", default)
    assert f.stats["replays"] >= 12 - 4


def test_casts_made_outside_are_not_part_of_a_program(rng):
    """Within a region the cast of a parameter is kept; a replay casts what the parameter is."""
    w = gg.tensor(rng.normal(size=(3, 5)).astype(np.float32), requires_grad=True)
    x = gg.tensor(rng.normal(size=(2, 3)).astype(np.float32))
    f = product(w)
    for _ in range(5):
        with gg.autocast("cpu", dtype=gg.float16):
            eager = x @ w
            found = [f(x) for _ in range(3)]
            again = x @ w
        for y in (*found, again):
            assert y.tolist() == eager.tolist()
        with gg.no_grad():
            w.mul_(1.5)
    with gg.autocast("cpu", dtype=gg.float16):
        f(x)
        with gg.no_grad():
            w.neg_()
        assert f(x).tolist() == (x @ w).tolist()


def test_derivatives_of_derivatives_are_computed_as_the_call_was(rng):
    w = gg.tensor(rng.normal(size=(3, 3)), dtype=gg.float32, requires_grad=True)
    x = gg.tensor(rng.normal(size=(3, 3)), dtype=gg.float32)
    results = []
    for compiled in (False, True):

        def f(x):
            return ((x @ w).float() ** 3).sum()

        if compiled:
            f = gg.compile(f)
        for _ in range(4):
            with gg.autocast("cpu", dtype=gg.float16):
                y = f(x)
        (g,) = gg.autograd.grad(y, w, create_graph=True)
        (h,) = gg.autograd.grad(g.sum(), w)
        results.append((g.detach().numpy(), h.numpy()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6)  # 5e-4 without autocasting


def test_transformations_still_contain_it(rng):
    """Forward mode, ``vmap``, anomaly mode and other recordings go through the function itself."""
    x = gg.tensor(rng.normal(size=(4, 3)).astype(np.float32))
    seen = []

    @gg.compile
    def f(x):
        seen.append(1)
        return x.tanh()

    for _ in range(4):
        f(x)
    for around in (gg.autocast("cpu"), gg.no_grad(), gg.enable_grad()):
        with around:
            count, calls = len(seen), f.calls
            gg.func.vmap(f)(x)
            gg.func.jvp(f, (x,), (x,))
            with gg.autograd.detect_anomaly(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                f(x)
            gg.compile(lambda x: f(x) + 1)(x)
            assert len(seen) == count + 4 and f.calls == calls


def test_a_region_of_another_thread_is_none_of_ours(rng):
    x = gg.tensor(rng.normal(size=(3, 3)).astype(np.float32))
    f, found = product(x), []

    def other():
        found.extend(dtypes_of(f, x))

    with gg.autocast("cpu", dtype=gg.float16):
        assert dtypes_of(f, x) == {"float16"}
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert dtypes_of(f, x) == {"float16"}
    assert found == ["float32"]
    assert f.stats["replays"] == f.calls - 4


# ------------------------------------------------------------------------------------------------
# learning rates in tensors


def test_a_rate_that_the_program_computes():
    """Read on the host before the program runs, it would be the rate of the step before."""
    results = []
    for compiled in (False, True):
        w, rate = gg.ones(3, requires_grad=True), gg.tensor(0.1)
        optimizer = gg.optim.SGD([w], lr=rate)

        def step(optimizer=optimizer, rate=rate, w=w):
            rate.mul_(0.5)
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()

        f = gg.compile(step) if compiled else step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(6):
                f()
        results.append(w.tolist())
    assert results[0] == results[1]
    assert "reads a tensor on the host that the program computes" in f.explain()


def test_a_rate_that_is_written_between_calls():
    results = []
    for compiled in (False, True):
        w, rate = gg.ones(3, requires_grad=True), gg.tensor(0.1)
        optimizer = gg.optim.Adam([w], lr=rate)

        def step(optimizer=optimizer, w=w):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()

        f, history = gg.compile(step, fullgraph=True) if compiled else step, []
        for k in range(9):
            if k == 6:
                rate.fill_(0.01)
            f()
            history.append(w.tolist())
        results.append(history)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    assert f.stats["replays"] == 6


@pytest.mark.parametrize("schedule", ["ExponentialLR", "StepLR"])
def test_a_schedule_of_a_rate_in_a_tensor_runs_eagerly(schedule):
    """A replay would let it write the rate before the program reads it."""
    results = []
    for compiled in (False, True):
        w, rate = gg.ones(3, requires_grad=True), gg.tensor(0.1)
        optimizer = gg.optim.SGD([w], lr=rate)
        options = {"gamma": 0.5} if schedule == "ExponentialLR" else {"step_size": 4}
        scheduler = getattr(gg.optim.lr_scheduler, schedule)(optimizer, **options)

        def step(optimizer=optimizer, scheduler=scheduler, w=w):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
            scheduler.step()

        f = gg.compile(step) if compiled else step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(12):
                f()
        results.append((w.tolist(), rate.item()))
    assert results[0] == results[1]
    assert "of a learning rate in a tensor" in f.explain()


@pytest.mark.parametrize("second", ["load", "group"])
def test_steps_are_counted_once_where_a_recording_no_longer_applies(second):
    """One optimizer is asked, and counts; then the other one turns out to have changed."""
    histories = []
    for compiled in (False, True):
        gg.manual_seed(0)
        a, b, c = (gg.randn(3, requires_grad=True) for _ in range(3))
        first, other = gg.optim.Adam([a], lr=0.1), gg.optim.Adam([b], lr=0.1)
        other.add_param_group({"params": [c], "lr": 0.01})

        def step(first=first, other=other, tensors=(a, b, c)):
            for optimizer in (first, other):
                optimizer.zero_grad()
            sum((t * t).sum() for t in tensors).backward()
            for optimizer in (first, other):
                optimizer.step()

        f, history = gg.compile(step) if compiled else step, []
        for k in range(12):
            if k == 6 and second == "load":
                other.load_state_dict(other.state_dict())
            if k == 6 and second == "group":  # its second group: the first one was asked
                other.state[c]["exp_avg"] = other.state[c]["exp_avg"].clone()
            f()
            counts = [s["step"].item() for o in (first, other) for s in o.state.values()]
            history.append(([t.tolist() for t in (a, b, c)], counts))
        histories.append(history)
    assert [c for _, c in histories[1]] == [c for _, c in histories[0]]
    for (x, _), (y, _) in zip(*histories, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5)
    assert f.stats["replays"] >= 6
