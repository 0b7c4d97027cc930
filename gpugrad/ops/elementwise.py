"""Elementwise operations: one row each. ``y`` is the output, ``x`` or ``a, b`` the arguments.

Gradients at ties and edges are torch's: relu'(0) = 0, |x|'(0) = 0, maximum shares a tie in halves,
clamp passes the
gradient at its bounds, x**0 has gradient 0.
"""

from __future__ import annotations

import math
import operator

from .core import elementwise

_POSITIVE = (0.2, 3.0)
_UNIT = (-0.9, 0.9)
_ABOVE_ONE = (1.2, 3.0)

# ---- arithmetic

add = elementwise("add", lambda y, a, b: 1, lambda y, a, b: 1, fold=operator.add)
sub = elementwise("sub", lambda y, a, b: 1, lambda y, a, b: -1, array="subtract", fold=operator.sub)
mul = elementwise("mul", lambda y, a, b: b, lambda y, a, b: a, array="multiply", fold=operator.mul)
div = elementwise(
    "div",
    lambda y, a, b: 1 / b,
    lambda y, a, b: -y / b,
    array="true_divide",
    fold=operator.truediv,
    domain=((-2.0, 2.0), _POSITIVE),
    int_to_float=True,
)
neg = elementwise("neg", lambda y, x: -1, array="negative", fold=operator.neg)
positive = elementwise("positive", lambda y, x: 1)
where = elementwise(
    "where", None, lambda y, c, a, b: where(c, 1, 0), lambda y, c, a, b: where(c, 0, 1),
    domain=(0.0, 1.0)
)  # fmt: skip

# ---- comparison and logic: boolean results, no gradient

lt = elementwise("lt", array="less", boolean=True, arity=2)
le = elementwise("le", array="less_equal", boolean=True, arity=2)
gt = elementwise("gt", array="greater", boolean=True, arity=2)
ge = elementwise("ge", array="greater_equal", boolean=True, arity=2)
eq = elementwise("eq", array="equal", boolean=True, arity=2)
ne = elementwise("ne", array="not_equal", boolean=True, arity=2)
logical_and = elementwise("logical_and", boolean=True, arity=2)
logical_or = elementwise("logical_or", boolean=True, arity=2)
logical_xor = elementwise("logical_xor", boolean=True, arity=2)
logical_not = elementwise("logical_not", boolean=True, arity=1)
isnan = elementwise("isnan", boolean=True, arity=1)
isinf = elementwise("isinf", boolean=True, arity=1)
isfinite = elementwise("isfinite", boolean=True, arity=1)

# ---- powers, exponentials, logarithms

square = elementwise("square", lambda y, x: 2 * x)
sqrt = elementwise("sqrt", lambda y, x: 0.5 / y, domain=_POSITIVE, int_to_float=True)
rsqrt = elementwise(
    "rsqrt", lambda y, x: -0.5 * (y * y * y), expression=lambda x: 1 / sqrt(x), domain=_POSITIVE,
    int_to_float=True
)  # fmt: skip
reciprocal = elementwise("reciprocal", lambda y, x: -(y * y), domain=_POSITIVE, int_to_float=True)


def _zero_power(a, b):
    """Where 0 ** b is 0 or 1 whatever b is nearby: no gradient to the exponent."""
    return logical_and(eq(a, 0), ge(b, 0))


pow = elementwise(
    "pow",
    lambda y, a, b: where(b == 0 if isinstance(b, (int, float)) else eq(b, 0), 0, b * a ** (b - 1)),
    lambda y, a, b: where(_zero_power(a, b), 0, y * log(where(_zero_power(a, b), 1, a))),
    array="power",
    domain=(_POSITIVE, (-2.0, 2.0)),
)
exp = elementwise("exp", lambda y, x: y, int_to_float=True)
exp2 = elementwise("exp2", lambda y, x: y * math.log(2), int_to_float=True)
expm1 = elementwise("expm1", lambda y, x: y + 1, int_to_float=True)
log = elementwise("log", lambda y, x: 1 / x, domain=_POSITIVE, int_to_float=True)
log2 = elementwise("log2", lambda y, x: 1 / (x * math.log(2)), domain=_POSITIVE, int_to_float=True)
log10 = elementwise(
    "log10", lambda y, x: 1 / (x * math.log(10)), domain=_POSITIVE, int_to_float=True
)
log1p = elementwise("log1p", lambda y, x: 1 / (x + 1), domain=_POSITIVE, int_to_float=True)
logaddexp = elementwise("logaddexp", lambda y, a, b: sigmoid(a - b), lambda y, a, b: sigmoid(b - a))

# ---- trigonometric and hyperbolic

sin = elementwise("sin", lambda y, x: cos(x), int_to_float=True)
cos = elementwise("cos", lambda y, x: -sin(x), int_to_float=True)
tan = elementwise("tan", lambda y, x: 1 + y * y, domain=(-1.2, 1.2), int_to_float=True)
asin = elementwise(
    "asin", lambda y, x: rsqrt(1 - x * x), array="arcsin", domain=_UNIT, int_to_float=True
)
acos = elementwise(
    "acos", lambda y, x: -rsqrt(1 - x * x), array="arccos", domain=_UNIT, int_to_float=True
)
atan = elementwise("atan", lambda y, x: 1 / (1 + x * x), array="arctan", int_to_float=True)


def _over_square(x, a, b):
    """``x / (a * a + b * b)``, and 0 at the origin."""
    square_of_radius = a * a + b * b
    at_origin = eq(square_of_radius, 0)
    return where(at_origin, 0, x / where(at_origin, 1, square_of_radius))


atan2 = elementwise(
    "atan2", lambda y, a, b: _over_square(b, a, b), lambda y, a, b: _over_square(-a, a, b),
    array="arctan2", domain=_POSITIVE, int_to_float=True,
)  # fmt: skip
sinh = elementwise("sinh", lambda y, x: cosh(x), int_to_float=True)
cosh = elementwise("cosh", lambda y, x: sinh(x), int_to_float=True)
tanh = elementwise("tanh", lambda y, x: 1 - y * y, int_to_float=True)
asinh = elementwise("asinh", lambda y, x: rsqrt(x * x + 1), array="arcsinh", int_to_float=True)
acosh = elementwise(
    "acosh", lambda y, x: rsqrt(x * x - 1), array="arccosh", domain=_ABOVE_ONE, int_to_float=True
)
atanh = elementwise(
    "atanh", lambda y, x: 1 / (1 - x * x), array="arctanh", domain=_UNIT, int_to_float=True
)
hypot = elementwise("hypot", lambda y, a, b: a / y, lambda y, a, b: b / y, domain=_POSITIVE)
erf = elementwise("erf", lambda y, x: 2 / math.sqrt(math.pi) * exp(-(x * x)), int_to_float=True)

# ---- steps, rounding, extremes

abs = elementwise("abs", lambda y, x: sign(x), array="absolute")
sign = elementwise("sign", lambda y, x: 0)
floor = elementwise("floor", lambda y, x: 0)
ceil = elementwise("ceil", lambda y, x: 0)
trunc = elementwise("trunc", lambda y, x: 0)
round = elementwise("round", lambda y, x: 0, array="rint")
floor_divide = elementwise("floor_divide", lambda y, a, b: 0, lambda y, a, b: 0, domain=_POSITIVE)
remainder = elementwise(
    "remainder", lambda y, a, b: 1, lambda y, a, b: -floor(a / b), domain=((3.1, 3.9), (1.1, 1.5))
)
fmod = elementwise(
    "fmod", lambda y, a, b: 1, lambda y, a, b: -trunc(a / b), domain=((3.1, 3.9), (1.1, 1.5))
)
maximum = elementwise(
    "maximum",
    lambda y, a, b: where(gt(a, b), 1, where(eq(a, b), 0.5, 0)),
    lambda y, a, b: where(gt(b, a), 1, where(eq(a, b), 0.5, 0)),
)
minimum = elementwise(
    "minimum",
    lambda y, a, b: where(lt(a, b), 1, where(eq(a, b), 0.5, 0)),
    lambda y, a, b: where(lt(b, a), 1, where(eq(a, b), 0.5, 0)),
)
clamp_min = elementwise(
    "clamp_min", lambda y, x, low: where(ge(x, low), 1, 0), lambda y, x, low: where(lt(x, low), 1,
    0),
    expression=lambda x, low: maximum(x, low),
)  # fmt: skip
clamp_max = elementwise(
    "clamp_max", lambda y, x, high: where(le(x, high), 1, 0), lambda y, x, high: where(gt(x, high),
    1, 0),
    expression=lambda x, high: minimum(x, high),
)  # fmt: skip
lerp = elementwise(
    "lerp",
    expression=lambda a, b, w: where(lt(abs(w), 0.5), a + w * (b - a), b - (b - a) * (1 - w)),
)

# ---- activations


def _sigmoid(x):
    z = exp(-abs(x))  # never overflows, and keeps the relative precision of both tails
    return where(ge(x, 0), 1, z) / (1 + z)


sigmoid = elementwise("sigmoid", lambda y, x: y * (1 - y), expression=_sigmoid, int_to_float=True)
log_sigmoid = elementwise(
    "log_sigmoid",
    lambda y, x: sigmoid(-x),
    expression=lambda x: minimum(x, 0) - log1p(exp(-abs(x))),
)
relu = elementwise("relu", lambda y, x: where(gt(y, 0), 1, 0), expression=lambda x: maximum(x, 0))
relu6 = elementwise(
    "relu6",
    lambda y, x: where(logical_and(gt(y, 0), lt(y, 6)), 1, 0),
    expression=lambda x: minimum(maximum(x, 0), 6),
    domain=(-2.0, 8.0),
)
leaky_relu = elementwise(
    "leaky_relu",
    lambda y, x, slope: where(gt(x, 0), 1, slope),
    None,
    expression=lambda x, slope: where(gt(x, 0), x, x * slope),
)
elu = elementwise(
    "elu",
    lambda y, x, alpha: where(gt(x, 0), 1, alpha * exp(minimum(x, 0))),
    None,
    expression=lambda x, alpha: where(gt(x, 0), x, alpha * expm1(minimum(x, 0))),
)
softplus = elementwise(
    "softplus",
    lambda y, x, beta, threshold: where(gt(x * beta, threshold), 1, sigmoid(x * beta)),
    None,
    None,
    expression=lambda x, beta, threshold: where(
        gt(x * beta, threshold), x, (maximum(x * beta, 0) + log1p(exp(-abs(x * beta)))) / beta
    ),
    domain=((-2.0, 2.0), (1.0, 2.0), (20.0, 30.0)),
)
silu = elementwise("silu", expression=lambda x: x * sigmoid(x))
mish = elementwise("mish", expression=lambda x: x * tanh(maximum(x, 0) + log1p(exp(-abs(x)))))
gelu = elementwise("gelu", expression=lambda x: 0.5 * x * (1 + erf(x * math.sqrt(0.5))))
gelu_tanh = elementwise(
    "gelu_tanh",
    expression=lambda x: (
        0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    ),
)
hardtanh = elementwise(
    "hardtanh",
    lambda y, x, low, high: where(logical_and(gt(x, low), lt(x, high)), 1, 0),
    None,
    None,
    expression=lambda x, low, high: minimum(maximum(x, low), high),
    domain=((-3.0, 3.0), (-1.5, -1.0), (1.0, 1.5)),
)
