"""What mathematical functions of vectors are made of: floating-point formats, polynomials, powers
of two, and the exponential and logarithm of a reduced argument.

Everything goes by the type of its vectors, not by the element type of the kernel around it: a
function of float32 may compute in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .ir import Value, with_element


class _Format(NamedTuple):
    """Numbers that depend on the precision."""

    mantissa: int  # bits
    bias: int
    sqrt_half: int  # the bits of sqrt(1/2)
    ln2: tuple[float, float]  # log 2 in two parts, the first so short that n times it is exact
    exp_range: tuple[float, float]  # beyond: 0 and infinity
    exp2_range: tuple[float, float]
    expm1_low: float  # below: -1

    @property
    def to_nearest(self) -> float:
        """Adding it rounds a number that is not large to an integer."""
        return 1.5 * 2.0**self.mantissa

    @property
    def to_nearest_bits(self) -> int:
        return (self.bias + self.mantissa << self.mantissa) + (1 << self.mantissa - 1)


_FORMATS = {
    "float": _Format(
        23,
        127,
        0x3F3504F3,
        (0.693359375, -2.12194440e-4),
        (-104.0, 89.0),
        (-151.0, 129.0),
        -18.0,
    ),
    "double": _Format(
        52,
        1023,
        0x3FE6A09E667F3BCD,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        (-746.0, 710.0),
        (-1076.0, 1025.0),
        -39.0,
    ),
}


def is_single(x: Value) -> bool:
    """Whether it is float32, or the bits of one."""
    return not ("double" in x.type or "i64" in x.type)


def format_of(x: Value) -> _Format:
    return _FORMATS["float" if is_single(x) else "double"]


def widened(x: Value) -> Value:
    """In float64."""
    return x.convert("fpext", with_element(x.type, "double")) if is_single(x) else x


def narrowed(x: Value, like: Value) -> Value:
    """Rounded to the format of another vector."""
    return x.convert("fptrunc", like.type) if is_single(like) else x


def horner(x: Value, coefficients: Sequence[float]) -> Value:
    """A polynomial; coefficients from the constant term up."""
    code = x.code
    result = code.like(x, coefficients[-1])
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


def head(x: Value) -> Value:
    """The leading 26 bits of a float64: products of two such numbers are exact."""
    return (x.bits & -(1 << 27)).real


def nearest(x: Value, factor: float) -> tuple[Value, Value]:
    """The integer nearest to ``x * factor``, as a real number and as an integer."""
    form = format_of(x)
    shifted = x.code.fma(x, factor, form.to_nearest)
    return shifted - form.to_nearest, shifted.bits - form.to_nearest_bits


def power_of_two(n: Value) -> Value:
    """2**n for the exponents of normal numbers."""
    form = format_of(n)
    return (n + form.bias).bitwise("shl", form.mantissa).real


def scaled(x: Value, n: Value) -> Value:
    """x * 2**n for x about 1, in two steps: only the second rounds, also to denormal numbers."""
    half = n.bitwise("ashr", 1)
    return x * power_of_two(half) * power_of_two(n - half)


_EXPM1_32 = (
    5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3,
    1.9875691500e-4,
)  # fmt: skip
_EXP_64 = (
    1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05,
    -1.65339022054652515390e-06, 4.13813679705723846039e-08,
)  # fmt: skip


def exp_excess(r: Value) -> Value:
    """``exp(r) - 1 - r`` in float64 for |r| <= log(2) / 2."""
    c = r - r * r * horner(r * r, _EXP_64)
    return r * c / (2.0 - c)


def exp_reduced(x: Value) -> tuple[Value, Value]:
    """``n`` and ``exp(r) - 1`` with x = n log 2 + r and |r| <= log(2) / 2."""
    fma = x.code.fma
    high, low = format_of(x).ln2
    rounded, n = nearest(x, math.log2(math.e))
    rest = fma(rounded, -high, x)
    r = fma(rounded, -low, rest)
    if is_single(x):
        return n, fma(r * r, horner(r, _EXPM1_32), r)
    return n, rest + (exp_excess(r) - rounded * low)


_LOG_32 = (
    3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1,
    -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2,
)  # fmt: skip
_LOG_64 = (
    6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
    2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
    1.479819860511658591e-01,
)  # fmt: skip


def split(x: Value) -> tuple[Value, Value, Value]:
    """``e`` as an integer and as a real number, and ``m - 1``, with x = m 2**e, m near 1."""
    form = format_of(x)
    bits = x.bits
    e = (bits - form.sqrt_half).bitwise("ashr", form.mantissa)
    m = (bits - e.bitwise("shl", form.mantissa)).real
    real = (e + form.to_nearest_bits).real - form.to_nearest
    return e, real, m - 1.0


def log_tail(f: Value) -> Value:
    """log(1 + f) - f for sqrt(1/2) <= 1 + f < sqrt(2)."""
    fma = f.code.fma
    z = f * f
    if is_single(f):
        return fma(z, -0.5, f * z * horner(f, _LOG_32))
    s = f / (f + 2.0)
    s2 = s * s
    half = 0.5 * z
    return s * (half + s2 * horner(s2, _LOG_64)) - half


def normal(x: Value) -> tuple[Value, Value]:
    """x without denormal numbers, and what to add to the exponent for it."""
    form, code = format_of(x), x.code
    tiny = x < 2.0 ** (1 - form.bias)
    shift = float(form.mantissa)
    correction = code.select(tiny, code.like(x, -shift), 0.0)
    return code.select(tiny, x * 2.0**shift, x), correction
