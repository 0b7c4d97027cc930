"""Mixed precision in compiled programs on CUDA: autocasting, scaled losses, steps that the device
skips, counts and learning rates in its memory. One CUDA graph, and the bits of eager mode."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.nn import functional as F
from gpugrad.static.graph import DeviceUpdateCall, Graph
from tests.cuda.test_static import captured

pytestmark = pytest.mark.gpu

STEPS = 14
OVERFLOWS = (5, 6, 10)  # with other steps before and after
OPTIMIZERS = {
    "sgd": lambda p: gg.optim.SGD(p, lr=0.05),
    "momentum": lambda p: gg.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "dampened": lambda p: gg.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.5),
    "adam": lambda p: gg.optim.Adam(p, lr=1e-2),
    "amsgrad": lambda p: gg.optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: gg.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "capturable": lambda p: gg.optim.AdamW(p, lr=1e-2, capturable=True),
    "rate on the device": lambda p: gg.optim.Adam(p, lr=gg.tensor(1e-2, device="cuda")),
    "rmsprop": lambda p: gg.optim.RMSprop(p, lr=1e-2, momentum=0.5),
    "adagrad": lambda p: gg.optim.Adagrad(p, lr=1e-2, lr_decay=0.1),
    "master": lambda p: gg.optim.AdamW(p, lr=1e-2, master_weights=True),
}


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 3))


class Training:
    """A network with its optimizer and scaler, and a step: compiled or not. Some of the inputs are
    infinite, and so are the gradients then."""

    def __init__(self, optimizer, compiled, where="inside", lower="float16", half=False):
        gg.manual_seed(3)
        self.model, self.lower = network().to("cuda"), getattr(gg, lower)
        if half:
            self.model.to(gg.bfloat16)
        self.where = where
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scaler = gg.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=3)
        self.step = gg.compile(self.eager) if compiled else self.eager

    def autocast(self, where):
        return gg.autocast("cuda", dtype=self.lower, enabled=self.where == where)

    def eager(self, x, y):
        self.optimizer.zero_grad()
        if self.where == "inside":
            with self.autocast("inside"):
                loss = F.cross_entropy(self.model(x), y)
        else:
            loss = F.cross_entropy(self.model(x), y)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def batches(self, steps=STEPS):
        rng = np.random.default_rng(0)
        dtype = self.model[0].weight.dtype
        for k in range(steps):
            x = rng.normal(size=(4, 8)).astype(np.float32)
            if k in OVERFLOWS:
                x[1, 2] = np.inf
            yield (
                gg.tensor(x, device="cuda").to(dtype),
                gg.tensor(rng.integers(0, 3, 4), device="cuda"),
            )

    def one(self, x, y):
        if self.where == "inside":
            return self.step(x, y)
        with self.autocast("outside"):
            return self.step(x, y)

    def run(self, steps=STEPS):
        """After each step: the loss, the scaler, parameters and state."""
        history = []
        for k, (x, y) in enumerate(self.batches(steps)):
            if k == 8:  # as a schedule would
                for group in self.optimizer.param_groups:
                    if isinstance(group["lr"], gg.Tensor):
                        group["lr"].fill_(0.004)
                    else:
                        group["lr"] = 0.004
            loss = self.one(x, y)
            history.append((repr(loss.item()), self.scaler.state_dict(), self.values()))
        return history

    def values(self):
        found = [v for s in self.optimizer.state.values() for v in s.values()]
        state = [v for v in found if isinstance(v, gg.Tensor)]
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        tensors = [*self.model.parameters(), *state, *grads]
        return [t.detach().cpu().float().numpy().tobytes() for t in tensors]


CASES = [
    *[(name, {}) for name in OPTIMIZERS],
    ("adam", {"where": "outside"}),
    ("momentum", {"where": "outside", "lower": "bfloat16"}),
    ("capturable", {"lower": "bfloat16"}),
    ("master", {"half": True}),
    ("adam", {"half": True}),
]


@pytest.mark.parametrize("optimizer, options", CASES)
def test_training_has_the_bits_of_eager_mode(optimizer, options):
    """Losses, parameters, state, scale and its growth, over steps that are recorded, run for
    warming up, captured and replayed; some are skipped, and the scale grows and falls."""
    expected = Training(optimizer, False, **options).run()
    static = Training(optimizer, True, **options)
    found = static.run()
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a == b, f"step {k}"
    scales = [scaler["scale"] for _, scaler, _ in expected]
    assert min(scales) < 2.0**10 < max(scales)
    assert expected[OVERFLOWS[0]][2][:6] == expected[OVERFLOWS[0] - 1][2][:6]  # was skipped
    assert captured(static.step).captures == 1
    assert static.step.stats["replays"] >= STEPS - 4


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "rate on the device"])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_replay_does_not_wait_or_copy(optimizer, where, no_hidden_traffic, host_device):
    static = Training(optimizer, True, where)
    for batch in static.batches(9):
        static.one(*batch)
    program = captured(static.step)
    for x, y in list(static.batches(11))[9:]:  # the second overflows
        static.one(x, y)
        with host_device.counting() as n, no_hidden_traffic("sync", "h2d", "d2h"):
            static.one(x, y)
        assert n.graph_launches == 1
    assert captured(static.step) is program


def test_updates_of_all_parameters_are_one_launch():
    """The update of the steps' counts, and that of the parameters; computed in their memory."""
    for optimizer, names in (("capturable", ["count", "update"]), ("sgd", ["update"])):
        static = Training(optimizer, True)
        static.run(7)
        program = captured(static.step)
        steps = [s for segment in program._segments for s in segment.steps]
        calls = [s.nodes[0].call for s in steps]
        kept = [k for k, c in enumerate(calls) if c.__class__ is DeviceUpdateCall and c.unless]
        assert [calls[k].update.__name__ for k in kept] == names
        assert [len(steps[k].nodes) for k in kept] == [6] * len(names)
        assert {v for v, _ in program.graph.stores} == program._in_place


def test_the_graph_is_read_back():
    static = Training("adamw", True)
    static.run(6)
    (program,) = static.step.programs
    assert "unless: flag" in str(program.recorded)
    text, constants = str(program.recorded), program.recorded.constants
    again = Graph.parse(text, {repr(v): a for v, a in constants.items()})
    assert str(again) == text
    calls = [[n.call for n in g.nodes if "flag" in n.call.text] for g in (again, program.recorded)]
    assert [c.key() for c in calls[0]] == [c.key() for c in calls[1]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("flag", [None, 0.0, 1.0])
@pytest.mark.parametrize("rate", ["number", "array"])
def test_what_an_update_on_the_device_computes(dtype, flag, rate):
    """Of arrays of both devices, beside NumPy: numbers of the loop in float64."""

    @gg.foreach
    def update(p, m, g, *, lr, beta, step):
        m = beta * m + (1 - beta) * g
        return p - lr / (1 - beta**step) * m, m

    rng = np.random.default_rng(0)
    p, m, g = (gg.tensor(rng.normal(size=(3, 5))).to(getattr(gg, dtype)) for _ in range(3))
    a, b, c = (t.double().numpy() for t in (p, m, g))
    b2 = 0.999 * b + (1 - 0.999) * c
    expected = [a - 0.1 / (1 - 0.999**2) * b2, b2] if not flag else [a, b]
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "float64": 1e-15}[dtype]
    call = DeviceUpdateCall(update, flag is not None)
    for device in ("cpu", "cuda"):
        given = [t.to(device).array for t in (p, m, g)]
        before = [a.copy() for a in given]
        lr = 0.1 if rate == "number" else gg.tensor(0.1, dtype=gg.float64, device=device).array
        step = gg.tensor(2.0, device=device).array
        flags = [] if flag is None else [gg.tensor(flag, device=device).array]
        found = call.evaluate([*given, lr, 0.999, step, *flags])
        for r, e, t in zip(found, expected, (p, m), strict=True):
            assert r.dtype == t.dtype and r.shape == t.shape
            values = gg.as_tensor(r).double().cpu().numpy()
            np.testing.assert_allclose(values, e, rtol=tolerance, atol=tolerance)
        for x, y in zip(given, before, strict=True):
            assert x.tobytes() == y.tobytes() and all(x is not r for r in found)


def test_counts_on_the_device_without_a_scaler():
    """``capturable=True`` alone: the device counts, and a replay does so once."""
    histories = []
    for compiled in (False, True):
        gg.manual_seed(0)
        model, history = network().to("cuda"), []
        optimizer = gg.optim.Adam(model.parameters(), lr=1e-2, capturable=True)

        def step(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        f = gg.compile(step) if compiled else step
        rng = np.random.default_rng(0)
        for _ in range(9):
            x = gg.tensor(rng.normal(size=(5, 8)).astype(np.float32), device="cuda")
            loss = f(x, gg.tensor(rng.integers(0, 3, 5), device="cuda"))
            steps = {s["step"].item() for s in optimizer.state.values()}
            history.append((loss.item(), steps))
        histories.append(history)
    np.testing.assert_allclose([a for a, _ in histories[1]], [a for a, _ in histories[0]], 1e-5)
    assert [s for _, s in histories[1]] == [{float(k)} for k in range(1, 10)]
    captured(f)


def test_a_rate_that_becomes_another_tensor():
    """A number instead of the tensor, or another tensor: the program is recorded again."""
    histories = []
    for compiled in (False, True):
        training = Training("rate on the device", compiled)
        (group,), history = training.optimizer.param_groups, []
        for k, batch in enumerate(training.batches(12)):
            if k == 6:
                group["lr"] = 0.03
            if k == 9:
                group["lr"] = gg.tensor(0.02, device="cuda")
            training.one(*batch)
            history.append(training.values())
        histories.append(history)
    assert histories[0] == histories[1]
    assert len(training.step.programs) >= 2


def test_factors_of_the_scaler_are_asked_for():
    histories = []
    for compiled in (False, True):
        training, history = Training("momentum", compiled), []
        for k, batch in enumerate(training.batches(13)):
            if k == 5:
                training.scaler.set_backoff_factor(0.25)
                training.scaler.set_growth_factor(4.0)
                training.scaler.set_growth_interval(2)
            if k == 9:
                training.scaler.load_state_dict(
                    {**training.scaler.state_dict(), "scale": 64.0, "_growth_tracker": 0}
                )
            training.one(*batch)
            history.append(training.scaler.state_dict())
        histories.append(history)
    assert histories[0] == histories[1]
    assert histories[0][5]["scale"] == histories[0][4]["scale"] / 4
    captured(training.step)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "master"])
@pytest.mark.parametrize("between", ["loaded", "eager"])
def test_states_that_are_loaded_and_eager_steps_between(optimizer, between):
    histories = []
    for compiled in (False, True):
        training = Training(optimizer, compiled, half=optimizer == "master")
        history = []
        for k, (x, y) in enumerate(training.batches(14)):
            if between == "loaded" and k == 4:
                saved = copy.deepcopy(training.optimizer.state_dict())
                scale = training.scaler.state_dict()
            if between == "loaded" and k == 8:
                training.optimizer.load_state_dict(saved)
                training.scaler.load_state_dict(scale)
            if between == "eager" and k in (7, 8):
                training.eager(x, y)
            else:
                training.one(x, y)
            history.append((training.values(), training.scaler.state_dict()))
        histories.append(history)
    assert histories[0] == histories[1]
    assert training.step.stats["replays"] >= 8


@pytest.mark.parametrize("options", [{"check": 4}, {"dynamic": True}])
def test_options_of_compile(options):
    histories = []
    for compiled in (False, True):
        training = Training("adamw", False)
        if compiled:
            training.step = gg.compile(training.eager, fullgraph=True, **options)
        rng, history = np.random.default_rng(0), []
        for size in (4, 4, 4, 4, 4, 4, 6, 6, 6, 5, 7, 5, 7):
            x = gg.tensor(rng.normal(size=(size, 8)).astype(np.float32), device="cuda")
            loss = training.step(x, gg.tensor(rng.integers(0, 3, size), device="cuda"))
            history.append((loss.item(), training.values()))
        histories.append(history)
    assert histories[0] == histories[1]
    assert training.step.stats["replays"] >= 4


def test_an_optimizer_with_a_step_of_its_own():
    """It cannot skip by itself: the host looks, and there are two ways through the program."""

    class Own(gg.optim.SGD):
        def step(self):
            with gg.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.sub_(0.1 * p.grad)

    histories = []
    for compiled in (False, True):
        training = Training("sgd", compiled)
        training.optimizer = Own(training.model.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            histories.append(training.run())
    assert histories[0] == histories[1]
    # one more, as its step might read the rate, which changes once
    assert len(training.step.programs) == 3


@gg.foreach
def move(p, m, g, *, lr, beta, step):
    m = beta * m + (1 - beta) * g
    return p - lr / (1 - beta**step) * m, m


class Moving:
    """Updates of tensors outside, of copies, of parts, of nothing; of several dtypes."""

    shapes = ((3,), (70, 300), (0, 4), (), (5, 2))

    def __init__(self, dtypes, lr_dtype):
        gg.manual_seed(1)
        self.lists = [
            [gg.randn(*s, device="cuda").to(getattr(gg, d)) for s in self.shapes] for d in dtypes
        ]
        self.base = [gg.randn(6, 8, device="cuda").to(getattr(gg, d)) for d in dtypes]
        self.flag = gg.zeros((), device="cuda")
        self.rate = gg.tensor(0.25, dtype=getattr(gg, lr_dtype), device="cuda")
        self.steps = [gg.zeros((), device="cuda") for _ in self.shapes]
        self.one = gg.ones((), device="cuda")

    def __call__(self, x):
        p, m, g = self.lists
        old = p[1] * 1.0
        for k, step in enumerate(self.steps):
            step.add_(1.0 + k)
        numbers = {"lr": self.rate, "beta": 0.75}
        g = [t * x.sum().to(t.dtype) for t in g]
        move(p, m, g, unless=self.flag, step=self.steps, **numbers)
        copies = [[t.clone() for t in p], [t * 2 for t in m], g]
        move(*copies, unless=self.flag, step=self.one, **numbers)  # stored nowhere
        parts = [[b[::2, 1:4], b[1:2]] for b in self.base]
        move(*parts, unless=self.flag, step=self.steps[:2], **numbers)
        late = m[1] * 1.0
        move(m, p, g, step=self.one, **numbers)  # without a flag, and the other way round
        return old, late, copies[0][1], copies[1][0]


@pytest.mark.parametrize(
    "dtypes, rate",
    [
        (("float32",) * 3, "float32"),
        (("float64",) * 3, "float64"),
        (("bfloat16", "float32", "float16"), "float32"),
        (("float16",) * 3, "float16"),
        (("float32",) * 3, "int64"),
    ],
)
@pytest.mark.parametrize("kernels", [True, False])
def test_updates_by_the_device(dtypes, rate, kernels, monkeypatch):
    """Whatever is updated, and whether it is stored: the bits of eager mode."""
    from gpugrad.config import settings

    monkeypatch.setattr(settings, "cuda_kernels", kernels)
    histories = []
    for compiled in (False, True):
        made, history = Moving(dtypes, rate), []
        f = gg.compile(made.__call__, fullgraph=True) if compiled else made
        for k in range(9):
            made.flag.fill_(float(k in (3, 5, 8)))
            if k >= 6:
                made.rate.fill_(1 if rate == "int64" else 0.125)
            results = f(gg.full((3,), 0.1 * k - 0.5, device="cuda"))
            tensors = [*results, *made.steps, *made.base, *[t for ts in made.lists for t in ts]]
            history.append([t.cpu().double().numpy().tobytes() for t in tensors])
        histories.append(history)
    for k, (a, b) in enumerate(zip(*histories, strict=True)):
        assert [x == y for x, y in zip(a, b, strict=True)] == [True] * len(a), f"call {k}"
    assert f.stats["replays"] == 7
    if kernels:
        captured(f)


def test_many_tensors(host_device):
    """More than the arguments of a kernel hold."""
    parameters = [gg.full((2,), float(k), device="cuda", requires_grad=True) for k in range(150)]
    optimizer = gg.optim.Adam(parameters, lr=0.1, capturable=True)

    @gg.compile(fullgraph=True)
    def step():
        optimizer.zero_grad()
        sum((p * p).sum() for p in parameters).backward()
        optimizer.step()

    for _ in range(6):
        step()
    captured(step)
    other = [gg.full((2,), float(k), device="cuda", requires_grad=True) for k in range(150)]
    optimizer = gg.optim.Adam(other, lr=0.1, capturable=True)
    for _ in range(6):
        optimizer.zero_grad()
        sum((p * p).sum() for p in other).backward()
        optimizer.step()
    assert [p.tolist() for p in parameters] == [p.tolist() for p in other]
