"""pow of vectors: 2 ** (b log2 |a|), and the cases of C's Annex F and NumPy."""

from __future__ import annotations

import math

from .ir import Value
from .vector_base import (
    absolute,
    clamp,
    exp_excess,
    format_of,
    head,
    horner,
    is_single,
    narrowed,
    nearest,
    normal,
    power_of_two,
    scaled,
    split,
    widened,
    with_sign_of,
)

_INF = math.inf


def pow(a: Value, b: Value) -> Value:
    """``a ** b``; float32 is computed in float64 and rounded once."""
    size = absolute(a)
    near, correction = normal(size)
    _, e, f = split(near)
    e = e + correction
    power = _power_32(b, e, f) if is_single(a) else _power_64(b, e, f)
    return _special_cases(a, b, size, power)


def _special_cases(a: Value, b: Value, size: Value, power: Value) -> Value:
    """The sign of a power, and its limits: ``power`` is that of |a|, for finite numbers."""
    code, select = a.code, a.code.select
    extent = absolute(b)
    limit = size.equals(0.0) | size.equals(_INF) | extent.equals(_INF)
    grows = (size > 1.0) ^ (b < 0.0)
    power = select(limit, select(grows, code.like(a, _INF), 0.0), power)
    integer, odd = _parity(extent)
    power = select(odd, with_sign_of(power, a), power)
    undefined = (a < 0.0) & (integer ^ 1) & (limit ^ 1)
    power = select(undefined | a.compare("uno", b), math.nan, power)
    one = b.equals(0.0) | a.equals(1.0) | (size.equals(1.0) & extent.equals(_INF))
    return select(one, 1.0, power)


def _parity(x: Value) -> tuple[Value, Value]:
    """Whether numbers that are not negative are integers, and odd ones."""
    shift = 2.0 ** format_of(x).mantissa  # adding it rounds; from it on all numbers are integers
    shifted = x + shift
    large = x >= shift
    integer = large | (shifted - shift).equals(x)
    ones = x.code.select(large, x.bits, shifted.bits) & 1
    return integer, integer & (x < 2.0 * shift) & ones.compare("ne", 0)


# ------------------------------------------------------------------------------------------------
# for float32: float64 has 29 bits more than the result, 8 of which the exponent takes

# Minimax polynomials: 2 atanh(s) / log(2) = s (...) in s**2 up to 0.0295, 2**r = 1 + r (...) for
# |r| <= 1/2
_LOG2 = (
    2.8853900817900997, 0.9617966733236792, 0.5770835886553208, 0.4116724851246982,
    0.34073464445410817,
)  # fmt: skip
_EXP2 = (
    0.6931471806094961, 0.24022650916372829, 0.055504105250372415, 0.009618057479431114,
    0.001333388542122826, 0.00015461235578183066, 1.519533117132406e-05,
)  # fmt: skip


def _power_32(y: Value, e: Value, f: Value) -> Value:
    """(2**e (1 + f)) ** y."""
    wide = widened(f)
    s = wide / (wide + 2.0)
    x = widened(y) * y.code.fma(s, horner(s * s, _LOG2), widened(e))
    x = clamp(x, -151.0, 129.0)  # what float32 rounds to 0 and infinity
    rounded, n = nearest(x, 1.0)
    r = x - rounded
    return narrowed(y.code.fma(r, horner(r, _EXP2), 1.0) * power_of_two(n), y)


# ------------------------------------------------------------------------------------------------
# for float64: numbers in two parts with 64 bits, of which an exponent takes 10. The first part has
# 26 bits where it is multiplied

# 3 atanh(s) / s = 3 + s**2 + s**4 (...), for s**2 below 0.0295
_ATANH = (
    0.5999999999999996, 0.42857142857167707, 0.3333333332629529, 0.2727272830663021,
    0.23076835227290063, 0.20004479181932672, 0.17512165666557172, 0.17984037774958767,
)  # fmt: skip
_SCALE = 2 / (3 * math.log(2))
_SCALE_PARTS = (0.9617966860532761, 7.872699542894897e-09)
_LN2_PARTS = (0.6931471675634384, 1.2996506893889889e-08)


def _power_64(y: Value, e: Value, f: Value) -> Value:
    """(2**e (1 + f)) ** y."""
    high, low = _precise_log2(f)
    total = e + high
    low = ((e - total) + high) + low
    y = clamp(y, -(2.0**66), 2.0**66)  # beyond: 0 and infinity for every base but 1
    total_head, y_head = head(total), head(y)
    rest = y.code.fma(y - y_head, total_head, y * ((total - total_head) + low))
    return _precise_exp2(y_head * total_head, rest)


def _precise_log2(f: Value) -> tuple[Value, Value]:
    """log2(1 + f) in two parts, the first exact: 2 atanh(s) / log 2 with s = f / (2 + f)."""
    fma = f.code.fma
    d = f + 2.0
    d_head = head(d)
    inverse = 1.0 / d
    s_head = head(f * inverse)
    remainder = fma(s_head, -d_head, f) - s_head * (f - (d_head - 2.0))
    s_low = remainder * inverse
    s = s_head + s_low
    z = s_head * s_head  # exact; the rest of s**2 goes to the small terms
    z2 = (s * s) * (s * s)
    small = fma(z2, horner(s * s, _ATANH), s_low * (s_head + s))
    t_head = head((z + 3.0) + small)
    t_low = small - ((t_head - 3.0) - z)
    u = s_head * t_head
    v = fma(s_low, t_head, t_low * s)
    p_head = head(u + v)
    p_low = v - (p_head - u)
    first, second = _SCALE_PARTS
    return p_head * first, fma(p_head, second, p_low * _SCALE)


def _precise_exp2(x: Value, rest: Value) -> Value:
    """2 ** (x + rest), to 0.6 units in the last place unless it is denormal."""
    code = x.code
    x, rest = clamp(x, -1100.0, 1030.0), clamp(rest, -1.0, 1.0)
    rounded, n = nearest(x + rest, 1.0)
    r = x - rounded
    r_head = head(r)
    first, second = _LN2_PARTS
    w = r_head * first  # exact
    low = code.fma((r - r_head) + rest, math.log(2), r_head * second)
    total = w + 1.0
    lost = (1.0 - total) + w
    return scaled(total + (lost + (low + exp_excess(w + low))), n)
