"""Schedules: the sequence of rates is torch's."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gpugrad as gg

STEPS = 25

SCHEDULES = [
    ("StepLR", {"step_size": 4, "gamma": 0.5}),
    ("StepLR", {"step_size": 1}),
    ("MultiStepLR", {"milestones": [3, 7, 7, 12], "gamma": 0.3}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 10}),
    ("CosineAnnealingLR", {"T_max": 6, "eta_min": 0.01}),
    ("LambdaLR", {"lr_lambda": lambda epoch: 0.95**epoch}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.8, "total_iters": 10}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": STEPS + 1}),
    ("OneCycleLR", {"max_lr": 0.5, "epochs": 13, "steps_per_epoch": 2, "three_phase": True}),
    (
        "OneCycleLR",
        {
            "max_lr": 0.5,
            "total_steps": 40,
            "anneal_strategy": "linear",
            "pct_start": 0.25,
            "div_factor": 10,
            "final_div_factor": 100,
            "base_momentum": 0.8,
            "max_momentum": 0.9,
        },
    ),
    ("OneCycleLR", {"max_lr": [0.5, 0.2], "total_steps": 30, "cycle_momentum": False}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(SCHEDULES)]


def _optimizer(lib, name="SGD", **options):
    a, b = (lib.tensor([1.0], requires_grad=True) for _ in range(2))
    groups = [{"params": [a]}, {"params": [b], "lr": 0.03}]
    return getattr(lib.optim, name)(groups, lr=0.1, **options)


def _run(optimizer, scheduler, steps=STEPS):
    rates = []
    for _ in range(steps):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr() == [g["lr"] for g in optimizer.param_groups]
    return [*rates, scheduler.get_last_lr()]


def _make(lib, optimizer, name, options):
    return getattr(lib.optim.lr_scheduler, name)(optimizer, **options)


@pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=IDS)
def test_rates_equal_torch(torch, name, options):
    a, b = _optimizer(gg, momentum=0.9), _optimizer(torch, momentum=0.9)
    ours = _run(a, _make(gg, a, name, options))
    theirs = _run(b, _make(torch, b, name, options))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    for p, q in zip(a.param_groups, b.param_groups, strict=True):
        assert p["momentum"] == pytest.approx(q["momentum"], rel=1e-12)


@pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=IDS)
def test_resuming_continues_the_rates(name, options):
    whole = _optimizer(gg, momentum=0.9)
    expected = _run(whole, _make(gg, whole, name, options), 20)
    first = _optimizer(gg, momentum=0.9)
    schedule = _make(gg, first, name, options)
    rates = _run(first, schedule, 8)[:-1]
    second = _optimizer(gg, momentum=0.9)
    resumed = _make(gg, second, name, options)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    second.step()
    rates += _run(second, resumed, 12)
    assert rates == expected


@pytest.mark.parametrize(("name", "options"), SCHEDULES[:9], ids=IDS[:9])
def test_starting_at_a_later_epoch_equals_torch(torch, name, options):
    def run(lib):
        optimizer = _optimizer(lib)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return _run(optimizer, _make(lib, optimizer, name, {**options, "last_epoch": 5}), 10)

    np.testing.assert_allclose(run(gg), run(torch), rtol=1e-12)


def test_one_cycle_moves_beta1_of_adam(torch):
    def run(lib):
        optimizer = _optimizer(lib, "Adam")
        scheduler = lib.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=12)
        betas = []
        for _ in range(11):
            betas.append(optimizer.param_groups[0]["betas"])
            optimizer.step()
            scheduler.step()
        return betas

    np.testing.assert_allclose(run(gg), run(torch), rtol=1e-12)


def test_sequential_warm_up_equals_torch(torch):
    def run(lib):
        s = lib.optim.lr_scheduler
        optimizer = _optimizer(lib)
        parts = [
            s.LinearLR(optimizer, start_factor=0.2, total_iters=5),
            s.ExponentialLR(optimizer, 0.9),
            s.CosineAnnealingLR(optimizer, T_max=8),
        ]
        return _run(optimizer, s.SequentialLR(optimizer, parts, milestones=[5, 12]))

    np.testing.assert_allclose(run(gg), run(torch), rtol=1e-12)


def test_sequential_resumes():
    def make():
        s = gg.optim.lr_scheduler
        optimizer = _optimizer(gg)
        parts = [s.LinearLR(optimizer), s.StepLR(optimizer, 3)]
        return optimizer, s.SequentialLR(optimizer, parts, milestones=[5])

    expected = _run(*make(), 14)
    first, schedule = make()
    rates = _run(first, schedule, 7)[:-1]
    second, resumed = make()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    second.step()
    assert rates + _run(second, resumed, 7) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 2},
        {"patience": 1, "factor": 0.5, "cooldown": 2},
        {"mode": "max", "patience": 1, "threshold": 0.2},
        {"mode": "max", "patience": 1, "threshold": 0.2, "threshold_mode": "abs"},
        {"patience": 0, "threshold": 0.3, "threshold_mode": "abs", "min_lr": [0.05, 0.001]},
        {"patience": 0, "min_lr": 0.02, "eps": 0.01},
    ],
)
def test_plateau_equals_torch(torch, options):
    metrics = np.random.default_rng(0).standard_normal(30).cumsum()

    def run(lib):
        optimizer = _optimizer(lib)
        scheduler = lib.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        rates = []
        for m in metrics:
            scheduler.step(lib.tensor(m))
            rates.append(scheduler.get_last_lr())
        return rates

    np.testing.assert_allclose(run(gg), run(torch), rtol=1e-12)


def test_plateau_resumes():
    s = gg.optim.lr_scheduler.ReduceLROnPlateau
    optimizer = _optimizer(gg)
    scheduler = s(optimizer, patience=1)
    scheduler.step(1.0)
    scheduler.step(1.0)
    twin = s(optimizer, patience=5)
    twin.load_state_dict(scheduler.state_dict())
    twin.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_stepping_before_the_optimizer_warns():
    optimizer = _optimizer(gg)
    scheduler = gg.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda s, o: s.StepLR(3, 1), TypeError),
        (lambda s, o: s.ReduceLROnPlateau(3), TypeError),
        (lambda s, o: s.LambdaLR(o, [lambda e: 1.0]), ValueError),
        (lambda s, o: s.LinearLR(o, start_factor=0), ValueError),
        (lambda s, o: s.LinearLR(o, end_factor=2), ValueError),
        (lambda s, o: s.ExponentialLR(o, 0.9, last_epoch=3), KeyError),
        (lambda s, o: s.OneCycleLR(o, 0.1), ValueError),
        (lambda s, o: s.OneCycleLR(o, 0.1, total_steps=0), ValueError),
        (lambda s, o: s.OneCycleLR(o, 0.1, total_steps=5, pct_start=2.0), ValueError),
        (lambda s, o: s.OneCycleLR(o, 0.1, total_steps=5, anneal_strategy="no"), ValueError),
        (lambda s, o: s.OneCycleLR(o, [0.1], total_steps=5), ValueError),
        (lambda s, o: s.ReduceLROnPlateau(o, factor=1.0), ValueError),
        (lambda s, o: s.ReduceLROnPlateau(o, mode="middle"), ValueError),
        (lambda s, o: s.ReduceLROnPlateau(o, threshold_mode="none"), ValueError),
        (lambda s, o: s.ReduceLROnPlateau(o, min_lr=[0.1]), ValueError),
        (lambda s, o: s.SequentialLR(o, [], []), ValueError),
        (lambda s, o: s.SequentialLR(o, [s.StepLR(o, 1)], [3]), ValueError),
        (lambda s, o: s.SequentialLR(o, [s.ReduceLROnPlateau(o)], []), ValueError),
    ],
)
def test_errors_are_of_the_class_torch_raises(torch, make, error):
    with pytest.raises(error):
        make(gg.optim.lr_scheduler, _optimizer(gg))
    with pytest.raises(error):
        make(torch.optim.lr_scheduler, _optimizer(torch))


def test_one_cycle_ends():
    optimizer = _optimizer(gg, momentum=0.9)
    scheduler = gg.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)
    optimizer.step()
    for _ in range(3):
        scheduler.step()
    with pytest.raises(ValueError, match="Tried to step 4 times"):
        scheduler.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda o, lib: lib.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o, lib: lib.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o, lib: lib.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=8),
        lambda o, lib: lib.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    ],
)
def test_a_rate_in_a_tensor_stays_the_same_tensor(torch, make):
    rates = []
    for lib, lr in ((gg, gg.tensor(0.5, dtype=gg.float64)), (torch, 0.5)):
        w = lib.ones(1, requires_grad=True)
        optimizer = lib.optim.Adam([w], lr=lr)
        scheduler = make(optimizer, lib)
        seen = []
        for _ in range(6):
            optimizer.step()
            scheduler.step()
            seen.append(float(optimizer.param_groups[0]["lr"]))
        rates.append(seen)
        assert optimizer.param_groups[0]["lr"] is lr or lib is torch
        np.testing.assert_allclose(scheduler.get_last_lr(), seen[-1:])
    np.testing.assert_allclose(rates[0], rates[1])
