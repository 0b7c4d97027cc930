"""Every operation and every public function as part of a compiled program.

The cases are those of the registry's rows and of the tables that are judged by torch. Each is
called several times with fresh values, and every call must equal eager mode bit for bit: a value
that was taken for a constant shows in the next call. The function's body must not run in the last
two calls, except for those of ``EAGER``, whose results depend on values in ways no graph has.
"""

from __future__ import annotations

import warnings
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.functional as F
from gpugrad.ops import REGISTRY
from tests import (
    test_creation,
    test_fft,
    test_functional,
    test_functions,
    test_linalg,
    test_numpy_protocol,
)
from tests.test_registry import Draw, samples

CALLS = 5


class Fresh:
    """Other values for the arguments of a case: of the same shapes, ranges, ties and signs."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def __call__(self, argument):
        if not isinstance(argument, np.ndarray):
            return argument
        if argument.dtype.kind == "f":  # one factor for all: ties stay ties
            shuffled = self.rng.permutation(argument.reshape(-1)).reshape(argument.shape)
            return np.asarray(shuffled * argument.dtype.type(1 - 0.1 * self.rng.random()))
        flat = argument.reshape(-1)
        if len(np.unique(flat)) == flat.size:  # an order of indices stays one
            return self.rng.permutation(flat).reshape(argument.shape)
        return self.rng.choice(flat, argument.shape)


def tensors(arguments, gradient: bool) -> list:
    return [
        gg.tensor(a, requires_grad=gradient and a.dtype.kind == "f")
        if isinstance(a, np.ndarray)
        else a
        for a in arguments
    ]


def found_in(value) -> list:
    """All tensors of a nested result."""
    if isinstance(value, gg.Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [t for v in value for t in found_in(v)]
    return []


def cotangents(results) -> list:
    return [
        gg.cos(gg.arange(1.0, t.numel() + 1)).reshape(t.shape).to(dtype=t.dtype) for t in results
    ]


def forward(call):
    return lambda *arguments: call(*arguments)


def with_grad(call):
    def program(*arguments):
        result = call(*arguments)
        results = [t for t in found_in(result) if t.requires_grad]
        inputs = [a for a in arguments if isinstance(a, gg.Tensor) and a.requires_grad]
        if not results or not inputs:
            return result
        seeds = cotangents(results)
        return result, gg.autograd.grad(results, inputs, seeds, allow_unused=True)

    return program


def with_backward(call):
    def program(*arguments):
        result = call(*arguments)
        results = [t for t in found_in(result) if t.requires_grad]
        if results:
            gg.autograd.backward(results, cotangents(results))
        return result

    return program


MODES = {"forward": forward, "grad": with_grad, "backward": with_backward}


def assert_same(found, expected, tolerance: float = 0.0):
    """Equal structure, dtypes, shapes and, unless there is a tolerance, bytes."""
    if isinstance(expected, gg.Tensor):
        assert isinstance(found, gg.Tensor)
        assert (found.dtype, tuple(found.shape)) == (expected.dtype, tuple(expected.shape))
        assert found.requires_grad == expected.requires_grad
        a, b = found.detach().numpy(), expected.detach().numpy()
        if a.tobytes() != b.tobytes():
            np.testing.assert_allclose(a, b, tolerance, tolerance)
            assert tolerance, f"zeros or NaN of other signs: {a} and {b}"
    elif isinstance(expected, tuple | list):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b, tolerance)
    else:
        assert type(found) is type(expected)
        assert found == expected


def check(call, draw, mode: str, tolerance: float, reason: str | None):
    """Compiled calls with ``draw(k)`` equal eager ones; the last two are replayed, unless there is
    a reason."""
    gradient = mode != "forward"
    program = MODES[mode](call)
    runs = mock.Mock()

    def counted(*arguments):
        runs()
        return program(*arguments)

    compiled = gg.compile(counted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calls = CALLS if reason is None else CALLS + 2
        for k in range(calls):
            if k == calls - 2:
                recorded = runs.call_count
            values = draw(k)
            ours, theirs = tensors(values, gradient), tensors(values, gradient)
            assert_same(compiled(*ours), program(*theirs), tolerance)
            for a, b in zip(ours, theirs, strict=True):
                if isinstance(a, gg.Tensor):
                    assert_same([a, a.grad], [b, b.grad], tolerance)
    messages = [str(w.message) for w in caught if "runs eagerly" in str(w.message)]
    if reason is None:
        assert not messages
        assert runs.call_count == recorded, "the function ran again"
    else:
        assert len(messages) == 1
        assert reason in messages[0]
        assert runs.call_count == calls


# what is not recorded, by name of the function (or the case of it), and why
DEPENDS = "depends on values"
EAGER = {
    "bincount": f"the shape of bincount {DEPENDS}",
    "unique": f"the shape of unique {DEPENDS}",
    "nonzero": f"the shape of nonzero {DEPENDS}",
    "where-3": f"the shape of nonzero {DEPENDS}",
    "masked_select": f"the shape of take {DEPENDS}",
    "repeat_interleave-3": f"the shape of repeat_interleave with a tensor of counts {DEPENDS}",
    "repeat_interleave-4": f"the shape of repeat_interleave with a tensor of counts {DEPENDS}",
    "numpy nonzero": f"the shape of nonzero {DEPENDS}",
    "numpy where of one": f"the shape of nonzero {DEPENDS}",
    "new tensor of 0-d tensors": "a tensor in a list takes a value out of the program",
    # arrays that the function makes by NumPy: nobody knows from what
    **dict.fromkeys(
        (
            "numpy take_along_axis",
            "numpy dot of three axes",
            "numpy logical_or",
            "numpy bitwise_and",
            "new tensor of a float32 array",
        ),
        "its calls differ",
    ),
    "nn.one_hot-0": f"the shape of one_hot without num_classes {DEPENDS}",
}


def reason_of(name: str) -> str | None:
    return EAGER.get(name, EAGER.get(name.rpartition("-")[0]))


# Functions of integers are float32, to 2 ulp: here NumPy is 0.6 ulp off, the native function 0.4.
IN_FLOAT32 = {"sin-1": 2.0**-22}

FUNCTIONS = [
    (name, lambda *a, call=call: call(gg, *a), arguments)
    for name, call, arguments in test_functions.TABLE
] + [
    (f"nn.{name}", lambda *a, call=call: call(gg.functional, gg, *a), arguments)
    for name, call, arguments in test_functional.TABLE
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "call", "arguments"), FUNCTIONS, ids=[n for n, *_ in FUNCTIONS])
def test_function(name, call, arguments, mode, tolerance):
    fresh = Fresh(len(name))
    draw = lambda k: [fresh(a) for a in arguments]
    check(call, draw, mode, tolerance and IN_FLOAT32.get(name, tolerance), reason_of(name))


X4 = np.linspace(-1.0, 2.0, 12).reshape(3, 4)
OTHERS = (
    [
        (f"numpy {n}", f, [test_numpy_protocol.A])
        for n, f in test_numpy_protocol.DIFFERENTIABLE.items()
    ]
    + [(f"numpy {n}", f, [test_numpy_protocol.A]) for n, f in test_numpy_protocol.PLAIN.items()]
    + [
        (f"fft.{n}", lambda x, n=n: getattr(gg.fft, n)(x.detach()), [np.ones((3, 4)) * X4])
        for n in (*test_fft.ONE, *test_fft.SEVERAL)
    ]
    + [(f"new {n}", lambda x, f=f: (f(gg), x * 2), [X4]) for n, f in test_creation.CASES.items()]
)


@pytest.mark.parametrize("mode", ["forward", "grad"])
@pytest.mark.parametrize(("name", "call", "arguments"), OTHERS, ids=[n for n, *_ in OTHERS])
def test_numpy_functions_transforms_and_new_tensors(name, call, arguments, mode, tolerance):
    fresh = Fresh(len(name))
    draw = lambda k: [fresh(a) for a in arguments]
    check(call, draw, mode, tolerance, reason_of(name))


@pytest.mark.parametrize("mode", ["forward", "grad"])
@pytest.mark.parametrize("name", test_linalg.CASES)
def test_matrices(name, mode, tolerance):
    draw = lambda k: [test_linalg.regular(np.random.default_rng(k), 2, 3, 3)]
    check(lambda a: test_linalg.CASES[name](gg, a), draw, mode, tolerance, None)


CASES = [
    (name, case, params)
    for name, op in REGISTRY.items()
    if op.kind != "composite"
    for case, (_, params) in enumerate(samples(op, Draw(0)))
]


@pytest.mark.parametrize("mode", ["forward", "grad"])
@pytest.mark.parametrize(("name", "case", "params"), CASES, ids=[f"{n}-{k}" for n, k, _ in CASES])
def test_row(name, case, params, mode, tolerance):
    op = REGISTRY[name]

    def draw(k):
        arguments, _ = list(samples(op, Draw(k)))[case]
        return [np.asarray(a) if isinstance(a, np.generic) else a for a in arguments]

    reason = f"the shape of take {DEPENDS}" if (name, case) == ("take", 3) else None
    check(lambda *arguments: op(*arguments, **params), draw, mode, tolerance, reason)


# functions of good values, and bad ones: the error of eager mode, and nothing else, comes of them
X, PLACES = np.array([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3]]), np.array([0, 2])
BAD_PLACE = np.array([0, 3])
ERRORS = {
    "index": (lambda x, i: x[:, i], (X, PLACES), (X, BAD_PLACE)),
    "assignment": (lambda x, i: gg.zeros(3).index_add(0, i, x[0, :2].float()), (X, PLACES),
                   (X, BAD_PLACE)),
    "gather": (lambda x, i: x.gather(1, i.reshape(2, 1)), (X, PLACES), (X, -PLACES)),
    "scatter": (lambda x, i: x.scatter(1, i.reshape(2, 1), x), (X, PLACES), (X, BAD_PLACE)),
    "embedding": (lambda x, i: F.embedding(i, x.T), (X, PLACES), (X, BAD_PLACE)),
    "one_hot": (lambda i: F.one_hot(i, 3), (PLACES,), (BAD_PLACE,)),
    "cross_entropy": (lambda x, i: F.cross_entropy(x, i), (X, PLACES), (X, BAD_PLACE)),
    "nll_loss": (lambda x, i: F.nll_loss(x, i), (X, PLACES), (X, BAD_PLACE)),
    "nll_loss with weights": (lambda x, i: F.nll_loss(x, i, x[0]), (X, PLACES), (X, BAD_PLACE)),
    "binary_cross_entropy": (lambda x: F.binary_cross_entropy(x, x), (X,), (-X,)),
    "bernoulli": (gg.bernoulli, (X,), (2 * X,)),
    "multinomial": (lambda x: gg.multinomial(x, 2), (X,), (-X,)),
    "normal": (lambda x: gg.normal(0.0, x), (X,), (-X,)),
    "inverse": (gg.linalg.inv, (np.eye(2) * 3,), (np.zeros((2, 2)),)),
    "cholesky": (gg.linalg.cholesky, (np.eye(2) * 3,), (-np.eye(2),)),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_replays_raise_the_errors_of_eager_mode(name, tolerance):
    call, good, bad = ERRORS[name]
    counts, expected_counts, generator = gg.zeros(1), gg.zeros(1), gg.default_generator
    runs = mock.Mock()

    def program(count, *arguments):
        count.add_(1)
        runs()
        return call(*arguments)

    compiled = gg.compile(program)
    for values, wrong in ((good, False),) * 4 + ((bad, True), (good, False), (good, False)):
        arguments = tensors(values, False)
        gg.manual_seed(5)
        if wrong:
            with pytest.raises(Exception) as expected:
                program(expected_counts, *arguments)
            state = generator.get_state()
            gg.manual_seed(5)
            with pytest.raises(type(expected.value)) as found:
                compiled(counts, *arguments)
            assert str(found.value) == str(expected.value)
        else:
            expected = program(expected_counts, *arguments)
            state = generator.get_state()
            gg.manual_seed(5)
            assert_same(compiled(counts, *arguments), expected, tolerance)
        assert gg.equal(counts, expected_counts)
        assert gg.equal(generator.get_state(), state)
    # eager mode ran 7 times; the compiled function when it was recorded, and for the error
    assert runs.call_count == 7 + 3


@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0]])
def test_targets_to_ignore_are_another_way(weight, tolerance):
    """A loss without ignored targets is one operation, one with them is several."""
    rng = np.random.default_rng(0)

    def loss(x, target):
        w = None if weight is None else gg.tensor(weight, dtype=x.dtype)
        return F.cross_entropy(x, target, w), F.nll_loss(x, target, w)

    compiled = gg.compile(loss)
    for k in range(10):
        x = gg.tensor(rng.normal(size=(4, 3)))
        target = gg.tensor(rng.integers(0, 3, 4) if k % 2 else np.array([0, -100, k % 3, -100]))
        assert_same(compiled(x, target), loss(x, target), tolerance)
    assert compiled.stats["replays"] >= 4


DECISIONS = {
    "allclose": lambda x, y: gg.allclose(x, y),
    "equal": lambda x, y: gg.equal(x, y),
    "if": lambda x, y: x + 1 if x.sum() > y.sum() else y - 1,
    "while": lambda x, y: _halved(x, y),
}


def _halved(x, y):
    while x.norm() > y.norm():
        x = x / 2
    return x


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_by_values(name, tolerance):
    call, rng = DECISIONS[name], np.random.default_rng(0)
    compiled = gg.compile(call)
    for k in range(24):
        x = gg.tensor(rng.normal(size=(3, 2)) * 2.0 ** (k % 3))
        y = gg.tensor(rng.normal(size=(3, 2))) if k % 2 else x.clone()
        assert_same(compiled(x, y), call(x, y), tolerance)
    assert compiled.stats["replays"] >= 8


def test_arguments_that_begin_to_require_gradients(tolerance):
    def slope(x):
        x.requires_grad_()
        x.square().sum().backward()
        return x.grad

    compiled = gg.compile(slope)
    for k in range(5):
        ours, theirs = (gg.tensor([1.0, k + 0.5]) for _ in range(2))
        assert_same(compiled(ours), slope(theirs), tolerance)
        assert_same([ours, ours.grad], [theirs, theirs.grad], tolerance)
    assert compiled.stats["replays"] == 3


def test_one_tensor_returned_twice(tolerance):
    compiled = gg.compile(lambda x: (y := x + 1, {"again": y, "other": x * 2}))
    for k in range(5):
        y, found = compiled(gg.tensor([float(k)]))
        assert y is found["again"]
        assert_same([y, found["other"]], [gg.tensor([k + 1.0]), gg.tensor([k * 2.0])], tolerance)
    assert compiled.stats["replays"] == 3


def test_the_same_argument_twice_and_arguments_that_overlap(tolerance):
    def combine(x, y):
        x.mul_(2.0)
        return x + y

    compiled = gg.compile(combine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last ones run eagerly
        for k in range(18):
            results = []
            for function in (compiled, combine):
                x, other = gg.tensor([1.0, k + 2.0, 3.0]), gg.tensor([5.0, 6.0 * k])
                y = (other, x[:2], x[1:])[k // 6]
                x = x[:2]
                results.append((function(x, y if k % 6 else x), x, y, other))
            assert_same(*results, tolerance)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 4), (300, 400)])
def test_derivatives_by_numbers_keep_the_dtype(dtype, shape, tolerance):
    """NumPy makes a float64 of 1 / 3.0, which recorded derivatives were once multiplied by."""

    def slope(x):
        y = x / 3.0 + gg.pow(x, 2.5)
        return gg.autograd.grad(y, [x], gg.ones_like(y))[0]

    compiled = gg.compile(slope)
    for k in range(4):
        x = gg.full(shape, 1.0 + k, dtype=getattr(gg, dtype), requires_grad=True)
        found, expected = compiled(x), slope(x)
        assert found.dtype == expected.dtype == getattr(gg, dtype)
        np.testing.assert_allclose(found.array, expected.array, 4 * np.finfo(dtype).eps)
