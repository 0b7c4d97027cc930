"""Passes that the native runner adds: sums made in passing, epilogues of products. They may round
otherwise; results stay within rounding of the recorded graph, and nodes become fewer."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad import nn
from gpugrad.codegen import convolution
from gpugrad.codegen.machine import machine
from gpugrad.static import passes, run_cpu, run_python
from gpugrad.static.graph import EpilogueCall, RowsCall
from gpugrad.static.passes.epilogues import join_epilogues
from gpugrad.static.passes.joining import join_rows
from gpugrad.static.passes.pools import mask_before_pools
from gpugrad.static.passes.totals import sum_in_passing
from gpugrad.static.recording import record
from gpugrad.static.sources import Argument

pytestmark = pytest.mark.skipif(machine() is None, reason="no compiler: pip install gpugrad[jit]")


def graph_of(function, *args):
    _, recording = record(function, args, {}, args, None)
    assert recording.failure is None
    return passes.optimize(recording.graph)


def compare(graph, args, *changed):
    """All runners and graphs give the same results up to rounding."""

    def inputs() -> list:
        return [
            np.array(args[s.place] if s.__class__ is Argument else s.read()) for s in graph.sources
        ]

    expected = run_python.compile_graph(graph)(*inputs())
    for other in (*changed, graph):
        other.check()
        for runner in (run_python, run_cpu):
            found = runner.compile_graph(other)(*inputs())
            for a, b in zip(found, expected, strict=True):
                assert a.shape == b.shape
                assert a.dtype == b.dtype
                scale = np.abs(b).max(initial=1.0)
                tolerance = 1e-12 if b.dtype == np.float64 else 2e-6
                np.testing.assert_allclose(a, b, rtol=tolerance * 10, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("shape", [(7,), (64, 33), (3, 5, 8), (100, 1000), (16384,), (8209,)])
def test_sums_in_passing(shape, dtype):
    def loss(x, y):
        z = (x * 2 - y).tanh()
        total = (z * z).mean() + (x * y).sum() * 1e-3
        return total.detach(), *gg.autograd.grad(total, (x, y))

    x = gg.randn(*shape, dtype=dtype, requires_grad=True)
    y = gg.randn(*shape, dtype=dtype, requires_grad=True)
    graph = graph_of(loss, x, y)
    changed = sum_in_passing(graph)
    rows = [n for n in changed.nodes if n.call.__class__ is RowsCall]
    assert bool(rows) == (shape != (8209,))  # a prime beyond one row stays as it is
    compare(graph, [x.detach().array, y.detach().array], changed)


def test_sums_that_stay_as_they_are():
    def f(x):
        y = x * 2
        return y.sum(0), y.sum((0, 1), keepdim=True), (x > 0).sum()

    x = gg.randn(4, 5)
    graph = graph_of(f, x)
    assert sum_in_passing(graph) is graph


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (64, 100, 33)])
@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
def test_epilogues(sizes, dtype):
    m, k, n = sizes

    def f(x, w, b, mask):
        y = nn.functional.linear(x, w, b).relu()
        z = nn.functional.linear(x, w).exp() * y
        loss = (z + y @ w).sum() if n == k else z.sum()
        gx, gw = gg.autograd.grad(loss, (x, w))
        with gg.no_grad():
            return loss.detach(), y.detach(), gx * mask, w - 0.1 * gw, gw

    x = gg.randn(m, k, dtype=dtype, requires_grad=True) * 0.1
    x = x.detach().requires_grad_()
    w = (gg.randn(n, k, dtype=dtype) * 0.1).requires_grad_()
    b, mask = gg.randn(n, dtype=dtype), gg.randn(k, dtype=dtype)
    graph = graph_of(f, x, w, b, mask)
    changed = join_epilogues(graph)
    assert any(n.call.__class__ is EpilogueCall for n in changed.nodes)
    assert len(changed.nodes) < len(graph.nodes)
    compare(graph, [t.detach().array for t in (x, w, b, mask)], changed)


def test_an_update_in_the_epilogue_of_a_gradient_is_in_place():
    layer = nn.Linear(20, 30)
    optimizer = gg.optim.Adam(layer.parameters(), lr=0.01)
    other = nn.Linear(20, 30)
    other.load_state_dict(layer.state_dict())
    reference = gg.optim.Adam(other.parameters(), lr=0.01)

    def step(layer, optimizer, x):
        optimizer.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    compiled = gg.compile(lambda x: step(layer, optimizer, x))
    for _ in range(8):
        x = gg.randn(16, 20)
        gg.testing.assert_close(compiled(x), step(other, reference, x), rtol=1e-5, atol=1e-6)
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        gg.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        gg.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    (program,) = compiled.programs
    kinds = [n.call.kind for n in program.run.graph.nodes]
    assert "epilogue" in kinds
    assert not program.run.fallbacks


# ------------------------------------------------------------------------------------------------
# programs over rows as one

LOSSES = {
    "row operations": lambda x, w, b: F.softmax(
        F.gelu(F.layer_norm(x, x.shape[-1:], w, b, 1e-3), approximate="tanh"), -1
    ).square().sum(),
    "norms": lambda x, w, b: (
        F.layer_norm(F.layer_norm(x, x.shape[-1:], w, b).tanh() + x, x.shape[-1:], w).exp().mean()
    ),
    "entropy": lambda x, w, b: -(F.softmax(x * w, -1) * F.log_softmax(x + b, -1)).sum(-1).mean(),
    "classes": lambda x, w, b: F.cross_entropy(
        (F.layer_norm(x, x.shape[-1:], w, b)).reshape(-1, x.shape[-1]).sigmoid(),
        gg.arange(x.numel() // x.shape[-1]) % x.shape[-1],
    ),
    "a number": lambda x, w, b: (F.softmax(x * w.mean(), -1) * (x.mean() + b) + 0.1).square().sum(),
}  # fmt: skip


def with_gradients(loss):
    def f(x, w, b):
        value = loss(x, w, b)
        return value.detach(), *gg.autograd.grad(value, (x, w, b))

    return f


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("shape", [(3, 2), (5, 7), (1, 33), (2, 3, 64), (300, 1000), (40, 3000)])
@pytest.mark.parametrize("name", LOSSES)
def test_programs_over_rows_become_one(name, shape, dtype):
    columns = shape[-1]
    args = [gg.randn(*shape, dtype=dtype), *[gg.rand(columns, dtype=dtype) + 0.5 for _ in "wb"]]
    args = [a.requires_grad_() for a in args]
    graph = graph_of(with_gradients(LOSSES[name]), *args)
    changed = join_rows(graph)
    assert len(changed.nodes) < len(graph.nodes) or columns == 3000
    if name == "row operations" and (columns < 3000 or dtype == gg.float32):
        rows = [n for n in changed.nodes if n.call.__class__ is RowsCall]
        assert len(rows) == 1
    compare(graph, [a.detach().array for a in args], changed)


def test_rows_that_do_not_fit_and_products_stay():
    def long(x, w, b):
        return F.layer_norm(x, x.shape[-1:], w, b).tanh()

    args = [gg.randn(4, 9000), gg.rand(9000), gg.rand(9000)]
    graph = graph_of(long, *args)
    assert join_rows(graph) is graph

    def product(x, w):  # the activation is the product's epilogue
        return F.softmax(F.linear(x, w).tanh(), -1)

    graph = graph_of(product, gg.randn(4, 9), gg.randn(9, 9))
    assert join_rows(graph) is graph


def test_what_lies_between_rows_and_depends_on_all_of_them():
    def f(x):
        y = F.softmax(x, -1)
        return F.softmax(y * y.sum(), -1), F.softmax(y + y.sum(0), -1), y

    x = gg.randn(6, 10)
    graph = graph_of(f, x)
    compare(graph, [x.array], join_rows(graph))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 1e-42, -0.0, 3e38])
def test_special_values_in_rows(special):
    x = gg.randn(20, 24)
    x[3, 5] = x[7, 0] = x[7, 23] = special
    args = [x.requires_grad_(), gg.rand(24).requires_grad_(), gg.rand(24).requires_grad_()]
    graph = graph_of(with_gradients(LOSSES["row operations"]), *args)
    inputs = [a.detach().array for a in args]
    with np.errstate(all="ignore"):
        expected = run_cpu.compile_graph(graph)(*inputs)
        found = run_python.compile_graph(graph)(*inputs)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)


@pytest.mark.parametrize("seed", range(80))
def test_random_programs_over_rows(seed):
    rng = np.random.default_rng(seed)
    dtype = [gg.float32, gg.float64][seed % 2]
    shape = (int(rng.integers(1, 30)), int(rng.integers(2, 70)))
    plan = [tuple(rng.integers(0, 1 << 16, 3)) for _ in range(int(rng.integers(3, 12)))]
    steps = [
        lambda a, b, c: F.softmax(a, -1),
        lambda a, b, c: F.layer_norm(a, a.shape[-1:], c + 1, c, 0.1),
        lambda a, b, c: a - a.mean(-1, keepdim=True) + b,
        lambda a, b, c: (a * 0.5 + c).tanh(),
        lambda a, b, c: a * b + 0.1,
        lambda a, b, c: gg.exp(-a.square()) - b,
        lambda a, b, c: F.gelu(a) * c,
        lambda a, b, c: a * b.mean(),
        lambda a, b, c: a + b.sum(0) * 0.1,
        lambda a, b, c: gg.sigmoid(F.log_softmax(a + b, -1)),
    ]

    def f(x, c):
        pool = [x, x * 0.7]
        for kind, i, j in plan:
            pool.append(steps[kind % len(steps)](pool[i % len(pool)], pool[j % len(pool)], c))
        loss = pool[-1].square().mean() + (pool[-2] * pool[2]).sum() * 0.01
        return (
            loss.detach(),
            pool[-2].detach() * 1,
            *gg.autograd.grad(loss, (x, c), allow_unused=True)[:1],
        )

    x, c = gg.randn(*shape, dtype=dtype).requires_grad_(), gg.rand(shape[1], dtype=dtype)
    graph = graph_of(f, x, c.requires_grad_())
    compare(graph, [x.detach().array, c.detach().array], join_rows(graph))


@pytest.fixture
def every_layer(monkeypatch):
    """Kernels for the smallest convolutions."""
    monkeypatch.setattr(convolution, "LEAST_WORK", 1)
    monkeypatch.setattr(convolution, "PARALLEL", 4)
    for choice in (convolution._chosen, convolution.with_epilogue):
        choice.cache_clear()
    yield
    convolution._chosen.cache_clear()


LAYERS = [
    # batch, channels, filters, groups, image, kernel, options
    (3, 4, 6, 1, (9, 7), (3, 3), {"padding": 1}),
    (2, 1, 1, 1, (5, 11), (2, 3), {}),
    (5, 4, 6, 2, (13, 10), (3, 2), {"stride": 2, "padding": (1, 0)}),
    (2, 3, 8, 1, (12, 17), (3, 3), {"dilation": (2, 3), "padding": 2}),
    (1, 6, 6, 6, (6, 33), (5, 1), {"stride": (1, 3)}),
    (70, 2, 3, 1, (6, 6), (3, 3), {}),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_epilogues_of_convolutions(every_layer, layer, dtype, threads):
    batch, channels, filters, groups, image, kernel, options = layer

    def f(x, w, b, mean, other, mask, rate):
        z = nn.functional.conv2d(x.relu(), w, b, groups=groups, **options)
        z = (z - mean) * 0.5 + other
        y = nn.functional.conv2d(x, w, groups=groups, **options).relu() * z
        gx, gw = gg.autograd.grad(y.square().mean(), (x, w))
        with gg.no_grad():
            plain = nn.functional.conv2d(x, w, groups=groups, **options)
            chosen = gg.where(mask, plain, other)
            return y.detach(), gx, w - rate * gw, gw, chosen, plain > 0, plain

    x = gg.randn(batch, channels, *image, dtype=dtype, requires_grad=True)
    w = gg.randn(filters, channels // groups, *kernel, dtype=dtype, requires_grad=True)
    b, mean = gg.randn(filters, dtype=dtype), gg.randn(filters, 1, 1, dtype=dtype)
    shape = nn.functional.conv2d(x, w, groups=groups, **options).shape
    other, mask = gg.randn(*shape, dtype=dtype), gg.randn(*shape[1:]) > 0
    rate = gg.full((1,), 0.1, dtype=dtype)
    args = (x, w, b, mean, other, mask, rate)
    graph = graph_of(f, *args)
    changed = join_epilogues(graph)
    found = [n.call.producer.op.name for n in changed.nodes if n.call.__class__ is EpilogueCall]
    assert set(found) == {"conv", "conv_input", "conv_weight"}
    before = gg.get_num_threads()
    gg.set_num_threads(threads)
    try:
        compare(graph, [t.detach().array for t in args], changed)
    finally:
        gg.set_num_threads(before)


def test_an_epilogue_of_a_convolution_does_not_overwrite_what_it_reads(every_layer):
    """Its kernel may compute an element twice."""
    layer = nn.Conv2d(3, 3, 3, padding=1)
    state, expected = gg.zeros(4, 3, 10, 11), gg.zeros(4, 3, 10, 11)

    def step(state, x):
        with gg.no_grad():
            state.copy_(state * 0.5 + layer(x))

    compiled = gg.compile(lambda x: step(state, x))
    for _ in range(6):
        x = gg.randn(4, 3, 10, 11)
        compiled(x)
        step(expected, x)
        gg.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)
    kinds = [n.call.kind for p in compiled.programs for n in p.run.graph.nodes]
    assert compiled.stats["replays"] > 0
    assert "epilogue" in kinds


@pytest.mark.parametrize("threads", [1, 2])
def test_training_convolutions_with_epilogues(every_layer, threads):
    def model():
        return nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 7, 3, padding=1),
            nn.ReLU(), nn.Conv2d(7, 3, (2, 3), stride=2), nn.Flatten(), nn.Linear(18, 4),
        )  # fmt: skip

    x, y = gg.randn(9, 1, 15, 14), gg.randint(4, (9,))
    ours, theirs = model(), model()

    theirs.load_state_dict(ours.state_dict())
    optimizers = [gg.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (ours, theirs)]
    schedules = [gg.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in optimizers]

    def step(model, optimizer):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    compiled = gg.compile(lambda: step(ours, optimizers[0]))
    before = gg.get_num_threads()
    gg.set_num_threads(threads)
    try:
        for _ in range(9):
            gg.testing.assert_close(compiled(), step(theirs, optimizers[1]), rtol=1e-5, atol=1e-6)
            for schedule in schedules:
                schedule.step()
    finally:
        gg.set_num_threads(before)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        gg.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        gg.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    found = [n.call for n in compiled.programs[-1].run.graph.nodes]
    names = {c.producer.op.name for c in found if c.__class__ is EpilogueCall}
    assert {"conv", "conv_input", "conv_weight"} <= names
    assert compiled.stats["replays"] > 3


def test_images_beyond_the_cache_are_not_read_by_an_epilogue(every_layer):
    """Bias and relu read no images."""

    def f(x, w, b, other):
        with_bias = nn.functional.conv2d(x, w, b).relu()
        return with_bias, (nn.functional.conv2d(x.abs(), w) + other).relu()

    for side, joined in ((8, 2), (100, 1)):
        args = [gg.randn(2, 3, side, side), gg.randn(5, 3, 3, 3), gg.randn(5)]
        args.append(gg.randn(2, 5, side - 2, side - 2))
        graph = graph_of(f, *args)
        changed = join_epilogues(graph)
        assert [n.call.kind for n in changed.nodes].count("epilogue") == joined
        compare(graph, [t.array for t in args], changed)


def test_convolutions_without_a_kernel_stay_as_they_are():
    """Those that are computed as products by the reference, and those of nothing."""

    def f(x, w, b):
        return nn.functional.conv2d(x, w, b).relu()

    few = [gg.randn(1, 1, 4, 4), gg.randn(1, 1, 2, 2), gg.randn(1)]
    pointwise = [gg.randn(2, 64, 16, 16), gg.randn(64, 64, 1, 1), gg.randn(64)]
    none = [gg.randn(0, 3, 8, 8), gg.randn(4, 3, 3, 3), gg.randn(4)]
    for args in (few, pointwise, none):
        graph = graph_of(f, *args)
        changed = join_epilogues(graph)
        assert changed is graph
        compare(graph, [t.array for t in args])


POOLS = [
    {"kernel_size": 2},
    {"kernel_size": (2, 3)},
    {"kernel_size": 3, "stride": 2},  # windows overlap
    {"kernel_size": 2, "stride": 1, "dilation": 2},
    {"kernel_size": 2, "stride": 3},  # windows leave gaps
]


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_masks_before_pools_have_the_same_bits(pool, dtype, monkeypatch, rng):
    """Ties, zeros of both signs, infinities and NaN among images and cotangents."""

    def f(x, c):
        p = nn.functional.max_pool2d(x.relu(), **pool)
        (gx,) = gg.autograd.grad((p * c).sum(), (x,))
        return gx

    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0, 3.0])
    x = gg.tensor(rng.choice(special, (5, 4, 19, 23)), dtype=dtype, requires_grad=True)
    shape = nn.functional.max_pool2d(x, **pool).shape
    c = gg.tensor(rng.choice(special, shape), dtype=dtype)
    with np.errstate(all="ignore"):
        graph = graph_of(f, x, c)
    changed = mask_before_pools(graph)
    changed.check()
    assert changed is not graph
    last = changed.nodes[-1].call
    assert last.op.name == "max_pool_scatter"

    def run() -> np.ndarray:
        with np.errstate(all="ignore"):
            return run_cpu.compile_graph(graph)(x.detach().array, c.array)[0]

    found = run()
    monkeypatch.setattr(run_cpu, "mask_before_pools", lambda graph: graph)
    expected = run()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    assert np.isnan(expected).any()
    assert (expected != 0).any()


def test_sums_of_masked_images_are_those_of_the_masked_cotangents():
    def f(x, b):
        y = (x + b).relu()
        loss = nn.functional.max_pool2d(y, 2).square().sum()
        return gg.autograd.grad(loss, (x, b))

    x, b = gg.randn(3, 4, 10, 12, requires_grad=True), gg.randn(4, 1, 1, requires_grad=True)
    graph = graph_of(f, x, b)
    changed = mask_before_pools(graph)
    (total,) = [n for n in changed.nodes if n.call.kind == "op" and n.call.op.name == "sum_to"]
    assert total.inputs[0].shape == (3, 4, 5, 6)
    compare(graph, [x.detach().array, b.detach().array], changed)


def test_sums_of_other_axes_and_arrays_stay():
    """Of rows alone; of one dimension."""

    def f(x, b, c):
        y = (x + b).relu()
        loss = nn.functional.max_pool2d(y, 2).square().sum() + (c * c.sum()).sum()
        return gg.autograd.grad(loss, (x, b, c))

    x, c = gg.randn(3, 4, 10, 12, requires_grad=True), gg.randn(7, requires_grad=True)
    for shape in [(12,), (10, 1), (4, 10, 12), (1,)]:
        b = gg.randn(*shape, requires_grad=True)
        graph = graph_of(f, x, b, c)
        changed = mask_before_pools(graph)
        totals = [n.inputs[0] for n in changed.nodes if n.call.text.startswith("sum_to")]
        pooled = [v for v in totals if v.shape == (3, 4, 5, 6)]
        assert len(pooled) == (shape == (1,))
        compare(graph, [t.detach().array for t in (x, b, c)], changed)


def test_masks_that_stay_behind_pools():
    """What is scattered is returned; the mask is of other images; it chooses something else."""

    def program(seen):
        def f(y, z):
            (g,) = gg.autograd.grad(nn.functional.max_pool2d(y, 2).square().sum(), (y,))
            with gg.no_grad():
                return seen(y, g, z)

        return f

    stay = [
        program(lambda y, g, z: (gg.where(y > 0, g, 0.0), g)),
        program(lambda y, g, z: gg.where(z > 0, g, 0.0)),
        program(lambda y, g, z: gg.where(y > 0, g, 1.0)),
        program(lambda y, g, z: gg.where(y > 0, g, -0.0)),
        program(lambda y, g, z: gg.where(y > 0, 0.0, g)),
        program(lambda y, g, z: gg.where(y > z, g, 0.0)),
        program(lambda y, g, z: gg.where(y != 1, g, 0.0)),
    ]
    change = [
        program(lambda y, g, z: gg.where(y > 0, g, 0.0)),
        program(lambda y, g, z: gg.where(y <= 0.5, g, 0.0)),
    ]
    y, z = gg.randn(2, 3, 6, 8, requires_grad=True), gg.randn(2, 3, 6, 8)
    for f in (*stay, *change):
        graph = graph_of(f, y, z)
        changed = mask_before_pools(graph)
        assert (changed is graph) == (f in stay)
        compare(graph, [y.detach().array, z.array], changed)
