"""GradScaler beside torch's on the CPU, with overflows forced; master weights."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.amp import GradScaler

OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}),
]
OVERFLOWS = {0: "inf", 3: "nan", 4: "-inf", 9: "inf"}  # by step
OPTIONS = {"init_scale": 2.0**10, "growth_factor": 4.0, "backoff_factor": 0.25}


def run(lib, name, options, steps=12, clip=False, interval=2):
    """Parameters and scales over steps with forced overflows."""
    w = lib.tensor([0.5, -1.0, 2.0], requires_grad=True)
    b = lib.tensor([0.25], requires_grad=True)
    optimizer = getattr(lib.optim, name)([w, b], **options)
    scaler = lib.amp.GradScaler("cpu", growth_interval=interval, **OPTIONS)
    history = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = ((w * w).sum() * b).sum() + (b * b).sum()
        scaler.scale(loss).backward()
        if step in OVERFLOWS:
            with lib.no_grad():
                w.grad[1] = float(OVERFLOWS[step])
        if clip:
            scaler.unscale_(optimizer)
            lib.nn.utils.clip_grad_norm_([w, b], 0.5)
        scaler.step(optimizer)
        scaler.update()
        counts = [float(s["step"]) for s in optimizer.state.values() if "step" in s]
        values = [*w.detach().tolist(), *b.detach().tolist()]
        history.append([*values, scaler.get_scale(), scaler._get_growth_tracker(), *counts])
    width = max(map(len, history))  # state appears with the first step that is made
    return np.array([h + [0.0] * (width - len(h)) for h in history]), scaler


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, of clipping what is infinite
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_numbers_are_torchs(torch, name, options, clip):
    ours, a = run(gg, name, options, clip=clip)
    theirs, b = run(torch, name, options, clip=clip)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert a.state_dict() == b.state_dict()


def test_skipped_steps_leave_everything_alone():
    w = gg.tensor([1.0, 2.0], requires_grad=True)
    optimizer, scaler = gg.optim.Adam([w]), GradScaler("cpu", init_scale=4.0)
    scaler.scale((w * w).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    before = copy.deepcopy(optimizer.state_dict()), w.tolist()
    w.grad[0] = float("nan")
    scaler.step(optimizer)
    scaler.update()
    after = optimizer.state_dict()
    assert w.tolist() == before[1] and scaler.get_scale() == 2.0
    for name, value in before[0]["state"][0].items():
        assert gg.equal(value, after["state"][0][name]), name
    assert optimizer.found_inf is None


def test_scale_grows_but_not_beyond_float32():
    w = gg.ones(1, requires_grad=True)
    optimizer = gg.optim.SGD([w], lr=0.0)
    scaler = GradScaler("cpu", init_scale=2.0**126, growth_interval=1)
    w.grad = gg.zeros(1)
    for expected in (2.0**127, 2.0**127):
        scaler.scale(w.sum())
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == expected


def test_scale_of_nested_outputs():
    scaler = GradScaler("cpu", init_scale=8.0)
    a, (b, c) = scaler.scale((gg.ones(2), [gg.ones(()), gg.ones(1).half()]))
    assert a.tolist() == [8.0, 8.0] and b.item() == 8.0 and c.dtype == gg.float16
    with pytest.raises(ValueError, match="must be a Tensor or an iterable"):
        scaler.scale(1.0)


def test_several_optimizers_share_a_scale():
    w, v = gg.ones(2, requires_grad=True), gg.ones(2, requires_grad=True)
    first, second = gg.optim.SGD([w], lr=0.5), gg.optim.SGD([v], lr=0.5)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(w.sum() + v.sum()).backward()
    w.grad[0] = float("inf")
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert w.tolist() == [1.0, 1.0] and v.tolist() == [0.5, 0.5] and scaler.get_scale() == 2.0


def test_an_optimizer_of_the_user_is_skipped_by_the_host():
    class Own(gg.optim.Optimizer):
        made = 0

        def _update(self, group):
            self.made += 1

    class Stepping(gg.optim.SGD):
        made = 0

        def step(self, closure=None):
            self.made += 1

    for kind in (lambda p: Own(p, {}), lambda p: Stepping(p, lr=0.1)):
        w = gg.ones(2, requires_grad=True)
        optimizer, scaler = kind([w]), GradScaler("cpu")
        assert not optimizer.skips_by_itself
        for value in (1.0, float("inf"), 1.0):
            scaler.scale(w.sum())
            w.grad = gg.full((2,), value)
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.made == 2


def test_order_of_calls():
    w = gg.ones(2, requires_grad=True)
    optimizer, scaler = gg.optim.SGD([w], lr=0.1), GradScaler("cpu")
    with pytest.raises(AssertionError, match="_scale is None"):
        scaler.step(optimizer)
    scaler.scale(w.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called on this optimizer"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called since the last update"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="called after step"):
        scaler.unscale_(optimizer)
    scaler.update()
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.update()
    with pytest.raises(RuntimeError, match="Closure"):
        scaler.step(optimizer, closure=lambda: 0)


def test_float16_gradients_are_refused():
    w = gg.ones(2, dtype=gg.float16, requires_grad=True)
    optimizer, scaler = gg.optim.SGD([w], lr=0.1), GradScaler("cpu", init_scale=2.0)
    scaler.scale(w.sum()).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(optimizer)


def test_new_scale_state_and_pickle():
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(gg.ones(1))
    scaler.update(32.0)
    assert scaler.get_scale() == 32.0
    scaler.update(gg.tensor([16.0]))
    assert scaler.get_scale() == 16.0
    twin = GradScaler("cpu")
    twin.load_state_dict(scaler.state_dict())
    assert twin.get_scale() == 16.0
    twin.scale(gg.ones(1))
    twin.load_state_dict({**scaler.state_dict(), "scale": 2.0, "_growth_tracker": 7})
    assert twin.get_scale() == 2.0 and twin.state_dict()["_growth_tracker"] == 7
    again = pickle.loads(pickle.dumps(twin))
    assert again.state_dict() == twin.state_dict()
    with pytest.raises(RuntimeError, match="empty"):
        twin.load_state_dict({})


def test_disabled_scaler_does_nothing():
    w = gg.ones(2, requires_grad=True)
    optimizer, scaler = gg.optim.SGD([w], lr=0.5), GradScaler("cpu", enabled=False)
    loss = w.sum()
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0 and scaler.state_dict() == {}
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [0.5, 0.5] and not scaler.is_enabled()
    with pytest.raises(ValueError, match="growth factor"):
        GradScaler("cpu", growth_factor=1.0)
    with pytest.raises(ValueError, match="backoff factor"):
        GradScaler("cpu", backoff_factor=1.0)
    if not gg.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            assert not GradScaler().is_enabled()


# ---- master weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_master_weights_follow_float32(name, options, dtype):
    """The master copy makes the steps a float32 parameter would make with the same gradients; the
    parameter is the copy rounded."""
    dtype = gg.dtypes.as_dtype(dtype)
    rng = np.random.default_rng(0)
    low = gg.tensor(rng.normal(size=(5, 7)).astype(np.float32)).to(dtype).requires_grad_()
    full = low.detach().float().requires_grad_()
    bias = gg.ones(3, requires_grad=True)  # float32: as ever
    kind = getattr(gg.optim, name)
    ours, plain = kind([low, bias], **options, master_weights=True), kind([full], **options)
    for _ in range(6):
        g = gg.tensor(rng.normal(size=(5, 7)).astype(np.float32)).to(dtype)
        low.grad, full.grad, bias.grad = g, g.float(), gg.ones(3)
        ours.step()
        plain.step()
        master = ours.state[low]["master"]
        assert master.dtype == gg.float32 and gg.equal(master, full.detach())
        assert low.dtype == dtype and gg.equal(low.detach(), master.to(dtype))
    assert "master" not in ours.state[bias]
    for state, value in plain.state[full].items():
        assert gg.equal(ours.state[low][state], value), state


def test_small_steps_add_up():
    low = gg.full((4,), 256.0, dtype=gg.bfloat16, requires_grad=True)
    rounded = low.detach().clone().requires_grad_()
    for p, options in ((low, {"master_weights": True}), (rounded, {})):
        optimizer = gg.optim.SGD([p], lr=0.25, **options)
        for _ in range(16):
            p.grad = gg.ones(4, dtype=gg.bfloat16)
            optimizer.step()
    assert low.tolist() == [252.0] * 4  # 1 ulp of bfloat16 is 2 here: single steps vanish
    assert rounded.tolist() == [256.0] * 4


def test_master_weights_are_saved(tmp_path):
    w = gg.ones(3, dtype=gg.bfloat16, requires_grad=True)
    optimizer = gg.optim.Adam([w], lr=1e-3, master_weights=True)
    w.grad = gg.ones(3, dtype=gg.bfloat16)
    optimizer.step()
    gg.save(optimizer.state_dict(), tmp_path / "state.safetensors")
    v = w.detach().clone().requires_grad_()
    twin = gg.optim.Adam([v], lr=1e-3, master_weights=True)
    twin.load_state_dict(gg.load(tmp_path / "state.safetensors"))
    assert twin.state[v]["master"].dtype == twin.state[v]["exp_avg"].dtype == gg.float32
    v.grad = w.grad
    optimizer.step()
    twin.step()
    assert gg.equal(twin.state[v]["master"], optimizer.state[w]["master"])
