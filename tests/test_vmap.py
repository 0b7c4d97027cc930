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


# ------------------------------------------------------------------------------------------------
# against torch

X, Y, A = R.standard_normal((3, 4)), R.standard_normal((4, 3)), R.standard_normal((3, 4, 2))
IMAGES = R.standard_normal((3, 2, 2, 6, 5))


def loss(t):
    """Of one example by a network of two layers with parameters in a dict."""

    def function(p, x, y):
        hidden = t.tanh(t.nn.functional.linear(x, p["w"], p["b"]))
        return ((hidden @ p["v"] - y) ** 2).mean()

    return function


def parameters(x):
    return {"w": x[:2].cos(), "b": x[0, :2], "v": x[:2, 0].sin()}


def flat(gradients):
    return [gradients[k] for k in sorted(gradients)]


CASES = {
    "in_dims": lambda t, f, x, y, a: f.vmap(lambda u, v: u.exp() * v, (0, 1))(x, y),
    "negative in_dims": lambda t, f, x, y, a: f.vmap(lambda u, v: u.T @ v, (-2, -1))(a, y.T),
    "one argument for all": lambda t, f, x, y, a: f.vmap(t.dot, (0, None))(x, y[:, 0]),
    "keyword arguments": lambda t, f, x, y, a: f.vmap(lambda u, scale: u * scale)(x, scale=y[:, 0]),
    "out_dims": lambda t, f, x, y, a: f.vmap(lambda u: u.T * 2, out_dims=1)(a),
    "several out_dims": lambda t, f, x, y, a: f.vmap(lambda u: (u.T, u.sum()), out_dims=(-1, 0))(a),
    "out_dims of a dict": lambda t, f, x, y, a: flat(
        f.vmap(lambda u: {"p": u * 2, "q": u.T}, out_dims={"p": 2, "q": 1})(a)),
    "out_dims None": lambda t, f, x, y, a: f.vmap(
        lambda u: (u * 2, x.sum()), out_dims=(0, None))(a),
    "a result that is the same for all": lambda t, f, x, y, a: f.vmap(lambda u: x + 1)(a),
    "the argument itself": lambda t, f, x, y, a: f.vmap(lambda u: u)(x),
    "in_dims of nested arguments": lambda t, f, x, y, a: f.vmap(
        lambda d, u: d["p"][0] * u + d["q"], ({"p": [0], "q": None}, 1))(
        {"p": [x], "q": y[:, 0]}, y),
    "one in_dim of a nested argument": lambda t, f, x, y, a: f.vmap(
        lambda d, u: d["p"] + d["q"][0] * u, (1, 0))({"p": y, "q": (y * 2,)}, x),
    "nested": lambda t, f, x, y, a: f.vmap(f.vmap(lambda u, v: u @ v, (0, None)), (None, 1))(x, y),
    "nested, outer used inside": lambda t, f, x, y, a: f.vmap(
        lambda u: f.vmap(lambda v: (u * v).sum() + v)(x))(x),
    "nested, other dimensions": lambda t, f, x, y, a: f.vmap(
        f.vmap(lambda u: u.cumsum(0), 1, 1), 2, 0)(a),
    "chunks": lambda t, f, x, y, a: f.vmap(
        lambda u, v: u @ v, (1, None), chunk_size=3)(a, y[:2, 0]),
    "chunks, out_dims": lambda t, f, x, y, a: f.vmap(
        lambda u: (u * 2, u.T), 1, (1, -1), chunk_size=1)(a),
    "jacobian by vmap of vjp": lambda t, f, x, y, a: f.vmap(
        f.vjp(lambda v: t.softmax(v, 0) * v.sum(), x[0])[1])(t.eye(4, dtype=x.dtype)),
    "jacobian by vmap of jvp": lambda t, f, x, y, a: f.vmap(
        lambda d: f.jvp(lambda v: t.softmax(v, 0) * v.sum(), (x[0],), (d,))[1])(
        t.eye(4, dtype=x.dtype)),
    "jvp of vmap": lambda t, f, x, y, a: f.jvp(
        f.vmap(lambda v: t.softmax(v, 0) * v.sum()), (x,), (x.cos(),)),
    "jvp of vmap of jvp": lambda t, f, x, y, a: f.jvp(f.vmap(lambda v: f.jvp(
        lambda w: (w.sin() * w).sum(), (v,), (v * v,))[1]), (x,), (x.cos(),)),
    "vjp of vmap": lambda t, f, x, y, a: f.vjp(f.vmap(lambda v: v / v.norm()), x)[1](x.cos()),
    "gradient per example": lambda t, f, x, y, a: flat(f.vmap(
        f.grad(loss(t)), (None, 0, 0))(parameters(x), x, x[:, 0])),
    "gradient of an ensemble": lambda t, f, x, y, a: flat(f.vmap(f.grad(loss(t)), (0, None, None))(
        {k: t.stack([v, v * 2]) for k, v in parameters(x).items()}, x, x[:, 0])),
    "gradient of gradients per example": lambda t, f, x, y, a: flat(f.grad(lambda p: sum(
        (g**2).sum() for g in flat(f.vmap(f.grad(loss(t)), (None, 0, 0))(p, x, x[:, 0]))))(
        parameters(x))),
    "gradient per example, closed over": lambda t, f, x, y, a: f.grad(lambda w: f.vmap(
        f.grad(lambda u: (u * w).tanh().sum()))(x).square().sum())(x[0]),
    "jacrev": lambda t, f, x, y, a: f.vmap(f.jacrev(lambda v: t.softmax(v, 0)[:2]))(x),
    "jacfwd": lambda t, f, x, y, a: f.vmap(f.jacfwd(lambda v: t.softmax(v, 0)[:2]))(x),
    "jacrev of vmap": lambda t, f, x, y, a: f.jacrev(f.vmap(lambda v: v.exp().sum() * v))(x[:2]),
    "jacfwd of vmap": lambda t, f, x, y, a: f.jacfwd(f.vmap(lambda v: v.exp().sum() * v))(x[:2]),
    "hessian": lambda t, f, x, y, a: f.vmap(f.hessian(lambda v: (v.sin() * v[0]).sum()))(x),
    "hessian of vmap": lambda t, f, x, y, a: f.hessian(
        lambda v: f.vmap(lambda u: (u.sin() * u[0]).sum())(v).square().sum())(x[:2]),
    "hessian, nested": lambda t, f, x, y, a: f.vmap(f.vmap(
        f.hessian(lambda v: v.tanh() * v), 0), 1)(x),
    "has_aux": lambda t, f, x, y, a: f.vmap(
        f.grad(lambda v: ((v * v).sum(), v.sin()), has_aux=True))(x),
    "detach inside": lambda t, f, x, y, a: f.vmap(
        f.grad(lambda v: (v * v.detach()).sum()))(x),
    "sort": lambda t, f, x, y, a: f.vmap(lambda v: tuple(t.sort(v, descending=True)))(x),
    "max with indices": lambda t, f, x, y, a: f.vmap(lambda v: tuple(t.max(v, 0)))(a),
    "var": lambda t, f, x, y, a: f.vmap(lambda v: t.var(v, 0))(a),
    "prod": lambda t, f, x, y, a: f.vmap(f.grad(lambda v: t.prod(v)))(x),
    "median": lambda t, f, x, y, a: f.vmap(lambda v: tuple(t.median(v, 0)))(x),
    "norm": lambda t, f, x, y, a: f.vmap(lambda v: v.norm())(a),
    "einsum": lambda t, f, x, y, a: f.vmap(lambda u, v: t.einsum("ij,i->j", u, v))(a, x),
    "where": lambda t, f, x, y, a: f.vmap(lambda v: t.where(v > 0, v, -1.0))(x),
    "comparison and bits": lambda t, f, x, y, a: f.vmap(lambda v: ~((v > 0) & (v < 1)))(x),
    "isclose": lambda t, f, x, y, a: f.vmap(lambda v: t.isclose(v, x[0]))(x),
    "clamp": lambda t, f, x, y, a: f.vmap(f.grad(lambda v: t.clamp(v, -0.5, 0.5).sum()))(x),
    "view": lambda t, f, x, y, a: f.vmap(lambda v: v.view(-1) * 2)(a),
    "stack": lambda t, f, x, y, a: f.vmap(lambda v: t.stack([v, x[0]], 1))(x),
    "split": lambda t, f, x, y, a: f.vmap(lambda v: t.split(v, 3))(x),
    "slices": lambda t, f, x, y, a: f.vmap(lambda v: v[1:, None, ..., 0])(a),
    "iteration": lambda t, f, x, y, a: f.vmap(lambda v: sum(r * k for k, r in enumerate(v)))(a),
    "index per example": lambda t, f, x, y, a: f.vmap(lambda v, i: v[i])(
        a, t.tensor([[0, 1], [2, 0], [3, 3]])),
    "number per example": lambda t, f, x, y, a: f.vmap(lambda v, i: v[i] * 2)(
        a, t.tensor([0, 3, 1])),
    "index of a table": lambda t, f, x, y, a: f.vmap(lambda i: a[i, 1:])(t.tensor([2, 0])),
    "index after a slice": lambda t, f, x, y, a: f.vmap(lambda i: a[:, i])(
        t.tensor([[2, 0], [1, 1]])),
    "gather": lambda t, f, x, y, a: f.vmap(lambda v, i: t.gather(v, 0, i))(
        x, t.tensor([[0, 1], [2, 0], [3, 3]])),
    "index_select": lambda t, f, x, y, a: f.vmap(
        lambda v: t.index_select(v, 1, t.tensor([1, 0])))(a),
    "scatter": lambda t, f, x, y, a: f.vmap(lambda v, i: t.scatter(v, 0, i, v[:2] * 2))(
        x, t.tensor([[0, 1], [2, 0], [3, 1]])),
    "scatter_add": lambda t, f, x, y, a: f.vmap(lambda v, i: t.scatter_add(v, 0, i, v[:2]))(
        x, t.tensor([[0, 1], [2, 2], [3, 1]])),
    "setitem": lambda t, f, x, y, a: f.vmap(setitem)(x),
    "in place": lambda t, f, x, y, a: f.vmap(lambda v: v.clone().mul_(2).add_(v[0]).exp_())(x),
    "in place, of zeros_like": lambda t, f, x, y, a: f.vmap(
        lambda v: t.zeros_like(v).add_(v) + v.new_ones(4).mul_(v))(x),
    "in place, gradient": lambda t, f, x, y, a: f.vmap(f.grad(in_place_chain))(x),
    "in place, gradient outside": lambda t, f, x, y, a: f.grad(
        lambda v: f.vmap(in_place_chain)(v).sum())(x),
    "fill": lambda t, f, x, y, a: f.vmap(lambda v: v.clone().fill_(2.0) + v)(x),
    "dtype": lambda t, f, x, y, a: f.vmap(lambda v: (v.float() + 1, v.long(), (v > 0).sum()))(x),
    "full": lambda t, f, x, y, a: f.vmap(lambda v: v + t.full((4,), 2.0) + t.arange(4))(x),
    "empty batch": lambda t, f, x, y, a: f.vmap(lambda v: (v.sum(), t.softmax(v, 0)))(x[:0]),
    "no dimensions": lambda t, f, x, y, a: f.vmap(lambda v: v.sin() * 2 + x[0])(x[:, 0]),
    "polynomial of a number": lambda t, f, x, y, a: f.vmap(f.grad(f.grad(lambda v: v**3)))(x[0]),
}  # fmt: skip


def setitem(v):
    w = v.clone()
    w[1:3] = v[0] * 2
    w[0] = 5.0
    return w


def in_place_chain(v):
    w = v * 2
    w.mul_(v)
    w += v.sin()
    w[1] = v[0] * v[2]
    return w.sum()


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(judge, torch, name):
    libraries = ((gg, gg.func), (torch, torch.func))
    judge(lambda pair, *args: CASES[name](*pair, *args), X, Y, A, libraries=libraries,
          gradient=False, rtol=1e-9, atol=1e-11)  # fmt: skip


NETWORK_CASES = {
    "conv2d": lambda F, f, x, w, i: f.vmap(lambda u: F.conv2d(u, w, padding=1))(x),
    "conv2d, filters per example": lambda F, f, x, w, i: f.vmap(
        lambda u, v: F.conv2d(u, v, stride=2), (0, None))(x, w),
    "conv2d, one image": lambda F, f, x, w, i: f.vmap(f.vmap(lambda u: F.conv2d(u, w)))(x),
    "conv_transpose2d": lambda F, f, x, w, i: f.vmap(
        lambda u: F.conv_transpose2d(u, w.transpose(0, 1), stride=2))(x),
    "gradient of filters per example": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda v, u: F.conv2d(u, v, dilation=2).tanh().sum()), (None, 0))(w, x),
    "max_pool2d": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda u: F.max_pool2d(u, 2, padding=1).square().sum()))(x),
    "avg_pool2d": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda u: F.avg_pool2d(u, 3, 2).square().sum()))(x),
    "layer_norm": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda u: F.layer_norm(u, (5,), u[0, 0, 0], u[1, 0, 0]).tanh().sum()))(x),
    "group_norm": lambda F, f, x, w, i: f.vmap(lambda u: F.group_norm(u, 2))(x),
    "batch_norm": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda u: F.batch_norm(u, None, None, training=True).tanh().sum()))(x),
    "cross_entropy": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda u, c: F.cross_entropy(u[0, 0], c)))(x, i),
    "cross_entropy, ignored": lambda F, f, x, w, i: f.vmap(
        lambda u, c: F.cross_entropy(u[0, 0], c, ignore_index=2, label_smoothing=0.1))(x, i),
    "cross_entropy, one row": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda u, c: F.cross_entropy(u[0, 0, 0], c[0])))(x, i),
    "nll_loss, weighted": lambda F, f, x, w, i: f.vmap(lambda u, c: F.nll_loss(
        F.log_softmax(u[0, 0], 1), c, weight=x[0, 0, 0, 0].exp()))(x, i),
    "embedding": lambda F, f, x, w, i: f.vmap(lambda c: F.embedding(c, x[0, 0, 0]))(i),
    "gradient of an embedding": lambda F, f, x, w, i: f.vmap(f.grad(
        lambda table, c: F.embedding(c, table, padding_idx=1).square().sum()), (None, 0))(
        x[0, 0, 0], i),
    "one_hot": lambda F, f, x, w, i: f.vmap(lambda c: F.one_hot(c, 5))(i),
    "binary_cross_entropy": lambda F, f, x, w, i: f.vmap(
        f.grad(lambda u: F.binary_cross_entropy(u.sigmoid(), (u > 0).double())))(x),
    "attention": lambda F, f, x, w, i: f.vmap(f.grad(lambda u: F.scaled_dot_product_attention(
        u, u * 2, u + 1, is_causal=True).sum()))(x),
    "gelu and others": lambda F, f, x, w, i: f.vmap(f.grad(
        lambda u: (F.gelu(u) + F.silu(u) + F.softplus(u) + F.leaky_relu(u)).sum()))(x),
    "pad": lambda F, f, x, w, i: f.vmap(lambda u: F.pad(u, (1, 2, 0, 1), value=2.0))(x),
    "pad, reflect": lambda F, f, x, w, i: f.vmap(lambda u: F.pad(u, (1, 2), mode="reflect"))(
        x[:, 0, 0]),
    "cosine_similarity": lambda F, f, x, w, i: f.vmap(
        lambda u: F.cosine_similarity(u[0], u[1], dim=0))(x),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORK_CASES)
def test_functions_of_networks_equal_torch(judge, torch, name):
    filters, classes = R.standard_normal((4, 2, 3, 2)), R.integers(0, 5, (3, 6))
    libraries = ((gg.functional, gg.func), (torch.nn.functional, torch.func))
    judge(lambda pair, *args: NETWORK_CASES[name](*pair, *args), IMAGES, filters, classes,
          libraries=libraries, gradient=False, rtol=1e-8, atol=1e-10)  # fmt: skip


def test_gradients_through_the_tape_equal_torch(judge, torch):
    """``backward`` of a mapped function, for what is mapped and what is the same in all."""
    judge(
        lambda library, x, y: library.func.vmap(lambda u: (u @ y).exp())(x),
        X, Y, libraries=(gg, torch),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------
# errors

ERRORS = {
    "in_dims is a list": lambda t, f, x: f.vmap(lambda u: u, [0])(x),
    "no arguments": lambda t, f, x: f.vmap(lambda: x)(),
    "in_dims of another structure": lambda t, f, x: f.vmap(lambda u, v: u, (0, {"p": 0}))(x, x),
    "in_dims too short": lambda t, f, x: f.vmap(lambda u, v: u, (0,))(x, x),
    "in_dim is no number": lambda t, f, x: f.vmap(lambda u: u, ("0",))(x),
    "in_dim of a number": lambda t, f, x: f.vmap(lambda u, v: u * v)(x, 2.0),
    "in_dim out of range": lambda t, f, x: f.vmap(lambda u: u, 2)(x),
    "in_dim of a tensor without dimensions": lambda t, f, x: f.vmap(lambda u: u)(x[0, 0]),
    "nothing is mapped": lambda t, f, x: f.vmap(lambda u: u, (None,))(x),
    "other sizes": lambda t, f, x: f.vmap(lambda u, v: u)(x, x[:2]),
    "result is no tensor": lambda t, f, x: f.vmap(lambda u: 3)(x),
    "out_dims is a string": lambda t, f, x: f.vmap(lambda u: u, out_dims="a")(x),
    "out_dims of another structure": lambda t, f, x: f.vmap(lambda u: (u, u), out_dims=(0,))(x),
    "out_dim out of range": lambda t, f, x: f.vmap(lambda u: u, out_dims=2)(x),
    "out_dim None of a batch": lambda t, f, x: f.vmap(lambda u: u, out_dims=None)(x),
    "chunk_size": lambda t, f, x: f.vmap(lambda u: u, chunk_size=0)(x),
    "randomness": lambda t, f, x: f.vmap(lambda u: u, randomness="other")(x),
    "random numbers": lambda t, f, x: f.vmap(lambda u: u + t.rand(4))(x),
    "dropout": lambda t, f, x: f.vmap(lambda u: t.nn.functional.dropout(u))(x),
    "item": lambda t, f, x: f.vmap(lambda u: u * u[0].item())(x),
    "if": lambda t, f, x: f.vmap(lambda u: u if u.sum() > 0 else -u)(x),
    "float": lambda t, f, x: f.vmap(lambda u: u * float(u[0]))(x),
    "nonzero": lambda t, f, x: f.vmap(lambda u: t.nonzero(u))(x),
    "mask": lambda t, f, x: f.vmap(lambda u: u[u > 0])(x),
    "in place of what is the same for all": lambda t, f, x: f.vmap(lambda u: x[0].add_(u))(x),
    "setitem of what is the same for all": lambda t, f, x: f.vmap(
        lambda u: t.zeros(4).__setitem__(0, u[0]))(x),
    "requires_grad_": lambda t, f, x: f.vmap(lambda u: u.requires_grad_())(x),
    "backward": lambda t, f, x: f.vmap(lambda u: u.sum().backward())(x),
    "shapes": lambda t, f, x: f.vmap(lambda u: u @ x[0, :2])(x),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(judge, torch, name):
    """Both raise, in the same words where torch's are about vmap."""
    libraries = ((gg, gg.func), (torch, torch.func))
    messages = []
    for library, module in libraries:
        x = library.tensor(X)
        with pytest.raises((ValueError, RuntimeError, IndexError)) as raised:
            ERRORS[name](library, module, x)
        messages.append(raised)
    ours, theirs = messages
    assert isinstance(ours.value, theirs.type)
    start = str(theirs.value).split("but the input is")[0].split(". in_dims has")[0]
    if start.startswith("vmap") and name not in ("nonzero", "mask", "float"):
        words = start.replace("functorch transform", "").split(". ")[0].split(", got type")[0]
        assert words in str(ours.value)


def test_nothing_stays_open_after_an_error():
    with pytest.raises(RuntimeError, match="control flow"):
        gg.vmap(lambda u: u if u else -u)(gg.ones(2))
    assert gg.rand(2).shape == (2,)
    assert gg.config.modes.local.levels == 0
    assert gg.config.modes.special == 0


def test_values_of_a_batch_are_refused_wherever_they_are_asked_for():
    """Never one example's values for all: what is not an operation raises."""
    x = gg.tensor(X)
    for ask in (
        lambda u: u.numpy(), lambda u: u.tolist(), lambda u: int(u[0]), lambda u: np.sin(u.array),
        lambda u: np.asarray(u), lambda u: gg.unique(u), lambda u: gg.equal(u, u),
        lambda u: gg.allclose(u, u), lambda u: u.array == 1, lambda u: u.array.max(),
        lambda u: 1.0 in u, lambda u: gg.tensor([1, 2, 3, 4])[u > 0], lambda u: u.data_ptr(),
        lambda u: gg.repeat_interleave(u, (u > 0).long()), lambda u: u.array[0],
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            gg.vmap(lambda u, ask=ask: u + ask(u))(x)


# ------------------------------------------------------------------------------------------------
# random numbers


def test_random_numbers_that_are_the_same_or_different():
    x = gg.zeros(5, 3)

    def noise(u):
        return u + gg.randn(3)

    same = gg.vmap(noise, randomness="same")(x).numpy()
    assert (same == same[0]).all()
    different = gg.vmap(noise, randomness="different")(x).numpy()
    assert len(np.unique(different)) == 15
    nested = gg.vmap(gg.vmap(noise, randomness="different"), randomness="same")(gg.zeros(2, 5, 3))
    assert (nested[0] == nested[1]).all()
    assert len(np.unique(nested.numpy())) == 15
    inner = gg.vmap(gg.vmap(noise, randomness="same"), randomness="different")(gg.zeros(2, 5, 3))
    assert (inner[:, 0] == inner[:, 1]).all()
    assert len(np.unique(inner.numpy())) == 6


@pytest.mark.parametrize(
    "draw",
    [
        lambda u: gg.rand(2, 3), lambda u: gg.randint(0, 10**6, (2, 3)), lambda u: gg.randperm(99),
        lambda u: gg.bernoulli(gg.full((64,), 0.5)), lambda u: gg.normal(u, 1.0), gg.randn_like,
        lambda u: gg.multinomial(gg.ones(64), 8), lambda u: gg.zeros_like(u).uniform_(),
        lambda u: gg.functional.dropout(gg.ones(64)),
        lambda u: gg.multinomial(gg.ones(64), 8, replacement=True),
    ],
)  # fmt: skip
def test_functions_that_draw(draw):
    x = gg.zeros(3, 6)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        gg.vmap(draw)(x)
    a, b, c = gg.vmap(draw, randomness="same")(x)
    assert (a == b).all() and (a == c).all()
    a, b, c = gg.vmap(draw, randomness="different")(x)
    assert (a != b).any() and (a != c).any() and (b != c).any()
    assert a.shape == draw(x[0]).shape


def test_chunks_draw_the_same_numbers():
    x = gg.zeros(5, 3)
    found = gg.vmap(lambda u: u + gg.rand(3), randomness="same", chunk_size=2)(x)
    assert (found == found[0]).all()


# ------------------------------------------------------------------------------------------------
# more


def test_a_new_operation_needs_no_rule(monkeypatch):
    """Example by example gives the same, with all derivatives."""
    x = gg.tensor(X)
    f = lambda v: gg.softmax(v, 0).cumsum(0).square().sum()
    expected = gg.vmap(gg.func.hessian(f))(x), gg.func.grad(lambda v: gg.vmap(f)(v).sum())(x)
    monkeypatch.setattr(batching, "RULES", {})
    monkeypatch.setattr(batching, "RULES_OF_KINDS", {})
    found = gg.vmap(gg.func.hessian(f))(x), gg.func.grad(lambda v: gg.vmap(f)(v).sum())(x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12)


def test_all_operations_but_dropout_have_rules():
    without = {n for n in ROWS if REGISTRY[n].kind != "elementwise" and n not in batching.RULES}
    assert without == {"dropout"}  # of CUDA: the same numbers in every example


def test_results_of_other_shapes_are_refused():
    x = gg.tensor(X)
    lengths = gg.tensor([1, 2])

    def cut(array, n):
        return array[: int(n)]

    with pytest.raises(RuntimeError, match="other shapes"):
        gg.vmap(lambda n: gg.eager.run_arrays(cut, x, n))(lengths)


def test_modules_and_parameters():
    """A module of one example; its parameters are the same in all, and get their gradients."""
    gg.manual_seed(0)
    model = gg.nn.Sequential(
        gg.nn.Linear(4, 5), gg.nn.Tanh(), gg.nn.LayerNorm(5), gg.nn.Linear(5, 2)
    )
    x = gg.tensor(X, dtype=gg.float32)
    mapped = gg.vmap(model)(x)
    np.testing.assert_allclose(mapped.detach().numpy(), model(x).detach().numpy(), rtol=1e-5)
    expected = gg.autograd.grad(model(x).square().sum(), list(model.parameters()))
    found = gg.autograd.grad(mapped.square().sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)


def test_custom_kernels():
    half = gg.kernel(lambda x: x * x * 0.5)
    x = gg.tensor(X)
    np.testing.assert_allclose(gg.vmap(gg.func.grad(lambda v: half(v).sum()))(x).numpy(), X)


def test_a_function_that_states_only_its_reverse_derivative_is_refused():
    class Double(gg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    with pytest.raises(RuntimeError, match="vmap"):
        gg.vmap(Double.apply)(gg.ones(2))


def test_in_place_writes_reach_the_argument_as_in_torch(torch):
    found, expected = gg.tensor(X), torch.tensor(X)
    gg.vmap(lambda u: u.mul_(2))(found)
    torch.func.vmap(lambda u: u.mul_(2))(expected)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_writes_to_views_are_seen_or_refused():
    x = gg.tensor(X)

    def chain(v):
        w = v * 1
        w[1:].mul_(3)
        return w

    expected = X * [1, 3, 3, 3]
    np.testing.assert_array_equal(gg.vmap(chain)(x).numpy(), expected)
    found = gg.func.grad(lambda a: gg.vmap(chain)(a).square().sum())(x)
    np.testing.assert_allclose(found.numpy(), 2 * X * np.array([1, 9, 9, 9]))
    with pytest.raises(RuntimeError, match="views"):
        gg.vmap(gg.func.grad(lambda v: chain(v).sum()))(x)


def test_autograd_inside_and_repr():
    x = gg.tensor(X, requires_grad=True)
    y = (x.sin() * x).sum(0)
    rows = gg.vmap(lambda v: gg.autograd.grad(y, x, v, retain_graph=True)[0])(
        gg.eye(4, dtype=gg.float64)
    )
    assert rows.shape == (4, 3, 4)
    np.testing.assert_allclose(rows.sum(0).numpy(), np.sin(X) + X * np.cos(X))
    seen = []
    gg.vmap(lambda v: seen.append(repr(v)) or v)(gg.ones(2))
    assert seen == ["Batched(level=1, value=tensor([1., 1.]))"]


# ------------------------------------------------------------------------------------------------
# CUDA

ON_CUDA = [
    "nested", "gradient per example", "gradient of gradients per example", "hessian", "sort",
    "prod", "in place, gradient outside", "in place, of zeros_like", "comparison and bits",
    "setitem",
]  # fmt: skip
NETWORKS_ON_CUDA = [
    "gradient of filters per example", "max_pool2d", "layer_norm", "batch_norm", "cross_entropy",
    "cross_entropy, ignored", "embedding", "attention", "one_hot",
]  # fmt: skip


def everything(value):
    """All tensors of a nested result."""
    return [t for v in value for t in everything(v)] if isinstance(value, tuple | list) else [value]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_CUDA + NETWORKS_ON_CUDA)
def test_on_cuda_as_on_the_cpu(name):
    if name in CASES:
        arrays, call = (X, Y, A), lambda *args: CASES[name](gg, gg.func, *args)
    else:
        filters, classes = R.standard_normal((4, 2, 3, 2)), R.integers(0, 5, (3, 6))
        arrays = IMAGES, filters, classes
        call = lambda *args: NETWORK_CASES[name](gg.functional, gg.func, *args)
    expected = everything(call(*[gg.tensor(a) for a in arrays]))
    found = everything(call(*[gg.tensor(a, device="cuda") for a in arrays]))
    for a, b in zip(found, expected, strict=True):
        assert a.is_cuda and a.dtype == b.dtype
        np.testing.assert_allclose(a.cpu().numpy(), b.numpy(), rtol=1e-8, atol=1e-10)


@pytest.mark.gpu
def test_random_numbers_on_cuda():
    x = gg.zeros(3, 64, device="cuda")
    for draw in (gg.randn_like, gg.functional.dropout, lambda u: gg.functional.dropout(u + 1)):
        with pytest.raises(RuntimeError, match="randomness error mode"):
            gg.vmap(draw)(x)
    a, b, _ = gg.vmap(lambda u: gg.functional.dropout(u + 1), randomness="different")(x).cpu()
    assert (a != b).any()
    a, b, _ = gg.vmap(lambda u: gg.functional.dropout(u + 1), randomness="same")(x).cpu()
    assert (a == b).all()


def test_compiled_programs():
    """``compile`` sees the operations on batches, not those on examples."""
    w = gg.tensor(Y)

    def gradients(x):
        return gg.vmap(gg.func.grad(lambda v, u: (u @ v).tanh().square().sum()), (None, 0))(w, x)

    compiled = gg.compile(gradients)
    for scale in (0.1, 0.2, 0.3, 0.4):  # where 1 - tanh(x)**2 does not cancel
        x = gg.tensor(X * scale)
        np.testing.assert_allclose(compiled(x).numpy(), gradients(x).numpy(), rtol=1e-12)
    assert compiled.stats["replays"] == 2
