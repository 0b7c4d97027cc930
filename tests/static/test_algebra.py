"""``compile(algebra="real")``: every identity is used, gives what eager mode gives to rounding, and
is left alone by default."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.functional as F
from gpugrad import nn, optim
from gpugrad.codegen.expr import Expr, build, evaluate, inputs_of, topological, variable
from gpugrad.codegen.machine import machine
from gpugrad.codegen.rows import ELEMENT, ROW, RowProgram
from gpugrad.ops.core import REGISTRY
from gpugrad.static import passes, replay, run_python
from gpugrad.static.graph import OpCall
from gpugrad.static.passes.identities import IDENTITIES, cost, folded, simplified
from tests.static import test_random_programs as random_programs
from tests.static.recorded import graph_of

CONSTANTS = {"c": 2.5, "d": 0.3, "e": 1.75}
OF_ROWS = [i for i in IDENTITIES if i.pattern.op.startswith("row_")]
OF_ELEMENTS = [i for i in IDENTITIES if i not in OF_ROWS]
RUNNERS = [
    "python",
    pytest.param("native", marks=pytest.mark.skipif(machine() is None, reason="-")),
]


@pytest.fixture(params=RUNNERS)
def runner(request):
    """Programs are run by one of the runners, with its passes."""
    if request.param == "native":
        yield
        return

    def optimized(graph, algebra):
        return passes.optimize(graph, passes.chosen(False, algebra))

    plain = {"runner_for": run_python.compile_graph, "optimized": optimized}
    with mock.patch.multiple(replay, **plain):
        yield


# Whose numbers are no constants when every primitive is an operation.
FUNCTIONS = {
    "mul(x, where(b, 1, 0))": lambda *, x, b, **_: x * b.to(dtype=x.dtype),
    "log(div(where(": lambda *, x, **_: gg.log(gg.sigmoid(x)),
}


def function_of(e: Expr):
    """An expression as a function of tensors b, s, x, y, z."""
    for text, function in FUNCTIONS.items():
        if str(e).startswith(text):
            return function

    def function(**given):
        def apply(name, *values):
            return REGISTRY[name](*values)

        return evaluate([e], {**CONSTANTS, **given}, apply)[0]

    return function


def arguments(rng, shape=(3, 5)) -> dict:
    """Positive numbers, such that no identity leaves the domain of its functions."""
    given = {name: gg.tensor(rng.uniform(0.4, 2.5, shape), requires_grad=True) for name in "xyz"}
    given["s"] = gg.tensor(rng.uniform(0.4, 2.5), dtype=gg.float64, requires_grad=True)
    given["b"] = gg.tensor(rng.uniform(size=shape) > 0.5)
    return given


def with_constants(e: Expr) -> Expr:
    """An expression with numbers for its constants."""
    names = inputs_of([e]) - CONSTANTS.keys()
    return evaluate([e], {n: variable(n) for n in names} | CONSTANTS, folded)[0]


def close(found, expected, tolerance: float = 1e-12) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, tolerance, tolerance)


def names(graph) -> list[str]:
    return [n.call.op.name if isinstance(n.call, OpCall) else n.call.kind for n in graph.nodes]


def real(function, *args):
    """The result and the graph of a function compiled with real algebra."""
    compiled = gg.compile(function, algebra="real")
    for _ in range(3):
        result = compiled(*args)
    assert compiled.stats["replays"], compiled.explain()
    return result, compiled.graph


# ------------------------------------------------------------------------------------------------
# elements and rows


@pytest.mark.parametrize("identity", IDENTITIES, ids=str)
def test_an_identity_makes_its_pattern_cheaper(identity):
    before = with_constants(identity.pattern)
    after, applied = simplified([before], {"s"})
    assert applied[0] is identity
    assert cost(after, {"s"}) < cost([before], {"s"})


@pytest.mark.parametrize("identity", OF_ELEMENTS, ids=str)
def test_identities_and_their_gradients(identity, rng, runner):
    function, given = function_of(identity.pattern), arguments(rng)

    def step(given):
        result = function(**given)
        wanted = [t for t in given.values() if t.requires_grad]
        weight = gg.arange(15, dtype=gg.float64).reshape(3, 5).cos()
        gradients = gg.autograd.grad((result * weight).sum(), wanted, allow_unused=True)
        return result.detach(), [g for g in gradients if g is not None]

    result, gradients = step(given)
    (found, ours), _ = real(step, given)
    close(found.array, result.array)
    for g, expected in zip(ours, gradients, strict=True):
        close(g.array, expected.array)
    with gg.no_grad():  # no derivative needs what is left out
        found, graph = real(lambda given: function(**given), given)
    close(found.array, result.array)
    assert str(identity) in graph.identities, graph.identities


@pytest.mark.parametrize("identity", OF_ELEMENTS, ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_by_default_nothing_of_it_happens(identity, rng):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-310, -2.0, 3.0, 1e308])
    given = {name: gg.tensor(np.roll(special, k)) for k, name in enumerate("xyz")}
    if "0.5)" in str(identity.pattern):  # NumPy takes the root of -0.0 and -inf; own kernels do not
        given["x"] = abs(given["x"])
    given |= {"s": gg.tensor(1e-310, dtype=gg.float64), "b": given["x"] > 0}
    function = function_of(identity.pattern)
    compiled = gg.compile(lambda given: function(**given))
    results = [compiled(given).array for _ in range(3)]
    expected = function(**given).array
    assert compiled.stats["replays"] == 1
    assert compiled.graph.identities == []
    np.testing.assert_allclose(results[-1], expected, 1e-15)  # NaN and infinities where they were
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(results[-1])[numbers], np.signbit(expected)[numbers])


@pytest.mark.parametrize("identity", [i for i in OF_ELEMENTS if not i.differs], ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_identities_that_are_said_to_round_only(identity):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-300, -2.0, 3.0, 1e300])
    pairs = [(x, y) for x in special for y in special]
    x, y = (gg.tensor(np.array(column)) for column in zip(*pairs, strict=True))
    given = {"x": x, "y": y, "z": y}
    found, expected = (
        function_of(e)(**given).array for e in (identity.replacement, identity.pattern)
    )
    np.testing.assert_allclose(found, expected, 1e-13)


@pytest.mark.parametrize("identity", OF_ROWS, ids=str)
def test_identities_of_rows(identity, rng):
    x, s = rng.normal(size=(4, 7)), rng.normal(size=(4, 1))
    given = {"x": ELEMENT, "s": ROW}
    read = {name: kind for name, kind in given.items() if name in inputs_of([identity.pattern])}
    arrays = [{"x": x, "s": s}[name] for name in read]
    after, _ = simplified([identity.pattern], {"s"})
    found, expected = (
        RowProgram([(ROW, e)], read).reference(arrays)[0] for e in (after[0], identity.pattern)
    )
    close(found, expected)


def test_what_is_needed_anyway_is_kept():
    x, y, z = map(variable, "xyz")
    both = [x * y + x * z, x * y, x * z]
    assert simplified(both, set()).outputs == both
    assert simplified([build("exp", x), build("log", build("exp", x))], set()).outputs[1] is x


@pytest.mark.parametrize("c", [0.0, 1e-40, 1e40])
def test_constants_that_float32_has_not_are_not_made(c):
    e = folded("div", variable("x"), c)
    assert simplified([e], set()).outputs == [e]


def test_masks_are_not_added(rng):
    """``x * (a + b)`` of two masks would be a logical or."""
    x = gg.tensor(rng.normal(size=6))
    a, b = x > 0.1, x > -0.1

    def function(x, a, b):
        return x * a + x * b

    result, _ = real(function, x, a, b)
    np.testing.assert_array_equal(result.array, function(x, a, b).array)


def test_changing_numbers_keep_the_dtype(runner):
    @gg.compile(algebra="real")
    def function(x, scale):
        return x * scale + x * (scale + 1.0)

    x = gg.tensor([1.0, 2.0], dtype=gg.float32)
    for k in range(8):
        y = function(x, 0.25 * k)
        assert y.dtype == gg.float32
        close(y.array, np.float32([1.0, 2.0]) * (0.5 * k + 1), 1e-6)


@pytest.mark.parametrize("keepdim", [True, False])
def test_results_keep_their_shapes(keepdim, rng, runner):
    x = gg.tensor(rng.normal(size=(3, 4)))

    def function(x):
        row = x.sum(0, keepdim=keepdim)
        return x * 0 + row, (x - x) + 2.0, x + (row - x), gg.exp(gg.log(abs(x))), x / x

    results, _ = real(function, x)
    for found, expected in zip(results, function(x), strict=True):
        close(found.array, expected.array)
        assert not np.may_share_memory(found.array, x.array)
        found.array[...] = 7.0  # a result is the caller's own
    assert not (x.array == 7.0).any()


def test_what_is_written_stays_written(rng, runner):
    state = gg.tensor(rng.normal(size=5))
    expected = state.array.copy()

    @gg.compile(algebra="real")
    def function(x):
        state.mul_(2.0).mul_(0.5).add_(x - x)
        return gg.exp(gg.log(state.abs()))

    for _ in range(4):
        close(function(gg.ones(5, dtype=gg.float64)).array, abs(expected))
        close(state.array, expected)


def test_log_of_softmax_is_computed_row_by_row(rng, runner):
    x = gg.tensor(rng.normal(size=(6, 9)) * 30, requires_grad=True)

    def function(x):
        return gg.log(F.softmax(x, -1))

    result, graph = real(function, x.detach())
    close(result.array, F.log_softmax(x.detach(), -1).array)
    assert names(graph) == ["rows"]
    x = gg.tensor(rng.normal(size=(6, 9)), requires_grad=True)
    step = gg.compile(lambda x: gg.autograd.grad(function(x)[:, 0].sum(), [x])[0], algebra="real")
    for _ in range(3):
        found = step(x)
    close(found.array, gg.autograd.grad(function(x)[:, 0].sum(), [x])[0].array, 1e-10)


def test_a_softmax_that_is_read_under_another_name_is_kept(rng, runner):
    def function(x):
        y = F.softmax(x, -1) + 0.0
        return gg.log(y), y * 2.0

    x = gg.tensor(rng.normal(size=(4, 5)))
    results, _ = real(function, x)
    for found, expected in zip(results, function(x), strict=True):
        close(found.array, expected.array)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("algebra", ["exact", "real"])
def test_the_mean_of_nothing_is_no_number(algebra, runner):
    compiled = gg.compile(lambda x: (x * 0).mean(), algebra=algebra)
    for _ in range(3):
        assert bool(compiled(gg.zeros(0, 3)).isnan())
    assert compiled.stats["replays"] == 1


# ------------------------------------------------------------------------------------------------
# linear operations


def test_a_loss_times_zero_is_not_computed(rng, runner):
    first, second = nn.Linear(4, 5).double(), nn.Linear(4, 3).double()
    params = [*first.parameters(), *second.parameters()]

    def step(x):
        loss = first(x).square().mean() + 0.0 * second(x).exp().sum()
        return loss.detach(), gg.autograd.grad(loss, params)

    x = gg.tensor(rng.normal(size=(8, 4)))
    loss, gradients = step(x)
    (found, ours), graph = real(step, x)
    close(found.array, loss.array)
    for g, expected in zip(ours, gradients, strict=True):
        close(g.array, expected.array)
    products = [n for n in names(graph) if n in ("affine", "linear_weight", "linear")]
    assert products == ["affine", "linear_weight"]
    assert "exp" not in str(graph)
    exact = gg.compile(step)
    for _ in range(3):
        exact(x)
    assert "exp" in str(exact.graph)


S = gg.tensor(0.75, dtype=gg.float64)
FACTORS = [
    (lambda x, w: (x * 3.0).sum(0), "sum"),
    (lambda x, w: (x / 3.0).mean(), "mean"),
    (lambda x, w: (-x).sum(1), "sum"),
    (lambda x, w: (x * S).sum(), "sum"),
    (lambda x, w: (x @ w) * 0.5, "matmul"),
    (lambda x, w: -(w.T @ x.T), "matmul"),
    (lambda x, w: (x[:1] @ (w / 4.0)).sum(), "matmul"),
    (lambda x, w: F.linear(x, w.T) * S, "linear"),
    (lambda x, w: x.sum(0, keepdim=True).expand(40, 3) / 5.0, "broadcast_to"),
]


@pytest.mark.parametrize(("function", "operation"), FACTORS)
def test_factors_move_to_where_arrays_are_small(function, operation, rng, runner):
    x = gg.tensor(rng.normal(size=(40, 3)), requires_grad=True)
    w = gg.tensor(rng.normal(size=(3, 50)), requires_grad=True)

    def step(x, w):
        y = function(x, w)
        weight = gg.arange(y.numel(), dtype=gg.float64).reshape(y.shape).cos()
        found = gg.autograd.grad((y * weight).sum(), [x, w], allow_unused=True)
        return y.detach(), [g for g in found if g is not None]

    result, gradients = step(x, w)
    (found, ours), graph = real(step, x, w)
    close(found.array, result.array)
    for g, expected in zip(ours, gradients, strict=True):
        close(g.array, expected.array)
    assert any(i.startswith(f"{operation}(x") for i in graph.identities), graph.identities


def sizes_of_scales(graph) -> list[int]:
    scales = [n for n in graph.nodes if n.call.text.startswith(("mul", "program"))]
    return [int(np.prod(n.outputs[0].shape)) for n in scales]


def test_the_smaller_side_is_multiplied(rng):
    x, w = gg.tensor(rng.normal(size=(40, 3))), gg.tensor(rng.normal(size=(3, 50)))
    for function, size in [(lambda x, w: (x @ w) * 0.5, 120), (lambda x, w: (w * 0.5).sum(1), 3)]:
        graph = passes.optimize(graph_of(function, x, w), passes.chosen(False, "real"))
        assert sizes_of_scales(graph) == [size]


def test_a_product_that_others_read_keeps_its_factor(rng, runner):
    x, w = gg.tensor(rng.normal(size=(40, 3))), gg.tensor(rng.normal(size=(3, 50)))

    def function(x, w):
        y = x @ w
        return y * 0.5, y

    results, graph = real(function, x, w)
    for found, expected in zip(results, function(x, w), strict=True):
        close(found.array, expected.array)
    assert graph.identities == []


def multiplications(graph) -> int:
    products = [n for n in graph.nodes if n.call.text.startswith("matmul")]
    return sum(int(np.prod(n.outputs[0].shape)) * n.inputs[0].shape[-1] for n in products)


def fewest(sizes) -> int:
    """The fewest multiplications for a chain of matrices, by trying every order."""
    if len(sizes) < 3:
        return 0
    ends = sizes[0] * sizes[-1]
    return min(
        fewest(sizes[: k + 1]) + fewest(sizes[k:]) + ends * sizes[k]
        for k in range(1, len(sizes) - 1)
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_products(seed, runner):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 6))
    sizes = [int(n) for n in rng.integers(1, 40, count + 1)]
    lead = (2, 3) if seed % 2 else ()
    matrices = [gg.tensor(rng.normal(size=(*lead, m, n))) for m, n in pairwise(sizes)]

    def chain(matrices):
        product = matrices[0]
        for m in matrices[1:]:
            product = product @ m
        return product

    result, graph = real(chain, matrices)
    close(result.array, chain(matrices).array, 1e-9)
    best = fewest(sizes) * int(np.prod(lead, dtype=int))
    assert best <= multiplications(graph) <= best / 0.9  # less is not worth another order


@pytest.mark.parametrize(
    ("shapes", "chain"),
    [
        (((30, 20), (20, 25), (25,)), lambda a, b, c: a @ b @ c),
        (((20,), (20, 30), (30, 5)), lambda a, b, c: a @ (b @ c)),
        (((6, 40), (40, 30), (30, 50)), lambda a, b, c: a @ (b @ c)),
        (((2, 30, 4), (2, 30, 4), (2, 30, 4)), lambda a, b, c: (a @ b.mT) @ c),
        (((30, 4), (4, 30), (30, 3)), lambda a, b, c: (a @ b).mT @ c),
        (((4, 30), (30, 4), (3, 30)), lambda a, b, c: c @ (b @ a)),
    ],
)
def test_products_and_their_gradients(shapes, chain, rng, runner):
    """The gradients multiply the transpose of an inner product: it is left out of both."""
    args = [gg.tensor(rng.normal(size=shape), requires_grad=True) for shape in shapes]

    def step(*args):
        y = chain(*args)
        return y.detach(), gg.autograd.grad(y.square().sum(), args)

    result, gradients = step(*args)
    (found, ours), graph = real(step, *args)
    close(found.array, result.array, 1e-10)
    for g, expected in zip(ours, gradients, strict=True):
        close(g.array, expected.array, 1e-10)
    assert "(x @ y) @ z <-> x @ (y @ z)" in graph.identities
    plain = passes.optimize(graph_of(step, *args), passes.chosen(False, "exact"))
    assert multiplications(graph) < 0.8 * multiplications(plain)


def test_vectors_that_only_look_like_rows(rng, runner):
    """``(a @ v) @ c`` is no ``a @ (v @ c)``."""
    a, v, c = (gg.tensor(rng.normal(size=shape)) for shape in ((9, 9), (9,), (9, 2)))
    result, graph = real(lambda a, v, c: (a @ v) @ c, a, v, c)
    close(result.array, a.array @ v.array @ c.array)
    assert graph.identities == []


# ------------------------------------------------------------------------------------------------
# the keyword


def test_an_unknown_algebra():
    with pytest.raises(ValueError, match=r"algebra must be 'exact' or 'real', got 'fast'"):
        gg.compile(lambda x: x, algebra="fast")


def special(x):
    return x * 0.0


def is_zero(compiled, x) -> bool:
    """Whether NaN times 0 is 0."""
    for _ in range(3):
        result = compiled(x)
    return not bool(result.isnan().any())


def test_one_function_compiled_in_both_ways():
    x = gg.tensor([1.0, float("nan")])
    exact, inexact = gg.compile(special), gg.compile(special, algebra="real")
    assert is_zero(inexact, x)
    assert not is_zero(exact, x)
    assert is_zero(inexact, x)


@pytest.mark.parametrize("outer", ["exact", "real"])
@pytest.mark.parametrize("inner", ["exact", "real"])
def test_a_compiled_function_within_another_is_a_part_of_it(outer, inner):
    x, part = gg.tensor([1.0, float("nan")]), gg.compile(special, algebra=inner)
    assert is_zero(gg.compile(lambda x: part(x) + 0.0, algebra=outer), x) == (outer == "real")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4).double()

    def forward(self, x):
        return self.layer(x / 3.0) ** 1.5 * 0.5 * 3.0


def test_modules_on_the_tape_of_the_caller(rng, runner):
    model = Scaled()
    model.layer.bias.data.fill_(9.0)
    compiled = gg.compile(model, algebra="real")
    for _ in range(4):
        x = gg.tensor(rng.uniform(0.1, 1.0, (5, 3)), requires_grad=True)
        pairs = []
        for function in (compiled, model):
            model.zero_grad()
            x.grad = None
            function(x).square().sum().backward()
            pairs.append([x.grad, *[p.grad for p in model.parameters()]])
        for found, expected in zip(*pairs, strict=True):
            close(found.array, expected.array)
    report = compiled.explain()
    assert "as of real numbers: pow(x, 1.5) -> mul(x, sqrt(x))" in report
    assert "pow(x, 0.5) -> sqrt(x)" in report  # of the second half
    assert compiled.stats["replays"]


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop])
def test_training(make, rng, runner):
    models = [nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).double() for _ in "ab"]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make(m.parameters(), lr=0.01) for m in models]

    def step(k, x, y):
        optimizers[k].zero_grad()
        loss = F.mse_loss(models[k](x / 2.0), y)
        loss.backward()
        nn.utils.clip_grad_norm_(models[k].parameters(), 1.0)
        optimizers[k].step()
        return loss

    compiled = gg.compile(lambda x, y: step(0, x, y), algebra="real")
    for _ in range(8):
        x, y = (gg.tensor(rng.normal(size=(6, n))) for n in (4, 2))
        close(compiled(x, y).array, step(1, x, y).array, 1e-7)
    assert compiled.stats["replays"]


def test_other_options(rng):
    function = gg.compile(lambda x: (x / 3.0).exp().sum(), algebra="real", dynamic=True, check=2)
    for n in (4, 4, 6, 6, *range(2, 12)):
        x = gg.tensor(rng.normal(size=(n, 2)))
        close(function(x).array, (x / 3.0).exp().sum().array)
    wrong = gg.compile(special, algebra="real", check=1)
    x = gg.tensor([1.0, float("nan")])
    with pytest.raises(RuntimeError, match="differs from eager mode"):
        for _ in range(3):
            wrong(x)


# ------------------------------------------------------------------------------------------------
# random programs

MORE = {
    "quotient": lambda x, y, c: x / (c + 3.0),
    "zero": lambda x, y, c: x * 0 + y,
    "difference": lambda x, y, c: x - x + y * c,
    "there and back": lambda x, y, c: x + (y - x),
    "one": lambda x, y, c: (x.square() + 0.5) / (x.square() + 0.5),
    "constants": lambda x, y, c: ((x * c) * 0.7 + 0.2 - c) / 1.3,
    "factor": lambda x, y, c: x * y + x * c,
    "root": lambda x, y, c: gg.sqrt((x + 2.3) * (x + 2.3)),
    "powers": lambda x, y, c: (x.square() + 0.6) ** 1.5 / gg.sqrt(x.square() + 0.6),
    "log of exp": lambda x, y, c: gg.log(gg.exp(x)) + gg.exp(gg.log(y.square() + 0.4)),
    "log of softmax": lambda x, y, c: gg.log(F.softmax(x, -1)),
    "log of sigmoid": lambda x, y, c: gg.log(gg.sigmoid(x)),
    "scaled sum": lambda x, y, c: (x * (c + 2.0)).sum(-1, keepdim=True) / 4.0,
    "scaled mean": lambda x, y, c: (-(x / 2.0)).mean(),
    "scaled product": lambda x, y, c: (x @ y.mT) * 0.3,
    "chain": lambda x, y, c: (x @ x.mT) @ y * 0.1,
}


class Program(random_programs.Program):
    """A random program in which identities apply."""

    NAMES = (*MORE, *MORE, *random_programs.NAMES)
    STEPS = random_programs.STEPS | MORE


@pytest.mark.parametrize("first", range(0, 600, 50))
def test_random_programs(first):
    used = 0
    for number in range(first, first + 50):
        program = Program(4 * number + 3)  # float64, natively
        try:
            compiled = random_programs.compared(program, 1e-9, algebra="real")
        except Exception as error:
            error.add_note(f"program {program.number}: {program.steps}")
            raise
        used += sum(len(p.graph.identities) for p in compiled.programs)
    assert used > 50


def test_expressions_of_identities_are_small():
    """The matcher tries every order of sums and products: patterns stay so small that it ends."""
    assert max(len(topological([i.pattern])) for i in IDENTITIES) < 16
