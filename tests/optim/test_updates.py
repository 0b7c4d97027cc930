"""Every optimizer with every option against torch: losses, parameters and state over 12 steps."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg

SGD = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True, "lr": 1e-4},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True, "lr": 1e-4},
]
ADAM = [
    {},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"betas": (0.0, 0.5)},
    {"weight_decay": 0.1},
    {"amsgrad": True},
    {"amsgrad": True, "weight_decay": 0.1, "maximize": True},
]
RMSPROP = [
    {},
    {"alpha": 0.9, "eps": 1e-4, "weight_decay": 0.1},
    {"momentum": 0.9},
    {"centered": True},
    {"centered": True, "momentum": 0.5, "maximize": True, "lr": 1e-4},
]
ADAGRAD = [
    {},
    {"lr_decay": 0.1, "weight_decay": 0.1},
    {"initial_accumulator_value": 0.5, "eps": 1e-3, "maximize": True},
]
CASES = [
    *(("SGD", {"lr": 0.05, **o}) for o in SGD),
    *(("Adam", {"lr": 0.01, **o}) for o in ADAM),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    *(("AdamW", {"lr": 0.01, **o}) for o in ADAM),
    *(("RMSprop", {"lr": 0.01, **o}) for o in RMSPROP),
    *(("Adagrad", {"lr": 0.05, **o}) for o in ADAGRAD),
]
IDS = [f"{n}-{'-'.join(k if v is True else f'{k}={v}' for k, v in o.items())}" for n, o in CASES]


class Net:
    """A small network of plain tensors, the same in both libraries; the last is unused."""

    def __init__(self, lib, dtype="float32", seed=0):
        self.lib = lib
        rng = np.random.default_rng(seed)
        shapes = [(4, 8), (8,), (8, 3), (3,), (2,)]
        self.params = [
            lib.tensor(rng.standard_normal(s).astype(dtype) * 0.3, requires_grad=True)
            for s in shapes
        ]
        self.x = lib.tensor(rng.standard_normal((16, 4)).astype(dtype))
        self.y = lib.tensor(rng.standard_normal((16, 3)).astype(dtype))

    def loss(self):
        w1, b1, w2, b2, _ = self.params
        h = self.lib.tanh(self.x @ w1 + b1)
        return ((h @ w2 + b2 - self.y) ** 2).mean()

    def train(self, optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


def _state_arrays(optimizer, params):
    return [
        {k: np.asarray(v.detach().numpy()) for k, v in optimizer.state.get(p, {}).items()}
        for p in params
    ]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_twelve_steps_equal_torch(torch, name, options):
    ours, theirs = Net(gg), Net(torch)
    a = getattr(gg.optim, name)(ours.params, **options)
    b = getattr(torch.optim, name)(theirs.params, **options)
    np.testing.assert_allclose(ours.train(a, 12), theirs.train(b, 12), rtol=2e-5)
    for p, q in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-4, atol=1e-5)
    ours_state, theirs_state = _state_arrays(a, ours.params), _state_arrays(b, theirs.params)
    for s, t in zip(ours_state, theirs_state, strict=True):
        assert list(s) == list(t)
        for key in s:
            assert s[key].dtype == t[key].dtype
            atol = 1e-5 * np.abs(t[key]).max()  # sums that cancel keep the error of their terms
            np.testing.assert_allclose(s[key], t[key], rtol=1e-4, atol=atol, err_msg=key)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_in_float64_the_formulas_agree_to_rounding(torch, name, options):
    ours, theirs = Net(gg, "float64"), Net(torch, "float64")
    ours.train(getattr(gg.optim, name)(ours.params, **options), 12)
    theirs.train(getattr(torch.optim, name)(theirs.params, **options), 12)
    for p, q in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_one_float32_step_is_exact_to_rounding(torch, name, options):
    """Coefficients such as 1 - beta2 must not be rounded before they are subtracted."""
    ours, theirs = Net(gg), Net(torch, "float64")
    for p, q in zip(ours.params, theirs.params, strict=True):
        p.grad = p.detach() * 0.5 + 0.25
        q.grad = torch.tensor(p.grad.numpy().astype("float64"))
        q.data.copy_(torch.tensor(p.detach().numpy()))
    a = getattr(gg.optim, name)(ours.params, **options)
    b = getattr(torch.optim, name)(theirs.params, **options)
    a.step()
    b.step()
    for p, q in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=5e-7, atol=1e-7)
        for key, value in b.state[q].items():
            np.testing.assert_allclose(a.state[p][key].numpy(), value.numpy(), rtol=5e-7)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_state_travels_to_torch_and_back(torch, name, options):
    """5 steps here, then the state into torch, 5 steps there, back, 5 more: as 15 in torch."""
    ours, theirs, judge = Net(gg), Net(torch), Net(torch)
    a = getattr(gg.optim, name)(ours.params, **options)
    b = getattr(torch.optim, name)(theirs.params, **options)
    c = getattr(torch.optim, name)(judge.params, **options)
    expected = judge.train(c, 15)
    losses = ours.train(a, 5)
    _copy(ours.params, theirs.params)
    b.load_state_dict(_converted(a.state_dict(), lambda v: torch.tensor(v.numpy())))
    losses += theirs.train(b, 5)
    _copy(theirs.params, ours.params)
    a.load_state_dict(_converted(b.state_dict(), lambda v: gg.tensor(v.numpy())))
    losses += ours.train(a, 5)
    np.testing.assert_allclose(losses, expected, rtol=5e-5)


def _copy(source, target):
    for p, q in zip(source, target, strict=True):
        q.detach().numpy()[...] = p.detach().numpy()


def _converted(state, tensor):
    return {
        "state": {
            i: {k: tensor(v) if hasattr(v, "numpy") else v for k, v in s.items()}
            for i, s in state["state"].items()
        },
        "param_groups": state["param_groups"],
    }


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_resuming_is_exact(name, options):
    whole, half = Net(gg), Net(gg)
    optimizer = getattr(gg.optim, name)(whole.params, **options)
    expected = whole.train(optimizer, 10)
    first = getattr(gg.optim, name)(half.params, **options)
    losses = half.train(first, 5)
    resumed = Net(gg)
    _copy(half.params, resumed.params)
    second = getattr(gg.optim, name)(resumed.params, lr=9.0)
    second.load_state_dict(first.state_dict())
    losses += resumed.train(second, 5)
    assert losses == expected
    for p, q in zip(whole.params, resumed.params, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_zero_gradient_in_float16_is_finite(name):
    """eps (1e-8) is zero in float16: an update computed in it would divide zero by zero."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    p = gg.ones(4, dtype=gg.float16, requires_grad=True)
    optimizer = getattr(gg.optim, name)([p], lr=0.1, **options)
    for _ in range(3):
        p.grad = gg.zeros(4, dtype=gg.float16)
        optimizer.step()
    assert p.dtype == gg.float16
    assert np.isfinite(p.detach().numpy()).all()


def test_float16_arithmetic_is_in_float32(torch):
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(64), rng.standard_normal((5, 64)) * 1e-3
    p = gg.tensor(start.astype(np.float16), requires_grad=True)
    exact = start.astype(np.float16).astype(np.float64)
    optimizer = gg.optim.SGD([p], lr=0.5)
    for g in grads.astype(np.float16):
        p.grad = gg.tensor(g)
        optimizer.step()
        exact = (exact - 0.5 * g.astype(np.float64)).astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(p.detach().numpy().astype(np.float64), exact)


def test_mixed_dtypes_in_one_group(torch):
    def params(lib):
        return [
            lib.tensor(np.ones(3, d), requires_grad=True) for d in ("float32", "float64", "float32")
        ]

    ours, theirs = params(gg), params(torch)
    a, b = gg.optim.Adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad, q.grad = gg.full_like(p.detach(), 0.5), torch.full_like(q, 0.5)
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        assert str(q.dtype).endswith(str(p.dtype))
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adagrad"])
def test_parameters_that_join_late_count_their_own_steps(torch, name):
    """A parameter without a gradient is skipped; its bias correction starts when it joins."""
    options = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}

    def run(lib):
        a, b = (lib.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
        optimizer = getattr(lib.optim, name)([a, b], lr=0.1, **options)
        for i in range(6):
            a.grad = lib.tensor([0.1 * i, 0.2])
            b.grad = lib.tensor([0.3, -0.1 * i]) if i in (2, 3, 5) else None
            optimizer.step()
        return a.detach().numpy(), b.detach().numpy()

    for x, y in zip(run(gg), run(torch), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_groups_have_their_own_options(torch):
    ours, theirs = Net(gg), Net(torch)

    def groups(net):
        return [
            {"params": net.params[:2], "lr": 0.05, "momentum": 0.5},
            {"params": net.params[2:], "weight_decay": 0.1, "nesterov": True},
        ]

    a = gg.optim.SGD(groups(ours), lr=0.01, momentum=0.9)
    b = torch.optim.SGD(groups(theirs), lr=0.01, momentum=0.9)
    np.testing.assert_allclose(ours.train(a, 12), theirs.train(b, 12), rtol=2e-5)


def test_changing_options_between_steps(torch):
    ours, theirs = Net(gg), Net(torch)
    a, b = gg.optim.AdamW(ours.params), torch.optim.AdamW(theirs.params)
    losses = []
    for net, optimizer in ((ours, a), (theirs, b)):
        run = net.train(optimizer, 4)
        optimizer.param_groups[0].update(lr=0.05, weight_decay=0.0, betas=(0.8, 0.9))
        losses.append(run + net.train(optimizer, 4))
    np.testing.assert_allclose(*losses, rtol=2e-5)
