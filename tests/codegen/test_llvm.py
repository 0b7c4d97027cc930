"""Native kernels against NumPy: every row, odd sizes, special values, broadcasting, updates."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen import cache, llvm, vector_math
from gpugrad.codegen.arrays import Program
from gpugrad.codegen.expr import build, topological, variable
from gpugrad.codegen.functions import functions_for
from gpugrad.codegen.gemm_kernels import Tile, text
from gpugrad.codegen.machine import Machine, machine
from gpugrad.ops import REGISTRY
from gpugrad.ops.core import Elementwise

pytest.importorskip("llvmlite")

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 7, 8, 9, 8191, 100_003)
SPECIAL = (
    math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 1e-40, 1.2e-38, 1e-20,
    3e-8, 6e-8, 1e-4, 0.625, 0.84375, 1.25, 9.0, 17.4, 88.72, 88.73, 89.5, -87.4, -103.9, -104.1,
    127.0, 128.0, -149.0, -150.5, 1e20, 3e38, -3e38,
)  # fmt: skip


@pytest.fixture(autouse=True)
def compiler():
    if os.environ.get("GPUGRAD_JIT") == "0":
        pytest.skip("GPUGRAD_JIT=0")
    assert machine() is not None


@pytest.fixture(autouse=True)
def simple_functions_too(monkeypatch):
    """Kernels also for what NumPy is left to do because it is as fast."""
    monkeypatch.setattr(llvm, "_AS_FAST_IN_NUMPY", frozenset())


def elementwise_rows() -> list[str]:
    return sorted(name for name, op in REGISTRY.items() if isinstance(op, Elementwise))


def arguments(op, n: int, dtype: str, rng) -> list[np.ndarray]:
    domains = op.domain if isinstance(op.domain[0], tuple) else (op.domain,) * op.arity
    args = [rng.uniform(*(domains * op.arity)[i], size=n).astype(dtype) for i in range(op.arity)]
    if op.name == "where":
        args[0] = args[0] > 0.5
    return args


def by_numpy(program: Program, args) -> list[np.ndarray]:
    dtype = next(a.dtype for a in args if a.dtype != bool)
    results = program.direct(functions_for(np), dtype)(*args)
    return results if isinstance(results, list) else [results]


def assert_close(found, wanted, dtype) -> None:
    """Equal to a few roundings of the terms, which may cancel: relative to the largest value."""
    if wanted.dtype == bool:
        np.testing.assert_array_equal(found, wanted)
        return
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found, wanted, rtol=8 * eps, atol=4 * eps * scale)


def programs(op) -> list[tuple[Program, list[str]]]:
    """The forward program of a row and its backward programs."""
    found = [(Program([op.body], op.names, ()), op.names)]
    for i in range(op.arity):
        if op.differentiable(i):
            rule = op.rule(tuple(k == i for k in range(op.arity)))
            found.append((rule.program, rule.program.inputs))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", elementwise_rows())
def test_row_equals_numpy(name, dtype):
    op = REGISTRY[name]
    rng = np.random.default_rng(0)
    for program, names in programs(op):
        for n in SIZES:
            args = arguments(op, n, dtype, rng)
            env = dict(zip(op.names, args, strict=True))
            env["y"] = op.eval(*args)
            env["g"] = rng.normal(size=n).astype(dtype)
            values = [env[name] for name in names]
            found = llvm.run(program, values)
            if found is None:
                break
            wanted = by_numpy(program, values)
            for a, b in zip(found, wanted, strict=True):
                assert a.dtype == b.dtype
                assert_close(a, b, dtype)


# Primitives without a kernel: programs that use one are NumPy's.
REFUSED = {
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cosh", "floor_divide", "fmod",
    "hypot", "logaddexp", "remainder", "sinh",
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_which_rows_have_a_kernel(dtype):
    """All but those that use a refused primitive."""
    rng = np.random.default_rng(0)
    for name in elementwise_rows():
        op = REGISTRY[name]
        program = Program([op.body], op.names, ())
        used = {e.op for e in topological([op.body])}
        expected = not used & REFUSED
        assert (llvm.run(program, arguments(op, 5, dtype, rng)) is not None) == expected, name


EXACT = [
    "add", "sub", "mul", "div", "neg", "where", "square", "sqrt", "rsqrt", "reciprocal", "abs",
    "sign", "floor", "ceil", "trunc", "round", "maximum", "minimum", "relu", "leaky_relu", "lerp",
    "hardtanh", "clamp_min", "lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or",
    "logical_xor", "logical_not", "isnan", "isinf", "isfinite",
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_arithmetic_rounds_as_numpy(name, dtype):
    """Bit for bit, also between special values (the sign of a zero of maximum is free)."""
    op = REGISTRY[name]
    rng = np.random.default_rng(1)
    special = np.array(SPECIAL, dtype)
    random = rng.normal(size=special.size**2).astype(dtype)
    grids = np.meshgrid(*[special] * op.arity) if op.arity < 3 else [rng.permutation(random)] * 3
    pairs = [np.concatenate([g.reshape(-1), random]) for g in grids]
    args = [np.ascontiguousarray(p) for p in pairs]
    if name == "where":
        args[0] = args[0] > 0.5
    (found,) = llvm.run(Program([op.body], op.names, ()), args)
    wanted = op.eval(*args)
    np.testing.assert_array_equal(found, wanted)
    if found.dtype != bool and name not in ("maximum", "minimum", "relu", "hardtanh", "clamp_min"):
        number = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(found)[number], np.signbit(wanted)[number])


# ---- mathematical functions


def exact_erf(x: np.ndarray) -> np.ndarray:
    """By a series of positive terms (M. Abramowitz, I. Stegun: Handbook of Mathematical Functions,
    7.1.6)."""
    a = np.minimum(abs(x), x.dtype.type(7))
    term = total = a
    for n in range(1, 250):
        term = term * (2 * a * a) / (2 * n + 1)
        total = total + term
    return np.copysign(2 / np.sqrt(4 * np.arctan(x.dtype.type(1))) * np.exp(-a * a) * total, x)


EXACTLY = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2,
    "log10": np.log10, "log1p": np.log1p, "tanh": np.tanh, "erf": exact_erf, "sin": np.sin,
    "cos": np.cos, "tan": np.tan,
}  # fmt: skip


def every_number(dtype: str, count: int) -> np.ndarray:
    """Numbers of both signs from zero to infinity, evenly spaced in their bits."""
    integer = {"float32": np.uint32, "float64": np.uint64}[dtype]
    infinity = np.array(np.inf, dtype).view(integer).item()
    positive = np.arange(0, infinity, infinity // count, dtype=integer).view(dtype)
    return np.concatenate([positive, -positive])


@np.errstate(all="ignore")
def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance from exact values in units in the last place of what was found."""
    rounded = exact.astype(found.dtype)
    same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    distance = np.abs(found.astype(exact.dtype) - exact) / np.spacing(np.abs(rounded))
    return np.where(same, 0.0, distance).astype(np.float64)


def check_function(name: str, x: np.ndarray, bound: float) -> None:
    """Against longdouble."""
    op = REGISTRY[name]
    (found,) = llvm.run(Program([op.body], op.names, ()), [x])
    with np.errstate(all="ignore"):
        exact = EXACTLY[name](x.astype(np.longdouble))
    distance = np.nan_to_num(ulps(found, exact), nan=np.inf)
    worst = int(np.argmax(distance))
    assert distance[worst] <= bound, f"{name}({x[worst]!r}) = {found[worst]!r}: {distance[worst]}"
    if exact[x == 0].any():
        return
    np.testing.assert_array_equal(np.signbit(found[x == 0]), np.signbit(x[x == 0]))


def points(dtype: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    near, turns = rng.normal(size=50_000) * 4, rng.uniform(-2e6, 2e6, 20_000)
    quarters = np.arange(-2000, 2000) * (np.pi / 2)
    return np.concatenate([every_number(dtype, count), near, turns, quarters, SPECIAL]).astype(
        dtype
    )


# float64 numbers for which 2**k, exp and sin are at their limits; the last is nearest to a multiple
# of pi/2 (J.-M. Muller: Elementary Functions)
SPECIAL_64 = (
    709.78, 709.79, -708.4, -745.1, -745.2, 5e-324, 1e-310, 1e308, -37.5, 1023.5, 1024.0, -1022.5,
    -1074.6, -1075.1, 1.6e6, 1.60001e6, 1e22, 5.319372648326541e255,
)  # fmt: skip
longer = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="no longer type to compare with"
)


@pytest.mark.parametrize("name", EXACTLY)
def test_function_is_within_two_ulp(name):
    # the series of erf takes its time
    check_function(name, points("float32", 50_000 if name == "erf" else 500_000), 2.0)


@longer
@pytest.mark.parametrize("name", EXACTLY)
def test_float64_function(name):
    x = np.concatenate([points("float64", 50_000 if name == "erf" else 200_000), SPECIAL_64])
    check_function(name, x, 3.0 if name == "tanh" else 2.0)


@longer
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_one_far_angle_among_others(name):
    """In each lane and in the last, incomplete vector."""
    for dtype, far in (("float32", 3e38), ("float64", 1e300), ("float64", math.inf)):
        for k in range(37):
            x = np.linspace(-3, 3, 37).astype(dtype)
            x[k] = far
            check_function(name, x, 2.0)


# ---- powers

POWERS = (
    *SPECIAL, 2.0, -2.0, 3.0, -3.0, 0.1, 1e38, 5e-324, 2.0**23 + 1, 2.0**24 - 1, 2.0**51 + 0.5,
    -(2.0**51) - 0.5, 2.0**52 + 1, 2.0**53 - 1, 1 - 2.0**53, 2.0**53, 1 + 2.0**-52, 1 - 2.0**-53,
    1 + 2.0**-23, 1 - 2.0**-24, -1 - 2.0**-23, 2.0**65, -(2.0**80), 1e300,
)  # fmt: skip


def bases_and_exponents(dtype: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Every special number to every other; any numbers; results of all sizes; bases near 1;
    integers."""
    rng = np.random.default_rng(4)
    with np.errstate(over="ignore"):
        special = np.array(POWERS).astype(dtype)
    pairs = [g.reshape(-1) for g in np.meshgrid(special, special)]
    any_base = rng.permutation(every_number(dtype, count))
    any_exponent = rng.permutation(any_base)
    positive = np.abs(any_base[any_base != 0])
    with np.errstate(divide="ignore", over="ignore"):
        fitting = rng.uniform(-1080, 1080, positive.size) / np.log2(positive.astype("f8"))
    near = 1 + rng.normal(size=count) * 0.01
    large = rng.normal(size=count) * 5e4
    mixed, whole = rng.uniform(-30, 30, count), rng.integers(-20, 20, count)
    with np.errstate(over="ignore"):
        a = np.concatenate([pairs[0], any_base, positive, near, mixed]).astype(dtype)
        b = np.concatenate([pairs[1], any_exponent, fitting, large, whole]).astype(dtype)
    return a, b


@np.errstate(all="ignore")
def check_power(dtype: str, count: int, bound: float) -> None:
    op = REGISTRY["pow"]
    a, b = bases_and_exponents(dtype, count)
    (found,) = llvm.run(Program([op.body], op.names, ()), [a, b])
    exact = np.power(a.astype(np.longdouble), b.astype(np.longdouble))
    distance = np.nan_to_num(ulps(found, exact), nan=np.inf)
    k = int(np.argmax(distance))
    assert distance[k] <= bound, f"{a[k]!r} ** {b[k]!r} = {found[k]!r}: {distance[k]}"
    number = ~np.isnan(exact)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(exact[number]))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=longer)])
def test_pow_is_within_an_ulp(dtype):
    check_power(dtype, 100_000, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pow_is_exact_where_the_result_is_a_number(dtype):
    op = REGISTRY["pow"]
    a, b = (g.reshape(-1) for g in np.meshgrid(np.arange(-40.0, 41.0), np.arange(0.0, 13.0)))
    exact = [int(x) ** int(y) for x, y in zip(a, b, strict=True)]
    fits = np.abs(np.array(exact, "f8")) < 2.0 ** np.finfo(dtype).nmant
    a, b, wanted = (np.array(v, dtype)[fits] for v in (a, b, exact))
    (found,) = llvm.run(Program([op.body], op.names, ()), [a, b])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="features of x86")
@pytest.mark.parametrize("features", ["", "+sse4.1", "+avx", "+avx,+avx2", "+avx,+avx2,+fma"])
def test_other_cpus(features, monkeypatch):
    """Narrow vectors, no fused multiply-add: the code of older CPUs, which this one runs too."""
    import llvmlite.binding

    host = llvmlite.binding.get_host_cpu_features()
    if not all(host.get(f[1:]) for f in features.split(",") if f):
        pytest.skip(f"this CPU lacks one of {features}")
    other = Machine("x86-64", features)
    monkeypatch.setattr(llvm, "machine", lambda: other)
    for name in EXACTLY:
        check_function(name, points("float32", 5_000), 2.0)
        if np.finfo(np.longdouble).nmant >= 60:
            check_function(name, points("float64", 5_000), 3.0 if name == "tanh" else 2.0)
    check_power("float32", 5_000, 1.0)
    if np.finfo(np.longdouble).nmant >= 60:
        check_power("float64", 5_000, 1.0)
    for n in (1, 3, 4, 5, 31, 100):
        x = np.linspace(-3, 3, n).astype(np.float32)
        for name in ("relu", "gt", "floor"):
            op = REGISTRY[name]
            args = [x, 0.5][: op.arity]
            found = llvm.run(Program([op.body], op.names, ()), args)
            if name == "floor" and "sse4.1" not in features and "avx" not in features:
                assert found is None
                continue
            np.testing.assert_array_equal(found[0], op.eval(*args))


# ---- layouts

SHAPES = [
    ((64, 10), (10,)),
    ((64, 10), (64, 1)),
    ((10,), (64, 10)),
    ((64, 1), (1, 10)),
    ((5, 3, 4, 6), (1, 3, 1, 1)),
    ((5, 3, 4, 6), (3, 1, 1)),
    ((5, 3, 4, 6), (5, 1, 4, 6)),
    ((5, 3, 4, 6), (6,)),
    ((5, 3, 40), ()),
    ((7, 1, 9), (7, 8, 1)),
    ((1, 1), (1, 1)),
    ((4, 1, 1), (4, 1, 1)),
    ((0, 3), (3,)),
]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_broadcasting(a, b):
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=s).astype(np.float32) for s in (a, b))
    op = REGISTRY["sub"]
    found = llvm.run(Program([op.body], op.names, ()), [x, y])
    if found is None:  # four loops, or nothing to do
        assert 0 in a or (a, b) == ((5, 3, 4, 6), (5, 1, 4, 6))
        return
    np.testing.assert_array_equal(found[0], x - y)


def test_strided_rows_and_what_is_left_to_numpy():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(20, 30)).astype(np.float32)
    program = Program([REGISTRY["mul"].body], ["x0", "x1"], ())
    for a, b in [(x[:, :7], x[:, 7:14]), (x[::2], x[1::2]), (x[:, 4:5], x), (x[::-1], x)]:
        np.testing.assert_array_equal(llvm.run(program, [a, b])[0], a * b)
    for a, b in [(x.T, x.T[:, ::-1]), (x[:, ::2], x[:, 1::2]), (x, x.astype(np.float64))]:
        assert llvm.run(program, [a, b]) is None
    assert llvm.run(program, [x, x[:3]]) is None  # does not broadcast
    assert llvm.run(program, [x.astype(">f4"), 2.0]) is None
    assert llvm.run(program, [x, np.float64(2.0)]) is None  # not weakly typed


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3_000_017,), (1001, 1003), (3, 700_001)])
def test_every_element_is_written_once(shape, threads, monkeypatch):
    """Threads share the work without a gap; memory is full of NaN before."""
    monkeypatch.setattr(llvm.backend.settings, "num_threads", threads)
    monkeypatch.setattr(llvm, "PARALLEL", 1)
    monkeypatch.setattr(llvm.backend, "empty", lambda s, d: np.full(s, np.nan, d))
    x = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    bias = np.arange(shape[-1], dtype=np.float32)
    op = REGISTRY["add"]
    program = Program([op.body], op.names, ())
    np.testing.assert_array_equal(llvm.run(program, [x, 0.1])[0], x + np.float32(0.1))
    np.testing.assert_array_equal(llvm.run(program, [x, bias])[0], x + bias)


def test_simple_functions_are_left_to_numpy(monkeypatch):
    monkeypatch.undo()
    x = np.ones((30, 40), np.float32)
    add, gelu = REGISTRY["add"], REGISTRY["gelu"]
    assert llvm.run(Program([add.body], add.names, ()), [x, x]) is None
    assert llvm.run(Program([add.body], add.names, ()), [x, x[0]]) is not None
    assert llvm.run(Program([gelu.body], gelu.names, ()), [x]) is not None


def test_masks():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(50, 33)).astype(np.float32)
    keep, column = x > 0.3, rng.random((50, 1)) > 0.5
    where, both = REGISTRY["where"], REGISTRY["logical_and"]
    program = Program([where.body], where.names, ())
    np.testing.assert_array_equal(llvm.run(program, [keep, x, 0.0])[0], np.where(keep, x, 0))
    found = llvm.run(program, [column, x, -1.0])[0]
    np.testing.assert_array_equal(found, np.where(column, x, np.float32(-1)))
    (found,) = llvm.run(Program([both.body], both.names, ()), [keep, x])
    np.testing.assert_array_equal(found, np.logical_and(keep, x))
    assert llvm.run(Program([both.body], both.names, ()), [keep, keep]) is None


def test_numpy_computes_where_errors_raise():
    x = np.zeros(100, np.float32)
    program = Program([REGISTRY["log"].body], ["x0"], ())
    with np.errstate(divide="raise"):
        assert llvm.run(program, [x]) is None
    assert np.isneginf(llvm.run(program, [x])[0]).all()


def test_numpy_computes_what_llvm_refuses(monkeypatch):
    x = np.linspace(0, 1, 20_000, dtype=np.float32)
    monkeypatch.setattr(vector_math, "FLOAT32", {"tanh": lambda v: v.code.emit("nonsense", v.type)})
    monkeypatch.setattr(cache, "sources", lambda: None)  # which do not say so
    op = REGISTRY["tanh"]
    with pytest.warns(UserWarning, match="LLVM refuses"):
        assert llvm.run(Program([op.body], op.names, ()), [x]) is None


# ---- updates


@gg.foreach
def descend(p, m, g, *, lr, beta):
    m = beta * m + (1 - beta) * gg.tanh(g)
    return p - lr * m / (abs(p) + 1e-3), m


def tensors(dtype, shapes, seed):
    rng = np.random.default_rng(seed)
    return [[gg.tensor(rng.normal(size=s).astype(dtype)) for s in shapes] for _ in range(3)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_update_equals_numpy(dtype, threads, monkeypatch):
    shapes = [(3, 4), (), (1,), (0, 5), (8191,), (100_003,), (300, 1001)]
    native, plain = (tensors(dtype, shapes, 7) for _ in range(2))
    monkeypatch.setattr(llvm.backend.settings, "num_threads", threads)
    monkeypatch.setattr(llvm, "PARALLEL", 1000)
    descend(*native, lr=0.1, beta=0.9)
    monkeypatch.setattr(llvm, "machine", lambda: None)
    descend(*plain, lr=0.1, beta=0.9)
    for a, b in zip(native, plain, strict=True):
        for s, t in zip(a, b, strict=True):
            assert_close(s.array, t.array, dtype)


def test_update_falls_back_for_other_layouts():
    x, y, z = tensors("float32", [(6, 5), (4, 4)], 8)
    turned = [t.array.copy() for t in x]
    strided = [gg.tensor(np.asfortranarray(t.array)) for t in y]
    wanted = [p - np.float32(0.5) * g for p, g in zip(turned, [t.array for t in y], strict=True)]

    @gg.foreach
    def step(p, g, *, lr):
        return p - lr * g

    step(x, strided, lr=0.5)
    for found, w in zip(x, wanted, strict=True):
        np.testing.assert_array_equal(found.array, w)
    with pytest.raises(RuntimeError, match="must have the same shape"):
        step(x, [z[0], z[0]], lr=0.5)
    with pytest.raises(ValueError, match="one length"):
        step(x, [z[0]], lr=0.5)
    frozen = gg.from_numpy(np.zeros((6, 5), np.float32))
    frozen.array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        step([frozen], [z[0]], lr=0.5)


@pytest.mark.parametrize("native", [True, False])
def test_numbers_are_computed_in_float64(native, monkeypatch):
    """1 - beta of numbers alone: in float32 the result would be off by 1.3e-5 of itself."""
    if not native:
        monkeypatch.setattr(llvm, "machine", lambda: None)

    @gg.foreach
    def take(p, *, beta):
        return p * (1 - beta)

    p = gg.ones(5)
    take([p], beta=0.999)
    np.testing.assert_array_equal(p.array, np.float32(1 - 0.999))


def test_update_of_generators_and_of_nothing():
    p, m, g = tensors("float32", [(3,), (2, 2)], 10)
    wanted = [t.array.copy() for t in p]
    descend((t for t in p), iter(m), tuple(g), lr=0.0, beta=0.5)
    for found, w in zip(p, wanted, strict=True):
        np.testing.assert_array_equal(found.array, w)
    descend([], [], [], lr=0.1, beta=0.5)


def test_update_notes_one_write_for_all():
    p, m, g = tensors("float32", [(2,), (3,)], 9)
    x = (p[0].requires_grad_() * 2.0).exp()
    descend(p, m, g, lr=0.1, beta=0.5)
    assert len({t._version[0] for t in (*p, *m)}) == 1
    file, _ = p[0]._version[1]
    assert file == __file__
    x.sum().backward()


# ---- the compiler and its cache

SCRIPT = """
import numpy as np, gpugrad as gg
from gpugrad.codegen.machine import machine
x = gg.tensor(np.linspace(-4, 4, 20_000, dtype=np.float32))
y = gg.tanh(x)
print(machine() and machine().compiled, y.array.tobytes().hex()[:4000])
"""


def run_script(**environment) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_kernels_are_kept_on_disk(tmp_path):
    place = tmp_path / "new" / "cache"
    first, wanted = run_script(GPUGRAD_CACHE_DIR=str(place))
    assert first == "1"
    (kept,) = place.iterdir()
    assert run_script(GPUGRAD_CACHE_DIR=str(place)) == ["0", wanted]
    whole = kept.read_bytes()
    for broken in (b"", whole[:-100], whole[:100] + b"x" + whole[101:]):
        kept.write_bytes(broken)
        assert run_script(GPUGRAD_CACHE_DIR=str(place)) == ["1", wanted]
        assert kept.read_bytes() == whole  # mended
    (tmp_path / "file").write_text("not a folder")
    assert run_script(GPUGRAD_CACHE_DIR=str(tmp_path / "file")) == ["1", wanted]
    assert run_script(GPUGRAD_CACHE_DIR="") == ["1", wanted]


def written(compiler: Machine, program: Program, text: str) -> str:
    programs_written.append(program)
    return text


programs_written: list[Program] = []
TEXT = "define i64 @kernel() {{ ret i64 {} }}"


def test_a_text_is_not_written_where_its_code_is_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUGRAD_CACHE_DIR", str(tmp_path))
    result = ctypes.CFUNCTYPE(ctypes.c_int64)
    x, y = variable("x"), variable("y")
    programs = [Program([build("sub", x, y)], inputs, ()) for inputs in ("xy", "yx")]
    same = Program([build("sub", y, x)], "yx", ())
    programs_written.clear()
    for compiler in (Machine(), Machine()):
        for k, program in enumerate((*programs, same)):
            address = compiler.kernel(written, program, TEXT.format(k % 2))
            assert result(address)() == k % 2
        assert programs_written == programs
    monkeypatch.setattr(cache, "sources", lambda: "others")
    Machine().kernel(written, programs[0], TEXT.format(0))
    assert programs_written == [*programs, programs[0]]


def test_sources_that_are_younger_than_the_process_say_nothing(monkeypatch, tmp_path):
    known = cache.sources()
    assert known is not None
    monkeypatch.setenv("GPUGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "IMPORTED", 0.0)
    cache.sources.cache_clear()
    programs_written.clear()
    try:
        assert cache.sources() is None
        for _ in range(2):
            compiler = Machine()
            compiler.kernel(written, Program([], "", ()), TEXT.format(0))
        assert len(programs_written) == 2
        assert compiler.compiled == 0  # the text is found
    finally:
        monkeypatch.undo()
        cache.sources.cache_clear()
    assert cache.sources() == known


def test_what_kernels_are_written_for():
    x = variable("x")
    others = (1, 1.0, True, -0.0, 0.0, math.inf, math.nan, None, "1", (), (1,), ((1,),))
    programs = [Program([build("maximum", x, c)], "x", ()) for c in (1, 1.0, True, 0.0, -0.0)]
    shared = build("mul", build("exp", x), build("exp", x))
    programs += [Program([shared], "x", ()), Program([x, shared], "x", ())]
    programs += [Program([shared, x], "x", ()), Program([shared], "ax", ())]
    tiles = [Tile("float", 8, 6, 2), tuple(Tile("float", 8, 6, 2)), Tile("double", 8, 6, 2)]
    dtypes = [np.dtype(d) for d in ("int8", "uint8", "float32")]
    values = [*others, *programs, *tiles, *dtypes, text, written]
    assert len({cache.described(v) for v in values}) == len(values)
    with pytest.raises(AttributeError):
        cache.described([1])


def test_switched_off():
    none, values = run_script(GPUGRAD_JIT="0")
    assert none == "None"
    native = np.frombuffer(bytes.fromhex(run_script(GPUGRAD_CACHE_DIR="")[1]), np.float32)
    numpy = np.frombuffer(bytes.fromhex(values), np.float32)
    np.testing.assert_allclose(native, numpy, rtol=3e-7)


def test_a_program_is_compiled_once(monkeypatch):
    fresh = Machine()
    monkeypatch.setattr(llvm, "machine", lambda: fresh)
    monkeypatch.setenv("GPUGRAD_CACHE_DIR", "")
    x = np.ones(10, np.float32)
    with ThreadPoolExecutor(4) as threads:
        for op in (REGISTRY["tanh"], REGISTRY["exp"]):
            program = Program([op.body], op.names, ())
            list(threads.map(lambda _, p=program: llvm.run(p, [x]), range(20)))
    assert fresh.compiled == 2


def test_where_kernels_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("GPUGRAD_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.directory() == tmp_path / "gpugrad"
    monkeypatch.setenv("GPUGRAD_CACHE_DIR", "")
    assert cache.directory() is None
