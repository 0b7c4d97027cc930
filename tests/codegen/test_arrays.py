"""Array programs: random expressions, run small, large, in place and in lists, against NumPy."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen.arrays import Program
from gpugrad.codegen.expr import build, const, evaluate, variable
from gpugrad.codegen.functions import functions_for

F = functions_for(np)
UNARY = ["neg", "abs", "square", "tanh", "sin", "cos", "floor", "sign"]
BINARY = ["add", "sub", "mul", "maximum", "minimum"]
COMPARISONS = ["lt", "ge", "eq"]
NAMES = ["a", "b", "c"]


def random_expressions(seed, outputs):
    """Expressions with much sharing, masks among them, and constants of both kinds."""
    r = np.random.default_rng(seed)
    pool = [variable(n) for n in NAMES] + [const(0.5), const(2)]
    masks = []

    def pick():
        return pool[r.integers(len(pool))]

    for _ in range(int(r.integers(4, 25))):
        kind = r.random()
        if kind < 0.35:
            pool.append(build(str(r.choice(UNARY)), pick()))
        elif kind < 0.75:
            pool.append(build(str(r.choice(BINARY)), pick(), pick()))
        elif kind < 0.9 or not masks:
            masks.append(build(str(r.choice(COMPARISONS)), pick(), pick()))
            if len(masks) > 1 and r.random() < 0.5:
                masks.append(build("logical_and", masks[-1], masks[-2]))
        else:
            pool.append(build("where", masks[r.integers(len(masks))], pick(), pick()))
    return [pick() for _ in range(outputs - 1)] + [pool[-1]]


def reference(expressions, values):
    table = F.table
    shape = np.broadcast_shapes(*[np.shape(v) for v in values.values()])
    found = evaluate(expressions, values, lambda name, *args: table[name](*args))
    return [np.broadcast_to(v, shape) for v in found]


def inputs(seed, n, dtype=np.float64):
    r = np.random.default_rng(seed + 1000)
    return {name: np.round(r.normal(size=n), 1).astype(dtype) for name in NAMES}


@pytest.mark.parametrize("seed", range(60))
def test_direct_programs(seed):
    outputs = 1 + seed % 3
    expressions = random_expressions(seed, outputs)
    values = inputs(seed, 33)
    before = {k: v.copy() for k, v in values.items()}
    for reuse in (True, False):
        program = Program(expressions, NAMES, NAMES if reuse else ())
        found = program.direct(F, None, reuse)(*values.values())
        found = found if outputs > 1 else [found]
        for f, e in zip(found, reference(expressions, values), strict=True):
            np.testing.assert_array_equal(np.broadcast_to(f, e.shape), e)
        for name, v in values.items():
            np.testing.assert_array_equal(v, before[name], err_msg="an input was overwritten")


@pytest.mark.parametrize("seed", range(20))
def test_direct_programs_of_broadcast_inputs(seed):
    """Only temporaries of the full shape may be overwritten."""
    expressions = random_expressions(seed, 1)
    values = inputs(seed, 12)
    values = {"a": values["a"].reshape(3, 4), "b": values["b"][:4], "c": values["c"][:3, None]}
    found = Program(expressions, NAMES, ["a"]).direct(F)(*values.values())
    (expected,) = reference(expressions, values)
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)


def update_of(expressions):
    """The expressions as an update of as many lists of tensors, through the public door."""

    def update(a, b, c):
        built = evaluate(
            expressions, {"a": a, "b": b, "c": c}, lambda name, *args: build(name, *args)
        )
        return tuple(built) if len(built) > 1 else built[0]

    return gg.foreach(update)


@pytest.mark.parametrize("n", [5, 20_000, 300_001])
@pytest.mark.parametrize("seed", range(12))
def test_updates_in_place(seed, n):
    """Every output overwrites an input that others may still read: in blocks, on threads."""
    outputs = 1 + seed % 3
    expressions = random_expressions(seed, outputs)
    values = inputs(seed, n)
    expected = reference(expressions, values)
    tensors = {k: gg.tensor(v) for k, v in values.items()}
    update_of(expressions)(*[[t] for t in tensors.values()])
    for k, name in enumerate(NAMES):
        target = expected[k] if k < outputs else values[name]
        # compiled code may round sin, cos and tanh in another way than NumPy
        np.testing.assert_allclose(tensors[name].numpy(), target, rtol=1e-12, atol=1e-12)


def test_a_swap():
    swap = gg.foreach(lambda a, b: (b, a))
    for n in (3, 100_000):
        a, b = gg.zeros(n), gg.ones(n)
        swap([a], [b])
        assert (a.numpy() == 1).all()
        assert (b.numpy() == 0).all()


def test_a_rotation_of_three():
    rotate = gg.foreach(lambda a, b, c: (b, c, a))
    for n in (3, 100_000):
        a, b, c = gg.full((n,), 1.0), gg.full((n,), 2.0), gg.full((n,), 3.0)
        rotate([a], [b], [c])
        assert [t[0].item() for t in (a, b, c)] == [2.0, 3.0, 1.0]
        assert [t[-1].item() for t in (a, b, c)] == [2.0, 3.0, 1.0]


def test_an_output_that_others_read():
    """The second output reads the old value of what the first overwrites."""
    step = gg.foreach(lambda p, m, g: (p - m, m + p))
    for n in (3, 100_000):
        p, m = gg.full((n,), 5.0), gg.full((n,), 2.0)
        step([p], [m], [gg.zeros(n)])
        assert (p[-1].item(), m[-1].item()) == (3.0, 7.0)


def test_the_same_value_twice_and_constants():
    both = gg.foreach(lambda a, b: (a + b, a + b))
    fill = gg.foreach(lambda a, b: (a * 0, b))
    for n in (3, 100_000):
        a, b = gg.ones(n), gg.ones(n)
        both([a], [b])
        assert (a.numpy() == 2).all()
        assert (b.numpy() == 2).all()
        fill([a], [b])
        assert (a.numpy() == 0).all()
        assert (b.numpy() == 2).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes_layouts_and_lists(dtype):
    """Many tensors in one call: small, large, strided, zero-dimensional, empty."""
    r = np.random.default_rng(0)
    shapes = [(3,), (), (0, 2), (100, 300), (5, 4)]
    ps = [gg.tensor(r.normal(size=s).astype(dtype)) for s in shapes]
    ps[-1] = gg.tensor(r.normal(size=(4, 5)).astype(dtype)).T
    gs = [gg.tensor(r.normal(size=s).astype(dtype)) for s in shapes]
    expected = [p.numpy().astype(np.float64) - 0.1 * g.numpy() for p, g in zip(ps, gs, strict=True)]

    @gg.foreach
    def descend(p, g, *, lr):
        return p - lr * g

    arrays = [p.array for p in ps]
    descend(ps, gs, lr=0.1)
    tolerance = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    for p, e, a in zip(ps, expected, arrays, strict=True):
        assert p.array is a
        assert p.dtype == dtype
        np.testing.assert_allclose(p.numpy(), e, rtol=tolerance, atol=tolerance)


def test_numbers_change_from_call_to_call():
    scale = gg.foreach(lambda p, *, k: p * k)
    for n in (3, 100_000):
        p = gg.ones(n)
        for k in (2.0, 3, 0.5):
            scale([p], k=k)
        assert p[-1].item() == 3.0


def test_errors():
    @gg.foreach
    def descend(p, g, *, lr):
        return p - lr * g

    a, b = gg.ones(3), gg.ones(4)
    with pytest.raises(RuntimeError, match=r"same shape.*\(3,\).*\(4,\)"):
        descend([a], [b], lr=1.0)
    with pytest.raises(TypeError, match="lr"):
        descend([a], [a])
    with pytest.raises(TypeError, match="lists"):
        descend([a], lr=1.0)
    with pytest.raises(ValueError):
        descend([a, a], [a], lr=1.0)
    with pytest.raises(ValueError, match="returns 2"):
        gg.foreach(lambda p: (p, p))
    with pytest.raises(TypeError, match="truth value"):
        gg.foreach(lambda p: p if p > 0 else -p)
    assert a.tolist() == [1.0] * 3
