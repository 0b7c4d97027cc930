"""Scalar expressions: what is built is what was meant, simplified exactly; derivatives."""

import gc
import math
import operator

import numpy as np
import pytest

import gpugrad  # noqa: F401 - declares the primitives
from gpugrad.codegen import expr
from gpugrad.codegen.expr import (
    build,
    const,
    gradients,
    inputs_of,
    substitute,
    topological,
    variable,
)

X, Y, Z = (variable(n) for n in "xyz")
VALUES = {"x": np.array([0.5, 1.5, -2.0]), "y": np.array([2.0, -0.25, 3.0]), "z": np.ones(3) * 0.7}

NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide,
    "neg": np.negative, "pow": np.power, "exp": np.exp, "log": np.log, "sin": np.sin, "cos": np.cos,
    "abs": np.abs, "maximum": np.maximum, "minimum": np.minimum, "where": np.where, "lt": np.less,
    "gt": np.greater, "ge": np.greater_equal, "le": np.less_equal, "eq": np.equal, "tanh": np.tanh,
    "sqrt": np.sqrt, "sign": np.sign, "positive": np.positive, "logical_and": np.logical_and,
    "logical_or": np.logical_or, "logical_not": np.logical_not,
}  # fmt: skip


def evaluate(e, values=VALUES):
    return expr.evaluate([e], values, lambda name, *args: NUMPY[name](*args))[0]


# ------------------------------------------------------------------------------------------------
# building


def test_equal_expressions_are_one_object():
    assert X + Y * 2 is X + Y * 2
    assert variable("x") is X
    assert const(1) is not const(1.0)
    assert const(True) is not const(1)
    assert const(0.0) is not const(-0.0)
    assert X + Y is not Y + X


def test_what_nobody_uses_is_forgotten():
    before = len(expr._interned)
    e = X
    for k in range(100):
        e = e * Y + k * 1.1
    assert len(expr._interned) > before
    del e
    gc.collect()
    assert len(expr._interned) <= before


OPERATORS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "**": operator.pow, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@pytest.mark.parametrize("symbol", OPERATORS)
def test_operators(symbol):
    f = OPERATORS[symbol]
    x, y = VALUES["x"], VALUES["y"]
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(evaluate(f(X, Y)), f(x, y))
        np.testing.assert_array_equal(evaluate(f(X, 3)), f(x, 3))
        np.testing.assert_array_equal(evaluate(f(2.5, Y)), f(2.5, y))


def test_unary_and_logical_operators():
    x, y = VALUES["x"], VALUES["y"]
    np.testing.assert_array_equal(evaluate(-abs(X)), -np.abs(x))
    np.testing.assert_array_equal(evaluate(~((X > 0) & (Y > 0))), ~((x > 0) & (y > 0)))
    np.testing.assert_array_equal(evaluate((X > 0) | (Y > 0)), (x > 0) | (y > 0))


def test_an_expression_has_no_truth_value():
    with pytest.raises(TypeError, match="where"):
        bool(X > 0)
    with pytest.raises(TypeError):
        1 if X else 2


# ------------------------------------------------------------------------------------------------
# simplification: exact for every operand, infinities, zeros and NaN among them

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -3.0, 1e-300, 1e300, math.inf, -math.inf, math.nan]
IDENTITIES = {
    "x * 1": (lambda x: x * 1, lambda x: x),
    "1 * x": (lambda x: 1 * x, lambda x: x),
    "x * -1": (lambda x: x * -1, lambda x: -x),
    "x + 0": (lambda x: x + 0, lambda x: x),
    "x - 0": (lambda x: x - 0, lambda x: x),
    "0 - x": (lambda x: 0 - x, lambda x: -x),
    "x / 1": (lambda x: x / 1, lambda x: x),
    "x negated twice": (lambda x: operator.neg(-x), lambda x: x),
    "x ** 1": (lambda x: x**1, lambda x: x),
    "x ** 2": (lambda x: x**2, lambda x: x * x),
    "x ** 0": (lambda x: x**0, lambda x: 1.0 + 0 * np.zeros_like(x)),
    "-x * -y": (lambda x: -x * -(x + 1), lambda x: -x * -(x + 1)),
    "-x * y": (lambda x: -x * (x + 1), lambda x: -x * (x + 1)),
    "y * -x": (lambda x: (x + 1) * -x, lambda x: (x + 1) * -x),
    "x + -y": (lambda x: x + -(x * 2), lambda x: x + -(x * 2)),
    "-x + y": (lambda x: -x + x * 2, lambda x: -x + x * 2),
    "x - -y": (lambda x: x - -(x * 2), lambda x: x - -(x * 2)),
    "-x / y": (lambda x: -x / (x + 1), lambda x: -x / (x + 1)),
    "constants": (lambda x: x + (const(2) * 3 - 1) / const(4), lambda x: x + 1.25),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_are_exact(name):
    expression, reference = IDENTITIES[name]
    x = np.array(SPECIAL)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            np.broadcast_to(evaluate(expression(X), {"x": x}), x.shape), reference(x)
        )


@pytest.mark.parametrize(
    ("built", "simple"),
    [
        (X * 1, X), (1 * X, X), (X + 0, X), (0 + X, X), (X / 1, X), (operator.neg(-X), X),
        (X**1, X), (X * 0, const(0)), (const(2) + 3, const(5)), (X**0, const(1)), (X**2, X * X),
        (X + (-Y), X - Y), (X - (-Y), X + Y),
    ],
)  # fmt: skip
def test_identities_are_applied(built, simple):
    assert built is simple


def test_a_product_with_zero_is_zero():
    """As in every autodiff system, also where the other factor is infinite."""
    assert X * 0 is const(0)
    masked = build("where", X > 0, 1, 0) * build("exp", Y)
    with np.errstate(over="ignore"):
        found = evaluate(masked, {"x": np.array([1.0, -1.0]), "y": np.array([0.0, 1000.0])})
    assert found.tolist() == [1.0, 0.0]


def test_division_of_constants_by_zero_is_left_to_the_arrays():
    e = const(1.0) / const(0.0)
    assert e.op == "div"


# ------------------------------------------------------------------------------------------------
# structure


def test_topological_order():
    e = (X + Y) * (X + Y) - X
    order = topological([e, Y])
    assert len(order) == len({id(v) for v in order}) == 5
    position = {id(v): k for k, v in enumerate(order)}
    for v in order:
        for a in v.args if v.op not in ("input", "const") else ():
            assert position[id(a)] < position[id(v)]


def test_deep_expressions_need_no_recursion():
    e = X
    for _ in range(20_000):
        e = e + Y
    assert len(topological([e])) == 20_002
    assert inputs_of([e]) == {"x", "y"}
    assert gradients(e, [X], const(1))[0] is const(1)


def test_substitute():
    e = build("sin", X + Y) * (X + Y)
    (found,) = substitute([e], {X + Y: Z})
    assert found is build("sin", Z) * Z
    (swapped,) = substitute([X - Y], {X: Y, Y: X})
    assert swapped is Y - X
    (simplified,) = substitute([X * Y], {Y: const(1)})
    assert simplified is X


def test_inputs_of():
    assert inputs_of([X + 1, Y * 2]) == {"x", "y"}
    assert inputs_of([const(3)]) == set()


# ------------------------------------------------------------------------------------------------
# derivatives

FUNCTIONS = {
    "polynomial": lambda x, y: x * x * y + 3 * x - y / 2,
    "quotient": lambda x, y: (x + 1) / (y * y + 1),
    "chain": lambda x, y: build("sin", build("exp", x * y) + x),
    "shared": lambda x, y: (x * y + 1) * (x * y + 1) * build("tanh", x * y + 1),
    "where": lambda x, y: build("where", x > y, x * x, y * x),
    "maximum": lambda x, y: build("maximum", x * 2, y) * x,
    "absolute": lambda x, y: abs(x) * y,
    "difference": lambda x, y: x - y - x * -y,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_against_differences(name):
    e = FUNCTIONS[name](X, Y)
    found = gradients(e, [X, Y, Z], const(1.0))
    assert found[2] is const(0)
    for k, v in enumerate("xy"):
        above = {**VALUES, v: VALUES[v] + 1e-6}
        below = {**VALUES, v: VALUES[v] - 1e-6}
        expected = (evaluate(e, above) - evaluate(e, below)) / 2e-6
        np.testing.assert_allclose(
            evaluate(found[k]) + 0 * expected, expected, rtol=1e-7, atol=1e-8
        )


def test_the_seed_scales_the_gradient():
    (g,) = gradients(X * Y, [X], Z)
    np.testing.assert_allclose(evaluate(g), VALUES["y"] * VALUES["z"])


def test_gradient_of_an_expression_with_respect_to_itself():
    assert gradients(X, [X], Z)[0] is Z
    assert gradients(X * Y, [X * Y], Z)[0] is Z


def test_comparisons_pass_no_gradient():
    found = gradients(build("where", X > Y, 2.0, 3.0), [X, Y], const(1))
    assert found == [const(0), const(0)]


def test_every_primitive_has_the_derivative_of_its_function():
    """Partials of the table against complex steps of NumPy's function, where it has one."""
    checked = 0
    for name in (
        "exp",
        "log",
        "sin",
        "cos",
        "tanh",
        "sqrt",
        "neg",
        "mul",
        "div",
        "add",
        "sub",
        "pow",
    ):
        arity = 2 if name in ("mul", "div", "add", "sub", "pow") else 1
        args, values = [X, Y][:arity], [np.array([0.7, 1.3]), np.array([1.1, 0.4])][:arity]
        found = gradients(build(name, *args), args, const(1.0))
        for k in range(arity):
            stepped = [v + (1e-30j if i == k else 0) for i, v in enumerate(values)]
            expected = NUMPY[name](*stepped).imag / 1e-30
            env = dict(zip("xy", values, strict=False))
            np.testing.assert_allclose(evaluate(found[k], env) + 0 * expected, expected, rtol=1e-13)
            checked += 1
    assert checked == 17
