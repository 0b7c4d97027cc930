"""Random programs, compiled, equal eager mode: values, gradients, writes, and what is left behind.

A program is a list of steps over a pool of tensors: arithmetic, products, reductions, views, writes
into them, indexing, joins, branches by values, random numbers. It ends with a backward pass, and
may update parameters and buffers. Each is called several times with fresh arguments. Programs with
even numbers run unoptimised by Python and must equal eager mode bit for bit; the others run
natively, with kernels that round otherwise.

2,000 programs take a minute; GPUGRAD_TEST_ALL_PROGRAMS=1 runs all 10,000.
"""

from __future__ import annotations

import os
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.functional as F
from gpugrad.codegen.machine import machine
from gpugrad.static import passes, replay, run_python

COUNT = 10_000 if os.environ.get("GPUGRAD_TEST_ALL_PROGRAMS") else 2_000
BATCH = 100  # programs of one test
CALLS = 4
LIMIT, LARGEST = 50.0, 48  # values and sizes beyond these are not kept in the pool


# ------------------------------------------------------------------------------------------------
# steps: functions of tensors of the pool and of numbers. Where a function has a kink, a number is
# added: values that are equal but for rounding must not come to lie on both sides of it.


def _matmul(x, y, c):
    return x @ (y if x.shape[-1:] == y.shape[:1] else y.mT) * 0.3


def _write(x, y, c):
    return _own(x).mul_(y if y.ndim <= x.ndim else y.sum())


def _write_part(x, y, c):
    _own(x)[0] = y
    return x


def _write_view(x, y, c):
    _own(x)[..., :1].add_(y * c)
    return x


def _own(x):
    """The tensor, which may be written: a leaf that requires a gradient may not."""
    if x.requires_grad and x.is_leaf:
        raise RuntimeError("a parameter")
    return x


def _branch(x, y, c):
    if x.mean() > c:
        return x * 2.0
    return y - x.sum()


def _repeat(x, y, c):
    while x.square().mean() > 1.0 + abs(c):
        x = x * 0.7
    return x


STEPS = {
    "add": lambda x, y, c: x + y,
    "sub": lambda x, y, c: x - y * c,
    "mul": lambda x, y, c: x * y,
    "div": lambda x, y, c: x / (y.square() + 0.5),
    "maximum": lambda x, y, c: gg.maximum(x, y * c + 0.123),
    "where": lambda x, y, c: gg.where(x > c, x, y * c),
    "tanh": lambda x, y, c: x.tanh(),
    "sigmoid": lambda x, y, c: gg.sigmoid(x) + c,
    "exp": lambda x, y, c: gg.exp(-x.square()),
    "log": lambda x, y, c: gg.log(x.square() + 0.7),
    "relu": lambda x, y, c: gg.relu(x + c),
    "gelu": lambda x, y, c: F.gelu(x),
    "abs": lambda x, y, c: abs(x + c),
    "clamp": lambda x, y, c: x.clamp(-1.01, 1.03 + abs(c)),
    "matmul": _matmul,
    "linear": lambda x, y, c: F.linear(x, y, y[:, 0]) * 0.3,
    "sum": lambda x, y, c: x.sum(-1, keepdim=c > 0),
    "mean": lambda x, y, c: x.mean(0) if x.ndim and c > 0 else x.mean(),
    "amax": lambda x, y, c: x.amax(-1, keepdim=True),
    "norm": lambda x, y, c: x.norm() + c,
    "cumsum": lambda x, y, c: x.cumsum(0),
    "transpose": lambda x, y, c: x.mT,
    "reshape": lambda x, y, c: x.reshape(-1, 2),
    "row": lambda x, y, c: x[0],
    "slice": lambda x, y, c: x[..., 1:],
    "reverse": lambda x, y, c: x.flip(0),
    "expand": lambda x, y, c: x.unsqueeze(0).expand(2, *x.shape),
    "softmax": lambda x, y, c: F.softmax(x, -1),
    "log_softmax": lambda x, y, c: F.log_softmax(x, 0),
    "layer_norm": lambda x, y, c: F.layer_norm(x, x.shape[-1:], eps=0.1),
    "detach": lambda x, y, c: x.detach(),
    "clone": lambda x, y, c: x.clone(),
    "cat": lambda x, y, c: gg.cat([x, y]),
    "stack": lambda x, y, c: gg.stack([x, y * c]),
    "write": _write,
    "write part": _write_part,
    "write view": _write_view,
    "fill": lambda x, y, c: _own(x).fill_(c),
    "branch": _branch,
    "repeat": _repeat,
    "dropout": lambda x, y, c: F.dropout(x, 0.4),
    "random": lambda x, y, c: x + gg.rand(*x.shape, dtype=x.dtype),
}
INDEXED = {  # of integers in [0, 3), too
    "take": lambda x, i, c: x[i],
    "gather": lambda x, i, c: x.gather(0, i.reshape(-1, *[1] * (x.ndim - 1))),
    "embedding": lambda x, i, c: F.embedding(i, x),
    "one_hot": lambda x, i, c: x @ F.one_hot(i, x.shape[-1]).to(dtype=x.dtype)[0],
    "cross_entropy": lambda x, i, c: F.cross_entropy(x, i),
    "index_add": lambda x, i, c: x.index_add(0, i, x[:3], alpha=c),
}
WRITES = ("write", "write part", "write view", "fill")
NAMES = [*STEPS, *INDEXED]


class State:
    """What a program reaches by itself: parameters and buffers."""

    def __init__(self, seed: int, dtype):
        rng = np.random.default_rng(seed)
        self.params = [
            gg.tensor(rng.normal(size=shape), dtype=dtype, requires_grad=True)
            for shape in ((3, 4), (4,))
        ]
        self.buffers = [gg.tensor(rng.normal(size=shape), dtype=dtype) for shape in ((4, 3), (4,))]

    @property
    def tensors(self) -> list:
        return [*self.params, *self.buffers, *[p.grad for p in self.params]]


class Program:
    """A random program; the same for the same number."""

    NAMES, STEPS = NAMES, STEPS

    def __init__(self, number: int):
        self.number, self.rng = number, np.random.default_rng(number)
        self.dtype = gg.float32 if number % 4 == 1 else gg.float64
        self.steps: list[tuple] = []
        self.ending = int(self.rng.integers(4))
        while True:
            self.steps = []
            pool = self.pool(self.arguments(0), State(number, self.dtype))
            for _ in range(self.rng.integers(4, 14)):
                self._grow(pool)
            chosen = self.rng.integers(len(pool), size=5)
            self.losses, self.outputs = chosen[:2], chosen[2 : self.rng.integers(3, 6)]
            if self._runs():
                return

    def arguments(self, call: int) -> list:
        """Fresh arguments of a call."""
        rng = np.random.default_rng((self.number, call))
        x, y = (gg.tensor(rng.normal(size=s), dtype=self.dtype) for s in ((3, 4), (4, 4)))
        return [x, y, gg.tensor(rng.integers(0, 3, 3))]

    def pool(self, arguments, state: State) -> list:
        return [*arguments[:2], *state.params, *state.buffers]

    def _grow(self, pool: list) -> None:
        """Add a step that can be done."""
        for _ in range(30):
            name = self.NAMES[self.rng.integers(len(self.NAMES))]
            if self.dtype == gg.float32 and name in ("branch", "repeat"):
                continue  # a sum that is rounded otherwise might go the other way
            a, b = self.rng.integers(len(pool), size=2)
            step = (name, int(a), int(b), round(float(self.rng.normal()), 3))
            before = [t.array.copy() for t in pool]
            try:
                result = self.do(step, pool, gg.tensor([0, 2, 1]))
            except (RuntimeError, IndexError, ValueError):
                result = None
            good = result is not None and 0 < result.numel() <= LARGEST
            if good and all(bool((abs(t.detach().array) < LIMIT).all()) for t in (result, *pool)):
                self.steps.append(step)
                pool.append(result)
                return
            for t, array in zip(pool, before, strict=True):
                if t.array.flags.writeable:
                    t.array[...] = array

    def do(self, step: tuple, pool: list, places):
        name, a, b, c = step
        if name in INDEXED:
            return INDEXED[name](pool[a], places, c)
        y = pool[b]
        if name in WRITES and not pool[a].requires_grad:
            y = y.detach()  # what is outside must not get a history
        return self.STEPS[name](pool[a], y, c)

    def run(self, state: State, x, y, places) -> list:
        """One call."""
        pool = self.pool([x, y], state)
        for step in self.steps:
            pool.append(self.do(step, pool, places))
        loss = sum(pool[k].square().mean() for k in self.losses)
        if loss.requires_grad:
            loss.backward()
        with gg.no_grad():
            self.finish(state, pool[self.losses[0]].detach())
        return [pool[k] for k in self.outputs] + [loss.detach()]

    def finish(self, state: State, value) -> None:
        """Leave gradients to the next call, or update parameters; and a buffer."""
        state.buffers[1].mul_(0.5).add_(value.mean(), alpha=0.25)
        if self.ending == 0:
            return
        for p in state.params:
            if p.grad is not None:
                p.sub_(p.grad * 0.01)
                if self.ending == 1:
                    p.grad = None
                elif self.ending == 2:
                    p.grad.zero_()

    def _runs(self) -> bool:
        """Whether a few calls succeed: saved values may have been overwritten, numbers be too
        large, shapes differ from call to call by a branch."""
        state = State(self.number, self.dtype)
        try:
            with np.errstate(all="raise", under="ignore"):
                for call in range(CALLS):
                    outputs = self.run(state, *self.arguments(call))
                    found = [t for t in (*outputs, *state.tensors) if t is not None]
                    if not all(bool((abs(t.array) < 1e3).all()) for t in found):
                        return False
        except (RuntimeError, IndexError, ValueError, FloatingPointError):
            return False
        return True


def same(found, expected, tolerance: float) -> None:
    if expected is None or found is None:
        assert found is expected
        return
    a, b = found.array, expected.array
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if not tolerance:
        assert a.tobytes() == b.tobytes(), f"{a} instead of {b}"
    else:
        np.testing.assert_allclose(a, b, tolerance, tolerance * (1 + abs(b).max()))


def check(number: int) -> int:
    """Compare the calls of one program; how many were replayed."""
    program = Program(number)
    native = number % 2 == 1 and machine() is not None
    tolerance = 0.0 if not native else 2e-4 if program.dtype == gg.float32 else 1e-10
    return compared(program, tolerance).stats["replays"]


def compared(program: Program, tolerance: float, **options):
    """A program compiled, after calls that were those of eager mode."""
    number = program.number
    state, expected = State(number, program.dtype), State(number, program.dtype)

    def run(x, y, places):
        return program.run(state, x, y, places)

    compiled = gg.compile(run, **options)
    for call in range(CALLS):
        ours, theirs = program.arguments(call), program.arguments(call)
        gg.manual_seed(call)
        results = compiled(*ours)
        gg.manual_seed(call)
        for a, b in zip(results, program.run(expected, *theirs), strict=True):
            same(a, b, tolerance)
        for a, b in zip((*ours, *state.tensors), (*theirs, *expected.tensors), strict=True):
            same(a, b, tolerance)
    return compiled


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("first", range(0, COUNT, BATCH))
def test_programs(first):
    plain = {
        "runner_for": run_python.compile_graph,
        "optimized": lambda graph, algebra: passes.drop_dead(graph),
    }
    replayed = 0
    for number in range(first, first + BATCH):
        try:
            if number % 2:
                replayed += check(number)
            else:
                with mock.patch.multiple(replay, **plain):
                    replayed += check(number)
        except Exception as error:
            error.add_note(f"program {number}: {Program(number).steps}")
            raise
    assert replayed >= BATCH  # branches and random states make some programs record more often
