"""Generated elementwise kernels (codegen/cuda.py): every layout, dtype and alignment.

That every row has the right formulas is in test_operations.py; here is how elements are reached.
"""

import itertools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen import cuda
from gpugrad.codegen.arrays import Program
from gpugrad.ops import REGISTRY

pytestmark = pytest.mark.gpu

cupy = pytest.importorskip(
    "cupy", reason="the kernels take CuPy arrays: pip install gpugrad[cuda13]"
)
SIZES = [0, 1, 3, 4, 5, 31, 255, 256, 257, 1000, 4099]
RTOL = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-14}


def dtype_of(name):
    return gg.bfloat16 if name == "bfloat16" else np.dtype(name)


def run(name, *args):
    """A row by its kernel; that there was none is an error."""
    op = REGISTRY[name]
    program = Program([op.body], op.names, ())
    found = cuda.run(program, args)
    assert found is not None and len(found) == 1
    return found[0]


def check(name, *args, rtol=1e-6):
    """The kernel against NumPy in float64, on the same values."""
    host = [a.get() if isinstance(a, cupy.ndarray) else a for a in args]
    wide = [h if np.ndim(h) == 0 or h.dtype == bool else h.astype(np.float64) for h in host]
    expected = np.asarray(REGISTRY[name].reference(*wide))
    found = run(name, *args)
    assert found.shape == expected.shape and found.flags.c_contiguous
    if expected.dtype != bool:
        assert found.dtype in [a.dtype for a in args if hasattr(a, "dtype")]
    np.testing.assert_allclose(
        found.get().astype(expected.dtype), expected, rtol=rtol, atol=rtol * 0.1
    )


@pytest.mark.parametrize("dtype", RTOL)
def test_flat_arrays_of_every_length(dtype, rng):
    for n in SIZES:
        a, b = (cupy.asarray(rng.normal(size=n)).astype(dtype_of(dtype)) for _ in range(2))
        check("mul", a, b, rtol=RTOL[dtype])
        check("gelu", a, rtol=4 * RTOL[dtype])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_that_begin_anywhere(dtype, rng):
    whole = cupy.asarray(rng.normal(size=1000)).astype(dtype)
    for start, length in itertools.product((0, 1, 2, 3, 7, 8), (5, 64, 257)):
        check("add", whole[start : start + length], whole[:length], rtol=RTOL[dtype])


SHAPES = [
    ((7, 33), (33,)), ((7, 33), (7, 1)), ((7, 32), (1, 32)), ((7, 32), (7, 1)), ((5, 1), (1, 6)),
    ((3, 4, 5), (4, 1)), ((3, 4, 5), (5,)), ((3, 4, 5), (3, 1, 5)), ((2, 3, 4, 5), (3, 1, 5)),
    ((2, 3, 4, 5), (2, 1, 4, 1)), ((1,), (9,)), ((), (9,)), ((4, 0, 3), (3,)),
    ((2, 1, 3), (1, 5, 1)),
    ((2, 1, 2, 1, 3), (1, 3, 1, 2, 1)), ((64, 16), (16,)), ((16, 64), (16, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_broadcasting(first, second, dtype, rng):
    a, b = (cupy.asarray(rng.normal(size=s)).astype(dtype) for s in (first, second))
    check("sub", a, b, rtol=RTOL[dtype])
    check("sub", b, a, rtol=RTOL[dtype])
    check("where", a > 0, b, a, rtol=RTOL[dtype])


VIEWS = {
    "transposed": lambda x: x.T,
    "every second": lambda x: x[:, ::2],
    "reversed": lambda x: x[::-1, ::-1],
    "a part": lambda x: x[1:5, 2:9],
    "a column": lambda x: x[:, 3:4],
    "axes swapped": lambda x: x.reshape(6, 2, 5).transpose(2, 0, 1),
    "broadcast": lambda x: cupy.broadcast_to(x[:1], (6, 10)),
    "one element": lambda x: x[2, 3],
}


@pytest.mark.parametrize("view", VIEWS)
def test_strided_arrays(view, rng):
    a, b = (VIEWS[view](cupy.asarray(rng.normal(size=(6, 10)).astype("float32"))) for _ in "ab")
    check("mul", a, b)
    check("mul", a, cupy.ascontiguousarray(b).reshape(b.shape))
    check("tanh", a)
    check("where", a > b, a, b)


def test_masks_in_and_out(rng):
    a = cupy.asarray(rng.normal(size=(5, 36)).astype("float32"))
    mask = cupy.asarray(rng.normal(size=36) > 0)
    check("where", mask, a, 0.5)
    check("where", mask[:, None][:5], a[:, :1], a)
    check("gt", a, 0.0)
    check("logical_and", a > 0, a)
    check("mul", mask, a)


def test_several_results_and_values_that_are_not_read(rng):
    op = REGISTRY["div"]
    g, y, a, b = (cupy.asarray(rng.uniform(0.5, 2, size=(3, 5))) for _ in "gyab")
    rule = op.rule((True, True))
    args = [{"g": g, "y": y, "x0": a, "x1": b}[n] for n in rule.program.inputs]
    first, second = cuda.run(rule.program, args)
    np.testing.assert_allclose(first.get(), (g / b).get())
    np.testing.assert_allclose(second.get(), (g * -y / b).get())


def test_offsets_of_64_bits_compute_the_same(rng):
    op = REGISTRY["mul"]
    program = Program([op.body], op.names, ())
    a = cupy.asarray(rng.normal(size=(6, 10)).astype("float32"))
    b = cupy.asarray(rng.normal(size=(6, 1)).astype("float32"))
    plan = cuda.plan(program, (a, b))
    wide = plan.variant._replace(wide=True)
    out = cupy.empty((6, 10), "float32")
    kernel = cuda.kernel_for(program, wide)
    kernel((plan.blocks,), (cuda.BLOCK,), (a, b, out, *plan.sizes))
    np.testing.assert_array_equal(out.get(), (a * b).get())


def test_arithmetic_has_the_bits_of_numpy(rng):
    """No product is contracted with a sum to one rounding."""
    x, y, z = (rng.normal(size=1000).astype("float32") for _ in "xyz")
    found = gg.kernel(lambda a, b, c: a * b + c)(*(gg.tensor(v, device="cuda") for v in (x, y, z)))
    np.testing.assert_array_equal(found.cpu().array, x * y + z)


SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, -1e-310, 1e308, 0.5, -2.5]
AT_SPECIAL_VALUES = [
    "maximum", "minimum", "sign", "remainder", "fmod", "floor_divide", "logaddexp", "pow", "round",
    "floor", "sigmoid", "tanh", "exp", "log", "sqrt", "isnan", "isinf", "isfinite", "relu",
    "softplus", "abs",
]  # fmt: skip
# Which of two zeros is the larger one, NumPy decides by the length of the array.
EITHER_ZERO = ("maximum", "minimum", "relu")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", AT_SPECIAL_VALUES)
def test_special_values_are_those_of_numpy(name):
    op = REGISTRY[name]
    grid = np.array(list(itertools.product(SPECIAL, repeat=min(op.arity, 2)))).T
    args = [np.ascontiguousarray(row) for row in grid] + [np.full(grid.shape[1], 20.0)] * (
        op.arity - len(grid)
    )
    found = run(name, *map(cupy.asarray, args)).get()
    expected = np.asarray(op.reference(*args))
    np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)
    if found.dtype != bool and name not in EITHER_ZERO:
        zeros = expected == 0
        np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(expected[zeros]))


def test_integers_and_mixed_dtypes_are_left_to_cupy():
    op = REGISTRY["add"]
    program = Program([op.body], op.names, ())
    i, f, d = cupy.arange(3), cupy.ones(3, "float32"), cupy.ones(3)
    assert cuda.run(program, (i, i)) is None
    assert cuda.run(program, (f, d)) is None
    assert (gg.tensor([1, 2], device="cuda") + 1).tolist() == [2, 3]


def test_a_kernel_that_cannot_be_built_is_reported_once_and_the_reference_computes(monkeypatch):
    @gg.kernel(cuda="this is not C++")
    def twice(x):
        return x * 2

    x = gg.tensor([1.0, 2.0], device="cuda")
    with pytest.warns(UserWarning, match="no CUDA kernel"):
        assert twice(x).tolist() == [2.0, 4.0]
    assert twice(x).tolist() == [2.0, 4.0]
