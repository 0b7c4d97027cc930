"""torch's promotion rules: every pair of dtypes, every rank, every operator."""

import itertools
import operator

import numpy as np
import pytest

import gpugrad as gg

DTYPES = [
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    "complex64", "complex128",
]  # fmt: skip
REAL = DTYPES[:-2]


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def theirs(torch, dtype):
    return getattr(torch, dtype)


@pytest.mark.parametrize("a", DTYPES)
def test_promote_types(torch, a):
    for b in DTYPES:
        expected = torch.promote_types(theirs(torch, a), theirs(torch, b))
        assert name_of(gg.promote_types(a, b)) == name_of(expected), (a, b)


@pytest.mark.parametrize("a", DTYPES)
def test_result_type_of_tensors_scalars_and_numbers(torch, a):
    """Vectors beat zero-dimensional tensors beat numbers, within a category."""

    def operands(lib, dtype):
        yield lib.ones(2, dtype=dtype)
        yield lib.ones((), dtype=dtype)

    for b in DTYPES:
        if "float16" in (a, b) and "complex" in a + b:
            continue  # complex32 in torch, which NumPy has not
        ours = itertools.product(operands(gg, getattr(gg, a)), operands(gg, getattr(gg, b)))
        judge = itertools.product(
            operands(torch, theirs(torch, a)), operands(torch, theirs(torch, b))
        )
        for (x, y), (u, v) in zip(ours, judge, strict=True):
            assert name_of(gg.result_type(x, y)) == name_of(torch.result_type(u, v)), (a, b)
    for number in (True, 2, 2.5, 1j) if a != "float16" else (True, 2, 2.5):
        for x, u in zip(
            operands(gg, getattr(gg, a)), operands(torch, theirs(torch, a)), strict=True
        ):
            expected = name_of(torch.result_type(u, number))
            assert name_of(gg.result_type(x, number)) == expected, (a, number)
            assert name_of(gg.result_type(number, x)) == expected, (a, number)


OPERATORS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "%": operator.mod, "**": operator.pow, "==": operator.eq,
    "<": operator.lt, ">=": operator.ge, "!=": operator.ne,
}  # fmt: skip


def compute(function, x, y):
    try:
        result = function(x, y)
    except (RuntimeError, TypeError) as error:
        return type(error)
    return name_of(result.dtype), tuple(result.shape), result.tolist()


def cases(lib, dtype):
    """A vector and a zero-dimensional tensor of a dtype, with the same values in both libraries."""
    d = getattr(lib, dtype)
    return [lib.tensor([1, 1, 1], dtype=d), lib.tensor(1, dtype=d)]


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("a", REAL)
def test_operators_on_every_pair(torch, symbol, a):
    """Dtype, shape and value; 1 and 1 have an exact result under every operator."""
    function = OPERATORS[symbol]
    for b in REAL:
        if "bool" in (a, b) and (a == b or symbol == "-"):
            continue  # below; torch refuses to subtract booleans, NumPy subtracts numbers
        for x, u in zip(cases(gg, a), cases(torch, a), strict=True):
            for y, v in zip(cases(gg, b), cases(torch, b), strict=True):
                assert compute(function, x, y) == compute(function, u, v), (x, symbol, y)


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("dtype", REAL)
def test_operators_with_python_numbers(torch, symbol, dtype):
    function = OPERATORS[symbol]
    for number in (True, 3, 2.5, -1.0):
        if dtype == "bool" and (number is True or symbol in ("-", "**")):
            continue  # not implemented in torch
        if number is True and symbol in "-":
            continue  # torch refuses to subtract a bool
        for x, u in zip(cases(gg, dtype), cases(torch, dtype), strict=True):
            ours, expected = compute(function, x, number), compute(function, u, number)
            assert ours == expected, (x, symbol, number)
            assert compute(function, number, x) == compute(function, number, u), (number, symbol, x)


@pytest.mark.parametrize("symbol", ["+", "*", "/", "==", "<", "!="])
def test_operators_on_booleans(torch, symbol):
    function = OPERATORS[symbol]
    for a, b in itertools.product([True, False], [True]):
        ours = compute(function, gg.tensor([a]), gg.tensor([b]))
        assert ours == compute(function, torch.tensor([a]), torch.tensor([b]))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_integers_wrap_around(torch, dtype):
    """Overflow is torch's (and C's): modulo, without an error."""
    top = int(np.iinfo(dtype).max)
    with np.errstate(over="ignore"):
        ours = gg.tensor([top], dtype=getattr(gg, dtype)) + 1
    assert ours.tolist() == (torch.tensor([top], dtype=theirs(torch, dtype)) + 1).tolist()


@pytest.mark.parametrize(
    ("dtype", "number"), [("uint8", 300), ("uint8", -1), ("int8", 128), ("int32", 2**31)]
)
def test_numbers_that_do_not_fit_an_integer_dtype(torch, dtype, number):
    """torch converts the number modulo 2**bits or raises; whichever, no other result may appear."""

    def add(lib):
        return compute(operator.add, lib.tensor([1, 2], dtype=getattr(lib, dtype)), number)

    with np.errstate(over="ignore"):
        try:
            ours = add(gg)
        except OverflowError:
            return  # NumPy's refusal: not a result
    assert ours == add(torch)


def test_names_and_aliases():
    assert (gg.half, gg.double, gg.long, gg.short) == (gg.float16, gg.float64, gg.int64, gg.int16)
    assert gg.float32 == np.float32
    assert gg.bool == np.bool_
    assert gg.float32 is gg.tensor(1.0).dtype


def test_default_dtype():
    try:
        gg.set_default_dtype(gg.float64)
        assert gg.get_default_dtype() == gg.float64
        for t in (
            gg.tensor(1.0),
            gg.zeros(2),
            gg.rand(2),
            gg.tensor([1]) / 2,
            gg.tensor([1]) * 0.5,
            gg.linspace(0, 1, 3),
            gg.full((2,), 0.5),
            gg.arange(0.0, 2.0),
            gg.tensor([1]).sin(),
        ):
            assert t.dtype == gg.float64
        assert gg.tensor(1j).dtype == gg.complex128
        assert gg.ones(2, dtype=gg.float32).add(1.5).dtype == gg.float32
    finally:
        gg.set_default_dtype(gg.float32)
    assert gg.tensor(1.0).dtype == gg.float32
    with pytest.raises(TypeError, match="floating point"):
        gg.set_default_dtype(gg.int64)


def test_limits(torch):
    for d in ("float16", "float32", "float64"):
        ours, judge = gg.finfo(getattr(gg, d)), torch.finfo(theirs(torch, d))
        for field in ("eps", "max", "min", "tiny", "bits"):
            assert float(getattr(ours, field)) == float(getattr(judge, field)), (d, field)
    for d in ("uint8", "int8", "int16", "int32", "int64"):
        ours, judge = gg.iinfo(getattr(gg, d)), torch.iinfo(theirs(torch, d))
        assert (ours.min, ours.max, ours.bits) == (judge.min, judge.max, judge.bits)
    assert gg.finfo().eps == gg.finfo(gg.float32).eps
