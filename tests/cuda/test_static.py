"""Compiled programs on CUDA: captured into one CUDA graph, equal to eager mode and to the CPU."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.nn import functional as F
from gpugrad.train import MLP, LeNet

pytestmark = pytest.mark.gpu

STEPS = 10


class Block(nn.Module):
    """A transformer block: attention and a perceptron, each after a norm, with dropout."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        n, t, width = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (p.reshape(n, t, self.heads, -1).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(n, t, width)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """A small language model: ``(n, t)`` tokens to ``(n * t, tokens)`` logits."""

    def __init__(self, tokens=19, length=6, width=16, dropout=0.1):
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, 2, dropout) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        places = gg.arange(x.shape[1], device=x.device)
        x = self.dropout(self.tokens(x) + self.places(places))
        return self.head(self.norm(self.blocks(x))).reshape(-1, self.head.out_features)


def normed():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 10),
    )


def images(rng):
    return rng.normal(size=(8, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 8)


def tokens(rng):
    x = rng.integers(0, 19, (3, 7))
    return x[:, :-1].copy(), x[:, 1:].reshape(-1).copy()


OPTIMIZERS = {
    "sgd": lambda p: gg.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: gg.optim.Adam(p, lr=2e-3),
    "adamw": lambda p: gg.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
}
MODELS = {
    "mlp": (lambda: MLP(hidden=(32,)), images),
    "lenet": (LeNet, images),
    "batch norm": (normed, images),
    "gpt": (GPT, tokens),
    "gpt without dropout": (lambda: GPT(dropout=0.0), tokens),
}


class Training:
    """A model with its optimizer on a device, and a step: compiled or not."""

    def __init__(
        self, model, optimizer, device, compiled, clip=None, schedule=None, grads=True, **options
    ):
        make, self.draw = MODELS[model]
        gg.manual_seed(7)
        self.model, self.device, self.clip = make().to(device), device, clip
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = None
        if schedule is not None:
            self.schedule = gg.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.grads = grads
        self.rng = np.random.default_rng(3)
        self.step = gg.compile(self.eager, **options) if compiled else self.eager

    def eager(self, x, y):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if not self.grads:
            self.optimizer.zero_grad()
        return loss

    def batch(self):
        return [gg.tensor(a, device=self.device) for a in self.draw(self.rng)]

    def run(self, steps=STEPS):
        losses = []
        for _ in range(steps):
            losses.append(self.step(*self.batch()))
            if self.schedule is not None:
                self.schedule.step()
        return [loss.item() for loss in losses]

    def values(self):
        kept = [v for s in self.optimizer.state.values() for v in s.values()]
        state = [v for v in kept if isinstance(v, gg.Tensor)]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        return [t.detach().cpu().numpy() for t in tensors]


def runner(compiled):
    """What runs the only program of a compiled function."""
    (program,) = compiled.programs
    return program.run


def captured(compiled):
    """The same, which must be a captured one."""
    found = runner(compiled)
    assert type(found).__name__ == "CapturedProgram"
    assert found.reason is None
    return found


def assert_same(found, expected, rtol=0.0, atol=0.0):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol, atol)


CASES = [
    ("mlp", "sgd", {}),
    ("mlp", "adam", {"clip": 0.5}),
    ("mlp", "adam", {"grads": False}),
    ("lenet", "adamw", {"schedule": lambda epoch: 0.8**epoch}),
    ("batch norm", "adam", {}),
    ("gpt", "adamw", {"clip": 1.0, "schedule": lambda epoch: 1 / (1 + epoch)}),
]


@pytest.mark.parametrize("model, optimizer, options", CASES)
def test_training_is_that_of_eager_mode(model, optimizer, options):
    """Losses, parameters, state and the generator, over steps that are recorded, run for warming
    up, captured and replayed. Fused kernels may round in another order: 1e-5."""
    eager = Training(model, optimizer, "cuda", False, **options)
    expected, after = eager.run(), gg.rand(3).tolist()
    static = Training(model, optimizer, "cuda", True, **options)
    losses = static.run()
    assert gg.rand(3).tolist() == after
    assert_same([losses], [expected], rtol=1e-5)
    assert_same(static.values(), eager.values(), rtol=1e-3, atol=1e-5)
    found = captured(static.step)
    assert found.captures == 1
    for a, b in zip(static.model.parameters(), eager.model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert_same([a.grad.cpu().numpy()], [b.grad.cpu().numpy()], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model, optimizer", [("mlp", "adam"), ("gpt without dropout", "sgd")])
def test_training_is_that_of_the_cpu(model, optimizer):
    expected = Training(model, optimizer, "cpu", False).run()
    static = Training(model, optimizer, "cuda", True)
    assert_same([static.run()], [expected], rtol=1e-4)
    captured(static.step)


@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_a_replay_allocates_nothing_but_results(model, host_device, no_hidden_traffic):
    static = Training(model, "adamw", "cuda", True, clip=1.0, grads=False)
    static.run(6)
    found, (x, y) = captured(static.step), static.batch()
    loss = static.step(x, y)
    with host_device.counting() as n, no_hidden_traffic():
        loss = static.step(x, y)
    assert n.graph_launches == 1
    assert n.launches == 1, "the numbers"
    assert n.host_mallocs == n.queries == 0
    assert found.captures == 1
    assert np.isfinite(loss.item())


def test_updates_of_all_parameters_are_one_launch_in_place(host_device):
    static = Training("gpt", "adamw", "cuda", True)
    static.run(5)
    found = captured(static.step)
    parameters = len(list(static.model.parameters()))
    assert len(found._in_place) == 3 * parameters
    updates = [step for step in found._segments[-1].steps if step.updates is not None]
    assert [len(step.nodes) for step in updates] == [parameters]


def test_results_belong_to_the_caller():
    static = Training("mlp", "sgd", "cuda", True)
    static.run(4)
    results = [static.step(*static.batch()) for _ in range(3)]
    grads = [p.grad for p in static.model.parameters()]
    values = [t.detach().cpu().numpy() for t in (*results, *grads)]
    for _ in range(2):
        static.step(*static.batch())
    assert_same([t.detach().cpu().numpy() for t in (*results, *grads)], values)
    assert len({r.item() for r in results}) == 3


# ---- memory of live tensors ----------------------------------------------------------------------


def test_parameters_with_other_memory_are_captured_again():
    both = [Training("mlp", "adam", "cuda", compiled) for compiled in (False, True)]
    for t in both:
        t.run(5)
    found = captured(both[1].step)
    for t in both:
        state = {k: v.cpu() * 0.5 for k, v in t.model.state_dict().items()}
        t.model.load_state_dict(state)  # in place
    assert_same([both[1].run(2)], [both[0].run(2)], rtol=1e-5)
    assert found.captures == 1
    for t in both:
        for p in t.model.parameters():
            p.data = p.detach() * 0.5
    assert_same([both[1].run(3)], [both[0].run(3)], rtol=1e-5)
    assert found.captures == 2
    assert_same(both[1].values(), both[0].values(), rtol=1e-3, atol=1e-6)
    assert found is captured(both[1].step)


def test_memory_that_changes_all_the_time_is_copied():
    w = gg.ones(5, device="cuda")

    @gg.compile
    def step():
        w.mul_(2.0)
        return w.sum()

    for k in range(12):
        w.data = gg.full((5,), float(k), device="cuda")
        assert step().item() == 10.0 * k
        assert w.tolist() == [2.0 * k] * 5
    assert 2 <= captured(step).captures <= 6


def test_the_model_moves_away_and_back():
    both = [Training("mlp", "sgd", "cuda", compiled) for compiled in (False, True)]
    found = []
    for t in both:
        losses = t.run(5)
        t.model.to("cpu")
        t.device = "cpu"
        losses += t.run(3)
        t.model.to("cuda")
        t.device = "cuda"
        found.append(losses + t.run(3))
    assert_same([found[1]], [found[0]], rtol=1e-4)


# ---- arguments, writes, branches -----------------------------------------------------------------


def test_arguments_of_any_layout_and_of_changing_memory():
    @gg.compile
    def product(x, y):
        return x @ y + 1

    rng = np.random.default_rng(0)
    for k in range(7):
        a = gg.tensor(rng.normal(size=(4, 6)), dtype=gg.float32, device="cuda")
        b = gg.tensor(rng.normal(size=(5, 6)), dtype=gg.float32, device="cuda").T
        if k % 2:
            a = a[:, ::2].repeat_interleave(2, 1)[:4]
        expected = a.cpu().numpy() @ b.cpu().numpy() + 1
        assert_same([product(a, b).cpu().numpy()], [expected], rtol=1e-5, atol=1e-6)
    captured(product)


def test_arguments_that_are_written():
    @gg.compile
    def accumulate(total, x):
        total.add_(x).mul_(2.0)
        return total.sum()

    totals = [gg.zeros(3, 2, device="cuda"), gg.zeros(3, 4, device="cuda")[:, ::2]]
    expected = np.zeros((3, 2))
    for k in range(6):
        x = gg.full((3, 2), float(k), device="cuda")
        expected = (expected + k) * 2
        for total in totals:
            assert accumulate(total, x).item() == expected.sum()
            assert (total.cpu().numpy() == expected).all()
    captured(accumulate)


def test_old_values_that_are_still_needed():
    """A value is read after its memory was updated, by itself, by a view, and by the caller."""
    w = gg.arange(6.0, device="cuda").reshape(2, 3)

    @gg.foreach
    def halve(x, y):
        return x * 0.5 + y

    @gg.compile
    def step(x):
        view, before = w.T, w * 1.0
        product = view * x
        halve([w], [x.T])
        return before, product, view * 1.0, w * 1.0

    values = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    for k in range(6):
        x = np.full((3, 2), k, np.float32)
        results = step(gg.tensor(x, device="cuda"))
        after = values * 0.5 + x.T
        wanted = [values, values.T * x, after.T, after]
        assert_same([r.cpu().numpy() for r in results], wanted)
        values = after
    captured(step)


def test_branches_by_values_write_nothing_the_wrong_way():
    log = gg.zeros(4, device="cuda")

    @gg.compile
    def step(x):
        total = x.sum()
        log.add_(1.0)
        if total > 0:
            log.mul_(2.0)
            return x / total
        return x - total

    expected, rng = np.zeros(4), np.random.default_rng(5)
    for _ in range(14):
        x = rng.normal(size=4).astype(np.float32)
        found = step(gg.tensor(x, device="cuda"))
        positive = x.sum() > 0
        expected = (expected + 1) * (2 if positive else 1)
        wanted = x / x.sum() if positive else x - x.sum()
        np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=1e-5, atol=1e-6)
        assert (log.cpu().numpy() == expected).all()
    assert [p.run.reason for p in step.programs] == [None, None]


def test_random_numbers_and_branches():
    """A replay that turns out to go the other way takes back what it drew."""

    def step(x):
        noise = gg.rand(4, device="cuda")
        return noise + 1 if x.sum() > 0 else noise * gg.rand(4, device="cuda")

    compiled, found = gg.compile(step), []
    signs = [1, 1, 1, 1, -1, -1, -1, -1, 1, -1, 1, 1]
    for f in (step, compiled):
        gg.manual_seed(11)
        found.append([f(gg.full((2,), float(s), device="cuda")).tolist() for s in signs])
    assert found[0] == found[1]
    assert [p.run.reason for p in compiled.programs] == [None, None]


@pytest.mark.parametrize("generator", [None, "own"])
def test_random_numbers_are_those_of_eager_mode(generator):
    own = None if generator is None else gg.Generator()

    def noise(x):
        a = gg.rand(5, device="cuda", generator=own)
        b = gg.randn(3, device="cuda", generator=own)
        c = gg.randint(0, 1000, (4,), device="cuda", generator=own)
        unread = gg.rand(7, device="cuda", generator=own)  # noqa: F841
        return a * x, b, c, F.dropout(x * gg.ones(9, device="cuda"), 0.5, generator=own)

    compiled, found = gg.compile(noise), []
    x = gg.ones((), device="cuda")
    for f in (noise, compiled):
        (own or gg.default_generator).manual_seed(2**63 + 5)
        found.append([[t.tolist() for t in f(x)] for _ in range(6)])
    assert found[0] == found[1]
    assert len({str(values) for values in found[1]}) == 6
    captured(compiled)


# ---- several programs ----------------------------------------------------------------------------


def test_programs_take_turns():
    """Training and evaluation share memory and parameters."""
    found = []
    for compiled in (False, True):
        t = Training("lenet", "adam", "cuda", compiled)
        scores = lambda x, t=t: t.model(x).argmax(1)
        evaluate = gg.compile(scores) if compiled else scores
        rows = []
        for _ in range(6):
            x, y = t.batch()
            rows.append((t.step(x, y).item(), evaluate(x).tolist()))
        found.append(rows)
    assert_same([[a for a, _ in found[1]]], [[a for a, _ in found[0]]], rtol=1e-5)
    assert [b for _, b in found[1]] == [b for _, b in found[0]]


def test_streams(host_device):
    """Calls on several streams, with work that runs as late as it may."""
    static, eager = (Training("mlp", "adam", "cuda", c) for c in (True, False))
    expected = eager.run(9)
    streams = [gg.cuda.Stream(), gg.cuda.current_stream(), gg.cuda.Stream()]
    losses = []
    with host_device.deferred():
        for k in range(9):
            x, y = static.batch()
            streams[k % 3].wait_stream(gg.cuda.current_stream())
            with gg.cuda.stream(streams[k % 3]):
                losses.append(static.step(x, y))
            gg.cuda.current_stream().wait_stream(streams[k % 3])
        found = [loss.item() for loss in losses]
    assert_same([found], [expected], rtol=1e-5)
    captured(static.step)


def test_inside_a_capture():
    """A compiled function that is part of what is captured by hand."""
    w = gg.ones(4, device="cuda")

    @gg.compile
    def step(x):
        w.add_(x)
        return w * 2

    x = gg.ones(4, device="cuda")
    for _ in range(5):
        step(x)
    before, graph = w.tolist(), gg.cuda.CUDAGraph()
    with gg.cuda.graph(graph):
        y = step(x)
    assert w.tolist() == before
    graph.replay()
    assert w.tolist() == [v + 1 for v in before]
    assert y.tolist() == [2 * (v + 1) for v in before]
    assert step(x).tolist() == [2 * (v + 2) for v in before]
    captured(step)


# ---- errors and other ways -----------------------------------------------------------------------


def test_an_error_of_a_kernel_is_raised_where_the_host_waits():
    static = Training("mlp", "sgd", "cuda", True)
    static.run(5)
    x, y = static.batch()
    loss = static.step(x, y + 100)
    with pytest.raises(IndexError, match="out of"):
        loss.item()
    captured(static.step)
    assert static.step(x, y).isfinite()


def test_what_cannot_be_captured_runs_as_python():
    @gg.compile
    def step(x):
        return x.sort().values.sum() + gg.unique(x).sum()

    rng = np.random.default_rng(0)
    with contextlib.suppress(UserWarning):
        for _ in range(5):
            x = rng.integers(0, 4, 9).astype(np.float32)
            found = step(gg.tensor(x, device="cuda"))
            assert found.item() == x.sum() + np.unique(x).sum()


def test_arrays_of_two_places_run_as_python():
    @gg.compile
    def step(x):
        return (x * 2).to("cuda") + 1

    for k in range(5):
        assert step(gg.full((3,), float(k))).tolist() == [2.0 * k + 1] * 3
    assert type(runner(step)).__name__ != "CapturedProgram"


def test_without_kernels(monkeypatch):
    from gpugrad.config import settings

    monkeypatch.setattr(settings, "cuda_kernels", False)
    expected = Training("mlp", "adam", "cuda", False, clip=1.0).run(6)
    static = Training("mlp", "adam", "cuda", True, clip=1.0)
    assert_same([static.run(6)], [expected], rtol=1e-6)
    assert type(runner(static.step)).__name__ == "function"


def test_kernels_that_are_switched_off_later(monkeypatch):
    """Between the first run and the capture: CuPy's products refuse that, and Python runs them."""
    from gpugrad.config import settings

    w = gg.ones(3, 3, device="cuda")

    @gg.compile
    def step(x):
        w.add_(1.0)
        return x @ w

    x = gg.ones(2, 3, device="cuda")
    for k in range(3):
        assert step(x).tolist() == [[3.0 * (k + 2)] * 3] * 2
    monkeypatch.setattr(settings, "cuda_kernels", False)
    for k in range(3, 6):
        assert step(x).tolist() == [[3.0 * (k + 2)] * 3] * 2
    assert runner(step).reason is not None
    assert "could not be captured" in step.explain()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_numbers_on_the_device(dtype):
    """An elementwise program whose number lies on the device computes what it does with Python's
    number."""
    from gpugrad.codegen import cuda
    from gpugrad.codegen.arrays import Program
    from gpugrad.codegen.cuda_words import Words
    from gpugrad.codegen.expr import variable

    x, a, b = (variable(n) for n in "xab")
    program = Program([x * a + b, x - b], ["x", "a", "b"], ())
    rng = np.random.default_rng(0)
    words = Words(3)
    words.floats[:] = 1 / 3, np.pi, -7.1
    words.write()
    for values in (rng.normal(size=(5, 7)), rng.normal(size=1001), rng.normal(size=(8, 6)).T):
        t = gg.tensor(values, device="cuda").to(getattr(gg, dtype))
        for array in (t.array, t.array[::2], t.array[1:]):
            expected = cuda.run(program, (array, np.pi.__float__(), -7.1))
            found = cuda.run(program, (array, words.number(1), words.number(2)))
            for e, f in zip(expected, found, strict=True):
                assert e.dtype == f.dtype == array.dtype
                assert e.get().tobytes() == f.get().tobytes()


@pytest.mark.parametrize("count", [1, 8, 9, 64, 481, 1000])
def test_words(count):
    from gpugrad.codegen.cuda_words import Words

    words = Words(count)
    bits = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    words.integers[:] = bits
    words.write()
    words.integers[:] = 0  # they have been sent
    assert (words.on_device(0, count).get().view(np.uint64) == bits).all()


def test_gradients_are_copied_together(host_device):
    """Those of one call in one piece of memory, the loss in its own."""
    static = Training("gpt", "sgd", "cuda", True)
    static.run(5)
    x, y = static.batch()
    with host_device.counting() as n:
        loss = static.step(x, y)
    parameters = list(static.model.parameters())
    assert n.d2d == 4, "two arguments, the loss, the gradients"
    blocks = {id(p.grad.array.data.mem) for p in parameters}
    assert len(blocks) == 1
    assert id(loss.array.data.mem) not in blocks
    assert all(p.grad.array.data.ptr % 256 == 0 for p in parameters)


def test_borrowed_results_are_not_copied():
    @gg.compile(outputs="borrow")
    def step(x):
        return x * 2

    addresses = set()
    for k in range(8):
        y = step(gg.full((5,), float(k), device="cuda"))
        assert y.tolist() == [2.0 * k] * 5
        if k > 3:
            addresses.add(y.array.data.ptr)
    assert len(addresses) == 1
    captured(step)


def test_replays_print_and_whole_numbers_are_ways(capsys):
    def f(x):
        y = (x * 2).sum()
        print("y is", y, f"or {y.item():.1f}")
        return x[: int(y)] + y

    compiled = gg.compile(f)
    for k in range(12):
        x = gg.tensor([0.5, 0.25 * (k % 4), 0.25], device="cuda")
        found, text = compiled(x), capsys.readouterr().out
        gg.testing.assert_close(found, f(x))
        assert text == capsys.readouterr().out
    assert compiled.stats["programs"] == 3  # y is 1.5, 2, 2.5 or 3
    assert compiled.stats["replays"] >= 6
