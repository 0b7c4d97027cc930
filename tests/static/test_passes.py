"""Passes over recorded graphs: each keeps every bit, and does what it is for."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.codegen.expr import exactly, variable
from gpugrad.codegen.machine import machine
from gpugrad.static import passes, run_cpu, run_python
from gpugrad.static.graph import OpCall, ProgramCall, RowsCall
from tests.static.recorded import arrays_for, assert_same_bits, graph_of


def names(graph) -> list[str]:
    """What the nodes call: operations by name, others by kind."""
    return [n.call.op.name if isinstance(n.call, OpCall) else n.call.kind for n in graph.nodes]


def step_of(model, optimizer, loss_of, clip=None):
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return loss

    return step


class Block(nn.Module):
    """A transformer block, its attention written out."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act, self.drop, self.heads = nn.GELU(), nn.Dropout(0.1), heads

    def attend(self, x):
        n, t, d = x.shape
        size = d // self.heads
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        weights = gg.softmax((q @ k.transpose(-1, -2)) * size**-0.5, -1)
        return self.out((self.drop(weights) @ v).transpose(1, 2).reshape(n, t, d))

    def forward(self, x):
        x = x + self.drop(self.attend(self.first(x)))
        return x + self.drop(self.down(self.act(self.up(self.second(x)))))


def labels(rng, n: int):
    return gg.tensor(rng.integers(0, 10, n))


def mlp(rng):
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    step = step_of(model, optimizer, nn.CrossEntropyLoss(), clip=1.0)
    return step, gg.randn(17, 20), labels(rng, 17)


def wide_mlp(rng):
    """Activations beyond 64 KiB, which native loops compute in eager mode, too."""
    model = nn.Sequential(nn.Linear(20, 256), nn.Tanh(), nn.LayerNorm(256), nn.Linear(256, 10))
    step = step_of(model, optim.Adam(model.parameters()), nn.CrossEntropyLoss())
    return step, gg.randn(301, 20), labels(rng, 301)


def lenet(rng):
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 10),
    )  # fmt: skip
    step = step_of(model, optim.Adam(model.parameters()), nn.CrossEntropyLoss())
    return step, gg.randn(5, 1, 28, 28), labels(rng, 5)


def transformer(rng):
    model = nn.Sequential(Block(24, 3), Block(24, 3))
    step = step_of(model, optim.AdamW(model.parameters()), nn.MSELoss(), clip=1.0)
    return step, gg.randn(3, 7, 24), gg.randn(3, 7, 24)


def float64(rng):
    model = nn.Sequential(nn.Linear(9, 16), nn.SiLU(), nn.BatchNorm1d(16), nn.Linear(16, 10))
    model = model.double()
    step = step_of(model, optim.RMSprop(model.parameters()), nn.CrossEntropyLoss())
    return step, gg.randn(13, 9, dtype=gg.float64), labels(rng, 13)


def half(rng):
    model = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 4)).half()
    step = step_of(model, optim.SGD(model.parameters(), lr=0.1), nn.MSELoss())
    return step, gg.randn(5, 9).half(), gg.randn(5, 4).half()


def views(rng):
    """Slices, transposes, broadcasts and writes in place."""

    def function(x, y):
        z = x.clone()
        z[1:3] *= 2
        z.T[0] += y[: z.shape[0]]
        w = (z.T + z.T.contiguous()).reshape(-1)
        return (w * w - 1).reshape(6, 8).sum(0), z.exp().T * y[:6, None], z

    return function, gg.randn(8, 6), gg.randn(8)


PROGRAMS = (mlp, wide_mlp, lenet, transformer, float64, half, views)


def check(graph, args, rng, runner=run_python) -> None:
    """Every pass keeps the bits of every result."""
    graph.check()
    given = dict(zip(map(id, graph.inputs), arrays_for(graph, args, rng), strict=True))
    for one in passes.DEFAULT:
        before = str(graph)
        new = one(graph)
        new.check()
        assert_same_bits(graph, new, [given[id(v)] for v in graph.inputs], runner)
        assert str(graph) == before, f"{one.__name__} changed its argument"
        graph = new


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_programs(program, rng):
    gg.manual_seed(0)
    step, *args = program(rng)
    graph = graph_of(step, *args)
    check(graph, args, rng)
    if program is not half:
        assert passes.optimize(graph).num_ops < graph.num_ops


@pytest.mark.skipif(machine() is None, reason="needs the jit extra: pip install gpugrad[jit]")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_programs_as_native_tasks(program, rng):
    gg.manual_seed(0)
    step, *args = program(rng)
    graph = graph_of(step, *args)
    given = arrays_for(graph, args, rng)
    assert_same_bits(graph, passes.optimize(graph), given, run_cpu)


UNARY = (
    "neg", "abs", "square", "relu", "sigmoid", "tanh", "gelu", "silu", "exp", "floor", "sign",
    "softplus", "log_sigmoid", "elu", "sin", "erf", "leaky_relu",
)  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "atan2")


class Random:
    """A random program: elementwise, masks, broadcasts, reductions, products, norms, gradients."""

    def __init__(self, seed: int, steps: int = 14):
        self.seed, self.steps = seed, steps

    def __call__(self, x, y, row, column):
        rng = np.random.default_rng(self.seed)
        values = [x, y]
        for _ in range(self.steps):
            values.append(self.step(rng, values, row, column))
        picked = [values[k] for k in rng.choice(len(values), 4, replace=False)]
        loss = sum((v * v).mean() for v in picked)
        gradients = gg.autograd.grad(loss, [x, y, row, column], allow_unused=True)
        return loss, picked[:2], [g for g in gradients if g is not None]

    def step(self, rng, values, row, column):
        a, b = (values[k] for k in rng.integers(0, len(values), 2))
        kind = rng.integers(0, 11)
        if kind < 3:
            return getattr(gg, rng.choice(BINARY))(a, b + 0.1)
        if kind < 6:
            name = rng.choice(UNARY)
            return getattr(gg if hasattr(gg, name) else nn.functional, name)(a)
        if kind == 6:
            return gg.where(a > b, a * row, b - column)
        if kind == 7:
            return rng.choice([0.5, 1, -1, 2]).item() * a - rng.choice([0, 1, 0.3]).item()
        if kind == 8:
            return gg.softmax(a * 0.5 + row, -1) * b
        normal = nn.functional.layer_norm(a + b, (a.shape[-1],))
        return normal * (a @ b.T).sum() if kind == 9 else a.sum(-1, keepdim=True) * b


@pytest.mark.parametrize("shape", [(7, 5), (4, 4), (1, 3), (0, 3), (150, 130)], ids=str)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_random_programs(seed, shape, rng):
    dtype = (gg.float32, gg.float64)[seed % 2]
    sizes = (shape, shape, shape[-1:], (shape[0], 1))
    args = [gg.tensor(rng.standard_normal(s), dtype=dtype, requires_grad=True) for s in sizes]
    graph = graph_of(Random(seed), *args, calls=1)
    check(graph, args, rng)


# ------------------------------------------------------------------------------------------------
# what each pass does


def test_chain_and_diamond_become_one_program(rng):
    def function(x, y):
        a = x * 2 + y
        return a.exp() - a.abs()

    args = gg.randn(4, 5), gg.randn(5)
    graph = graph_of(function, *args)
    fused = passes.fuse(graph)
    assert names(graph) == ["mul", "add", "exp", "abs", "sub"]
    assert names(fused) == ["program"]
    assert_same_bits(graph, fused, arrays_for(graph, args, rng))


def test_intermediate_values_are_results_of_the_fused_node(rng):
    def function(x):
        a = x.exp()
        return a + 1, a @ a, a * 2

    args = (gg.randn(4, 4),)
    graph = graph_of(function, *args)
    fused = passes.fuse(graph)
    assert sorted(names(fused)) == ["matmul", "program"]
    program = next(n for n in fused.nodes if isinstance(n.call, ProgramCall))
    assert len(program.outputs) == 3
    assert_same_bits(graph, fused, arrays_for(graph, args, rng))


def test_fusion_makes_no_cycle(rng):
    """``a`` and ``c`` may not be one node: the product needs one and is needed by the other."""

    def function(x):
        a = x * 2
        b = a @ a
        return a + b

    args = (gg.randn(3, 3),)
    graph = graph_of(function, *args)
    fused = passes.fuse(graph)
    assert names(fused) == ["mul", "matmul", "add"]


def test_fusion_makes_no_cycle_through_other_groups(rng):
    def function(x, y):
        a, b = x * 2, y * 3
        c, d = a.sum(0), b.sum(0)
        return a + b * d, b + a * c, (a - b).exp() + c

    args = gg.randn(4, 3), gg.randn(4, 3)
    check(graph_of(function, *args), args, rng)


def test_large_groups_are_split(rng):
    def function(*tensors):
        total = tensors[0] * 2
        for t in tensors[1:]:
            total = total + t.abs()
        return total

    args = [gg.randn(3, 2) for _ in range(40)]
    graph = graph_of(function, *args)
    fused = passes.fuse(graph)
    assert 2 < fused.num_ops < 8
    for node in fused.nodes:
        assert len(set(node.values)) <= 16
    assert_same_bits(graph, fused, arrays_for(graph, args, rng))


def test_dtypes_are_not_mixed(rng):
    def function(x):
        y = (x * 2).double()
        return (y + 1).float() * 3

    args = (gg.randn(6),)
    graph = graph_of(function, *args)
    assert names(passes.fuse(graph)) == names(graph)


def test_programs_over_rows_take_in_their_neighbours(rng):
    norm = nn.LayerNorm(8)

    def function(x, y, scale):
        z = x + y
        return norm(z) * scale + z, z

    args = gg.randn(3, 5, 8), gg.randn(3, 5, 8), gg.randn(8)
    with gg.no_grad():
        graph = graph_of(function, *args)
    fused = passes.fuse(graph)
    (node,) = fused.nodes
    assert isinstance(node.call, RowsCall)
    assert_same_bits(graph, fused, arrays_for(graph, args, rng))


def test_masks_move_into_programs_over_rows(rng):
    def function(x, u):
        return gg.softmax(x * 0.25, -1) * ((u >= 0.1).float() * 2.0 + gg.where(u > 0.5, 1.0, 0.0))

    args = gg.randn(4, 9), gg.rand(4, 9)
    check(graph_of(function, *args), args, rng)


def test_masks_are_recomputed_where_they_are_read(rng):
    """Neither forward nor backward reads or writes a mask: both read the random numbers."""
    drop = nn.Dropout(0.5)

    def function(x, y):
        z = drop(x.exp()) @ y
        return z, gg.autograd.grad((z * z).sum(), x)

    args = gg.randn(5, 4, requires_grad=True), gg.randn(4, 3)
    graph = graph_of(function, *args)
    fused = passes.optimize(graph)
    assert_same_bits(graph, fused, arrays_for(graph, args, rng))
    (random,) = [v for v, s in zip(fused.inputs, fused.sources) if "random" in str(s)]
    readers = [n for n in fused.nodes if random in n.inputs]
    assert len(readers) == 2
    assert all("ge(" in node.call.text for node in readers)
    passed = [v for v in readers[0].outputs if v in readers[1].inputs]
    assert len(passed) == 1  # the exponential, but no mask


def test_what_is_not_cheap_is_saved(rng):
    def function(x, y):
        mask = gg.where(x.exp() > 1.5, 2.0, 0.0)
        z = (y * mask) @ y
        return mask * z, y * mask

    args = gg.randn(4, 4), gg.randn(4, 4)
    graph = graph_of(function, *args)
    fused = passes.fuse(graph)
    assert str(fused).count("exp(") == 1
    assert_same_bits(graph, fused, arrays_for(graph, args, rng))


def test_recompute_leaves_other_graphs_alone():
    graph = graph_of(lambda x: (x * 2).exp() @ x, gg.randn(3, 3))
    assert passes.recompute(graph) is graph


def test_a_strided_argument_stays_apart():
    """No native loop walks through a transposed array and others at once."""

    def function(x, y):
        return (x.T.exp() + y) * 2

    args = gg.randn(5, 3), gg.randn(3, 5)
    assert names(passes.fuse(graph_of(function, *args))) == ["permute", "exp", "program"]


def test_common_subexpressions(rng):
    def function(x):
        return (x.exp() + 1) * (x.exp() + 1).sum(), x.sum() + x.sum()

    args = (gg.randn(3, 3),)
    graph = graph_of(function, *args)
    shared = passes.share_common(graph)
    assert names(shared).count("exp") == 1
    assert names(shared).count("sum") == 2
    assert_same_bits(graph, shared, arrays_for(graph, args, rng))


def test_equal_results_stay_two_arrays():
    """The caller may write to one of them."""

    def function(x):
        return x * 2, x * 2

    args = (gg.randn(3),)
    graph = passes.optimize(graph_of(function, *args))
    a, b = run_python.compile_graph(graph)(np.ones(3, np.float32))
    assert not np.may_share_memory(a, b)


def test_folding(rng):
    def function(x):
        table = gg.arange(6, dtype=gg.float32).reshape(2, 3).exp() * 0.5
        return x + table, table.sum()

    args = (gg.randn(2, 3),)
    graph = graph_of(function, *args)
    folded = passes.drop_dead(passes.fold_constants(graph))
    assert names(folded) == ["add", "sum"]  # what is returned is no constant
    assert_same_bits(graph, folded, arrays_for(graph, args, rng))


def test_folding_makes_no_large_constants():
    def function(x):
        return x @ gg.zeros(1).expand(1000, 1000).exp()

    args = (gg.randn(1, 1000),)
    graph = graph_of(function, *args)
    assert "exp" in names(passes.fold_constants(graph))


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: (x * 1 - 0).exp(), ["exp"]),
        (lambda x: x.neg().neg().exp(), ["neg", "neg", "exp"]),
        (lambda x: (x + 0.0).exp(), ["add", "exp"]),
        (lambda x: (x / 1.0).exp(), ["exp"]),
        (lambda x: x.T.T.exp(), ["exp"]),
        (lambda x: x.permute(1, 0).reshape(4, 3).reshape(12).exp(), ["permute", "reshape", "exp"]),
        (lambda x: x.reshape(12).reshape(3, 4).exp(), ["exp"]),
        (lambda x: x.double().float().exp(), ["exp"]),
        (lambda x: x.half().float().exp(), ["cast", "cast", "exp"]),
        (lambda x: x.expand(3, 4).exp(), ["exp"]),
    ],
    ids=str,
)
def test_identities(function, left, rng):
    args = (gg.tensor(np.array([-0.0, np.inf, np.nan, 1e-40] * 3, np.float32).reshape(3, 4)),)
    graph = graph_of(function, *args)
    simpler = passes.drop_dead(passes.simplify(graph))
    assert names(simpler) == left
    assert_same_bits(graph, simpler, [args[0].array])


def test_exact_expressions():
    x, y = variable("x"), variable("y")
    minus_zero = -0.0
    assert exactly("mul", x, 1) is x
    assert exactly("mul", x, 0) is not x
    assert repr(exactly("mul", x, 0)) == "mul(x, 0)"
    assert repr(exactly("add", x, 0)) == "add(x, 0)"
    assert exactly("add", x, minus_zero) is x
    assert exactly("sub", x, 0) is x
    assert repr(exactly("sub", x, minus_zero)) == "sub(x, -0.0)"
    assert repr(exactly("sub", 0, x)) == "sub(0, x)"
    assert exactly("add", x, exactly("neg", y)) is exactly("sub", x, y)
    assert exactly("neg", exactly("neg", x)) is x


def test_guards_and_stores_survive(rng):
    total = gg.zeros(3)

    def function(x):
        if (x * 1).sum() > -1e9:
            total.add_(x * 1)
        return total.sum() * 1

    args = (gg.ones(3),)
    graph = graph_of(function, *args)
    check(graph, args, rng)
    assert len(passes.optimize(graph).stores) == 1
    assert len(passes.optimize(graph).guards) == 1
