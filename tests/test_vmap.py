"""``vmap``: every operation against a loop over the batch, and everything else against torch."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import batching
from gpugrad.ops import REGISTRY
from gpugrad.tensor import wrap

from .test_registry import Draw, samples

# torch compiles its rules of forward mode with it, and says where it falls back to a loop
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated", "ignore:There is a performance drop"
)

R = np.random.default_rng(5)
SIZE = 3

# ------------------------------------------------------------------------------------------------
# every row of the table

# What has no samples of its own: (arguments, parameters).
MORE_SAMPLES = {
    "argmax": lambda r: [
        ((r(3, 4),), {"axis": 1, "keepdims": False}),
        ((r(3, 4),), {"axis": None, "keepdims": True}),
    ],
    "argsort": lambda r: [((r(3, 4),), {"axis": 0})],
    "any": lambda r: [
        ((r(3, 4) > 1,), {"axes": (0,), "keepdims": True}),
        ((r(3, 4) > 3,), {"axes": None, "keepdims": False}),
    ],
}
MORE_SAMPLES["argmin"], MORE_SAMPLES["all"] = MORE_SAMPLES["argmax"], MORE_SAMPLES["any"]

# nonzero: its shape depends on values; put_view: of in-place writes, which are not batched by it
ROWS = sorted(
    name
    for name, op in REGISTRY.items()
    if op.kind != "composite" and name not in ("nonzero", "put_view")
)
LARGER = [  # more than the rows' samples have: index arrays before, between and behind slices
    ("take", lambda r: ((r(4, 5, 3), r.integers(5, 2, 2)),
     {"pattern": (slice(1, 3), batching.HOLE)})),
    ("take", lambda r: ((r(4, 5, 3), r.integers(3, 2)), {"pattern": (Ellipsis, batching.HOLE)})),
    ("take", lambda r: ((r(4, 5, 3), r.integers(5, 2), r.integers(3, 2)),
     {"pattern": (slice(None), batching.HOLE, batching.HOLE)})),
    ("take", lambda r: ((r(4, 5, 3), r.integers(4, 2, 1), r.integers(3, 6)),
     {"pattern": (batching.HOLE, slice(0, 4), batching.HOLE)})),
    ("take", lambda r: ((r(4, 5), r.integers(5)), {"pattern": (slice(None), batching.HOLE)})),
    ("take", lambda r: ((r(2, 5, 3, 4), r.integers(5, 2, 1), r.integers(4, 6)),
     {"pattern": (slice(None), batching.HOLE, slice(1, 3), batching.HOLE)})),
    ("put_add", lambda r: ((r(2, 3, 3), r.integers(5, 2), r.integers(4, 2)),
     {"pattern": (slice(1, 4), batching.HOLE, slice(None), batching.HOLE), "shape": (4, 5, 3, 4)})),
    ("put_add", lambda r: ((r(3, 2, 2), r.integers(5, 2, 2)),
     {"pattern": (slice(1, 4), batching.HOLE), "shape": (4, 5)})),
    ("put_add", lambda r: ((r(2, 5), r.integers(4, 2), r.integers(3, 2)),
     {"pattern": (batching.HOLE, slice(None), batching.HOLE), "shape": (4, 5, 3)})),
    ("put", lambda r: ((r(4, 5, 3), r(3), r.permutation(5)[:2]),
     {"pattern": (slice(1, 3), batching.HOLE)})),
    ("put", lambda r: ((r(4, 5, 3), r(2, 5), r.permutation(4)[:2], r.permutation(3)[:2]),
     {"pattern": (batching.HOLE, slice(None), batching.HOLE)})),
    ("einsum2", lambda r: ((r(2, 2), r(2)), {"subscripts": ("ij", "j", "i")})),
    ("layer_norm", lambda r: ((r(2, 3, 5), r(5), r(5)), {"eps": 0.1})),
    ("matmul", lambda r: ((r(2, 3, 4), r(5, 1, 4, 2)), {})),
]  # fmt: skip


def cases(name, draw):
    op = REGISTRY[name]
    yield from samples(op, draw)
    if name in MORE_SAMPLES:
        yield from MORE_SAMPLES[name](draw)
    yield from (make(draw) for row, make in LARGER if row == name)


def another(value, draw):
    """An argument of another example: other numbers of the same kind, as far from singular."""
    value = np.asarray(value)
    if value.dtype.kind == "b":
        return value  # a mask with another count has a result of another shape
    if value.dtype.kind in "iu":
        return draw.rng.permutation(value.reshape(-1)).reshape(value.shape)
    return value * draw.rng.uniform(0.9, 1.1) + 0.01


def batch_axes(position, ndim):
    """First and last axes, in turn."""
    return 0 if position % 2 else ndim


def check(op, examples, params, chosen):
    """The operation under vmap with a batch of the ``chosen`` arguments, and in a loop."""
    in_dims, arguments = [], []
    for position, values in enumerate(zip(*examples, strict=True)):
        if position in chosen:
            axis = batch_axes(position + len(chosen), np.ndim(values[0]))
            in_dims.append(axis)
            arguments.append(wrap(np.stack([np.asarray(v) for v in values], axis)))
        else:
            in_dims.append(None)
            arguments.append(values[0])
    rows = [
        [row[p] if p in chosen else examples[0][p] for p in range(len(row))] for row in examples
    ]
    expected = np.stack(
        [
            np.asarray(
                op(*[np.asarray(a) if not isinstance(a, float) else a for a in row], **params)
            )
            for row in rows
        ]
    )
    found = gg.vmap(lambda *a: op(*a, **params), tuple(in_dims))(*arguments)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.array, expected, rtol=1e-10, atol=1e-12)
    if op.is_view:
        assert found.array.base is not None


def batchable(op, args, params):
    """The positions of arguments that may differ between examples, as index sets to try."""
    positions = [p for p, a in enumerate(args) if not isinstance(a, float)]
    if op.name in ("take", "put"):
        positions = [p for p in positions if np.asarray(args[p]).dtype.kind != "b"]
    if op.name == "batch_norm" and params["training"]:
        return [set(positions)]  # the moments must be those of x
    sets = [{p} for p in positions]
    return [*sets, set(positions)] if len(positions) > 1 else sets


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    op = REGISTRY[name]
    for args, params in cases(name, Draw(sum(map(ord, name)))):
        draw = Draw(len(args))
        examples = [list(args)] + [
            [a if isinstance(a, float) else another(a, draw) for a in args] for _ in range(SIZE - 1)
        ]
        if name == "batch_norm" and params["training"]:
            for row in examples:
                row[3], row[4] = row[0].mean((0, 2)), row[0].var((0, 2))
        if name == "dropout":
            examples = examples[:1] * SIZE
        for chosen in batchable(op, args, params):
            check(op, examples, params, chosen)


def scalar_of(op, args, params, where):
    """The operation as a scalar function of its arguments at ``where``, given all of them."""

    def function(*given):
        out = op(*given, **params)
        return (out * np.cos(np.arange(out.numel()).reshape(out.shape))).sum() if out.ndim else out

    return function


def floats(op, args):
    return tuple(
        p
        for p, a in enumerate(args)
        if op.differentiable(p) and not isinstance(a, float) and np.asarray(a).dtype.kind == "f"
    )


DIFFERENTIABLE = [
    name for name in ROWS if REGISTRY[name].differentiable(1 if name == "where" else 0)
]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_row(name):
    """A gradient per example, the gradient of a batch, and tangents, against single examples."""
    op = REGISTRY[name]
    for args, params in cases(name, Draw(sum(map(ord, name)) + 1)):
        draw = Draw(len(args))
        examples = [list(args)] + [
            [a if isinstance(a, float) else another(a, draw) for a in args] for _ in range(SIZE - 1)
        ]
        if name == "batch_norm" and params["training"]:
            for row in examples:
                row[3], row[4] = row[0].mean((0, 2)), row[0].var((0, 2))
        if name == "dropout":
            examples = examples[:1] * SIZE
        where = floats(op, args)
        f = scalar_of(op, args, params, where)
        for chosen in batchable(op, args, params):
            check_gradients(f, where, examples, chosen)


def check_gradients(f, where, examples, chosen):
    rows = [
        [
            a if isinstance(a, float) else wrap(np.asarray(row[p] if p in chosen else a))
            for p, a in enumerate(examples[0])
        ]
        for row in examples
    ]
    batch = [
        gg.stack([row[p] for row in rows]) if p in chosen else a for p, a in enumerate(rows[0])
    ]
    in_dims = tuple(0 if p in chosen else None for p in range(len(batch)))
    single = gg.func.grad(f, where)
    expected = [
        np.stack(parts)
        for parts in zip(*[[g.array for g in single(*row)] for row in rows], strict=True)
    ]

    def close(found, wanted):
        for a, b in zip(found, wanted, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a.array, b, rtol=1e-9, atol=1e-10)

    close(gg.vmap(single, in_dims)(*batch), expected)
    outside = gg.func.grad(lambda *a: gg.vmap(f, in_dims)(*a).sum(), where)(*batch)
    close(outside, [e if p in chosen else e.sum(0) for p, e in zip(where, expected, strict=True)])
    close(
        gg.vmap(gg.vmap(single, in_dims), in_dims)(
            *[gg.stack([x, x]) if p in chosen else x for p, x in enumerate(batch)]
        ),
        [np.stack([e, e]) for e in expected],
    )

    def tangent(*a):
        xs = [a[p] for p in where]

        def filled(*new):
            return f(*[new[where.index(p)] if p in where else x for p, x in enumerate(a)])

        return gg.func.jvp(filled, tuple(xs), tuple(x * 0.5 for x in xs))[1]

    expected_tangents = np.stack([tangent(*row).array for row in rows])
    close([gg.vmap(tangent, in_dims)(*batch)], [expected_tangents])
