"""Row programs: native against NumPy and float64; layouts, special values, threads, refusals."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.codegen import rows
from gpugrad.codegen.machine import Machine, machine
from gpugrad.ops import nn, reduce
from gpugrad.ops.rows import (
    COLUMN,
    ELEMENT,
    INDEX,
    NUMBER,
    ROW,
    RowFormula,
    row_max,
    row_mean,
    row_sum,
)

COLUMNS = (1, 2, 7, 8, 9, 10, 16, 17, 1023, 1024, 5000)
NORM_VJP = {
    name: nn._norm_rule(function, (True,) * arguments)
    for name, function, arguments in (
        ("layer_norm", nn._layer_norm_vjp, 3),
        ("rms_norm", nn._rms_norm_vjp, 2),
    )
}
FORMULAS = {
    "softmax": nn.softmax_rows,
    "softmax_vjp": nn.softmax_rows_vjp,
    "log_softmax": nn.log_softmax_rows,
    "log_softmax_vjp": nn.log_softmax_rows_vjp,
    "logsumexp": reduce.logsumexp_rows,
    "logsumexp_vjp": reduce.logsumexp_rows_vjp,
    "nll_total": nn.nll_total,
    "nll_each": nn.nll_each,
    "nll_total_vjp": nn.nll_total_vjp,
    "nll_each_vjp": nn.nll_each_vjp,
    "layer_norm": nn.layer_norm_rows,
    "layer_norm_vjp": NORM_VJP["layer_norm"],
    "rms_norm": nn.rms_norm_rows,
    "rms_norm_vjp": NORM_VJP["rms_norm"],
    "standardize": nn.standardize_rows,
    "standardize_vjp": nn.standardize_rows_vjp,
}


@pytest.fixture(autouse=True)
def compiler():
    pytest.importorskip("llvmlite")
    if os.environ.get("GPUGRAD_JIT") == "0":
        pytest.skip("GPUGRAD_JIT=0")
    assert machine() is not None


def arguments(formula, shape, dtype, rng, x=None) -> list:
    """Arguments of a formula for elements of a shape; numbers are positive."""
    lead, columns = shape[:-1], shape[-1]
    shapes = {ELEMENT: shape, COLUMN: (columns,), ROW: (*lead, 1)}
    found = []
    for name, kind in formula.inputs.items():
        if kind == NUMBER:
            found.append(0.25)
        elif kind == INDEX:
            found.append(rng.integers(0, columns, lead))
        elif name == "x" and x is not None:
            found.append(x)
        else:
            found.append(rng.normal(size=shapes[kind]).astype(dtype))
    return found


def exact(formula, args) -> list[np.ndarray]:
    wide = [a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a for a in args]
    return formula.program.reference(wide)


def assert_close(found, wanted, dtype, factor: float = 8) -> None:
    """To a few roundings, relative to the largest value of a result."""
    eps = float(np.finfo(dtype).eps)
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, np.dtype(dtype))
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        np.testing.assert_allclose(a, b, rtol=factor * eps, atol=factor * eps * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FORMULAS)
def test_native_equals_numpy(name, dtype):
    formula = FORMULAS[name]
    rng = np.random.default_rng(0)
    for columns in COLUMNS:
        for shape in ((1, columns), (3, columns), (columns,)):
            if len(shape) == 1 and INDEX in formula.inputs.values():
                continue
            args = arguments(formula, shape, dtype, rng)
            before = [np.copy(a) for a in args]
            found = formula.program.native(args)
            for a, b in zip(args, before, strict=True):
                np.testing.assert_array_equal(a, b)
            reference = formula.program.reference(args)
            assert [r.shape for r in reference] == [f.shape for f in found]
            wanted = [np.asarray(w) for w in exact(formula, args)]
            # a single column has no variance: gradients of norms are rounding over sqrt(eps)
            assert_close(found, wanted, dtype, 64)
            assert_close([np.asarray(r) for r in reference], wanted, dtype, 64)


@pytest.mark.parametrize("name", FORMULAS)
def test_no_rows(name):
    formula = FORMULAS[name]
    args = arguments(formula, (0, 10), "float32", np.random.default_rng(0))
    assert formula.program.native(args) is None
    for result in formula.program.reference(args):
        assert not np.any(result)


@pytest.mark.parametrize("name", FORMULAS)
def test_large_offsets(name):
    """1e4 + noise in float32: no worse than the reference, which rounds the same differences."""
    formula = FORMULAS[name]
    rng = np.random.default_rng(1)
    for columns in (10, 1000):
        x = (1e4 + rng.normal(size=(50, columns))).astype(np.float32)
        args = arguments(formula, x.shape, "float32", rng, x)
        if "y" in formula.inputs and name.startswith("logsumexp"):
            args[list(formula.inputs).index("y")] = reduce.logsumexp_rows(x)
        wanted = exact(formula, args)
        found, reference = formula.program.native(args), formula.program.reference(args)
        for a, b, w in zip(found, reference, wanted, strict=True):
            scale = np.abs(w).max()
            assert np.abs(a - w).max() <= 1.5 * np.abs(b - w).max() + 1e-6 * scale


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [5, 300])
@pytest.mark.parametrize("name", FORMULAS)
def test_special_values(name, columns, dtype):
    """Rows of -inf, of inf, with one of them, with NaN: as NumPy has it; other rows unharmed."""
    formula = FORMULAS[name]
    rng = np.random.default_rng(2)
    x = rng.normal(size=(9, columns)).astype(dtype)
    x[1], x[3] = -np.inf, np.inf
    x[5, 2], x[6, columns - 1], x[7, 0] = -np.inf, np.inf, np.nan
    args = arguments(formula, x.shape, dtype, rng, x)
    args = [x if kind == ELEMENT else a for a, kind in zip(args, formula.inputs.values())]
    with np.errstate(all="ignore"):
        found, wanted = formula.program.native(args), formula.program.reference(args)
    for a, b in zip(found, wanted, strict=True):
        for f in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(f(a), f(b))
        finite = np.isfinite(b)
        assert_close([a[finite]], [b[finite]], dtype, 64)


def test_sums_are_as_good_as_pairwise():
    rng = np.random.default_rng(3)
    x = rng.random((2, 3_000_000), dtype=np.float32)
    total = RowFormula(lambda x: row_sum(x), (ROW,), x=ELEMENT)
    wanted = x.astype(np.float64).sum(-1, keepdims=True)
    (found,), (numpy,) = total.program.native([x]), total.program.reference([x])
    assert np.abs(found - wanted).max() <= np.abs(numpy - wanted).max() + np.spacing(found).max()
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_sums_over_rows_have_groups():
    """A sum over many rows is not one long chain of roundings."""
    rng = np.random.default_rng(4)
    formula = NORM_VJP["layer_norm"]
    args = arguments(formula, (200_000, 8), "float32", rng)
    args[0] += 1
    _, gw, gb = formula.program.native(args)
    _, exact_gw, exact_gb = exact(formula, args)
    np.testing.assert_allclose(gb, exact_gb, rtol=2e-6)
    np.testing.assert_allclose(gw, exact_gw, rtol=1e-4, atol=2e-6 * np.abs(exact_gb).max())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_threads_change_no_bit(name, native):
    formula = FORMULAS[name]
    args = arguments(formula, (700, 515), "float32", np.random.default_rng(5))
    run = formula.program.native if native else formula.program.reference
    before, results = gg.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            gg.set_num_threads(threads)
            results.append(run(args))
    finally:
        gg.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_layouts():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(4, 6, 40)).astype(np.float32)
    for view in (
        x[:, ::2],
        x[..., ::2],
        x.transpose(1, 0, 2),
        x[::-1],
        np.broadcast_to(x[0], x.shape),
    ):
        for formula in (nn.softmax_rows, nn.standardize_rows):
            args = (view,) if formula is nn.softmax_rows else (view, 0.1)
            (found,) = formula.program.native(args)
            assert_close([found], exact(formula, args), "float32")


def test_large_arrays_along_another_axis_are_left_to_numpy():
    x = np.zeros((300, 400), np.float32)
    assert nn.softmax_rows.program.native([x]) is not None
    assert nn.softmax_rows.program.native([x.T]) is None
    assert nn.softmax_rows_vjp.program.native([np.zeros((400, 300), np.float32), x.T]) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis(axis):
    rng = np.random.default_rng(7)
    x, g = (rng.normal(size=(30, 40, 50)).astype(np.float32) for _ in range(2))
    for name in ("softmax", "log_softmax"):
        t = gg.from_numpy(x).requires_grad_()
        y = getattr(gg, name)(t, axis)
        (gx,) = gg.autograd.grad(y, t, gg.from_numpy(g))
        wide = gg.from_numpy(x.astype(np.float64)).requires_grad_()
        exact_y = getattr(gg, name)(wide, axis)
        (exact_gx,) = gg.autograd.grad(exact_y, wide, gg.from_numpy(g.astype(np.float64)))
        assert_close(
            [y.detach().numpy(), gx.numpy()],
            [exact_y.detach().numpy(), exact_gx.numpy()],
            "float32",
        )


# ---- what is refused, and when kernels are made


def test_refusals():
    rng = np.random.default_rng(8)
    program = nn.softmax_rows_vjp.program
    g, y = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    assert program.native([g, y]) is not None
    assert program.native([g, y.astype(np.float64)]) is None
    assert program.native([g, np.ascontiguousarray(y.T)]) is None
    assert program.native([g.astype(np.float16), y.astype(np.float16)]) is None
    with np.errstate(over="raise"):
        assert program.native([g, y]) is None
    for repeats in (1, 5000):  # NumPy has an answer
        g, y = np.tile(g, (repeats, 1)), np.tile(y, (repeats, 1))
        mixed = program(g, y.astype(np.float64))
        assert mixed.dtype == np.float64
        np.testing.assert_allclose(mixed, program(g, y), rtol=1e-5, atol=1e-6)


def test_a_function_without_native_code():
    formula = RowFormula(lambda x: gg.asin(x) / row_sum(x), x=ELEMENT)
    x = np.ones((2, 3), np.float32)
    assert formula.program.native([x]) is None
    np.testing.assert_allclose(formula(x), np.full((2, 3), np.pi / 6), rtol=1e-6)


@pytest.mark.parametrize("columns", [3, 16, 101])
def test_functions_with_a_branch(columns):
    formula = RowFormula(lambda x: gg.sin(x) / row_sum(gg.cos(x) ** 2 * abs(x) ** 0.5), x=ELEMENT)
    x = np.random.default_rng(10).normal(size=(5, columns)) * 1e6
    (found,) = formula.program.native([x])
    wanted = np.sin(x) / (np.cos(x) ** 2 * np.sqrt(abs(x))).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-13)


def test_the_number_of_calls_changes_no_bit():
    """Shapes and dtypes decide who computes: an interrupted training continues bit for bit."""
    x = np.random.default_rng(9).normal(size=(3, 5)).astype(np.float32)
    formula = RowFormula(lambda x: gg.exp(x - row_mean(x)) * row_max(x), x=ELEMENT)
    first = formula(x)
    assert formula.program.native([x]) is not None
    for _ in range(4):
        np.testing.assert_array_equal(formula(x), first)


def test_without_compiler(monkeypatch):
    monkeypatch.setattr(rows, "machine", lambda: None)
    formula = RowFormula(nn._softmax, x=ELEMENT)
    x = np.random.default_rng(9).normal(size=(300, 200)).astype(np.float32)
    assert formula.program.native([x]) is None
    assert_close([formula(x)], nn.softmax_rows.program.native([x]), "float32")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="features of x86")
@pytest.mark.parametrize("features", ["", "+sse4.1", "+avx,+avx2,+fma"])
def test_other_cpus(features, monkeypatch):
    """Narrow vectors, masks and fused multiply-add as the code of older CPUs has them."""
    import llvmlite.binding

    host = llvmlite.binding.get_host_cpu_features()
    if not all(host.get(f[1:]) for f in features.split(",") if f):
        pytest.skip(f"this CPU lacks one of {features}")
    other = Machine("x86-64", features)
    monkeypatch.setattr(rows, "machine", lambda: other)
    rng = np.random.default_rng(10)
    for name in ("log_softmax", "nll_total_vjp", "layer_norm_vjp"):
        old = FORMULAS[name]
        formula = RowFormula(old.function, old.outputs, **old.inputs)
        for columns in (3, 4, 5, 8, 9, 100):
            args = arguments(formula, (5, columns), "float32", rng)
            assert_close(formula.program.native(args), exact(formula, args), "float32", 32)


# ---- cross entropy


@pytest.mark.parametrize("target", [-1, 4, 1 << 40])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_target_that_is_no_class(target, reduction):
    x = np.zeros((3, 4), np.float32)
    targets = np.array([0, target, 1])
    for run in (nn.nll_total.program.native, nn.nll_total.program.reference):
        with pytest.raises(IndexError, match="no column"):
            run((x, targets, 1.0))
    with pytest.raises(IndexError, match=f"Target {target} is out of bounds: there are 4 classes"):
        F.cross_entropy(gg.from_numpy(x), gg.from_numpy(targets), reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_cross_entropy_is_log_softmax_and_nll(reduction, ignore_index):
    rng = np.random.default_rng(11)
    x = gg.from_numpy(rng.normal(size=(40, 7))).requires_grad_()
    target = gg.from_numpy(rng.integers(0, 7, 40))
    masked = target.clone()
    masked[::3] = ignore_index
    for t, ignored in [(target, -100), (masked, ignore_index)]:
        loss = F.cross_entropy(x, t, ignore_index=ignored, reduction=reduction)
        wanted = F.nll_loss(gg.log_softmax(x, 1), t, ignore_index=ignored, reduction=reduction)
        g = gg.from_numpy(rng.normal(size=loss.shape))
        np.testing.assert_allclose(loss.detach(), wanted.detach(), rtol=1e-12, atol=1e-14)
        (a,), (b,) = gg.autograd.grad(loss, x, g), gg.autograd.grad(wanted, x, g)
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)


def test_cross_entropy_of_integers_is_an_error():
    target = gg.tensor([0, 1])
    with pytest.raises(RuntimeError, match="floating"):
        F.cross_entropy(gg.tensor([[1, 2], [3, 4]]), target)


def test_cross_entropy_of_many_rows_on_threads():
    rng = np.random.default_rng(12)
    x = gg.from_numpy(rng.normal(size=(2000, 300)).astype(np.float32)).requires_grad_()
    t = rng.integers(0, 300, 2000)
    bad = t.copy()
    bad[1999] = 300
    F.cross_entropy(x, gg.from_numpy(t)).backward()
    p = np.exp(x.detach().numpy().astype(np.float64))
    p /= p.sum(1, keepdims=True)
    p[np.arange(2000), t] -= 1
    np.testing.assert_allclose(x.grad, p / 2000, rtol=2e-5, atol=1e-10)
    with pytest.raises(IndexError, match="Target 300"):
        F.cross_entropy(x, gg.from_numpy(bad))


@pytest.mark.parametrize("columns", [3, 16, 33, 1000, 2048, 4096, 4097])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [ELEMENT, ROW])
def test_values_of_several_passes_are_kept(columns, dtype, kind):
    """In the memory of a result, in scratch memory, and computed again where rows are too long."""
    x, y = rows.variable("x"), rows.variable("y")
    a = rows.build("tanh", x - row_mean(x))
    b = rows.build("exp", a - row_max(a * y))
    c = rows.build("tanh", b / row_sum(b) + y * 0.1)
    d = c * a - row_mean(c * a) + b
    result = d / row_sum(d * d) + c
    outputs = [(kind, result if kind == ELEMENT else row_sum(result * y)), (COLUMN, d)]
    program = rows.RowProgram(outputs, {"x": ELEMENT, "y": COLUMN})
    rng = np.random.default_rng(columns)
    args = [rng.standard_normal((5, columns)).astype(dtype), rng.random(columns).astype(dtype)]
    found = program.native(args)
    assert found is not None
    wide = program.reference([v.astype(np.float64) for v in args])
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for f, w in zip(found, wide, strict=True):
        assert f.dtype == dtype
        np.testing.assert_allclose(f, w, tolerance, tolerance * np.abs(w).max())


def test_what_is_worth_keeping():
    x = rows.variable("x")

    def kept_of(e):
        schedule = rows.Schedule(rows.RowProgram([(ELEMENT, e)], {"x": ELEMENT}))
        return schedule.to_keep(3, {"exp", "tanh"})

    e = rows.build("exp", x - row_max(x))
    assert kept_of(e / row_sum(e)) == [e]
    assert kept_of((x - row_mean(x)) / row_sum(x - row_mean(x))) == []  # a subtraction is cheaper
    assert kept_of(rows.build("tanh", x)) == []  # of one pass
