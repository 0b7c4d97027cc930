"""Kernels of row programs against NumPy in float64: lengths, dtypes, special values, orders."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.backend import device_errors
from gpugrad.codegen import cuda_rows
from gpugrad.ops import nn
from gpugrad.ops.cuda_corpus import row_formulas
from gpugrad.ops.rows import COLUMN, ELEMENT, HOLE, INDEX, NUMBER, ROW, RowFormula, row_max

pytestmark = pytest.mark.gpu

cupy = pytest.importorskip("cupy")

# one thread, part of a warp, a warp, several warps with and without 16-byte loads, from memory
SHAPES = ((1, 1), (5, 10), (40, 33), (3, 257), (2, 1000), (2, 4097), (5,), (2, 3, 8))
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
HALVES = ("float16", "bfloat16")


def dtype_of(name):
    return np.dtype(getattr(gg, name))


def arguments(formula, shape, dtype, rng) -> list:
    """Arguments of a formula as NumPy arrays and Python numbers; numbers are positive."""
    lead, columns = shape[:-1], shape[-1]
    shapes = {ELEMENT: shape, COLUMN: (columns,), ROW: (*lead, 1)}
    found = []
    for kind in formula.inputs.values():
        if kind == NUMBER:
            found.append(0.25)
        elif kind == HOLE:
            found.append(-7)
        elif kind == INDEX:
            index = np.asarray(rng.integers(0, columns, lead))
            if HOLE in formula.inputs.values():
                index[..., ::3] = -7
            found.append(index)
        else:
            found.append(rng.normal(size=shapes[kind]).astype(dtype))
    return found


def on_device(args) -> list:
    return [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args]


def exact(formula, args) -> list[np.ndarray]:
    """The outputs computed in float64."""
    wide = [
        a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind not in "iu" else a
        for a in args
    ]
    return [np.asarray(r) for r in formula.program.reference(wide)]


def check(formula, args, dtype, factor=64) -> list:
    """The kernel's outputs, to a few roundings relative to the largest value of a result."""
    found = formula.program.native(on_device(args))
    assert found is not None
    wanted, eps = exact(formula, args), EPS[str(dtype)]
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, dtype)
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        values = a.get().astype(np.float64)
        np.testing.assert_allclose(values, b, rtol=factor * eps, atol=factor * eps * scale)
    return found


def has_index(formula) -> bool:
    return INDEX in formula.inputs.values()


@pytest.mark.parametrize("name", row_formulas())
def test_lengths(name):
    formula, rng = row_formulas()[name], np.random.default_rng(0)
    for shape in SHAPES:
        if not (has_index(formula) and len(shape) == 1):
            check(formula, arguments(formula, shape, "f4", rng), dtype_of("float32"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", row_formulas())
def test_dtypes(name, dtype):
    formula, rng = row_formulas()[name], np.random.default_rng(1)
    for shape in ((40, 33), (2, 1000)):
        check(formula, arguments(formula, shape, dtype_of(dtype), rng), dtype_of(dtype))


@pytest.mark.parametrize(
    "name", ["softmax_rows", "layer_norm_vjp (True, True, True)", "cross_entropy total"]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_that_do_not_fit_into_registers(name, dtype):
    formula, rng = row_formulas()[name], np.random.default_rng(2)
    for columns in (20_000, 20_001):
        args = arguments(formula, (3, columns), dtype_of(dtype), rng)
        check(formula, args, dtype_of(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_over_many_groups_of_rows(dtype):
    formula = row_formulas()["layer_norm_vjp (True, True, True)"]
    args = arguments(formula, (300, 40), dtype_of(dtype), np.random.default_rng(3))
    check(formula, args, dtype_of(dtype), 256)
    formula = row_formulas()["cross_entropy total"]
    args = arguments(formula, (3000, 10), dtype_of(dtype), np.random.default_rng(3))
    check(formula, args, dtype_of(dtype), 256)


@pytest.mark.parametrize("name", ["softmax_rows", "log_softmax_rows", "logsumexp_rows"])
def test_special_values(name):
    formula = row_formulas()[name]
    x = np.zeros((8, 40), "f4")
    x[0, 3] = np.nan
    x[1, 3] = np.inf
    x[2, :] = -np.inf
    x[3, 5] = -np.inf
    x[4, 7:9] = np.inf
    x[5] = 1e38
    with np.errstate(invalid="ignore", divide="ignore"):
        check(formula, [x], dtype_of("float32"))


def test_layouts_of_arguments():
    """Strided, broadcast and misaligned arrays."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=(9, 65)).astype("f4")
    on = cupy.asarray(base)
    for x, y in (
        (base[1:, 1:], on[1:, 1:]),
        (base.T, on.T),
        (base[::2, ::-1], on[::2, ::-1]),
        (np.broadcast_to(base[:1], (9, 65)), cupy.broadcast_to(on[:1], (9, 65))),
        (base.reshape(-1)[1:65], on.reshape(-1)[1:65]),  # contiguous, 4 bytes off
    ):
        (found,) = nn.softmax_rows.program.native([y])
        (wanted,) = exact(nn.softmax_rows, [x])
        np.testing.assert_allclose(found.get(), wanted, rtol=1e-5)


def test_numbers_may_be_arrays_of_one_element():
    formula = nn.nll_total_vjp
    x, target, g, scale = arguments(formula, (6, 10), "f4", np.random.default_rng(5))
    on = on_device([x, target])
    (plain,) = formula.program.native([*on, g, scale])
    (read,) = formula.program.native([*on, cupy.asarray(g, "f4"), scale])
    assert (plain == read).all()
    assert formula.program.native([*on, cupy.asarray(g, "f8"), scale]) is None


def test_integer_targets_of_any_width():
    x, target, scale = arguments(nn.nll_each, (6, 10), "f4", np.random.default_rng(6))
    (wanted,) = nn.nll_each.program.native([*on_device([x, target]), scale])
    for dtype in ("i4", "u1"):
        (found,) = nn.nll_each.program.native([*on_device([x, target.astype(dtype)]), scale])
        assert (found == wanted).all()


@pytest.mark.parametrize(
    "name, shape",
    [
        ("softmax_rows", (0, 5)),
        ("layer_norm_vjp (True, True, True)", (0, 5)),
        ("layer_norm_vjp (True, True, True)", (3, 0)),
        ("cross_entropy total", (0, 5)),
    ],
)
def test_no_elements(name, shape):
    formula = row_formulas()[name]
    args = arguments(formula, shape, "f4", np.random.default_rng(7))
    with np.errstate(invalid="ignore"):
        pairs = formula.program(*on_device(args)), formula.program(*args)
    found, wanted = (r if isinstance(r, list) else [r] for r in pairs)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.get(), b)


def test_an_index_out_of_range_is_reported_and_reads_nothing():
    x = cupy.zeros((3, 5), "f4")
    for bad in (5, -1, 2**40):
        nn.nll_total.program.native([x, cupy.asarray([0, bad, 1]), 1.0])
        with pytest.raises(IndexError, match=f"{bad} is out of range"):
            gg.cuda.synchronize()
    nn.nll_total.program.native([x, cupy.asarray([0, 4, 1]), 1.0])
    gg.cuda.synchronize()
    assert not device_errors.pending()


# ---- operations


def losses(device, dtype, **params):
    """A loss, and its gradient, and a gradient of that."""
    rng = np.random.default_rng(8)
    x = gg.tensor(rng.normal(size=(7, 5)), dtype=dtype, device=device, requires_grad=True)
    t = gg.tensor(rng.integers(0, 5, 7), device=device)
    t = gg.where(gg.arange(7, device=device) == 2, params.get("ignore_index", -100), t)
    loss = F.cross_entropy(x, t, **params)
    (g,) = gg.autograd.grad((loss * loss).sum(), x, create_graph=True)
    (h,) = gg.autograd.grad((g * g).sum(), x)
    return [v.detach().cpu().numpy() for v in (loss, g, h)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore", [-100, 3])
def test_cross_entropy(reduction, smoothing, ignore):
    params = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignore}
    for a, b in zip(
        losses("cuda", gg.float64, **params), losses("cpu", gg.float64, **params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cross_entropy_in_other_dtypes(dtype):
    found = losses("cuda", getattr(gg, dtype), label_smoothing=0.1)
    wanted = losses("cpu", gg.float64, label_smoothing=0.1)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=20 * EPS[dtype], atol=20 * EPS[dtype])


def test_cross_entropy_with_all_targets_ignored_is_nan():
    x = gg.zeros(3, 5, device="cuda")
    t = gg.full((3,), -100, device="cuda")
    assert np.isnan(F.cross_entropy(x, t).item())


def test_a_training_step_with_losses_and_norms_does_not_wait(no_hidden_traffic):
    layer = gg.nn.Sequential(gg.nn.Linear(6, 8), gg.nn.LayerNorm(8), gg.nn.Linear(8, 5)).cuda()
    x, t = gg.randn(4, 6, device="cuda"), gg.tensor([0, 1, -100, 4], device="cuda")

    def step():
        layer.zero_grad()
        loss = F.cross_entropy(layer(x), t, label_smoothing=0.1)
        (loss + F.softmax(layer(x), 1).sum()).backward()

    step()
    step()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        step()


# ---- orders of threads, broken kernels


def test_bits_do_not_depend_on_the_order_of_threads(host_device):
    for name, shape in (
        ("softmax_rows", (3, 4097)),
        ("layer_norm_vjp (True, True, True)", (70, 33)),
        ("cross_entropy total", (70, 300)),
    ):
        formula = row_formulas()[name]
        args = on_device(arguments(formula, shape, "f4", np.random.default_rng(9)))
        results = []
        for order in ("forward", "reverse", "shuffled"):
            with host_device.scheduled(order, seed=1):
                results.append([r.get() for r in formula.program.native(args)])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


MUTATIONS = {
    "no barrier": (r"__syncthreads\(\);", ""),
    "a pack too many": (r"if \(column < limit\)", "if (column <= limit)"),
    "a row too many": (r"row < last", "row <= last"),
    "a sum less": (r"lanes = TEAM / 2", "lanes = TEAM / 4"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_kernel_is_noticed(name, host_device, monkeypatch, exact_allocations):
    pattern, replacement = MUTATIONS[name]
    load = cuda_rows.cuda_module.load

    def broken(text, function, title):
        launcher = load(text, function, title)
        launcher.text, count = re.subn(pattern, replacement, launcher.text)
        assert count
        return launcher

    monkeypatch.setattr(cuda_rows.cuda_module, "load", broken)
    formula = RowFormula(lambda x: x - row_max(x), x=ELEMENT)
    failed = []
    for shape in ((2, 4096 + 8), (5, 8)):
        x = np.random.default_rng(10).normal(size=shape).astype("f4")
        for order in ("forward", "reverse", "shuffled"):
            try:
                with host_device.scheduled(order, seed=1):
                    check(formula, [x], dtype_of("float32"))
            except Exception as error:  # a wrong number, a wrong address, a barrier not reached
                failed.append(error)
    assert failed
