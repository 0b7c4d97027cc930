"""Mathematical functions of vectors in LLVM IR, without branches.

They stay within 2 units in the last place of the exact value (tanh in float64: 3) for every
argument, denormal numbers included, with and without fused multiply-add;
``tests/codegen/test_llvm.py`` measures it. NaN propagates, limits are exact. Polynomials are, for
float32, those of S. L. Moshier's Cephes library (expf.c, exp2f.c, logf.c, tanhf.c; 1992), for
float64 those of Sun Microsystems' fdlibm (e_exp.c, e_log.c; 1993), whose erf is in ``special``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import special
from .ir import Value

_INF = math.inf


class _Format(NamedTuple):
    """Numbers that depend on the precision."""

    mantissa: int  # bits
    bias: int
    sqrt_half: int  # the bits of sqrt(1/2)
    ln2: tuple[float, float]  # log 2 in two parts, the first so short that n times it is exact
    exp_range: tuple[float, float]  # beyond: 0 and infinity
    expm1_low: float  # below: -1

    @property
    def to_nearest(self) -> float:
        """Adding it rounds a number that is not large to an integer."""
        return 1.5 * 2.0**self.mantissa

    @property
    def to_nearest_bits(self) -> int:
        return (self.bias + self.mantissa << self.mantissa) + (1 << self.mantissa - 1)


_FORMATS = {
    "float": _Format(23, 127, 0x3F3504F3, (0.693359375, -2.12194440e-4), (-104.0, 89.0), -18.0),
    "double": _Format(
        52,
        1023,
        0x3FE6A09E667F3BCD,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        (-746.0, 710.0),
        -39.0,
    ),
}


def _format(x: Value) -> _Format:
    return _FORMATS[x.code.element]


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
    """The integer nearest to ``x * factor``, as a real number and as an integer."""
    form = _format(x)
    shifted = x.code.fma(x, factor, form.to_nearest)
    return shifted - form.to_nearest, shifted.bits - form.to_nearest_bits


def _power_of_two(n: Value) -> Value:
    """2**n for the exponents of normal numbers."""
    form = _FORMATS[n.code.element]
    return (n + form.bias).bitwise("shl", form.mantissa).real


def _scaled(x: Value, n: Value) -> Value:
    """x * 2**n for x about 1, in two steps: only the second rounds, also to denormal numbers."""
    half = n.bitwise("ashr", 1)
    return x * _power_of_two(half) * _power_of_two(n - half)


_EXPM1_32 = (
    5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3,
    1.9875691500e-4,
)  # fmt: skip
_EXP_64 = (
    1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05,
    -1.65339022054652515390e-06, 4.13813679705723846039e-08,
)  # fmt: skip


def _reduced(x: Value) -> tuple[Value, Value]:
    """``n`` and ``exp(r) - 1`` with x = n log 2 + r and |r| <= log(2) / 2."""
    fma = x.code.fma
    high, low = _format(x).ln2
    rounded, n = _nearest(x, math.log2(math.e))
    rest = fma(rounded, -high, x)
    r = fma(rounded, -low, rest)
    z = r * r
    if x.code.element == "float":
        return n, fma(z, horner(r, _EXPM1_32), r)
    c = r - z * horner(z, _EXP_64)
    return n, rest + (r * c / (2.0 - c) - rounded * low)


def exp(x: Value) -> Value:
    n, small = _reduced(clamp(x, *_format(x).exp_range))
    return _scaled(small + 1.0, n)


def expm1(x: Value) -> Value:
    select = x.code.select
    form = _format(x)
    n, small = _reduced(clamp(x, form.expm1_low, form.exp_range[1]))
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


_LOG_32 = (
    3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1,
    -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2,
)  # fmt: skip
_LOG_64 = (
    6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
    2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
    1.479819860511658591e-01,
)  # fmt: skip


def _split(x: Value) -> tuple[Value, Value, Value]:
    """``e`` as an integer and as a real number, and ``m - 1``, with x = m 2**e, m near 1."""
    form = _format(x)
    bits = x.bits
    e = (bits - form.sqrt_half).bitwise("ashr", form.mantissa)
    m = (bits - e.bitwise("shl", form.mantissa)).real
    real = (e + form.to_nearest_bits).real - form.to_nearest
    return e, real, m - 1.0


def _log_tail(f: Value) -> Value:
    """log(1 + f) - f for sqrt(1/2) <= 1 + f < sqrt(2)."""
    fma = f.code.fma
    z = f * f
    if f.code.element == "float":
        return fma(z, -0.5, f * z * horner(f, _LOG_32))
    s = f / (f + 2.0)
    s2 = s * s
    half = 0.5 * z
    return s * (half + s2 * horner(s2, _LOG_64)) - half


def _normal(x: Value) -> tuple[Value, Value]:
    """x without denormal numbers, and what to add to the exponent for it."""
    form, select = _format(x), x.code.select
    tiny = x < 2.0 ** (1 - form.bias)
    shift = float(form.mantissa)
    return select(tiny, x * 2.0**shift, x), select(tiny, -shift, 0.0)


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
    high, low = _format(x).ln2
    scaled, correction = _normal(x)
    _, e, f = _split(scaled)
    e = e + correction
    return _outside(x, fma(e, high, f + fma(e, low, _log_tail(f))))


def log1p(x: Value) -> Value:
    """log of u = 1 + x, with what rounding u lost added to its fraction."""
    fma, select, form = x.code.fma, x.code.select, _format(x)
    u = x + 1.0
    lost = select(x > 1.0, 1.0 - (u - x), x - (u - 1.0))
    n, e, f = _split(u)
    lowest = 1 - form.bias
    scale = select((0 - n).compare("slt", lowest), lowest, 0 - n)
    f = f + lost * _power_of_two(scale)
    high, low = form.ln2
    y = fma(e, high, f + fma(e, low, _log_tail(f)))
    return select(x.equals(0.0), x, _outside(x, y, -1.0))  # keeps the sign of zero


def log2(x: Value) -> Value:
    fma = x.code.fma
    scaled, correction = _normal(x)
    _, e, f = _split(scaled)
    tail = _log_tail(f)
    excess = math.log2(math.e) - 1  # smaller than log2(e), and so is its rounding
    y = fma(f, excess, fma(tail, excess, tail)) + f
    return _outside(x, y + (e + correction))


def log10(x: Value) -> Value:
    return log(x) * math.log10(math.e)


_TANH = (
    -3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3,
)  # fmt: skip


def tanh(x: Value) -> Value:
    """A polynomial below 0.625, else 1 - 2 / (exp(2 |x|) + 1)."""
    a = absolute(x)
    z = x * x
    near = x.code.fma(a * z, horner(z, _TANH), a)
    n, small = _reduced(clamp(a, 0.0, 10.0) * 2.0)  # tanh(10) rounds to 1
    power = _power_of_two(n)
    far = 1.0 - 2.0 / (small * power + (power + 1.0))
    return with_sign_of(x.code.select(a < 0.625, near, far), x)


def tanh64(x: Value) -> Value:
    """t / (t + 2) with t = exp(2 |x|) - 1."""
    n, small = _reduced(clamp(absolute(x), 0.0, 22.0) * 2.0)  # tanh(22) rounds to 1
    power = _power_of_two(n)
    t = x.code.fma(power, small, power - 1.0)
    return with_sign_of(t / (t + 2.0), x)


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
FLOAT64: dict[str, Callable[[Value], Value]] = {
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "tanh": tanh64,
}  # fmt: skip


def for_element(element: str) -> dict[str, Callable[[Value], Value]]:
    """The functions there are for ``float`` or ``double``."""
    return FLOAT32 if element == "float" else FLOAT64
