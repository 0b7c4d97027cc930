"""Numbers out of tensors behave as Python's, recorded and replayed."""

import math
import numbers
import warnings
from collections import deque
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg

FOLLOWED = {
    "arithmetic": lambda v: (v + 1, 2 - v, v * v, v / 3, 5.5 / v, -v, +v, abs(v), v**2, 2**v),
    "whole": lambda v: (v // 2, 7 // v, v % 2, -7 % v, divmod(v, 2), divmod(7.5, v)),
    "compared": lambda v: (v < 2, v >= 2, v == 3, max(v, 1), min(v, 2.5), v in (1, 3), not v),
    "sums": lambda v: (sum([v, v]), v + True, v * False),
    "rounded": lambda v: (int(v), math.floor(v), math.ceil(v), math.trunc(v), round(v)),
    "index": lambda v: ("abcdefgh"[int(v) % 8], list(range(int(v)))),
    "made": lambda v: (gg.tensor(v) * 2, gg.full((2, 3), v), gg.zeros(3).fill_(v)),
    "written": lambda v: (_with_item(v), gg.ones(2).add_(gg.ones(2), alpha=v), gg.ones(2) * v),
    "dtype": lambda v: gg.tensor(v, dtype=gg.float64) + gg.full((2,), v, dtype=gg.float32),
}
LEAVES = {
    "roots": lambda v: (math.sqrt(abs(v)), float(v), complex(v), "%.2f" % v),  # noqa: UP031
    "digits": lambda v: (round(v, 1), v.real, v.conjugate()),
    "numpy": lambda v: (np.sqrt(v * v), np.float64(2) * v, np.ones(2) * v, np.array([v, v])),
    "lists": lambda v: gg.tensor([v, v]),
}
SOURCES = {
    "float32": lambda k: gg.tensor([0.3, 1.7 + k], dtype=gg.float32).sum(),
    "float64": lambda k: gg.tensor([0.3, 1.7 - 5 * k], dtype=gg.float64).sum(),
    "int64": lambda k: gg.tensor([1 + k, 2]).sum(),
    "int32": lambda k: gg.tensor([1 - 5 * k], dtype=gg.int32),
    "bool": lambda k: gg.tensor([True]),
}


def _with_item(v):
    t = gg.zeros(2)
    t[1] = v
    return t


def assert_same(found, expected):
    leaves, others = gg.tree.flatten(found)[0], gg.tree.flatten(expected)[0]
    assert len(leaves) == len(others)
    for a, b in zip(leaves, others, strict=True):
        assert type(a) is type(b)
        if isinstance(a, gg.Tensor):
            gg.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        elif isinstance(a, (float, complex, np.ndarray)):
            np.testing.assert_allclose(a, b, rtol=1e-14)
        else:
            assert a == b


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("use", FOLLOWED)
def test_numbers_are_followed(use, source):
    def f(t):
        return FOLLOWED[use](t.item())

    compiled = gg.compile(f, fullgraph=True)
    for k in (0, 1, 0, 0, 1, 1, 2, 2, 2, 0):
        t = SOURCES[source](k)
        assert_same(compiled(t), f(t))
    assert compiled.stats["replays"] >= 2


@pytest.mark.parametrize("use", LEAVES)
def test_numbers_that_leave_the_program(use):
    def f(t):
        return LEAVES[use](t.item())

    compiled = gg.compile(f)
    with pytest.warns(UserWarning, match="takes a value out of the program"):
        for k in range(4):
            t = SOURCES["float64"](k)
            assert_same(compiled(t), f(t))


@pytest.mark.parametrize(
    ("use", "value", "error"),
    [
        (lambda v: 1 / v, 0.0, ZeroDivisionError),
        (lambda v: 7 // v, 0.0, ZeroDivisionError),
        (lambda v: 7 % v, 0.0, ZeroDivisionError),
        (lambda v: v**400, 1e9, OverflowError),
        (lambda v: v**-1, 0.0, ZeroDivisionError),
    ],
)
def test_errors_of_python_are_raised_by_replays_too(use, value, error):
    compiled = gg.compile(lambda t: use(t.item()))
    for k in range(4):
        compiled(gg.tensor(1.5 + k, dtype=gg.float64))
    assert compiled.stats["replays"] == 2
    with pytest.raises(error):
        compiled(gg.tensor(value, dtype=gg.float64))


TAKEN = {
    "made": lambda x, n: (gg.zeros(n, 2), gg.arange(n), gg.arange(0, 8, n), gg.eye(n), gg.ones(n)),
    "filled": lambda x, n: (gg.full((n,), 1.5), x.new_zeros(n), gg.linspace(0, 1, n)),
    "shapes": lambda x, n: (x.reshape(n, -1), x.view(-1, n), x[0].expand(n, 4), x.repeat(n, 1)),
    "index": lambda x, n: (x[n - 1], x[:n], x[0, 1:n], x.select(0, n), x.narrow(0, 1, n)),
    "dims": lambda x, n: (x.sum(n - 2), x.mean(dim=(n - 2,)), x.cumsum(n - 1), x.softmax(n - 1)),
    "parts": lambda x, n: (x.split(n), x.chunk(n), x.topk(n)[0], x.tril(n), x.roll(n, 0)),
    "order": lambda x, n: (x.permute(n - 1, 0), x.unsqueeze(n), x.flatten(n - 2), x.norm(n)),
    "joined": lambda x, n: (gg.cat([x, x], n - 1), gg.nn.functional.pad(x, (n, 0)), [1] * n),
    "classes": lambda x, n: gg.nn.functional.one_hot(x.long() % 2, n + 1),
}


@pytest.mark.parametrize("use", TAKEN)
def test_integers_are_taken_where_an_int_is(use):
    def f(x, mask):
        return TAKEN[use](x, mask.sum().item())

    compiled = gg.compile(f, fullgraph=True)
    for k, ones in enumerate([2, 2, 2, 1, 1, 1, 2]):
        x, mask = gg.arange(16.0).reshape(4, 4) + k, gg.arange(4) < ones
        if ones == 2 or use not in ("dims", "order"):  # 1 is no dimension there
            assert_same(compiled(x, mask), f(x, mask))
    assert compiled.stats["replays"] >= 2


def test_what_a_number_says_of_itself():
    seen = mock.Mock()

    @gg.compile
    def f(t):
        v = t.item()
        seen(isinstance(v, numbers.Real), hasattr(v, "shape"))
        return v

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [f(gg.tensor(float(k))) for k in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert seen.call_args_list == [mock.call(True, False)] * 2


class Holder:
    """Somewhere to keep a number."""

    best = 0.0


KEPT = 0.0


@pytest.mark.parametrize(
    "place", ["list", "deque", "dict", "attribute", "global", "closure", "tuple"]
)
def test_numbers_that_are_kept_become_what_eager_mode_keeps(place):
    losses, recent, table, holder, last = [], deque(maxlen=3), {}, Holder(), 0.0

    def keep(v):
        nonlocal last
        global KEPT
        if place == "list":
            losses.append(v)
        elif place == "deque":
            recent.append(v)
        elif place == "dict":
            table["loss"] = v
        elif place == "attribute":
            holder.best = v
        elif place == "global":
            KEPT = v
        elif place == "closure":
            last = v
        else:
            losses.append((v, 1))

    @gg.compile
    def f(x):
        v = x.sum().item() * 2
        keep(v)
        return x + 1

    with pytest.warns(UserWarning, match=r"number that item\(\) gave outlives the call"):
        for k in range(5):
            f(gg.full((2,), float(k)))
    every = [0.0, 4.0, 8.0, 12.0, 16.0]
    if place == "tuple":  # which cannot be changed: it keeps numbers that follow nothing
        first = losses[0][0]
        assert (first + 1, 1 - first, -first, abs(first), first < 1) == (1, 1, 0, 0, True)
        assert (f"{first:.1f}", int(first), float(first), bool(first)) == ("0.0", 0, 0.0, False)
        assert [v for v, _ in losses] == every
        return
    found = {"list": losses, "deque": list(recent), "dict": [table.get("loss")],
             "attribute": [holder.best], "global": [KEPT], "closure": [last]}[place]  # fmt: skip
    assert found == {"list": every, "deque": every[2:]}.get(place, every[4:])
    assert {type(v) for v in found} == {float}


def test_numbers_kept_before_an_error():
    losses = []

    @gg.compile
    def f(x):
        losses.append(x.sum().item())
        raise KeyError("no")

    with pytest.raises(KeyError):
        f(gg.ones(2))
    assert losses == [2.0]
    assert type(losses[0]) is float
