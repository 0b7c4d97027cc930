"""Compiled training steps leave parameters, statistics, optimizers, schedules and generators as
eager ones do: module by module, optimizer by optimizer."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.functional as F
from gpugrad import nn
from gpugrad.optim import lr_scheduler
from gpugrad.utils.checkpoint import checkpoint
from tests.static.test_operations import assert_same

STEPS = 8


def state_of(*owners) -> list:
    """Everything that modules, optimizers and schedules hold."""
    found: list = []
    for owner in owners:
        if isinstance(owner, nn.Module):
            tensors = [*owner.parameters(), *owner.buffers()]
            found += [t.detach().clone() for t in tensors]
            found += [None if t.grad is None else t.grad.clone() for t in tensors]
        elif isinstance(owner, gg.optim.Optimizer):
            state = owner.state_dict()
            found += [
                [t.clone() if isinstance(t, gg.Tensor) else t for t in s.values()]
                for s in state["state"].values()
            ]
            found += [[v for k, v in g.items() if k != "params"] for g in state["param_groups"]]
        else:
            found.append([v for v in vars(owner).values() if isinstance(v, (int, float))])
            found.append(owner.get_last_lr())
    return [*found, gg.default_generator.get_state()]


def check(make, tolerance, calls=STEPS, replays=None):
    """``make()`` gives a step, which is called with its number, and what it changes."""
    gg.manual_seed(3)
    step, *owners = make()
    expected = []
    for k in range(calls):
        result = step(k)
        expected.append((result, state_of(*owners)))
    gg.manual_seed(3)
    step, *owners = make()
    compiled = {}  # by the number that makes a variant

    for k, (result, state) in enumerate(expected):
        assert_same(step(k, compiled), result, tolerance)
        assert_same(state_of(*owners), state, tolerance)
    replayed = sum(c.stats["replays"] for c in compiled.values())
    assert replayed >= (calls - 3 if replays is None else replays)


def compiled_by(function, compiled: dict | None, name: str = ""):
    """The function itself, or its compiled form, which is made once."""
    if compiled is None:
        return function
    if name not in compiled:
        compiled[name] = gg.compile(function)
    return compiled[name]


def batch(k: int, *shape, dtype="float64"):
    return gg.tensor(np.random.default_rng(k).normal(size=shape).astype(dtype))


def classes(k: int, count: int, *shape):
    return gg.tensor(np.random.default_rng(k).integers(0, count, shape))


# ------------------------------------------------------------------------------------------------
# modules


class Recurrent(nn.Module):
    """An embedding, a loop over time, and a norm."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4, padding_idx=0)
        self.cell, self.norm = nn.Linear(8, 4), nn.LayerNorm(4)

    def forward(self, words):
        h = gg.zeros(words.shape[0], 4, dtype=self.cell.weight.dtype)
        for t in range(words.shape[1]):
            h = gg.tanh(self.cell(gg.cat([self.words(words[:, t]), h], 1)))
        return self.norm(h)


def dense(*layers):
    return nn.Sequential(nn.Linear(5, 6), *layers, nn.Linear(6, 4)), (6, 5)


def images(*layers):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, nn.Flatten()), (3, 2, 6, 6)


MODULES = {
    "batch norm": lambda: dense(nn.BatchNorm1d(6), nn.ReLU()),
    "batch norm, cumulative": lambda: dense(nn.BatchNorm1d(6, momentum=None)),
    "batch norm without statistics": lambda: dense(nn.BatchNorm1d(6, track_running_stats=False)),
    "dropout": lambda: dense(nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.5)),
    "layer norm": lambda: dense(nn.LayerNorm(6), nn.GELU()),
    "rms norm": lambda: dense(nn.RMSNorm(6), nn.SiLU()),
    "activations": lambda: dense(nn.ELU(), nn.LeakyReLU(0.1), nn.Softplus(), nn.Sigmoid()),
    "softmax": lambda: dense(nn.Softmax(-1), nn.LogSoftmax(-1)),
    "images": lambda: images(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
    "groups": lambda: images(nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(3)),
    "pooling": lambda: images(nn.AdaptiveAvgPool2d((2, 3)), nn.Dropout(0.2)),
    "sequences": lambda: (nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU()),
                          (4, 2, 7)),
    "recurrent": lambda: (Recurrent(), None),
}  # fmt: skip


def prepared(name):
    model, shape = MODULES[name]()
    return model.double(), shape


@pytest.mark.parametrize("name", MODULES)
def test_modules(name, tolerance):
    def make():
        model, shape = prepared(name)
        optimizer = gg.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)

        def train(x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        def step(k, compiled=None):
            x = classes(k, 7, 3, 5) if shape is None else batch(k, *shape)
            return compiled_by(train, compiled)(x)

        return step, model, optimizer

    check(make, tolerance)


@pytest.mark.parametrize("name", MODULES)
def test_modules_in_training_and_evaluation_in_turn(name, tolerance):
    def make():
        model, shape = prepared(name)

        def step(k, compiled=None):
            model.train(k % 4 < 2)
            x = classes(k, 7, 3, 5) if shape is None else batch(k, *shape)
            return compiled_by(model, compiled)(x)

        return step, model

    check(make, tolerance, calls=12, replays=6)


def test_a_frozen_layer_that_is_trained_from_some_step_on(tolerance):
    def make():
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        optimizer = gg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def train(x):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach()

        def step(k, compiled=None):
            model[0].requires_grad_(k >= 4)
            return compiled_by(train, compiled)(batch(k, 5, 3))

        return step, model, optimizer

    check(make, tolerance, calls=10, replays=4)


# ------------------------------------------------------------------------------------------------
# optimizers and schedules

OPTIMIZERS = {
    "sgd": lambda p: gg.optim.SGD(p, lr=0.1),
    "sgd, decay, maximize": lambda p: gg.optim.SGD(p, lr=0.1, weight_decay=0.1, maximize=True),
    "momentum": lambda p: gg.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    "nesterov": lambda p: gg.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: gg.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: gg.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: gg.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9)),
    "adagrad": lambda p: gg.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
    "rmsprop": lambda p: gg.optim.RMSprop(p, lr=0.01),
    "rmsprop, centered": lambda p: gg.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
}


def regression(optimizer_of, schedule_of=None, inside: bool = True, clip=None, **options):
    """A step that fits a small network to random targets."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    groups = [
        {"params": model[0].parameters()},
        {"params": model[2].parameters(), "lr": 0.02, "weight_decay": 0.01},
    ]
    optimizer = optimizer_of(groups)
    schedule = None if schedule_of is None else schedule_of(optimizer)

    def train(x, y):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        norm = None if clip is None else clip(list(model.parameters()))
        optimizer.step()
        if schedule is not None and inside:
            schedule.step()
        return loss, norm

    def step(k, compiled=None):
        result = compiled_by(train, compiled)(batch(k, 6, 4), batch(100 + k, 6, 2))
        if schedule is not None and not inside:
            schedule.step()
        return result

    return step, model, optimizer, *([] if schedule is None else [schedule])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, tolerance):
    check(lambda: regression(OPTIMIZERS[name]), tolerance)


SCHEDULES = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "steps": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.3, 1.0, 4),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=STEPS + 1),
    "in turn": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.5)], [3]
    ),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, inside, tolerance):
    optimizer_of = OPTIMIZERS["adam"]
    check(lambda: regression(optimizer_of, SCHEDULES[name], inside), tolerance)


def test_a_schedule_by_the_loss_runs_eagerly(tolerance):
    """It decides in Python by a value."""
    model = nn.Linear(3, 1)
    optimizer = gg.optim.SGD(model.parameters(), lr=0.1)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)

    @gg.compile
    def step(metric):
        schedule.step(metric)

    with pytest.warns(UserWarning, match="runs eagerly: .*ReduceLROnPlateau"):
        for _ in range(4):
            step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.1
    assert schedule.last_epoch == 4


def test_a_schedule_in_a_step_that_goes_another_way(tolerance):
    """What was counted before a replay was given up is taken back."""

    def make():
        model = nn.Linear(3, 2).double()
        optimizer = gg.optim.Adam(model.parameters(), lr=0.1)
        one = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 3)
        schedule = lr_scheduler.SequentialLR(
            optimizer, [one, lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)], [4]
        )

        def train(x):
            optimizer.zero_grad()
            loss = F.dropout(model(x), 0.4).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            if x.sum() > 0:
                model.weight.data.mul_(0.9)
            return loss

        def step(k, compiled=None):
            return compiled_by(train, compiled)(batch(k, 4, 3))

        return step, model, optimizer, schedule, one

    check(make, tolerance, calls=16, replays=6)


CLIPS = {
    "norm": lambda p: nn.utils.clip_grad_norm_(p, 0.1),
    "largest": lambda p: nn.utils.clip_grad_norm_(p, 0.1, norm_type=float("inf")),
    "finite": lambda p: nn.utils.clip_grad_norm_(p, 0.1, error_if_nonfinite=True),
    "value": lambda p: nn.utils.clip_grad_value_(p, 0.05),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clipping(name, tolerance):
    check(lambda: regression(OPTIMIZERS["momentum"], clip=CLIPS[name]), tolerance)


@pytest.mark.parametrize("to_none", [True, False])
def test_accumulated_gradients(to_none, tolerance):
    """Gradients of several compiled calls, used by another compiled function."""

    def make():
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        optimizer = gg.optim.AdamW(model.parameters(), lr=0.05)

        def add(x):
            loss = model(x).square().mean() / 3
            loss.backward()
            return loss

        def update():
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(to_none)
            return norm

        def step(k, compiled=None):
            losses = [compiled_by(add, compiled, "add")(batch(9 * k + j, 4, 3)) for j in range(3)]
            return losses, compiled_by(update, compiled, "update")()

        return step, model, optimizer

    check(make, tolerance, replays=20)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("overflows", [False, True])
def test_scaled_losses(overflows, tolerance):
    """Steps are skipped where the scaled gradients overflow, and the scale is adapted."""

    def make():
        model = nn.Linear(3, 2).double()
        optimizer = gg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = gg.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

        def train(x):
            optimizer.zero_grad()
            loss = model(x).square().mean() * (1e307 if overflows else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            return loss, norm

        def step(k, compiled=None):
            return *compiled_by(train, compiled)(batch(k, 5, 3)), scaler.get_scale()

        return step, model, optimizer

    check(make, tolerance, calls=12, replays=5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_master_weights(dtype, tolerance):
    def make():
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        model = model.to(gg.dtypes.as_dtype(dtype))
        optimizer = gg.optim.Adam(model.parameters(), lr=0.01, master_weights=True)

        def train(x):
            optimizer.zero_grad()
            loss = model(x).float().square().mean()
            loss.backward()
            optimizer.step()
            return loss

        def step(k, compiled=None):
            x = batch(k, 5, 3, dtype="float32").to(gg.dtypes.as_dtype(dtype))
            return compiled_by(train, compiled)(x)

        return step, model, optimizer

    check(make, tolerance and 2e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_autocast(dtype, tolerance):
    def make():
        model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = gg.optim.SGD(model.parameters(), lr=0.1)

        def train(x, y):
            optimizer.zero_grad()
            with gg.autocast("cpu", dtype=gg.dtypes.as_dtype(dtype)):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def step(k, compiled=None):
            x, y = batch(k, 5, 3, dtype="float32"), classes(k, 2, 5)
            return compiled_by(train, compiled)(x, y)

        return step, model, optimizer

    check(make, tolerance and 2e-2)


# ------------------------------------------------------------------------------------------------
# random numbers


def test_random_numbers_are_those_of_eager_mode(tolerance):
    def make():
        own = gg.Generator().manual_seed(4)

        def draw(x):
            y = gg.bernoulli(gg.sigmoid(x)) + gg.rand(3, 2, generator=own, dtype=x.dtype)
            y = y + gg.normal(0.5, x.abs()) + gg.randint(0, 9, (3, 2), generator=own)
            places = gg.multinomial(x.exp(), 2), gg.multinomial(x.exp(), 4, replacement=True)
            return y, places, gg.randperm(5), gg.empty(2, 2).uniform_(), gg.randn(3)

        def step(k, compiled=None):
            return compiled_by(draw, compiled)(batch(k, 3, 2)), own.get_state()

        return (step,)

    check(make, tolerance)


def test_seeds_and_states_are_set_again(tolerance):
    def make():
        def draw(x):
            first = gg.rand(3)
            state = gg.get_rng_state()
            second = gg.rand(3)
            gg.set_rng_state(state)
            third = gg.rand(3)
            gg.manual_seed(7)
            return first, second, third, gg.rand(2) + x

        def step(k, compiled=None):
            return compiled_by(draw, compiled)(float(k % 2)), gg.rand(1)

        return (step,)

    check(make, tolerance, calls=12, replays=6)


def test_a_checkpoint_draws_the_same_numbers_again(tolerance):
    def make():
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh()).double()

        def train(x):
            loss = checkpoint(model, x).square().sum() + F.dropout(x).sum()
            model.zero_grad()
            loss.backward()
            return loss

        def step(k, compiled=None):
            return compiled_by(train, compiled)(batch(k, 3, 4))

        return step, model

    check(make, tolerance)


CHANGES = {
    "the state is forgotten": lambda model, optimizer: optimizer.state.clear(),
    "one state is forgotten": lambda model, optimizer: optimizer.state.pop(model.weight),
    "a parameter is left out": lambda model, optimizer: optimizer.param_groups[0]["params"].pop(),
    "a hook": lambda model, optimizer: model.weight.register_hook(lambda g: 3 * g),
    "a hook after it": lambda model, optimizer: model.bias.register_post_accumulate_grad_hook(
        lambda p: p.grad.mul_(-2)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_calls(change, tolerance):
    """Of what an optimizer keeps, and of hooks of parameters, which may be removed again."""
    found = []
    for compiled in (True, False):
        gg.manual_seed(0)
        model = gg.nn.Linear(4, 3).double()
        optimizer = gg.optim.Adam(model.parameters(), lr=0.1)

        def step(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = gg.compile(step) if compiled else step
        losses, handle = [], None
        for k in range(15):
            if k == 5:
                handle = CHANGES[change](model, optimizer)
            if k == 10 and hasattr(handle, "remove"):
                handle.remove()
            losses.append(run(gg.randn(2, 4, dtype=gg.float64)).item())
        if compiled:
            assert run.stats["replays"] >= 6
        found.append((losses, [p.tolist() for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_hooks_of_arguments(tolerance):
    """An argument that the function itself goes backward to."""

    def f(x):
        (x * x).sum().backward()
        return x.grad.clone()

    compiled = gg.compile(f)
    for hooked in (False,) * 4 + (True, False) * 4:
        x = gg.tensor([1.0, 2.0], requires_grad=True)
        if hooked:
            x.register_hook(lambda g: 3 * g)
        assert compiled(x).tolist() == ([6.0, 12.0] if hooked else [2.0, 4.0])


def test_other_kinds_of_arguments_while_there_are_hooks():
    """The short way for tensors that require gradients looks at their hooks."""
    hooked = gg.ones(2, requires_grad=True)
    hooked.register_hook(lambda g: g)
    compiled = gg.compile(lambda x: (x * x).sum())
    for _ in range(5):
        for x in (gg.ones(2, requires_grad=True), gg.ones(2)):
            compiled(x)
    x = gg.ones(2, requires_grad=True)
    for _ in range(5):
        compiled(x)
    for x in (gg.ones(2), hooked, gg.ones(3), gg.ones(2, requires_grad=True)):
        assert compiled(x).item() == x.shape[0]


def test_leaves_that_a_call_makes_and_forgets(tolerance):
    """A gradient penalty: the backward pass leaves a gradient in a copy of the input, too."""
    critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def penalty(x):
        x = x.detach().requires_grad_()
        (g,) = gg.autograd.grad(critic(x).sum(), x, create_graph=True)
        critic.zero_grad()
        loss = (g.norm(dim=1) - 1).square().mean()
        loss.backward()
        return loss.detach(), critic[0].weight.grad.clone()

    def saliency(x):
        x = (x * 2).detach().requires_grad_()
        critic(x).sum().backward()
        return x.grad

    def kept(x):
        x = x.detach().requires_grad_()
        x.square().sum().backward()
        return x

    for function in (penalty, saliency):
        compiled = gg.compile(function, fullgraph=True)
        for _ in range(5):
            x = gg.randn(5, 4, dtype=gg.float64)
            assert_same(compiled(x), function(x), max(tolerance, 1e-12))
    compiled = gg.compile(kept)
    with pytest.warns(UserWarning, match="changes the gradients of other tensors"):
        for _ in range(8):
            x = gg.randn(3, dtype=gg.float64)
            assert compiled(x).grad.tolist() == (2 * x).tolist()
