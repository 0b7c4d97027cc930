"""``compile(dynamic=True)``: one call is enough for another batch size, and nothing is missed."""

import copy
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn, optim
from gpugrad.static.dynamic import Unlike, laws_of

RECORDED = (8, 8, 12, 12)


def counted(function, **options):
    """The function compiled for any size, and what counts the runs of its Python."""
    runs = mock.Mock()

    def wrapped(*args, **kwargs):
        runs()
        return function(*args, **kwargs)

    return gg.compile(wrapped, dynamic=True, **options), runs


def equal(a, b):
    gg.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(12), nn.Linear(12, 36, bias=False)
        self.out = nn.Linear(12, 10)

    def forward(self, x):
        size = x.shape[0]
        h = self.norm(x.reshape(size, -1, 12))
        q, k, v = (t.reshape(size, -1, 2, 6).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(size, -1, 12)).mean(1)


# no bias whose gradient is 0 but for rounding, which Adam would make large
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 10)), (7,)),
    "lenet": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(48, 10),
        ),
        (1, 10, 10),
    ),
    "attention": (Attention, (48,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_training_steps_of_many_sizes(name):
    make, shape = MODELS[name]
    model = make().double()
    twin = copy.deepcopy(model)
    optimizers = [optim.Adam(m.parameters(), lr=1e-2) for m in (model, twin)]

    def step(m, optimizer, x, y):
        loss = F.cross_entropy(m(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    compiled, runs = counted(lambda x, y: step(model, optimizers[0], x, y))
    eager = lambda x, y: step(twin, optimizers[1], x, y)
    batch = lambda n: (gg.randn(n, *shape, dtype=gg.float64), gg.randint(0, 10, (n,)))
    first = batch(8)  # the optimizer makes its state
    equal(compiled(*first), eager(*first))
    for n in RECORDED:
        args = batch(n)
        equal(compiled(*args), eager(*args))
    assert runs.call_count == 5
    for n in (*range(5, 41), *range(5, 41)):
        args = batch(n)
        equal(compiled(*args), eager(*args))
    assert runs.call_count == 5 + len({*range(5, 41)} - {8, 12})
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        equal(a, b)
    assert compiled.stats["programs"] == 36
    assert "34 other programs were as the template said" in compiled.explain()


FUNCTIONS = {
    "flattened": lambda x: x.reshape(x.shape[0], -1).exp(),
    "mean": lambda x: x.mean(),
    "var": lambda x: x.var(),
    "shapes": lambda x: gg.cat([x, x[1:]]) + gg.zeros(2 * x.shape[0] - 1, 1, 1, dtype=x.dtype),
    "positions": lambda x: x * gg.arange(x.shape[0], dtype=x.dtype).reshape(-1, 1, 1),
    "divided": lambda x: x.sum() / x.shape[0],
    "scaled": lambda x: x * (0.3 / x.shape[0]),
    "pairs": lambda x: (x.reshape(x.shape[0], -1) @ x.reshape(x.shape[0], -1).T).reshape(-1),
    "mean of pairs": lambda x: (x.sum((1, 2)) - x.sum((1, 2)).reshape(-1, 1)).square().mean(),
    "filled": lambda x: x * gg.full((x.shape[0], 1, 1), 1 / x.shape[0], dtype=x.dtype),
    "number": lambda x: (x.sum(), 3 * x.shape[0], 1 / x.shape[0]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [gg.float64, gg.float32])
def test_what_follows_from_the_size(name, dtype):
    function = FUNCTIONS[name]
    compiled, runs = counted(function)
    for n in (*RECORDED, *range(2, 20), *range(2, 20)):
        x = gg.randn(n, 3, 2, dtype=dtype)
        found, expected = compiled(x), function(x)
        if isinstance(found, tuple):
            assert found[1:] == expected[1:]
            found, expected = found[0], expected[0]
        gg.testing.assert_close(found, expected)
    assert runs.call_count == 4 + 16
    assert compiled.stats["programs"] == 18


def test_derivatives_on_the_tape_of_the_caller():
    weight = gg.randn(4, 3, dtype=gg.float64, requires_grad=True)
    function = lambda x: ((x @ weight).tanh().mean(), x.square().sum(1))
    compiled, runs = counted(function)
    for n in (*RECORDED, *range(2, 9), *range(2, 9)):
        data, grads = gg.randn(n, 4, dtype=gg.float64), []
        for f in (compiled, function):
            x = data.clone().requires_grad_()
            a, b = f(x)
            grads.append(gg.autograd.grad(a * 2 + b.exp().sum(), [x, weight]))
        for a, b in zip(*grads, strict=True):
            equal(a, b)
    assert runs.call_count == 4 + 6


def test_random_numbers_have_the_shape_of_the_size():
    function = lambda x: F.dropout(x, 0.5) + gg.rand(x.shape[0], 1)
    compiled, runs = counted(function)
    for n in (*RECORDED, *range(2, 9), *range(2, 9)):
        x = gg.randn(n, 5)
        gg.manual_seed(n)
        found = compiled(x)
        gg.manual_seed(n)
        gg.testing.assert_close(found, function(x), rtol=0, atol=0)
    assert runs.call_count == 4 + 6


def test_arguments_and_tensors_that_are_written():
    total = gg.zeros(3, dtype=gg.float64)

    def function(x, counts):
        counts[: x.shape[0] // x.shape[0]].add_(1)
        total.add_(x.sum(0))
        x.mul_(2)

    compiled, runs = counted(function)
    expected, counts = np.zeros(3), gg.zeros(4)
    sizes = (*RECORDED, *range(2, 9), *range(2, 9))
    for n in sizes:
        x = gg.randn(n, 3, dtype=gg.float64)
        before = x.numpy().copy()
        expected += before.sum(0)
        compiled(x, counts)
        np.testing.assert_array_equal(x.numpy(), 2 * before)
    # 4, where the batch has as many rows as there are counts, is a size like the others
    assert runs.call_count == 4 + 6
    np.testing.assert_allclose(total.numpy(), expected)
    assert counts.tolist() == [len(sizes), 0, 0, 0]


def test_branches_on_values_have_templates_each():
    function = lambda x: x * 2 if x.sum() > 0 else x - 1
    compiled, runs = counted(function)
    for n in (*RECORDED, 5, 6, 7, 5, 6, 7):
        for sign in (1.0, -1.0):
            x = gg.full((n,), sign)
            gg.testing.assert_close(compiled(x), function(x))
    assert runs.call_count == 2 * (4 + 3)


# ------------------------------------------------------------------------------------------------
# what does not follow


def test_python_that_looks_at_the_size():
    def function(x):
        return x * 2 if len(x) <= 20 else x - 1

    compiled, runs = counted(function)
    for n in (*RECORDED, *range(2, 20), 30, 30, 33, 33, *range(2, 40), *range(2, 40)):
        x = gg.randn(n)
        gg.testing.assert_close(compiled(x), function(x))
    # the sizes above 20 have a template of their own, from 30 and 33
    assert runs.call_count == 4 + 17 + 4 + 17
    assert "recorded on its own" in compiled.explain()


def test_a_number_that_is_no_simple_function_of_the_size():
    numbers = {n: float(np.random.default_rng(n).random()) for n in range(2, 20)}
    function = lambda x: x * numbers[x.shape[0]]
    compiled, runs = counted(function)
    for n in (*RECORDED, 5, 6, 5, 6, 5, 6):
        x = gg.randn(n)
        gg.testing.assert_close(compiled(x), function(x), rtol=0, atol=0)
    assert runs.call_count == 8
    assert "a number is" in compiled.explain()


def test_another_number_at_every_call_is_not_a_law():
    runs = mock.Mock()

    @gg.compile(dynamic=True)
    def function(x):
        runs()
        return x + runs.call_count

    with pytest.warns(UserWarning, match="its calls differ"):
        for k, n in enumerate((8, 8, 12, 12, 5, 6, 7) * 6, 1):
            assert function(gg.zeros(n)).tolist() == [k] * n
    assert function.stats["replays"] == 0


def test_a_constant_that_is_not_the_beginning_of_a_larger_one():
    function = lambda x: x * gg.linspace(0, 1, x.shape[0])
    compiled, runs = counted(function)
    for n in (*RECORDED, 5, 5, 5):
        x = gg.randn(n)
        gg.testing.assert_close(compiled(x), function(x))
    assert runs.call_count == 6
    assert "is not the beginning of one of" in compiled.explain()


def test_sizes_0_and_1_are_recorded_on_their_own():
    function = lambda x: (x + gg.ones(1)).sum(0)
    compiled, runs = counted(function)
    for n in (*RECORDED, 0, 0, 0, 1, 1, 1):
        x = gg.randn(n, 3)
        gg.testing.assert_close(compiled(x), function(x))
    assert runs.call_count == 8


def test_which_dimension_is_the_size_is_found_out():
    """Also where sizes and features coincide, and where the first array has another length."""
    function = lambda w, x, y: (x @ w - y).square().mean()
    compiled, runs = counted(function)
    w = gg.randn(8, 3, dtype=gg.float64)
    for n in (*RECORDED, 3, 8, 5, 5):
        x, y = gg.randn(n, 8, dtype=gg.float64), gg.randn(n, 3, dtype=gg.float64)
        equal(compiled(w, x, y), function(w, x, y))
    assert runs.call_count == 6
    assert "first dimension of arrays 1, 2 of the arguments" in compiled.explain()


def test_two_sizes_that_change_at_once_are_not_one_size():
    function = lambda x, y: x.sum(0) + y.sum(0)
    compiled, runs = counted(function)
    for n, m in ((8, 4), (8, 4), (12, 6), (12, 6), (16, 9), (16, 9), (16, 9)):
        x, y = gg.randn(n, 3), gg.randn(m, 3)
        gg.testing.assert_close(compiled(x, y), function(x, y))
    assert runs.call_count == 6
    assert "first dimensions of arrays are (8, 4), then (12, 6)" in compiled.explain()


def test_more_sizes_than_other_functions_have_variants():
    compiled, _ = counted(lambda x: x + 1)
    for n in (*RECORDED, *range(2, 100)):
        compiled(gg.zeros(n))
    assert compiled.stats["programs"] == 98


def test_modules_and_arguments_by_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    compiled = gg.compile(model, dynamic=True)
    named, runs = counted(lambda x, *, y: {"z": [x + y, y.mean()]})
    for n in (*RECORDED, 5, 6, 5, 6):
        x = gg.randn(n, 3, dtype=gg.float64)
        equal(compiled(x), model(x))
        found = named(x, y=x * 2)["z"]
        equal(found[0], x * 3)
        equal(found[1], (x * 2).mean())
    assert runs.call_count == 6
    assert compiled.stats["replays"] == 2


def test_checked_calls():
    compiled, _ = counted(lambda x: x.softmax(-1).mean(0), check=2)
    for n in (*RECORDED, 5, 5, 5, 5):
        x = gg.randn(n, 3)
        gg.testing.assert_close(compiled(x), x.softmax(-1).mean(0))
    assert compiled.stats["replays"] == 3


# ------------------------------------------------------------------------------------------------
# laws


@pytest.mark.parametrize(
    "function",
    [
        lambda n: 5, lambda n: n, lambda n: 3 * n - 2, lambda n: n * n, lambda n: 1 / n,
        lambda n: -1 / n, lambda n: 1 / (7 * n - 1), lambda n: n / (n - 1), lambda n: 0.1 / n,
        lambda n: 0.3 * (1 / n), lambda n: 1e-3 * n, lambda n: float(2 * n), lambda n: 1 / (n * n),
    ],
)  # fmt: skip
def test_laws(function):
    laws = laws_of(8, function(8), 12, function(12))
    for n in range(2, 200):
        laws = [law for law in laws if repr(law(n)) == repr(function(n))]
    assert laws


def test_laws_hold_for_whole_numbers_only_where_they_are_whole():
    (law,) = laws_of(8, 4, 12, 6)
    assert (law(10), law(9)) == (5, None)


def test_no_law():
    with pytest.raises(Unlike, match="a number is"):
        laws_of(8, 0.123, 12, 0.456)
