"""Mathematical functions of vectors in LLVM IR, without branches.

float32 stays within 2 units in the last place of the exact value for every argument, denormal
numbers included, with and without fused multiply-add (``tests/codegen/test_llvm.py`` measures it).
NaN propagates, limits are exact. Polynomials are those of S. L. Moshier's Cephes library (single
precision: expf.c, logf.c, tanhf.c, exp2f.c, 1992) and of Sun Microsystems' fdlibm (1993), whose
erf is in ``special``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from . import special
from .ir import Value

_INF = math.inf
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # the high part has 9 bits: n * high is exact
_TO_NEAREST = 12582912.0  # 1.5 * 2**23: adding it rounds a float32 below 2**22 to an integer


def horner(x: Value, coefficients: Sequence[float]) -> Value:
    """A polynomial; coefficients from the constant term up."""
    code = x.code
    result = code.constant(coefficients[-1])
    for c in coefficients[-2::-1]:
        result = code.fma(result, x, c)
    return result


def clamp(x: Value, low: float, high: float) -> Value:
    """NaN stays NaN."""
    select = x.code.select
    x = select(x > high, high, x)
    return select(x < low, low, x)


def absolute(x: Value) -> Value:
    return x.code.call("fabs", x)


def with_sign_of(x: Value, sign: Value) -> Value:
    return x.code.call("copysign", x, sign)


def _nearest(x: Value, factor: float) -> tuple[Value, Value]:
    """The integer nearest to ``x * factor``, as float32 and as int32."""
    shifted = x.code.fma(x, factor, _TO_NEAREST)
    return shifted - _TO_NEAREST, shifted.bits - 0x4B400000  # the bits of 1.5 * 2**23


def _power_of_two(n: Value) -> Value:
    """2**n as float32 for -126 <= n <= 127."""
    return (n + 127).bitwise("shl", 23).real


def _scaled(x: Value, n: Value) -> Value:
    """x * 2**n for x about 1, in two steps: only the second rounds, also to denormal numbers."""
    half = n.bitwise("ashr", 1)
    return x * _power_of_two(half) * _power_of_two(n - half)


_EXPM1 = (
    5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3,
    1.9875691500e-4,
)  # fmt: skip


def _reduced(x: Value) -> tuple[Value, Value]:
    """``n`` and ``exp(r) - 1`` with x = n log 2 + r and |r| <= log(2) / 2 (expf.c)."""
    fma = x.code.fma
    rounded, n = _nearest(x, math.log2(math.e))
    r = fma(rounded, -_LN2_HIGH, x)
    r = fma(rounded, -_LN2_LOW, r)
    return n, fma(r * r, horner(r, _EXPM1), r)


def exp(x: Value) -> Value:
    n, small = _reduced(clamp(x, -104.0, 89.0))  # beyond: 0 and infinity
    return _scaled(small + 1.0, n)


def expm1(x: Value) -> Value:
    select = x.code.select
    n, small = _reduced(clamp(x, -18.0, 89.0))  # below: -1
    # 2**n (exp(r) - 1) + (2**n - 1), at half size so that 2**128 does not overflow
    half = _power_of_two(n - 1)
    y = x.code.fma(half, small, half - 0.5) * 2.0
    y = select(n.compare("eq", 0), small, y)  # keeps the bits of denormal numbers
    return select(x.equals(0.0), x, y)  # and the sign of zero


_EXP2 = (
    6.931472028550421e-1, 2.402264791363012e-1, 5.550332471162809e-2, 9.618437357674640e-3,
    1.339887440266574e-3, 1.535336188319500e-4,
)  # fmt: skip


def exp2(x: Value) -> Value:
    """exp2f.c."""
    x = clamp(x, -151.0, 129.0)
    rounded, n = _nearest(x, 1.0)
    r = x - rounded
    return _scaled(x.code.fma(r, horner(r, _EXP2), 1.0), n)


_LOG = (
    3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1,
    -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2,
)  # fmt: skip


def _split(x: Value) -> tuple[Value, Value, Value]:
    """``e`` as int32 and as float32, and ``m - 1``, with x = m 2**e and m near 1."""
    bits = x.bits
    e = (bits - 0x3F3504F3).bitwise("ashr", 23)  # the bits of sqrt(1/2)
    m = (bits - e.bitwise("shl", 23)).real
    return e, e.convert("sitofp", x.type), m - 1.0


def _log_tail(f: Value) -> Value:
    """log(1 + f) - f for sqrt(1/2) <= 1 + f < sqrt(2) (logf.c)."""
    z = f * f
    return x_minus_half(f * z * horner(f, _LOG), z)


def x_minus_half(x: Value, z: Value) -> Value:
    return x.code.fma(z, -0.5, x)


def _normal(x: Value) -> tuple[Value, Value]:
    """x without denormal numbers, and what to add to the exponent for it."""
    select = x.code.select
    tiny = x < 2.0**-126
    return select(tiny, x * 2.0**23, x), select(tiny, -23.0, 0.0)


def _outside(x: Value, y: Value, zero: float = 0.0) -> Value:
    """The values of a logarithm with its pole at ``zero``: at the pole, below, at infinity and
    NaN."""
    select = x.code.select
    y = select(x.equals(_INF), x, y)
    y = select(x.equals(zero), -_INF, y)
    y = select(x < zero, math.nan, y)
    return select(x.is_nan(), x, y)


def log(x: Value) -> Value:
    fma = x.code.fma
    scaled, correction = _normal(x)
    _, e, f = _split(scaled)
    e = e + correction
    y = fma(e, _LN2_LOW, _log_tail(f))
    return _outside(x, fma(e, _LN2_HIGH, f + y))


def log1p(x: Value) -> Value:
    """log of u = 1 + x, with what rounding u lost added to its fraction."""
    fma, select = x.code.fma, x.code.select
    u = x + 1.0
    lost = select(x > 1.0, 1.0 - (u - x), x - (u - 1.0))
    e, exponent, f = _split(u)
    f = f + lost * _power_of_two(clamp_exponent(-1 * e))
    y = fma(exponent, _LN2_LOW, _log_tail(f))
    y = _outside(x, fma(exponent, _LN2_HIGH, f + y), -1.0)
    return select(x.equals(0.0), x, y)  # the sign of zero


def clamp_exponent(n: Value) -> Value:
    return n.code.select(n.compare("slt", -126), -126, n)


def log2(x: Value) -> Value:
    scaled, correction = _normal(x)
    _, e, f = _split(scaled)
    # log2(m) in two products, f log2(e) + tail log2(e), would do; the constant minus 1 is smaller
    fma = x.code.fma
    y = _log_tail(f)
    excess = math.log2(math.e) - 1
    y = fma(f, excess, fma(y, excess, y)) + f
    return _outside(x, y + (e + correction))


def log10(x: Value) -> Value:
    return log(x) * math.log10(math.e)


_TANH = (
    -3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3,
)  # fmt: skip


def tanh(x: Value) -> Value:
    """A polynomial below 0.625, else 1 - 2 / (exp(2 x) + 1) (tanhf.c)."""
    a = absolute(x)
    z = x * x
    near = x.code.fma(a * z, horner(z, _TANH), a)
    n, small = _reduced(clamp(a, 0.0, 10.0) * 2.0)  # tanh(10) rounds to 1
    far = 1.0 - 2.0 / (small * _power_of_two(n) + (_power_of_two(n) + 1.0))
    return with_sign_of(x.code.select(a < 0.625, near, far), x)


def erf(x: Value) -> Value:
    """fdlibm's first formula below 1.25 and its third beyond, to where erf rounds to 1.

    Made for double precision up to 0.84375 and 2.857, they are more precise than float32 on these
    wider ranges.
    """
    fma = x.code.fma
    a = absolute(x)
    z = a * a
    near = fma(a, horner(z, special._P) / horner(z, special._Q), a)
    b = clamp(a, 1.0, 4.0)
    inverse = 1.0 / (b * b)
    ratio = horner(inverse, special._RA) / horner(inverse, special._SA)
    far = 1.0 - exp_simple(ratio - 0.5625 - b * b) / b
    return with_sign_of(x.code.select(a < 1.25, near, far), x)


def exp_simple(x: Value) -> Value:
    """exp between -87 and 88."""
    n, small = _reduced(x)
    return (small + 1.0) * _power_of_two(n)


FLOAT32: dict[str, Callable[[Value], Value]] = {
    "exp": exp, "exp2": exp2, "expm1": expm1, "log": log, "log2": log2, "log10": log10,
    "log1p": log1p, "tanh": tanh, "erf": erf,
}  # fmt: skip
FLOAT64: dict[str, Callable[[Value], Value]] = {}


def for_element(element: str) -> dict[str, Callable[[Value], Value]]:
    """The functions there are for ``float`` or ``double``."""
    return FLOAT32 if element == "float" else FLOAT64
