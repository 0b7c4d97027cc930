"""Indexing kernels (codegen/cuda_index.py): every layout, dtype and kind of index against NumPy and
torch, deterministic sums, and that broken kernels are noticed.

Errors at bad indices are in test_device_errors.py, derivatives of the rows in test_operations.py.
"""

import contextlib

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.codegen import cuda_index as kernels
from gpugrad.codegen.cuda_index import HOLE
from gpugrad.ops import REGISTRY
from tests.cuda.judging import DTYPES, agrees, broken, on_device, rounded, wide

pytestmark = pytest.mark.gpu

cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install gpugrad[cuda13]")

ALL = slice(None)
# Shape of the array, pattern, shapes of the index arrays.
PATTERNS = {
    "rows": ((5, 7), (HOLE,), [(4,)]),
    "rows of no length": ((5, 0), (HOLE,), [(4,)]),
    "no index": ((5, 7), (HOLE,), [(0,)]),
    "one index": ((5, 7), (HOLE,), [()]),
    "numbers": ((33,), (HOLE,), [(257,)]),
    "rows of 16 bytes": ((5, 3, 16), (HOLE,), [(2, 3)]),
    "columns": ((5, 7), (ALL, HOLE), [(31,)]),
    "last of three": ((2, 3, 7), (Ellipsis, HOLE), [(2, 2)]),
    "middle": ((2, 5, 3), (ALL, HOLE), [(4, 3)]),
    "two": ((5, 7), (HOLE, HOLE), [(4,), (4,)]),
    "two, broadcast": ((5, 7, 3), (HOLE, HOLE), [(4, 1), (3,)]),
    "apart": ((5, 2, 7), (HOLE, ALL, HOLE), [(4,), (4,)]),
    "inner two": ((2, 5, 7, 3), (ALL, HOLE, HOLE), [(6,), (6,)]),
    "three": ((3, 4, 5), (HOLE, HOLE, HOLE), [(9,), (9,), (9,)]),
    "slices": ((9, 7, 5), (slice(1, 8, 2), HOLE, slice(None, None, -1)), [(4,)]),
    "new axes": ((5, 7), (None, HOLE, None), [(4,)]),
    "many": ((300, 40), (HOLE,), [(2500,)]),
}
SUMMED = ("int32", "int64")


def indices_of(name, rng, dtype=np.int64):
    """Index arrays with repetitions, a third of them negative."""
    shape, pattern, shapes = PATTERNS[name]
    view = np.empty(shape)[tuple(ALL if p == HOLE else p for p in pattern)]
    axes = [d for d, p in enumerate(pattern) if p == HOLE]
    if Ellipsis in pattern:
        axes = [view.ndim - 1]
    made = []
    for axis, of in zip(axes, shapes, strict=True):
        n = view.shape[axis]
        index = rng.integers(0, n, of)
        made.append(np.where(rng.random(of) < 0.3, index - n, index).astype(dtype))
    return made


def filled(pattern, indices) -> tuple:
    rest = iter(indices)
    return tuple(next(rest) if p == HOLE else p for p in pattern)


def layouts(values):
    """The same values in C order, transposed, with gaps, and reversed."""
    yield on_device(values)
    yield on_device(np.ascontiguousarray(values.T)).T
    spread = cupy.zeros([2 * n for n in values.shape], values.dtype)[
        (slice(None, None, 2),) * values.ndim
    ]
    spread[...] = on_device(values)
    yield spread
    back = (slice(None, None, -1),) * values.ndim
    yield on_device(np.ascontiguousarray(values[back]))[back]


# ---- reading and writing -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATTERNS)
def test_take(name, rng):
    shape, pattern, _ = PATTERNS[name]
    x = rng.standard_normal(shape).astype(np.float32)
    for dtype in (np.int32, np.int64):
        indices = indices_of(name, rng, dtype)
        expected = x[filled(pattern, indices)]
        for array in layouts(x):
            found = kernels.take(array, *map(cupy.asarray, indices), pattern=pattern)
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found.get(), expected)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "float16", "float32", "float64", "complex128"]
)
@pytest.mark.parametrize("length", [1, 3, 8, 16])
def test_rows_of_every_width(dtype, length, rng):
    """Words of 1 to 16 bytes, at addresses that allow them or not."""
    x = (rng.standard_normal((12, length)) * 9).astype(dtype)
    index = rng.integers(-9, 9, (3, 5))
    whole = on_device(x)
    for part, host in ((whole, x), (whole[3:], x[3:])):
        found = kernels.take(part, cupy.asarray(index), pattern=(HOLE,))
        np.testing.assert_array_equal(found.get(), host[index])


@pytest.mark.parametrize("name", PATTERNS)
def test_put(name, rng):
    """Of values at one position the last stays, as in NumPy."""
    shape, pattern, _ = PATTERNS[name]
    x = rng.standard_normal(shape).astype(np.float32)
    indices = indices_of(name, rng)
    place = filled(pattern, indices)
    for v in (rng.standard_normal(x[place].shape), rng.standard_normal(())):
        v, expected = v.astype(np.float32), x.copy()
        expected[place] = v
        on = [cupy.asarray(i) for i in indices]
        for array in layouts(x):
            found = kernels.put(array, on_device(v), *on, pattern=pattern)
            np.testing.assert_array_equal(found.get(), expected)
            assert kernels.assign(array, on_device(v), on, pattern)
            np.testing.assert_array_equal(array.get(), expected)


def test_assignment_uses_the_kernels(rng, host_device):
    x, i = gg.zeros(5, 3, device="cuda"), gg.tensor([1, 4, 1], device="cuda")
    v = gg.arange(9.0, device="cuda").reshape(3, 3)
    x[i] = v
    with host_device.counting() as n:
        x[i] = v
    assert n.syncs == n.h2d == n.d2h == 0
    np.testing.assert_array_equal(x.cpu().numpy()[[1, 4]], [[6, 7, 8], [3, 4, 5]])


def grid_along(axis, index):
    grid = list(np.indices(index.shape, sparse=True))
    grid[axis] = index
    return tuple(grid)


ALONG = {
    "same": ((5, 7), (5, 7), 1),
    "first axis": ((5, 7), (9, 7), 0),
    "smaller": ((5, 7, 3), (4, 2, 2), 1),
    "one per row": ((6, 9), (6, 1), 1),
    "numbers": ((33,), (100,), 0),
    "empty": ((3, 4), (0, 4), 0),
    "many": ((3, 70, 5), (3, 900, 5), 1),
}


@pytest.mark.parametrize("name", ALONG)
def test_gather_and_scatter_add(name, rng):
    shape, of, axis = ALONG[name]
    index = rng.integers(0, shape[axis], of)
    place = grid_along(axis, index)
    x, g = rng.standard_normal(shape), rng.standard_normal(of)
    for array in layouts(x):
        for i in layouts(index):
            found = kernels.gather(array, i, axis=axis)
            np.testing.assert_array_equal(found.get(), x[place])
    expected = np.zeros(shape)
    np.add.at(expected, place, g)
    for array in layouts(g):
        found = kernels.scatter_add(array, on_device(index), axis=axis, shape=shape)
        np.testing.assert_allclose(found.get(), expected, rtol=1e-12, atol=1e-13)


# ---- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PATTERNS)
def test_put_add(name, dtype, rng):
    shape, pattern, _ = PATTERNS[name]
    indices = indices_of(name, rng)
    place = filled(pattern, indices)
    g = rounded(rng.standard_normal(np.empty(shape)[place].shape), dtype)
    expected, sizes = np.zeros(shape), np.zeros(shape)
    np.add.at(expected, place, wide(g))
    np.add.at(sizes, place, abs(wide(g)))
    on = [cupy.asarray(i) for i in indices]
    found = kernels.put_add(on_device(g), *on, pattern=pattern, shape=shape)
    agrees(found, expected, dtype, roundings=1, size=max(abs(expected).max(initial=1), 1))
    assert found.flags.c_contiguous


@pytest.mark.parametrize("dtype", SUMMED)
def test_sums_of_integers(dtype, rng):
    index, g = rng.integers(0, 6, (70, 3)), rng.integers(-99, 99, (70, 3)).astype(dtype)
    expected = np.zeros((6, 3), dtype)
    np.add.at(expected, grid_along(0, index), g)
    found = kernels.scatter_add(on_device(g), on_device(index), axis=0, shape=(6, 3))
    np.testing.assert_array_equal(found.get(), expected)


@pytest.mark.parametrize("rows", [1, 2, 7, 255, 256, 257, 70_000])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 2048, 2049, 5000])
def test_embedding_gradient(rows, count, rng):
    """Row numbers of one to three digits, one tile and more, segments over many chunks."""
    index = np.minimum(rng.integers(0, rows, count), rng.integers(0, rows, count))
    index[rng.random(count) < 0.3] = rows // 2
    for columns in (1, 3, 8) if count < 2048 else (2,):
        g = rng.standard_normal((count, columns)).astype(np.float32)
        expected = np.zeros((rows, columns))
        np.add.at(expected, index, g)
        params = {"shape": (rows, columns)}
        found = kernels.embedding_add(on_device(g), on_device(index), padding=None, **params)
        agrees(found, expected, "float32", roundings=8)
        expected[rows // 2] = 0
        found = kernels.embedding_add(on_device(g), on_device(index), padding=rows // 2, **params)
        agrees(found, expected, "float32", roundings=8)


def test_half_precision_is_added_up_in_single(rng):
    """4096 ones: float16 stops at 2048, bfloat16 at 256."""
    for dtype in ("float16", "bfloat16"):
        g = on_device(rounded(np.ones((4096, 2)), dtype))
        found = kernels.embedding_add(g, cupy.zeros(4096, np.int64), shape=(3, 2), padding=None)
        np.testing.assert_array_equal(wide(found), [[4096] * 2, [0] * 2, [0] * 2])


@pytest.mark.parametrize("most", [0, 1, 255, 256, 65_535, 1 << 24, (1 << 31) - 1])
@pytest.mark.parametrize("count", [1, 33, 2047, 2048, 2049, 9000])
def test_sort_is_stable(most, count, rng):
    keys = rng.integers(0, most + 1, count).astype(np.uint32)
    keys[rng.random(count) < 0.5] = keys[0]
    ordered, positions = kernels._sort(cupy.asarray(keys), most)
    expected = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(positions.get(), expected)
    np.testing.assert_array_equal(ordered.get(), keys[expected])


def test_sums_are_the_same_bits_in_every_schedule(rng, host_device):
    index, g = rng.integers(0, 40, 3000), rng.standard_normal((3000, 5)).astype(np.float32)
    along, h = rng.integers(0, 6, (300, 4)), rng.standard_normal((300, 4)).astype(np.float32)
    written = rng.integers(0, 6, 50)
    results = set()
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)):
        with host_device.scheduled(order, seed):
            found = (
                kernels.embedding_add(on_device(g), on_device(index), shape=(40, 5), padding=3),
                kernels.scatter_add(on_device(h), on_device(along), axis=0, shape=(6, 4)),
                kernels.put(
                    on_device(g[:6]), on_device(g[:50]), on_device(written), pattern=(HOLE,)
                ),
            )
            results.add(b"".join(a.get().tobytes() for a in found))
    assert len(results) == 1


# ---- one element of every row --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axis", [((31, 10), 1), ((4, 10, 3, 2), 1), ((7, 5), 0)])
def test_pick_and_unpick(shape, axis, dtype, rng):
    of = (*shape[:axis], *shape[axis + 1 :])
    index = rng.integers(0, shape[axis], of)
    place = np.expand_dims(index, axis)
    x, g = rounded(rng.standard_normal(shape), dtype), rounded(rng.standard_normal(of), dtype)
    factors = rounded(rng.standard_normal(of), dtype)
    i = on_device(index)
    for scale, factor in ((-0.5, -0.5), (on_device(factors), wide(factors))):
        expected = np.take_along_axis(wide(x), place, axis).squeeze(axis) * factor
        for array in layouts(x):
            found = kernels.pick(array, i, scale, axis=axis, total=False)
            agrees(found, expected, dtype, roundings=1)
        found = kernels.pick(on_device(x), i, scale, axis=axis, total=True)
        agrees(found, expected.sum(), dtype, roundings=8, size=abs(expected).sum() + 1)
        for total, given in ((False, g), (True, g.reshape(-1)[0])):
            expected = np.zeros(shape)
            values = wide(given) * factor * np.ones(of)
            np.put_along_axis(expected, place, np.expand_dims(values, axis), axis)
            found = kernels.unpick(on_device(given), i, scale, shape=shape, axis=axis, total=total)
            agrees(found, expected, dtype, roundings=1)


# ---- through the engine --------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 0, -2])
def test_embedding_as_in_torch(padding, rng, torch):
    table, index = rng.standard_normal((11, 6)), rng.integers(0, 11, (3, 40))
    g = rng.standard_normal((3, 40, 6))
    ours = gg.tensor(table, device="cuda", requires_grad=True)
    theirs = torch.tensor(table, requires_grad=True)
    y = F.embedding(gg.tensor(index, device="cuda"), ours, padding)
    z = torch.nn.functional.embedding(torch.tensor(index), theirs, padding)
    np.testing.assert_array_equal(y.detach().cpu().numpy(), z.detach().numpy())
    y.backward(gg.tensor(g, device="cuda"))
    z.backward(torch.tensor(g))
    np.testing.assert_allclose(ours.grad.cpu().numpy(), theirs.grad.numpy(), rtol=1e-12)


FUNCTIONS = {
    "index_select": lambda f, x, i: f.index_select(x, 1, i),
    "take_along_dim": lambda f, x, i: f.take_along_dim(x, i.reshape(1, -1), 1),
    "index_add": lambda f, x, i: f.index_add(x, 1, i, x[:, :3] * 2),
    "scatter": lambda f, x, i: f.scatter(x, 1, i.expand(4, 3), x[:, 2:5] * 2),
    "scatter_add": lambda f, x, i: f.scatter_add(x, 1, i.expand(4, 3), x[:, 2:5] * 2),
    "getitem": lambda f, x, i: x[1:, i] * x[i][0, 0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_as_in_torch(name, rng, torch):
    x, i = rng.standard_normal((4, 5)), np.array([3, 0, 2])
    ours = gg.tensor(x, device="cuda", requires_grad=True)
    theirs = torch.tensor(x, requires_grad=True)
    y = FUNCTIONS[name](gg, ours, gg.tensor(i, device="cuda"))
    z = FUNCTIONS[name](torch, theirs, torch.tensor(i))
    np.testing.assert_allclose(y.detach().cpu().numpy(), z.detach().numpy(), rtol=1e-12)
    (y * y).sum().backward()
    (z * z).sum().backward()
    np.testing.assert_allclose(ours.grad.cpu().numpy(), theirs.grad.numpy(), rtol=1e-12)


def test_one_hot(rng):
    index = rng.integers(0, 7, (3, 4))
    found = F.one_hot(gg.tensor(index, device="cuda"), 7)
    np.testing.assert_array_equal(found.cpu().numpy(), np.eye(7, dtype=np.int64)[index])


def test_a_step_with_indices_does_not_wait(rng, no_hidden_traffic):
    table = gg.tensor(rng.standard_normal((9, 4)), device="cuda", requires_grad=True)
    index = gg.tensor(rng.integers(0, 9, (5, 3)), device="cuda")
    target = gg.tensor(rng.integers(0, 4, 5), device="cuda")

    def step():
        rows = F.embedding(index, table, 0)
        logits = rows.sum(1) + table[target] + gg.gather(rows[:, 0], 1, target[:, None])
        loss = F.nll_loss(logits, target) + (F.one_hot(target, 4) * logits).mean()
        table.grad = None
        loss.backward()

    step()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        step()


def test_what_has_no_kernel_is_computed_by_cupy(rng):
    x = gg.tensor(rng.standard_normal((4, 5)), device="cuda")
    mask = x > 0
    assert kernels.take(x.array, mask.array, pattern=(HOLE,)) is None
    np.testing.assert_array_equal(x[mask].cpu().numpy(), x.cpu().numpy()[mask.cpu().numpy()])
    x[mask] = 0
    assert (x.cpu().numpy() <= 0).all()


# ---- kernels broken on purpose -------------------------------------------------------------------

BROKEN = [
    ("index.cu", "if ((unsigned long long)row < (unsigned long long)rows) {", "if (true) {"),
    ("index.cu", "given < 0 && !strict ? given + rows : given;\n    if", "given;\n    if"),
    ("index.cu", "if (mark == NOWHERE || last[mark] != (int)position) continue;", ""),
    ("index.cuh", "if ((unsigned long long)i >= (unsigned long long)size) {", "if (false) {"),
    ("index.cuh", "at += i * p.step[d];", "at += i * p.step[0];"),
    ("pick.cu", "widen(g[other]) * FACTOR", "widen(g[other])"),
    ("radix_sort.cu", "  __syncthreads();\n\n  unsigned own = 0;", "\n  unsigned own = 0;"),
    ("radix_sort.cu", "    __syncwarp();\n    if (!below)", "    if (!below)"),
    ("radix_sort.cu", "if (lane >= d) sum += below;", "sum += below;"),
    ("radix_sort.cu", "before += all;", ""),
    ("segment_sum.cu", "if (begun) {", "if (false) {"),
    ("segment_sum.cu", "end < count && key[end] == here; ++next", "false; ++next"),
    ("segment_sum.cu", "p < end && here < rows", "p < end"),
]


@pytest.mark.parametrize("file, right, wrong", BROKEN)
def test_a_broken_kernel_is_noticed(file, right, wrong, rng, host_device):
    """By a wrong result, an address outside of an array, or a schedule."""
    caches = (
        kernels._index_kernel,
        kernels._pick_kernel,
        kernels._sum_kernel,
        kernels._sort_kernel,
    )
    noticed = pytest.raises((AssertionError, RuntimeError, IndexError))
    with broken(file, right, wrong, *caches), noticed, host_device.exact_allocations():
        for order, seed in (("shuffled", 2), ("forward", 0), ("reverse", 0)):
            with host_device.scheduled(order, seed):
                some_of_everything(rng)
    with contextlib.suppress(IndexError):
        gg.cuda.synchronize()


def some_of_everything(rng):
    test_take("rows", rng)
    test_take("apart", rng)
    test_put("numbers", rng)
    test_pick_and_unpick((31, 10), 1, "float32", rng)
    test_embedding_gradient(257, 2049, rng)
    test_embedding_gradient(7, 64, rng)
    bad = gg.tensor([1 << 40], device="cuda")
    for read in (lambda x: x[bad], lambda x: x[:, bad]):
        with pytest.raises(IndexError, match=str(1 << 40)):
            read(gg.zeros(3, 5, device="cuda")).cpu()


def test_every_row_with_a_kernel_uses_it(rng):
    names = ("take", "put_add", "put", "embedding", "embedding_add", "gather", "scatter_add",
             "pick", "unpick")  # fmt: skip
    assert all(REGISTRY[n].cuda is getattr(kernels, n) for n in names)
