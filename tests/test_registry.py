"""Every operation of the table, in every mode: forward, reverse, double backward, forward mode.

The cases come from the rows themselves (their domain or their samples), so a new row is tested by
existing. Reference: central differences in float64; the adjoint identity <vjp(g), t> = <g, jvp(t)>.
"""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen import llvm
from gpugrad.ops import REGISTRY
from gpugrad.ops.core import Elementwise
from gpugrad.tensor import wrap


class Draw:
    """Random arguments for the samples of a row, fresh for every seed."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape):
        return self.rng.normal(size=shape)

    def integers(self, high, *shape):
        return self.rng.integers(0, high, size=shape)

    def permutation(self, n):
        return self.rng.permutation(n)


SHAPES = (
    [(3, 4)] * 4,  # all equal
    [(3, 1), (4,), (1, 4), ()],  # broadcast
    [(), (), (), ()],  # zero-dimensional
    [(0, 3)] * 4,  # empty
)


def elementwise_samples(op, draw):
    domains = op.domain if isinstance(op.domain[0], tuple) else (op.domain,) * op.arity
    for shapes in SHAPES:
        args = [
            draw.rng.uniform(*domain, size=shape)
            for domain, shape in zip(domains * op.arity, shapes[: op.arity], strict=False)
        ]
        if op.name == "where":
            args[0] = np.asarray(args[0] > 0.5)
        yield args, {}


def samples(op, draw):
    if isinstance(op, Elementwise):
        yield from elementwise_samples(op, draw)
    elif op.samples is not None:
        yield from op.samples(draw)


DIFFERENTIABLE = sorted(
    name
    for name, op in REGISTRY.items()
    if op.kind != "composite" and op.differentiable(1 if name == "where" else 0)
)
HAVE_SAMPLES = [
    n for n in DIFFERENTIABLE if isinstance(REGISTRY[n], Elementwise) or REGISTRY[n].samples
]


def test_every_differentiable_row_has_samples():
    missing = set(DIFFERENTIABLE) - set(HAVE_SAMPLES)
    assert missing == {"put_view"}  # needs a view of a base: tests/test_in_place.py
    assert len(HAVE_SAMPLES) >= 90


def variables(op, args):
    """Tensors for the differentiable arguments, and the operation as a function of them."""
    where = [i for i in range(len(args)) if op.differentiable(i)]
    tensors = [wrap(np.array(args[i])).requires_grad_() for i in where]

    def function(*xs, **params):
        filled = [xs[where.index(i)] if i in where else a for i, a in enumerate(args)]
        return op(*filled, **params)

    return tensors, function


@pytest.mark.parametrize("name", HAVE_SAMPLES)
def test_row(name):
    op = REGISTRY[name]
    draw = Draw(sum(map(ord, name)))
    for args, params in samples(op, draw):
        xs, function = variables(op, args)

        def f(*a, function=function, params=params):
            return function(*a, **params)

        gg.autograd.gradcheck(f, xs)
        first = gg.autograd.grad(f(*xs).sum(), xs, create_graph=True)
        if any(g.requires_grad for g in first):
            gg.autograd.gradgradcheck(f, xs)
        check_forward_mode(f, xs, draw)


def check_forward_mode(f, xs, draw):
    tangents = tuple(wrap(draw.rng.normal(size=x.shape)) for x in xs)
    y, t = gg.func.jvp(f, tuple(x.detach() for x in xs), tangents)
    step = 1e-6
    above = f(*[wrap(x.array + step * v.array) for x, v in zip(xs, tangents, strict=True)])
    below = f(*[wrap(x.array - step * v.array) for x, v in zip(xs, tangents, strict=True)])
    numerical = (above.array - below.array) / (2 * step)
    np.testing.assert_allclose(t.array, numerical, rtol=1e-4, atol=1e-5)
    g = wrap(draw.rng.normal(size=y.shape))
    back = gg.autograd.grad(f(*xs), xs, g)
    reverse = sum(float((b.array * v.array).sum()) for b, v in zip(back, tangents, strict=True))
    np.testing.assert_allclose(reverse, float((g.array * t.array).sum()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in HAVE_SAMPLES if isinstance(REGISTRY[n], Elementwise)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_arrays_in_blocks_equal_small_ones(name, dtype, monkeypatch):
    """The blocked, threaded path of large arrays computes what the plain path computes.

    That native kernels do so to rounding is in tests/codegen/test_llvm.py.
    """
    monkeypatch.setattr(llvm, "machine", lambda: None)
    op = REGISTRY[name]
    draw = Draw(7)
    (args, _), *_ = elementwise_samples(op, draw)
    n = 300_001  # more than one thread's share, and a ragged last block
    big = [np.resize(np.asarray(a, a.dtype if a.dtype == bool else dtype), n) for a in args]
    grown = [wrap(b) for b in big]
    small = op(*[wrap(b[:500].copy()) for b in big])
    large = op(*grown)
    np.testing.assert_array_equal(large.array[:500], small.array)
    for i in range(op.arity):
        if op.differentiable(i):
            grown[i].requires_grad_()
    wanted = [x for x in grown if x.requires_grad]
    part = [wrap(b[:500].copy()) for b in big]
    for i in range(op.arity):
        if op.differentiable(i):
            part[i].requires_grad_()
    ones = wrap(np.ones(n, dtype))
    a = gg.autograd.grad(op(*grown), wanted, ones)
    b = gg.autograd.grad(op(*part), [x for x in part if x.requires_grad], wrap(np.ones(500, dtype)))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.array[:500], y.array)
